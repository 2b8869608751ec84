//! Nobody there, on RabbitMQ: it fails, waits or is dropped, as asked, and every outcome is held against a ledger.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::load::serve;
use common::nodes::Node;
use common::{PATIENCE, kinds, rabbit_url, unique};
use longshore::{ErrorKind, Nobody, Outcome, RpcClient, Target, Transport};
use messaging_conformance::{Guarantee, Ledger};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

/// These tests close the connections of the one broker there is.
static ALONE: Mutex<()> = Mutex::const_new(());

const SHORT: Duration = Duration::from_millis(800);

/// The program that deletes a server's queues, in the broker.
fn delete(topic: &str) -> String {
    format!(
        r#"[case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, N)) of
              {{ok, Q}} -> rabbit_amqqueue:delete(Q, false, false, <<"test">>);
              _ -> ok
            end || N <- [<<"{topic}">>, <<"{topic}.one">>]], ok."#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_fails_waits_or_is_dropped_on_rabbitmq() {
    let _alone = ALONE.lock().await;
    let topic = unique("nobody");
    let transport = Transport::connect(&rabbit_url()).await.unwrap();
    let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
    let ledger = Arc::new(Ledger::new());
    let record = |id: u64, timeout: Duration, nobody: Nobody| {
        ledger.sent(id);
        let call = client.call::<u64>("record").arg("id", id);
        call.timeout(timeout).nobody(nobody)
    };

    // It fails at once, for a topic and for one server.
    let started = Instant::now();
    for target in [Target::topic(&*topic), Target::topic(&*topic).server("one")] {
        let client = client.clone().with_target(|_| target.clone());
        for nobody in [None, Some(Nobody::Fail)] {
            let client = match nobody {
                Some(nobody) => client.clone().nobody(nobody),
                None => client.clone(),
            };
            let error = client.call::<u64>("record").arg("id", 0).await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
            let error = client.cast("record").arg("id", 0).await.unwrap_err();
            assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
        }
    }
    assert!(started.elapsed() < PATIENCE / 4, "{:?}", started.elapsed());

    // It is dropped: a cast is accepted by nobody, a call learns no more than that there is no reply.
    client
        .cast("record")
        .arg("id", 1)
        .nobody(Nobody::Drop)
        .await
        .unwrap();
    let error = record(2, SHORT, Nobody::Drop).await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    ledger.failed(2, &error);

    // It waits, until its deadline.
    let started = Instant::now();
    let error = record(3, SHORT, Nobody::Wait).await.unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::NoServer, Outcome::NotSent));
    ledger.failed(3, &error);
    assert!(started.elapsed() < SHORT + Duration::from_secs(1));

    // It waits, until somebody is there.
    let mut waiting = JoinSet::new();
    for id in 4..8 {
        waiting.spawn(record(id, PATIENCE, Nobody::Wait).into_future());
    }
    ledger.sent(8);
    let cast = client.cast("record").arg("id", 8).nobody(Nobody::Wait);
    let cast = tokio::spawn(cast.into_future());
    tokio::time::sleep(SHORT).await;
    assert_eq!(transport.pending_calls(), 4);
    let server = serve(&transport, &topic, &ledger).await;
    while let Some(answer) = waiting.join_next().await {
        ledger.replied(answer.unwrap().unwrap());
    }
    cast.await.unwrap().unwrap();
    ledger.accepted(8);
    assert!(ledger.wait_handled(5, PATIENCE).await);
    let summary = ledger.check(Guarantee::Exactly(1)).unwrap();
    assert_eq!((summary.handled, summary.failed), (5, 2), "{summary:?}");
    server.stop(PATIENCE).await.unwrap();
    transport.close(PATIENCE).await.unwrap();
    Node::first().control(&["eval", &delete(&topic)]).await;
}

/// What waits in the driver at its deadline was not sent, and is told so; what the broker gave back as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_left_the_driver_is_not_sent_while_the_broker_is_away() {
    let _alone = ALONE.lock().await;
    let (node, topic) = (Node::first(), unique("away"));
    let transport = Transport::connect(&rabbit_url()).await.unwrap();
    let ledger = Arc::new(Ledger::new());
    let server = serve(&transport, &topic, &ledger).await;
    let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(SHORT);
    ledger.sent(0);
    ledger.replied(client.call("record").arg("id", 0).await.unwrap());
    node.control(&["stop_app"]).await;
    let mut running = JoinSet::new();
    let next = AtomicU64::new(1);
    for nobody in [Nobody::Fail, Nobody::Wait, Nobody::Drop] {
        for _ in 0..20 {
            let (call, cast) = (
                next.fetch_add(1, Ordering::Relaxed),
                next.fetch_add(1, Ordering::Relaxed),
            );
            let client = client.clone().nobody(nobody);
            let ledger = Arc::clone(&ledger);
            running.spawn(async move {
                ledger.sent(call);
                ledger.sent(cast);
                let started = Instant::now();
                let (called, casted) = tokio::join!(
                    client.call::<u64>("record").arg("id", call).into_future(),
                    client.cast("record").arg("id", cast).into_future()
                );
                let took = started.elapsed();
                assert!(took < SHORT + Duration::from_secs(1), "{took:?}");
                for (id, error) in [(call, called.unwrap_err()), (cast, casted.unwrap_err())] {
                    assert_eq!(
                        kinds(&error),
                        (ErrorKind::Disconnected, Outcome::NotSent),
                        "{nobody:?}: {error}"
                    );
                    ledger.failed(id, &error);
                }
            });
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    node.control(&["start_app"]).await;
    // Nothing of it goes out afterwards.
    let client = client.nobody(Nobody::Wait).timeout(PATIENCE);
    let last = next.fetch_add(1, Ordering::Relaxed);
    ledger.sent(last);
    ledger.replied(client.call("record").arg("id", last).await.unwrap());
    let summary = ledger.check(Guarantee::Exactly(1)).unwrap();
    assert_eq!((summary.handled, summary.failed), (2, 120), "{summary:?}");
    server.stop(PATIENCE).await.unwrap();
    transport.close(PATIENCE).await.unwrap();
    node.control(&["eval", &delete(&topic)]).await;
}

/// Servers come and go with their queues, and connections are closed, while requests of all three kinds run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_are_true_while_servers_queues_and_links_come_and_go() {
    let _alone = ALONE.lock().await;
    let (node, topic) = (Node::first(), unique("coming"));
    let ours = Transport::connect(&rabbit_url()).await.unwrap();
    let callers = Transport::connect(&rabbit_url()).await.unwrap();
    let ledger = Arc::new(Ledger::new());
    let stop = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn(requests(
        RpcClient::new(&callers, Target::topic(&*topic)).timeout(SHORT),
        Arc::clone(&ledger),
        Arc::clone(&stop),
    ));
    // In the broker, since a `rabbitmqctl` for each would take a second.
    let program = format!(
        r#"[begin
              timer:sleep(700),
              case N rem 3 of
                0 -> [rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()];
                _ -> {delete_one}
              end
            end || N <- lists:seq(1, 12)], ok."#,
        delete_one = delete(&topic).trim_end_matches('.').replace(", ok", "")
    );
    let mut faults = tokio::process::Command::new(std::env::var("LONGSHORE_RABBITMQCTL").unwrap())
        .args(["eval", &program])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut starts = 0;
    loop {
        let server = serve(&ours, &topic, &ledger).await;
        starts += 1;
        let over = tokio::time::timeout(Duration::from_millis(900), faults.wait()).await;
        server.stop(PATIENCE).await.unwrap();
        if let Ok(ended) = over {
            assert!(ended.unwrap().success());
            break;
        }
        // For a while nobody is there.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    // What was accepted and lies in a queue that outlived its server is handled by the next one. Queues were deleted
    // with what was in them, so that the broker has lost some that it had accepted.
    let server = serve(&ours, &topic, &ledger).await;
    let client = RpcClient::new(&callers, Target::topic(&*topic)).timeout(PATIENCE);
    ledger.sent(u64::MAX);
    let last = client.call("record").arg("id", u64::MAX).await.unwrap();
    ledger.replied(last);
    // What was delivered and not yet acknowledged when a link was closed runs again, if another server has taken the
    // place of the one that remembers it: a prefetch for each of the four closes at the most.
    let mut account = ledger.account(Guarantee::AtMostOnce);
    let twice = std::mem::take(&mut account.run_too_often).len();
    assert!(account.is_clean(), "{account}");
    let summary = account.summary;
    println!("{starts} servers, {twice} run twice: {summary:?}");
    assert!(twice <= 4 * 128, "{twice} ran twice");
    assert!(
        summary.succeeded > 500 && summary.failed > 50,
        "{summary:?}"
    );
    server.stop(PATIENCE).await.unwrap();
    callers.close(PATIENCE).await.unwrap();
    ours.close(PATIENCE).await.unwrap();
    node.control(&["eval", &delete(&topic)]).await;
}

/// Calls and casts of all three kinds, until told to stop.
async fn requests(client: RpcClient, ledger: Arc<Ledger>, stop: Arc<AtomicBool>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(3));
    let mut running = JoinSet::new();
    for id in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        let nobody = [Nobody::Fail, Nobody::Wait, Nobody::Drop][(id % 3) as usize];
        let (client, ledger) = (client.clone().nobody(nobody), Arc::clone(&ledger));
        running.spawn(async move {
            ledger.sent(id);
            let started = Instant::now();
            if id % 2 == 0 {
                match client.cast("record").arg("id", id).await {
                    Ok(_) => ledger.accepted(id),
                    Err(error) => ledger.failed(id, &error),
                }
            } else {
                match client.call("record").arg("id", id).await {
                    Ok(id) => ledger.replied(id),
                    Err(error) => ledger.failed(id, &error),
                }
            }
            let took = started.elapsed();
            assert!(took < SHORT + Duration::from_secs(1), "{took:?}");
        });
        while let Some(ended) = running.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}
