//! Hostile messages straight into the queues of a server, in memory.

#![allow(clippy::unwrap_used)]

mod common;

use common::raw::{self, Raw, enveloped};
use common::{PATIENCE, eventually, logs, unique};
use longshore::driver::{Content, Message};
use longshore::{Ack, Context, Router, RpcClient, RpcServer, ServerCounters, Target, Transport};
use serde_json::{Map, Value, json};

fn router() -> Router {
    Router::new()
        .method("ok", async |_: Context| Ok("ok"))
        .method("any", async |_: Context, q: Map<String, Value>| Ok(q.len()))
}

/// What becomes of a message: exactly one of these counts it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Counted {
    Unreadable,
    Refused,
    Expired,
    Succeeded,
}

use Counted::{Expired, Refused, Succeeded, Unreadable};

impl Counted {
    fn all(counters: &ServerCounters) -> [(Self, u64); 4] {
        [
            (Unreadable, counters.unreadable),
            (Refused, counters.refused),
            (Expired, counters.expired),
            (Succeeded, counters.succeeded),
        ]
    }
}

fn bytes(body: impl Into<Vec<u8>>) -> Message {
    Message::json(body.into())
}

fn typed(content_type: Option<&'static str>) -> Message {
    let mut message = enveloped(&json!({"method": "ok", "args": {}}));
    message.content = Content::new(content_type, Some("utf-8"));
    message
}

/// Inner text that no JSON library would write.
fn text(inner: &str) -> Message {
    bytes(json!({"oslo.version": "2.0", "oslo.message": inner}).to_string())
}

fn call(extra: Value) -> Message {
    let mut inner = json!({"method": "ok", "args": {}});
    inner
        .as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    enveloped(&inner)
}

/// Each with what becomes of it.
#[rustfmt::skip]
fn broken() -> Vec<(&'static str, Message, Counted)> {
    let deep = |open: &str, close: &str, n: usize| open.repeat(n) + "1" + &close.repeat(n);
    let mega = |text: &str| text.repeat(1 << 18);
    let args = |args: &str| text(&format!(r#"{{"method":"any","args":{args}}}"#));
    let names = (0..10_000).map(|n| (format!("_context_{n}"), json!(n))).collect();
    vec![
        ("nothing", bytes(""), Unreadable),
        ("garbage", bytes("garbage \u{1}"), Unreadable),
        ("random bytes", bytes([0, 255, 18, 232, 164, 192]), Unreadable),
        ("invalid UTF-8", bytes(*b"{\"method\":\"\xc0\x80\"}"), Unreadable),
        ("half a body", bytes(r#"{"oslo.version":"2.0","oslo.mess"#), Unreadable),
        ("an array", bytes("[1,2]"), Unreadable),
        ("null", bytes("null"), Unreadable),
        ("an open megabyte of [", bytes("[".repeat(1 << 20)), Unreadable),
        ("a closed megabyte of [", bytes(deep("[", "]", 1 << 19)), Unreadable),
        ("deep objects", bytes(deep(r#"{"a":"#, "}", 100_000)), Unreadable),
        ("no content type", typed(None), Unreadable),
        ("pickle", typed(Some("application/x-python-serialize")), Unreadable),
        ("text", typed(Some("text/plain")), Unreadable),
        ("almost JSON", typed(Some("application/json-but-not-quite")), Unreadable),
        ("JSON with parameters", typed(Some("Application/JSON; charset=utf-8")), Succeeded),
        ("envelope 2.1", bytes(r#"{"oslo.version":"2.1","oslo.message":"{}"}"#), Unreadable),
        ("envelope 3.0", bytes(r#"{"oslo.version":"3.0","oslo.message":"{}"}"#), Unreadable),
        ("envelope null", bytes(r#"{"oslo.version":null,"oslo.message":null}"#), Unreadable),
        ("an object within", bytes(r#"{"oslo.version":"2.0","oslo.message":{}}"#), Unreadable),
        ("an empty message", text(""), Unreadable),
        ("no method", text(r#"{"args":{}}"#), Unreadable),
        ("method null", call(json!({"method": null})), Unreadable),
        ("method 1", call(json!({"method": 1})), Unreadable),
        ("method []", call(json!({"method": []})), Unreadable),
        ("method empty", call(json!({"method": ""})), Refused),
        ("method endless", call(json!({"method": mega("m")})), Refused),
        ("method of controls", call(json!({"method": "\u{0}\u{1b}[2J\r\n"})), Refused),
        ("namespace 1", call(json!({"namespace": 1})), Unreadable),
        ("namespace endless", call(json!({"namespace": mega("n")})), Refused),
        ("namespace null", call(json!({"namespace": null})), Succeeded),
        ("version null", call(json!({"version": null})), Refused),
        ("version text", call(json!({"version": "one\n"})), Refused),
        ("version list", call(json!({"version": [1, 0]})), Refused),
        ("version huge", call(json!({"version": "99999999999999999999.1"})), Refused),
        ("args null", call(json!({"args": null})), Refused),
        ("args list", call(json!({"args": [1]})), Refused),
        ("args of an endless name", call(json!({"args": {mega("a"): 1}})), Refused),
        ("args of a name with controls", call(json!({"args": {"a\n\u{1b}[2J": 1}})), Refused),
        ("args of an endless text", args(&format!(r#""{}""#, mega("a"))), Refused),
        ("args missing", text(r#"{"method":"ok"}"#), Succeeded),
        ("args twice", text(r#"{"method":"ok","args":[1],"args":{}}"#), Succeeded),
        ("args deep", args(&deep(r#"{"a":"#, "}", 100_000)), Refused),
        ("args with half a surrogate", args(r#"{"a":"\ud800"}"#), Refused),
        ("a number beyond all", args(&format!(r#"{{"a":1{}}}"#, "0".repeat(1 << 16))), Refused),
        ("10,000 names of context", call(Value::Object(names)), Succeeded),
        ("_msg_id 1", call(json!({"_msg_id": 1, "_reply_q": "x"})), Unreadable),
        ("_msg_id endless", call(json!({"_msg_id": mega("1"), "_reply_q": "x"})), Unreadable),
        ("_reply_q endless", call(json!({"_msg_id": "1", "_reply_q": mega("x")})), Unreadable),
        ("_reply_q a list", call(json!({"_msg_id": "1", "_reply_q": ["x"]})), Unreadable),
        ("_reply_q missing", call(json!({"_msg_id": "1"})), Succeeded),
        ("_reply_q empty", call(json!({"_msg_id": "1", "_reply_q": ""})), Succeeded),
        ("_reply_q of controls", call(json!({"_msg_id": "\u{0}", "_reply_q": "\r\n\u{0}"})), Succeeded),
        ("_unique_id 1", call(json!({"_unique_id": 1})), Succeeded),
        ("_unique_id endless", call(json!({"_unique_id": unique(&mega("u"))})), Succeeded),
        ("_unique_id of few letters", call(json!({"_unique_id": unique("\u{1f600}\u{e9}\u{1f600}\u{1f600}\u{1f600}")})), Succeeded),
        ("_timeout negative", call(json!({"_timeout": -1})), Succeeded),
        ("_timeout huge", call(json!({"_timeout": 1e300, "_msg_id": "1", "_reply_q": "x"})), Succeeded),
        ("_timeout text", call(json!({"_timeout": "soon"})), Succeeded),
        ("_x_deadline text", call(json!({"_x_deadline": "soon", "_x_sent": []})), Succeeded),
        ("_x_deadline negative", call(json!({"_x_deadline": -1, "_x_sent": 0})), Succeeded),
        ("_x_deadline 0", call(json!({"_x_deadline": 0, "_x_sent": 0})), Expired),
        ("_x_deadline huge", call(json!({"_x_deadline": u64::MAX, "_x_sent": 0})), Succeeded),
        ("_x_sent huge", call(json!({"_x_deadline": 0, "_x_sent": u64::MAX})), Expired),
        ("both huge", call(json!({"_x_deadline": u64::MAX, "_x_sent": u64::MAX})), Expired),
        ("beyond 64 bits", call(json!({"_x_deadline": 1e300, "_x_sent": 1e300})), Succeeded),
        ("a key endless", call(json!({"_x_idempotency_key": unique(&mega("k"))})), Succeeded),
        ("a key that is none", call(json!({"_x_idempotency_key": {"a": 1}})), Succeeded),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_counted_once_logged_once_and_never_comes_again() {
    logs::keep();
    for (executor, ack) in [
        ("async", Ack::OnReceipt),
        ("threaded", Ack::AfterWork),
        ("blocking", Ack::OnReceipt),
    ] {
        let url = format!("memory://{}", unique("hostile"));
        let transport = Transport::connect(&url).await.unwrap();
        let topic = unique("target");
        let server = RpcServer::builder(&transport, Target::topic(&*topic).server("s"), router())
            .executor(executor)
            .ack(ack)
            .start()
            .await
            .unwrap();
        let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
        let peer = Raw::open(&url);
        let mut expected = [0_u64; 4];
        let mut sent = 0;
        // What an executor changes is where a message is read, whichever queue it came from.
        let queues = [
            raw::topic(&topic),
            raw::server(&topic, "s"),
            raw::fanout(&topic),
        ];
        let queues = if executor == "async" {
            &queues[..]
        } else {
            &queues[..1]
        };
        for to in queues {
            for (case, message, counted) in broken() {
                let before = Counted::all(&server.counters());
                peer.send(to, message).await;
                sent += 1;
                let total =
                    |counts: &[(Counted, u64); 4]| counts.iter().map(|(_, n)| n).sum::<u64>();
                let what = format!("{executor}: {case} to {to} is counted");
                eventually(&what, || {
                    total(&Counted::all(&server.counters())) > total(&before)
                })
                .await;
                for ((at, (kind, now)), (_, before)) in Counted::all(&server.counters())
                    .into_iter()
                    .enumerate()
                    .zip(before)
                {
                    assert_eq!(
                        now - before,
                        u64::from(kind == counted),
                        "{executor}: {case}, {kind:?}"
                    );
                    expected[at] += u64::from(kind == counted);
                }
            }
        }
        assert_eq!(
            client.call::<String>("ok").await.unwrap(),
            "ok",
            "{executor}: the next good call"
        );
        server.stop(PATIENCE).await.unwrap();
        let counters = server.counters();
        expected[3] += 1;
        assert_eq!(
            Counted::all(&counters).map(|(_, n)| n),
            expected,
            "{executor}: nothing came again"
        );
        assert_eq!(
            (
                counters.running,
                counters.failed,
                counters.panicked,
                counters.requeued,
                counters.abandoned,
                counters.duplicates
            ),
            (0, 0, 0, 0, 0, 0)
        );
        // One line for each that was not run, short and without control characters.
        let lines = logs::mentioning(&topic);
        let count =
            |word: &str| lines.iter().filter(|(_, line)| line.contains(word)).count() as u64;
        assert_eq!(count("is rejected"), counters.unreadable, "{executor}");
        assert_eq!(count("refused:"), counters.refused, "{executor}");
        assert_eq!(count("is dropped"), counters.expired, "{executor}");
        for (_, line) in &lines {
            assert!(
                line.len() < 2_000 && !line.chars().any(char::is_control),
                "{line:?}"
            );
        }
        assert!(sent >= 60, "{sent}");
    }
}

#[tokio::test]
async fn an_inbox_that_names_a_queue_gets_nothing() {
    let url = format!("memory://{}", unique("inbox"));
    let transport = Transport::connect(&url).await.unwrap();
    let target = Target::topic("t").server("s");
    let server = RpcServer::builder(&transport, target, router())
        .start()
        .await
        .unwrap();
    let victim = RpcServer::builder(&transport, Target::topic("victim").server("v"), router());
    let victim = victim.start().await.unwrap();
    let peer = Raw::open(&url);
    let names = [
        "victim",
        "victim.v",
        "victim_fanout",
        "t",
        "t.s",
        "openstack/victim",
        "openstack",
    ];
    for name in names {
        let inner = json!({"method": "ok", "args": {}, "_msg_id": "1", "_reply_q": name});
        peer.request(&raw::topic("t"), &inner).await;
    }
    eventually("all ran", || {
        server.counters().succeeded == names.len() as u64
    })
    .await;
    eventually("all answers are given up", || {
        transport.reply_counters().lost == names.len() as u64
    })
    .await;
    let client = RpcClient::new(&transport, Target::topic("victim")).timeout(PATIENCE);
    assert_eq!(client.call::<String>("ok").await.unwrap(), "ok");
    let counters = victim.counters();
    assert_eq!(
        (counters.succeeded, counters.unreadable),
        (1, 0),
        "a reply reached a server"
    );
    assert_eq!(server.counters().unreadable, 0);
}
