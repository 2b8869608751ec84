//! Deadlines: expiry at the server, what handlers see of them, cancellation, call monitoring.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::raw::{self, Raw};
use common::{Gate, OpensOnDrop, PATIENCE, eventually, kinds, logs, unique};
use longshore::wire::{ReplyBody, unix_ms_now};
use longshore::{
    Context, ErrorKind, Outcome, Router, RpcClient, RpcServer, RpcServerBuilder, Target, Transport,
};
use serde_json::json;
use tokio::sync::mpsc;

/// A bus that drops nothing by itself, so that expiry is the server's.
fn without_ttl(name: &str) -> String {
    format!("memory://{}?without=ttl", unique(name))
}

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

fn gated(transport: &Transport, gate: &Gate) -> RpcServerBuilder {
    let router = Router::with_state(gate.clone())
        .method("wait", async |gate: Arc<Gate>, _: Context| {
            gate.pass().await;
            Ok("done")
        })
        .method("left", async |_: Arc<Gate>, ctx: Context| {
            Ok(ctx.remaining().map(|left| left.as_millis()))
        });
    RpcServer::builder(transport, Target::topic("t").server("s"), router).concurrency(1)
}

#[tokio::test]
async fn what_waited_past_its_deadline_is_dropped_counted_and_not_run() {
    logs::keep();
    let url = without_ttl("expired");
    let transport = Transport::connect(&url).await.unwrap();
    // Its first request of all is one that expires: nothing is known of its clock.
    let newcomer = Transport::connect(&url).await.unwrap();
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let topic = unique("late");
    let router =
        Router::with_state(gate.clone()).method("wait", async |gate: Arc<Gate>, _: Context| {
            gate.pass().await;
            Ok(())
        });
    let server = RpcServer::builder(&transport, Target::topic(&*topic).server("s"), router)
        .concurrency(1)
        .start()
        .await
        .unwrap();
    let known = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
    let busy = tokio::spawn(known.call::<()>("wait").into_future());
    eventually("the slot is busy", || gate.inside() == 1).await;

    let short = Duration::from_millis(120);
    for client in [
        known.clone(),
        RpcClient::new(&newcomer, Target::topic(&*topic)),
    ] {
        let error = client.call::<()>("wait").timeout(short).await.unwrap_err();
        assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    }
    let cast = known.cast("wait").expires_in(short);
    cast.await.unwrap();
    // A cast without an expiry waits as long as it must.
    known.cast("wait").await.unwrap();
    tokio::time::sleep(short).await;
    gate.open();
    busy.await.unwrap().unwrap();
    eventually("the last cast ran", || server.counters().succeeded == 2).await;
    let counters = server.counters();
    assert_eq!((counters.expired, counters.running), (3, 0), "{counters:?}");
    assert_eq!(gate.passed(), 2, "an expired request ran");
    assert_eq!(
        logs::mentioning(&topic)
            .iter()
            .filter(|(_, line)| line.contains("expired"))
            .count(),
        3
    );
}

#[tokio::test]
async fn a_clock_that_is_wrong_does_not_expire_a_request() {
    let url = without_ttl("skew");
    let transport = Transport::connect(&url).await.unwrap();
    let gate = Gate::default();
    gate.open();
    let server = gated(&transport, &gate).start().await.unwrap();
    let peer = Raw::open(&url);
    // How far the caller's clock is off, the time it gives, and whether the request runs.
    for (skew, budget, runs) in [
        (-1_950, 1_900, true),
        (1_500, 10_000, true),
        (3_600_000, 10_000, true),
        (-60_000, 10_000, false),
        (0, 0, false),
        (0, -5, false),
        (3_600_000, 0, false),
    ] {
        let before = server.counters();
        let sent = i64::try_from(unix_ms_now()).unwrap() + skew;
        let id = unique("caller-of-its-own");
        let inner = json!({"method": "left", "args": {}, "_unique_id": format!("{id:-<32}"),
                           "_x_sent": sent, "_x_deadline": sent + budget});
        peer.request(&raw::topic("t"), &inner).await;
        eventually("it is counted", || {
            let counters = server.counters();
            counters.succeeded + counters.expired > before.succeeded + before.expired
        })
        .await;
        let ran = server.counters().succeeded > before.succeeded;
        assert_eq!(ran, runs, "clock off by {skew} ms, {budget} ms given");
    }
}

#[tokio::test]
async fn a_handler_sees_its_deadline_and_hands_on_what_is_left() {
    let transport = Transport::connect(&format!("memory://{}", unique("hops")))
        .await
        .unwrap();
    let hop = |from: &str, to: Option<&'static str>| {
        let client = RpcClient::new(&transport, Target::topic(to.unwrap_or("none")));
        let router = Router::new().method("go", move |ctx: Context| {
            let client = client.clone();
            async move {
                let left = ctx.remaining().unwrap_or_default().as_millis();
                // The middle server works a little before it goes on.
                tokio::time::sleep(Duration::from_millis(60)).await;
                let mut all = vec![(left, ctx.get::<String>("user"))];
                if to.is_some() {
                    let call = client.call::<Vec<(u128, Option<String>)>>("go");
                    all.extend(call.timeout(PATIENCE * 100).context(&ctx).await?);
                }
                Ok(all)
            }
        });
        RpcServer::builder(&transport, Target::topic(from).server("s"), router)
    };
    let _a = hop("t", Some("b")).start().await.unwrap();
    let _b = hop("b", Some("c")).start().await.unwrap();
    let _c = hop("c", None).start().await.unwrap();
    let context = json!({"user": "bob"});
    let all: Vec<(u128, Option<String>)> = client(&transport)
        .call("go")
        .context(&context)
        .await
        .unwrap();
    let left: Vec<u128> = all.iter().map(|(left, _)| *left).collect();
    assert_eq!(all.len(), 3);
    assert!(left[0] <= PATIENCE.as_millis(), "{left:?}");
    assert!(
        left[1] + 50 <= left[0] && left[2] + 50 <= left[1],
        "it shrinks: {left:?}"
    );
    assert!(all.iter().all(|(_, user)| user.as_deref() == Some("bob")));

    // A nested call that has no time left is not sent, and says so as it is.
    let router = Router::with_state(client(&transport)).method(
        "late",
        async |client: Arc<RpcClient>, ctx: Context| {
            ctx.cancelled().await;
            let error = client.call::<()>("go").context(&ctx).await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::NotSent));
            let error = client.cast("go").context(&ctx).await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::NotSent));
            Ok(())
        },
    );
    let late = RpcServer::builder(&transport, Target::topic("late").server("s"), router);
    let late = late.start().await.unwrap();
    let call = RpcClient::new(&transport, Target::topic("late")).call::<()>("late");
    let error = call.timeout(Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    eventually("the handler ends", || late.counters().succeeded == 1).await;
    assert_eq!(late.counters().panicked, 0);
}

#[tokio::test]
async fn casts_and_callers_that_do_not_say_have_no_deadline() {
    let url = format!("memory://{}", unique("none"));
    let transport = Transport::connect(&url).await.unwrap();
    let (sender, mut seen) = mpsc::unbounded_channel();
    let router = Router::new().method("m", move |ctx: Context| {
        let _ = sender.send((
            ctx.wants_reply(),
            ctx.remaining().is_some(),
            ctx.is_cancelled(),
        ));
        async { Ok(()) }
    });
    let target = Target::topic("t").server("s");
    let _server = RpcServer::builder(&transport, target, router)
        .start()
        .await
        .unwrap();
    client(&transport).cast("m").await.unwrap();
    assert_eq!(seen.recv().await, Some((false, false, false)));
    client(&transport)
        .cast("m")
        .expires_in(PATIENCE)
        .await
        .unwrap();
    assert_eq!(seen.recv().await, Some((false, true, false)));
    client(&transport).call::<()>("m").await.unwrap();
    assert_eq!(seen.recv().await, Some((true, true, false)));
    let peer = Raw::open(&url);
    let inner = json!({"method": "m", "args": {}, "_msg_id": "1", "_reply_q": peer.inbox().await});
    peer.request(&raw::topic("t"), &inner).await;
    assert_eq!(seen.recv().await, Some((true, false, false)));
    eventually("it is answered", || peer.replies().len() == 1).await;
    assert_eq!(peer.replies()[0]["_msg_id"], "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_is_told_when_nobody_waits_any_more() {
    for executor in ["async", "threaded", "blocking"] {
        let transport = Transport::connect(&format!("memory://{}", unique("cancel")))
            .await
            .unwrap();
        let (sender, mut seen) = mpsc::unbounded_channel();
        let router = Router::new().method("m", move |ctx: Context| {
            let sender = sender.clone();
            async move {
                let before = (ctx.is_cancelled(), ctx.check().is_ok());
                let _ = sender.send(before);
                ctx.cancelled().await;
                ctx.cancelled().await;
                let kind = ctx.check().map_err(|error| error.kind());
                let _ = sender.send((ctx.is_cancelled(), kind == Err(ErrorKind::Cancelled)));
                Ok(())
            }
        });
        let target = Target::topic("t").server("s");
        let server = RpcServer::builder(&transport, target, router).executor(executor);
        let server = server.start().await.unwrap();
        // At the deadline,
        let call = client(&transport)
            .call::<()>("m")
            .timeout(Duration::from_millis(150));
        let error = call.await.unwrap_err();
        assert_eq!(
            kinds(&error),
            (ErrorKind::Timeout, Outcome::Unknown),
            "{executor}"
        );
        assert_eq!(seen.recv().await, Some((false, true)), "{executor}");
        assert_eq!(seen.recv().await, Some((true, true)), "{executor}");
        // and when the server gives up waiting for it, which a cast has no other end than.
        client(&transport).cast("m").await.unwrap();
        assert_eq!(seen.recv().await, Some((false, true)), "{executor}");
        let drained = server.stop(Duration::from_millis(50)).await.unwrap();
        assert_eq!(drained.still_running, 1, "{executor}");
        assert_eq!(seen.recv().await, Some((true, true)), "{executor}");
    }
}

#[tokio::test]
async fn heartbeats_keep_a_long_call_alive_and_end_with_it() {
    let url = format!("memory://{}", unique("monitor"));
    let transport = Transport::connect(&url).await.unwrap();
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = gated(&transport, &gate)
        .concurrency(4)
        .start()
        .await
        .unwrap();
    let monitored = client(&transport).monitor(Some(Duration::from_secs(2)));
    let started = Instant::now();
    let call = tokio::spawn(monitored.call::<String>("wait").into_future());
    eventually("the call is inside", || gate.inside() == 1).await;

    // A peer that sees its heartbeats, one that does not ask for any, and one whose inbox nobody has.
    let peer = Raw::open(&url);
    let inbox = peer.inbox().await;
    for (id, timeout, reply_to) in [
        ("asks", json!(2), &*inbox),
        ("does-not", json!(null), &*inbox),
        ("too-often", json!(1), &*inbox),
        ("gone", json!(2), "memory-inbox-of-nobody"),
    ] {
        let inner = json!({"method": "wait", "args": {}, "_msg_id": id, "_reply_q": reply_to, "_timeout": timeout});
        // The slots are four: the last waits until another has ended.
        peer.request(&raw::topic("t"), &inner).await;
    }
    let beats = || {
        let replies = peer.replies();
        replies
            .iter()
            .filter(|reply| reply["ending"] == false)
            .count()
    };
    eventually("heartbeats come", || beats() >= 2).await;
    let replies = peer.replies();
    assert!(
        replies.iter().all(|reply| reply["_msg_id"] == "asks"),
        "{replies:?}"
    );
    assert!(replies[0]["result"].is_null() && replies[0]["failure"].is_null());
    let past = started + Duration::from_millis(2_500);
    eventually("longer than the monitor waits in silence", || {
        Instant::now() > past
    })
    .await;
    assert!(!call.is_finished(), "heartbeats keep the call alive");
    gate.open();
    assert_eq!(call.await.unwrap().unwrap(), "done");
    eventually("all are answered", || server.counters().succeeded == 5).await;
    let all = peer.replies();
    assert_eq!(
        all.iter().filter(|reply| reply["ending"] == true).count(),
        3
    );
    let last = all
        .iter()
        .rposition(|reply| reply["_msg_id"] == "asks")
        .unwrap();
    assert_eq!(all[last]["ending"], true);
    assert_eq!(
        transport.reply_counters().lost,
        1,
        "the answer to the inbox of nobody alone"
    );

    // Methods that do not exist leave no heartbeat behind: nothing more comes than the answer.
    let inner =
        json!({"method": "x", "args": {}, "_msg_id": "none", "_reply_q": &inbox, "_timeout": 2});
    peer.request(&raw::topic("t"), &inner).await;
    let count = all.len() + 1;
    eventually("it is refused", || peer.replies().len() == count).await;
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert_eq!(
        peer.replies().len(),
        count,
        "a heartbeat came after the end"
    );
}

#[tokio::test]
async fn a_silent_server_fails_a_monitored_call_before_its_deadline() {
    let url = format!("memory://{}", unique("silent"));
    let transport = Transport::connect(&url).await.unwrap();
    let mut server = Raw::open(&url).listen("t", "s").await;
    let monitored = client(&transport).monitor(Some(Duration::from_secs(2)));
    let started = Instant::now();
    let call = tokio::spawn(monitored.call::<()>("m").into_future());
    let (request, _) = server.next().await;
    assert_eq!(request.monitor(), Some(2));
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    server.answer(&request, ReplyBody::Heartbeat).await;
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    assert!(error.to_string().contains("monitoring"), "{error}");
    assert!(
        started.elapsed() >= Duration::from_millis(2_900),
        "the heartbeat put the end off"
    );
    assert!(started.elapsed() < PATIENCE);
    // The deadline stands, whatever heartbeats say.
    let call = monitored
        .call::<()>("m")
        .timeout(Duration::from_millis(300));
    let call = tokio::spawn(call.into_future());
    let (request, _) = server.next().await;
    for _ in 0..10 {
        server.answer(&request, ReplyBody::Heartbeat).await;
    }
    let error = call.await.unwrap().unwrap_err();
    assert!(!error.to_string().contains("monitoring"), "{error}");
    for call in [
        monitored
            .call::<()>("m")
            .monitor(Duration::from_millis(1_999)),
        monitored.call::<()>("m").monitor(Duration::ZERO),
    ] {
        assert_eq!(
            kinds(&call.await.unwrap_err()),
            (ErrorKind::Config, Outcome::NotSent)
        );
    }
    assert_eq!(transport.pending_calls(), 0);
}
