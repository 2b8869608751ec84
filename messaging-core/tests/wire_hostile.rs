//! What peers send that is odd, old, broken or meant to hurt: read or refused, never a panic, an exhausted stack
//! or a wait.

#![expect(clippy::unwrap_used, reason = "a test may stop anywhere")]

use std::time::{Duration, Instant};

use messaging_core::Version;
use messaging_core::wire::{
    Reply, Request, RequestVersion, Times, WireError, decode_reply, decode_request,
};
use serde::Deserialize;
use serde_json::{Value, json};

const MEGABYTE: usize = 1 << 20;

/// What is linear takes a fraction of a second, what is quadratic minutes: enough room for the slowest machine.
const PROMPT: Duration = Duration::from_secs(30);

fn envelope(inner: &str) -> Vec<u8> {
    json!({"oslo.version": "2.0", "oslo.message": inner})
        .to_string()
        .into_bytes()
}

fn request(inner: &str) -> Result<Request, WireError> {
    decode_request(&envelope(inner))
}

fn reply(inner: &str) -> Reply {
    decode_reply(&envelope(inner)).unwrap_or_else(|error| panic!("{inner}: {error}"))
}

/// A request with one more member.
fn with(member: &str) -> Request {
    request(&format!(r#"{{"method":"m",{member}}}"#))
        .unwrap_or_else(|error| panic!("{member}: {error}"))
}

/// Looks at everything, so that nothing lazily read can hide a panic.
fn look_at(body: &[u8]) {
    if let Ok(request) = decode_request(body) {
        let context = request.context();
        assert_eq!(context.iter().count(), context.len());
        assert_eq!(context.to_map().len(), context.len());
        for (name, value) in context.iter() {
            assert_eq!(context.get(name).unwrap().get(), value.get());
        }
        let _ = (request.args(), request.version(), request.namespace());
        let _ = (request.unique_id(), request.idempotency_key());
        let _ = format!("{request:?}");
    }
    if let Err(error) = decode_request(body) {
        assert!(error.to_string().len() < 120, "{error}");
    }
    let _ = format!("{:?}", decode_reply(body));
}

#[test]
fn envelopes() {
    let inner = r#"{"method":"m"}"#;
    for version in ["2.0", "2.0.0"] {
        let body = json!({"oslo.version": version, "oslo.message": inner, "more": [1]});
        let request = decode_request(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.method(), "m");
    }
    for version in [
        json!("2.1"),
        json!("1.0"),
        json!("3.0"),
        json!("2.0.1"),
        json!("2"),
        json!(""),
        json!(2.0),
        json!(null),
    ] {
        let body = json!({"oslo.version": version, "oslo.message": inner}).to_string();
        let error = decode_request(body.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("version"), "{version}: {error}");
    }
    for message in [json!({"method": "m"}), json!(null), json!(1)] {
        let body = json!({"oslo.version": "2.0", "oslo.message": message}).to_string();
        assert!(decode_request(body.as_bytes()).is_err(), "{message}");
    }
    // Format 1.0: whatever lacks one of the two keys.
    for body in [
        r#"{"method":"m","args":{"a":1}}"#,
        r#" {"args":{"a":1},"oslo.version":"9.9","method":"m"} "#,
        r#"{"args":{"a":1},"oslo.message":"{}","method":"m","load":NaN}"#,
    ] {
        let request = decode_request(body.as_bytes()).unwrap();
        assert_eq!((request.method(), request.args()), ("m", r#"{"a":1}"#));
    }
    // An envelope written with escapes in its keys, and with bare words beside them.
    let body =
        r#"{"oslo\u002eversion":"2\u002e0","x":-Infinity,"oslo.message":"{\"method\":\"m\"}"}"#;
    assert_eq!(decode_request(body.as_bytes()).unwrap().method(), "m");
}

#[test]
fn what_is_no_request_is_an_error_that_quotes_nothing() {
    let secret = "s3cret";
    for inner in [
        String::new(),
        format!("\"{secret}\""),
        format!("[\"{secret}\"]"),
        "null".to_owned(),
        "{}".to_owned(),
        format!("{{\"{secret}\":\"{secret}\"}}"),
        format!("{{\"method\":[\"{secret}\"]}}"),
        r#"{"method":null}"#.to_owned(),
        r#"{"method":"\ud800"}"#.to_owned(),
        format!("{{\"method\":\"{secret}\",\"namespace\":5}}"),
        format!("{{\"method\":\"{secret}\",\"_msg_id\":5}}"),
        format!("{{\"method\":\"{secret}\",\"_reply_q\":[\"{secret}\"]}}"),
        format!("{{\"method\":\"{secret}\"}} {secret}"),
        format!("{{\"method\":\"{secret}\",{secret}}}"),
        format!("{{\"method\":\"{secret}\""),
        format!("{{\"method\":\"{secret}\n\"}}"),
        format!("{{\"method\":\"{secret}\",\"args\":{{\"a\":-NaN}}}}"),
    ] {
        for body in [envelope(&inner), inner.clone().into_bytes()] {
            let error = decode_request(&body).unwrap_err();
            assert!(!error.to_string().contains(secret), "{inner}: {error}");
            assert!(!format!("{error:?}").contains(secret), "{inner}");
        }
    }
    let error = decode_request(b"{\"method\":\"\xff\"}").unwrap_err();
    assert_eq!(error.to_string(), "the body is not UTF-8");
}

#[test]
fn arguments_of_any_sort_are_for_the_router_to_judge() {
    assert_eq!(request(r#"{"method":"m"}"#).unwrap().args(), "{}");
    for args in [
        "null",
        "[1]",
        "\"x\"",
        "5",
        r#"{ "a" : "\ud800" }"#,
        "1e999",
    ] {
        assert_eq!(with(&format!("\"args\": {args} ")).args(), args);
    }
}

#[test]
fn versions() {
    let version = |text: &str| with(&format!("\"version\":{text}")).version();
    assert_eq!(
        version("\"1.2.3\""),
        RequestVersion::Given("1.2.3".parse::<Version>().unwrap())
    );
    for (text, shown) in [
        ("null", "None"),
        ("\"5\"", "5"),
        ("\"5.a\"", "5.a"),
        ("1.5", "1.5"),
        ("[1]", "[1]"),
        (r#""a\nb""#, "a\u{fffd}b"),
    ] {
        assert_eq!(version(text), RequestVersion::Bad(shown.to_owned()));
    }
    let RequestVersion::Bad(shown) = version(&json!("9".repeat(MEGABYTE)).to_string()) else {
        panic!("a megabyte of digits is no version");
    };
    assert_eq!(shown.len(), 64);
}

#[test]
fn what_is_unusable_in_optional_fields_counts_as_absent() {
    for (timeout, seconds, interval_ms) in [
        ("null", None, None),
        ("0", None, None),
        ("-3", None, None),
        ("\"soon\"", None, None),
        ("\"0.5\"", None, None),
        ("true", None, None),
        ("[4]", None, None),
        ("NaN", None, None),
        ("0.5", None, None),
        ("1", Some(1), None),
        ("2", Some(2), Some(1000)),
        ("3.9", Some(3), Some(1500)),
        ("\"4\"", Some(4), Some(2000)),
        ("1e999", Some(u32::MAX), Some(u64::from(u32::MAX) * 500)),
    ] {
        let request = with(&format!("\"_timeout\":{timeout}"));
        assert_eq!(request.monitor(), seconds, "{timeout}");
        assert_eq!(
            request.heartbeat_interval(),
            interval_ms.map(Duration::from_millis),
            "{timeout}"
        );
    }
    assert_eq!(
        with(r#""_x_deadline":5,"_x_sent":4"#).times(),
        Some(Times {
            deadline_ms: 5,
            sent_ms: 4
        })
    );
    for times in [
        r#""_x_deadline":5"#,
        r#""_x_sent":4"#,
        r#""_x_deadline":-5,"_x_sent":4"#,
        r#""_x_deadline":5.5,"_x_sent":4"#,
        r#""_x_deadline":"5","_x_sent":4"#,
        r#""_x_deadline":99999999999999999999,"_x_sent":4"#,
    ] {
        assert_eq!(with(times).times(), None, "{times}");
    }
    let odd = with(r#""_unique_id":7,"_x_idempotency_key":{},"namespace":null,"_msg_id":null"#);
    assert_eq!((odd.unique_id(), odd.idempotency_key()), (None, None));
    assert_eq!((odd.namespace(), odd.msg_id()), (None, None));
}

#[test]
fn the_last_of_equal_keys_counts() {
    let request = with(
        r#""method":"n","args":1,"args":2,"_context_a":1,"_context_\u0061":2,"_context_b":3,"_context_a":4"#,
    );
    assert_eq!((request.method(), request.args()), ("n", "2"));
    let context: Vec<_> = request
        .context()
        .iter()
        .map(|(name, value)| (name, value.get()))
        .collect();
    assert_eq!(context, [("b", "3"), ("a", "4")]);

    let many: String = (0..100)
        .map(|n| format!(r#","_context_{}":{n}"#, n % 40))
        .collect();
    let request = with(&format!("\"args\":{{}}{many}"));
    let values: Vec<&str> = request.context().iter().map(|(_, v)| v.get()).collect();
    let expected: Vec<String> = (60..100).map(|n| n.to_string()).collect();
    assert_eq!(values, expected);
}

#[test]
fn the_protocols_own_names_are_not_context() {
    let request = with(
        r#""_context_msg_id":"x","_context_reply_q":"y","_context_client_timeout":9,"_context_":1,"_contextual":2"#,
    );
    assert_eq!((request.msg_id(), request.reply_to()), (None, None));
    assert_eq!(request.monitor(), None);
    assert_eq!(Value::Object(request.context().to_map()), json!({"": 1}));
}

#[test]
fn contexts_become_types_of_the_application() {
    #[derive(Deserialize, Debug)]
    struct Wanted<'a> {
        user: &'a str,
        roles: Vec<String>,
        missing: Option<u8>,
    }

    let request = with(r#""_context_user":"bob","_context_roles":["r"],"_context_extra":{}"#);
    let wanted: Wanted<'_> = request.context().deserialize().unwrap();
    assert_eq!((wanted.user, wanted.missing), ("bob", None));
    assert_eq!(wanted.roles, ["r"]);

    let request = with(r#""_context_user":"bob","_context_roles":"s3cret""#);
    let error = request.context().deserialize::<Wanted<'_>>().unwrap_err();
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    assert!(!format!("{request:?}").contains("s3cret"), "{request:?}");
}

#[test]
fn replies_of_older_and_other_servers() {
    let empty = reply("{}");
    assert!(empty.msg_id.is_none() && empty.result.is_none() && empty.failure.is_none());
    assert!(!empty.ending && empty.kind.is_none());
    // Up to Liberty the result came first and the ending in a message of its own.
    assert!(!reply(r#"{"_msg_id":"i","result":5,"failure":null}"#).ending);
    assert!(reply(r#"{"_msg_id":"i","ending":true}"#).ending);
    assert!(reply(r#"{"ending":1}"#).ending);
    for nothing in ["null", "\"\"", "{}", "false", "0"] {
        let inner = format!("{{\"failure\":{nothing}}}");
        assert_eq!(reply(&inner).failure, None, "{nothing}");
    }
    assert_eq!(reply(r#"{"_msg_id":5}"#).msg_id, None);
    for broken in ["[]", "null", "5", ""] {
        assert!(decode_reply(&envelope(broken)).is_err(), "{broken}");
    }
}

#[test]
fn failures_in_every_shape() {
    let failure = |text: &str| {
        let inner = format!("{{\"failure\":{text}}}");
        reply(&inner).failure.unwrap()
    };
    let full = json!({
        "class": "C", "module": "m", "message": "t", "tb": ["l"], "args": [1], "kwargs": {"k": 2}, "new": 3,
    });
    for text in [full.to_string(), json!(full.to_string()).to_string()] {
        let error = failure(&text);
        assert_eq!((&*error.class, &*error.module), ("C", "m"));
        assert_eq!(
            (&*error.message, &*error.traceback),
            ("t", &["l".to_owned()][..])
        );
        assert_eq!(error.args, [json!(1)]);
        assert_eq!(Value::Object(error.kwargs), json!({"k": 2}));
    }
    let bare =
        failure(r#"{"message":"t","tb":null,"args":{},"kwargs":[],"class":null,"module":5}"#);
    assert_eq!((&*bare.class, &*bare.module), ("Exception", ""));
    assert_eq!(bare.message, "t");
    assert!(bare.traceback.is_empty() && bare.args.is_empty() && bare.kwargs.is_empty());

    for (text, message) in [
        ("\"plain text\"", "plain text"),
        ("\"[1]\"", "[1]"),
        ("true", "true"),
        ("[1]", "[1]"),
        (r#""{broken""#, "{broken"),
    ] {
        let error = failure(text);
        assert_eq!((&*error.class, &*error.message), ("Exception", message));
    }
    // The name of a file that is not UTF-8, and numbers that JSON lacks.
    let odd = json!(r#"{"message":"no \udce9.txt","tb":["\udce9"],"args":["\udce9",NaN]}"#);
    let odd = failure(&odd.to_string());
    assert_eq!(odd.message, "no \u{fffd}.txt");
    assert_eq!(odd.traceback, ["\u{fffd}"]);
    assert_eq!(odd.args, [json!("\u{fffd}"), json!(null)]);
}

#[test]
fn no_depth_of_nesting_exhausts_the_stack() {
    // Recursion takes some hundred bytes of stack for each level, and a test's thread has two megabytes.
    let deep = |size: usize, open: &str, close: &str| {
        let depth = size / (open.len() + close.len());
        format!("{}0{}", open.repeat(depth), close.repeat(depth))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let unclosed = open.repeat(MEGABYTE / 16 / open.len());
        let closed = deep(MEGABYTE / 16, open, close);
        for nested in [&unclosed, &closed] {
            look_at(nested.as_bytes());
            look_at(&envelope(nested));
            for key in [
                "method",
                "args",
                "version",
                "_timeout",
                "_context_a",
                "other",
                "result",
                "failure",
                "ending",
                "_msg_id",
            ] {
                look_at(&envelope(&format!(
                    "{{\"method\":\"m\",\"{key}\":{nested}}}"
                )));
            }
            for key in ["message", "tb", "args", "kwargs", "other"] {
                let failure = json!(format!("{{\"{key}\":{nested}}}"));
                look_at(&envelope(&format!("{{\"failure\":{failure}}}")));
            }
        }
        look_at(open.repeat(MEGABYTE / open.len()).as_bytes());
        let closed = deep(MEGABYTE, open, close);
        let request = with(&format!("\"args\":{closed},\"_context_a\":{closed}"));
        assert_eq!(request.args(), closed);
        assert_eq!(request.context().get("a").unwrap().get(), closed);
        assert_eq!(request.context().to_map()["a"], Value::Null);
        assert!(request.context().deserialize::<Value>().is_err());
    }
}

#[test]
fn megabytes_of_small_things_take_no_long_time() {
    let begun = Instant::now();
    let distinct: String = (0..MEGABYTE / 10)
        .map(|n| format!(",\"_context_{n}\":1"))
        .collect();
    let request = with(&format!("\"a\":1{distinct}"));
    assert_eq!(request.context().len(), MEGABYTE / 10);
    for member in [
        ",\"_context_\":1",
        ",\"_context_\\u0061\":1",
        ",\"method\":\"n\"",
        ",\"args\":{}",
        ",\"\":NaN",
    ] {
        let request = with(&format!("\"a\":1{}", member.repeat(MEGABYTE / 10)));
        assert!(request.context().len() <= 1, "{member}");
    }
    for text in [
        "\\\"",
        "\\\\",
        "\\u00e9",
        "\\ud83d\\ude00",
        "\\ud800",
        "\u{e9}",
        "NaN",
    ] {
        let text = text.repeat(MEGABYTE / 16);
        look_at(&envelope(&format!("{{\"method\":\"{text}\"}}")));
        look_at(&envelope(&format!("{{\"failure\":\"{text}\"}}")));
        look_at(&envelope(&format!(
            "{{\"failure\":{}}}",
            json!(format!("{{\"message\":\"{text}\"}}"))
        )));
    }
    let traceback = format!("[{}\"\"]", "\"\",".repeat(MEGABYTE / 3));
    let failure = reply(&format!("{{\"failure\":{{\"tb\":{traceback}}}}}"))
        .failure
        .unwrap();
    assert_eq!(failure.traceback.len(), MEGABYTE / 3 + 1);
    // Values of their own would take ninety times the length of these.
    let args = format!("[{}0]", "{\"a\":{}},".repeat(MEGABYTE / 9));
    let failure = reply(&format!(
        "{{\"failure\":{{\"message\":\"t\",\"args\":{args}}}}}"
    ))
    .failure
    .unwrap();
    assert_eq!((&*failure.message, failure.args.len()), ("t", 0));
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

#[test]
fn damaged_bodies_are_read_or_refused() {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let bodies: Vec<Vec<u8>> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(bodies.len() > 20);
    const BYTES: &[u8] = b"\"\\{}[],:u0dN-I \x00\xff\xc3\xa9tfn";
    for _ in 0..5_000 {
        let mut body = bodies[random(bodies.len())].clone();
        for _ in 0..=random(3) {
            if body.is_empty() {
                break;
            }
            let at = random(body.len());
            match random(4) {
                0 => body[at] = BYTES[random(BYTES.len())],
                1 => body.insert(at, BYTES[random(BYTES.len())]),
                2 => drop(body.remove(at)),
                _ => body.truncate(at),
            }
        }
        look_at(&body);
    }
}
