//! What networks and hosts do to a link: they die, stall, hang, close, and are found out.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::path::{OPEN, Path};
use common::peer::{Conversation, Peer};
use common::*;
use messaging_core::driver::{Address, Health, Listener, Message, Receipt};
use messaging_core::{ErrorKind, Outcome};
use tokio::net::TcpListener;

/// The threshold of the tests, in seconds: a dead link is found after twice as long at the latest.
const HEARTBEAT: u64 = 2;
const FOUND: Duration = Duration::from_secs(2 * HEARTBEAT + 1);

fn beating(path: &Path) -> String {
    path.url(
        "rabbit",
        &format!("heartbeat_timeout_threshold={HEARTBEAT}"),
    )
}

async fn down(health: &mut tokio::sync::watch::Receiver<Health>) {
    let down = health.wait_for(|health| matches!(health, Health::Down(_)));
    within("noticing", down).await.unwrap();
}

async fn up(health: &mut tokio::sync::watch::Receiver<Health>) {
    let up = health.wait_for(|health| *health == Health::Up);
    within("resuming", up).await.unwrap();
}

/// Receives until each of these bodies has come, and nothing else but what was delivered before: its acknowledgement
/// may have been on the way when the link broke.
async fn receive_all(listener: &mut Box<dyn Listener>, mut expected: HashSet<&str>) {
    let all = expected.clone();
    while !expected.is_empty() {
        let delivery = receive(listener).await;
        let body = std::str::from_utf8(&delivery.message.body).unwrap();
        assert!(
            all.contains(body) || delivery.redelivered,
            "{body} was reported as not sent"
        );
        expected.remove(body);
    }
}

async fn send(bench: &Bench, to: &Address, body: &str, deadline: Instant) -> Receipt {
    let mut how = options();
    how.deadline = deadline;
    let message = Message::json(body.to_owned());
    bench.driver.send(to, message, &how).await.unwrap()
}

/// Both ends stay open and nothing arrives at either: no error of the operating system tells of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_dead_connection_is_found_by_heartbeats_and_everything_resumes() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let path = Path::to(&broker_address()).await;
    let bench = open(&beating(&path));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "before").await.unwrap();
    receive_all(&mut listener, HashSet::from(["before"])).await;
    let mut health = bench.driver.health();

    path.abandon();
    let began = Instant::now();
    let swallowed = send(&bench, &to, "swallowed", deadline(30)).await;
    down(&mut health).await;
    assert!(began.elapsed() < FOUND, "{:?}", began.elapsed());
    let error = settled(swallowed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Disconnected, Outcome::Unknown)
    );
    // For the broker the old consumer lives on for a while: what it is given comes back when it is found out.
    let mut receipts = Vec::new();
    for body in ["1", "2", "3", "4"] {
        receipts.push(send(&bench, &to, body, deadline(30)).await);
    }
    for receipt in receipts {
        settled(receipt).await.unwrap();
    }
    receive_all(&mut listener, HashSet::from(["1", "2", "3", "4"])).await;
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// The peer's heartbeats go on coming and it answers nothing: nobody waits beyond a deadline, and what is said is true.
#[tokio::test]
async fn half_dead_peer_that_only_beats_holds_nobody_beyond_the_deadline() {
    let peer = Peer::following(async |mut talk: Conversation| {
        talk.log_in(1).await?;
        talk.until_publish().await?;
        loop {
            talk.heartbeat().await?;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    })
    .await;
    let bench = open(&peer.url("rabbit", "heartbeat_timeout_threshold=1"));
    let to = topic("x", "t");
    let began = Instant::now();
    let mut receipts = Vec::new();
    // One more than the window of unconfirmed messages: the last stays in the driver.
    for _ in 0..1_001 {
        receipts.push(send(&bench, &to, "{}", began + Duration::from_secs(3)).await);
    }
    let error = settled(receipts.pop().unwrap()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Timeout, Outcome::NotSent),
        "{error}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    let _ = bench.driver.close(deadline(1)).await;
    for receipt in receipts {
        assert_eq!(
            settled(receipt).await.unwrap_err().outcome(),
            Outcome::Unknown
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_stall_that_is_short_breaks_nothing_and_a_long_one_is_noticed() {
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let path = Path::to(&broker_address()).await;
    let bench = open(&beating(&path));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "first").await.unwrap();
    let connections = path.connections();
    let mut health = bench.driver.health();

    path.stall();
    let delayed = send(&bench, &to, "delayed", deadline(30)).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    path.heal();
    settled(delayed).await.unwrap();
    receive_all(&mut listener, HashSet::from(["first", "delayed"])).await;
    assert_eq!(path.connections(), connections);

    path.stall();
    let began = Instant::now();
    let handed_over = send(&bench, &to, "handed over", deadline(30)).await;
    down(&mut health).await;
    assert!(began.elapsed() < FOUND, "{:?}", began.elapsed());
    let error = settled(handed_over).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Disconnected, Outcome::Unknown)
    );
    let short = Instant::now() + Duration::from_secs(1);
    let doomed = send(&bench, &to, "doomed", short).await;
    let patient = send(&bench, &to, "patient", deadline(30)).await;
    let error = settled(doomed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Disconnected, Outcome::NotSent)
    );
    assert!(short.elapsed() < Duration::from_secs(1));
    path.heal();
    up(&mut health).await;
    settled(patient).await.unwrap();
    // What stood in the stalled sockets when they were given up may have reached the broker.
    loop {
        let delivery = receive(&mut listener).await;
        match &delivery.message.body[..] {
            b"patient" => break,
            b"handed over" => {}
            other => assert!(delivery.redelivered, "{other:?}"),
        }
    }
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// Links, heartbeats and settlements run on a thread of the driver's own.
#[test]
fn blocked_user_runtime_loses_no_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let (bench, mut listener) = runtime.block_on(async {
        let bench = open(&url("rabbit", "heartbeat_timeout_threshold=1"));
        let listener = bench.server(&exchange, &topic_name, "one").await;
        let to = server(&exchange, &topic_name, "one");
        bench.accepted(&to, "before").await.unwrap();
        (bench, listener)
    });
    let mut health = bench.driver.health();
    health.mark_unchanged();
    // The broker and lapin both give a silent peer up after two seconds.
    let blockers: Vec<_> = (0..2)
        .map(|_| runtime.spawn(async { std::thread::sleep(Duration::from_secs(6)) }))
        .collect();
    runtime.block_on(async {
        for blocker in blockers {
            blocker.await.unwrap();
        }
        assert!(!health.has_changed().unwrap(), "{:?}", *health.borrow());
        receive_all(&mut listener, HashSet::from(["before"])).await;
        let to = server(&exchange, &topic_name, "one");
        bench.accepted(&to, "after").await.unwrap();
        let delivery = receive(&mut listener).await;
        assert!(!delivery.redelivered);
        assert_eq!(&delivery.message.body[..], b"after");
        listener.close(deadline(5)).await.unwrap();
        bench.close().await;
        clean_up_server(&exchange, &topic_name, "one").await;
    });
}

/// A host that lets everybody in and throws everybody out at once must neither be hammered nor keep others waiting.
#[tokio::test]
async fn node_closing_after_login_is_not_hammered_and_the_next_host_is_used() {
    for with_reason in [false, true] {
        let peer = Peer::following(move |mut talk: Conversation| async move {
            talk.log_in(0).await?;
            if with_reason {
                talk.close(0, 320, "CONNECTION_FORCED - going down").await?;
                talk.next().await?;
            }
            Some(())
        })
        .await;
        let counted = Path::to(peer.address()).await;
        let bench = open(&counted.url("rabbit", ""));
        let doomed = send(&bench, &topic("x", "t"), "{}", deadline(3)).await;
        let error = settled(doomed).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotSent, "{error}");
        // At 50 ms, doubling, with full jitter: some seven attempts in three seconds.
        let attempts = counted.connections();
        assert!((2..=30).contains(&attempts), "{attempts} attempts");
        bench.driver.close(deadline(2)).await.ok();

        let address = broker_address();
        let two = format!(
            "rabbit://guest:guest@{},guest:guest@{address}/",
            peer.address()
        );
        let (exchange, topic_name) = (unique("x"), unique("t"));
        let began = Instant::now();
        let bench = open(&two);
        let mut listener = bench.server(&exchange, &topic_name, "one").await;
        let to = server(&exchange, &topic_name, "one");
        bench.accepted(&to, "{}").await.unwrap();
        receive(&mut listener).await;
        assert!(
            began.elapsed() < Duration::from_secs(3),
            "{:?}",
            began.elapsed()
        );
        listener.close(deadline(5)).await.unwrap();
        bench.close().await;
        clean_up_server(&exchange, &topic_name, "one").await;
    }
}

#[tokio::test]
async fn wrong_password_is_tried_once_and_not_again_and_again() {
    let path = Path::to(&broker_address()).await;
    let url = format!("rabbit://guest:wrong@{}/", path.address());
    let bench = open(&url);
    let began = Instant::now();
    let error = bench.driver.ready(deadline(30)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let doomed = send(&bench, &topic("x", "t"), "{}", deadline(3)).await;
    let error = settled(doomed).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Unauthorized, Outcome::NotSent)
    );
    assert_eq!(path.connections(), 1);
    assert_eq!(path.counts()[0].get(&OPEN), None, "nobody was let in");
    bench.driver.close(deadline(2)).await.ok();
}

/// Which of three hosts that close everything was tried when, for this many attempts.
async fn attempts(query: &str, count: usize) -> Vec<usize> {
    let tried = Arc::new(Mutex::new(Vec::new()));
    let mut hosts = Vec::new();
    let mut tasks = Vec::new();
    for number in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        hosts.push(format!("guest:guest@{}", listener.local_addr().unwrap()));
        let tried = Arc::clone(&tried);
        tasks.push(tokio::spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
                tried.lock().unwrap().push(number);
            }
        }));
    }
    let bench = open(&format!("rabbit://{}/?{query}", hosts.join(",")));
    let _ = bench.driver.ready(deadline(0)).await;
    eventually("the attempts", async || {
        tried.lock().unwrap().len() >= count
    })
    .await;
    bench.driver.close(deadline(1)).await.ok();
    for task in tasks {
        task.abort();
    }
    let mut tried = tried.lock().unwrap().clone();
    tried.truncate(count);
    tried
}

#[tokio::test]
async fn several_hosts_are_tried_round_robin_or_shuffled_and_all_in_each_round() {
    let all_in_each = |tried: &[usize]| {
        for round in tried.chunks(3) {
            assert_eq!(round.iter().collect::<HashSet<_>>().len(), 3, "{tried:?}");
        }
    };
    let mut orders = HashSet::new();
    for _ in 0..12 {
        let tried = attempts("", 6).await;
        all_in_each(&tried);
        assert_eq!(tried[..3], tried[3..], "the same order in each round");
        orders.insert(tried);
    }
    assert!(orders.len() > 1, "the hosts share out their clients");

    let query = "kombu_failover_strategy=shuffle&rabbit_interval_max=1";
    let tried = attempts(query, 30).await;
    all_in_each(&tried);
    let rounds: HashSet<_> = tried.chunks(3).collect();
    assert!(rounds.len() > 1, "{tried:?}");
}
