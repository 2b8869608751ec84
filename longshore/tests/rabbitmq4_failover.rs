//! Two brokers, side by side in the URL and behind HAProxy: one goes, the other takes over, and nobody lies.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::load::{Load, serve};
use common::nodes::{Node, haproxy};
use common::{PATIENCE, eventually, unique};
use longshore::{Health, Transport};
use messaging_conformance::Ledger;
use tokio::sync::Mutex;

/// These tests stop the brokers there are.
static ALONE: Mutex<()> = Mutex::const_new(());

/// HAProxy in front of both brokers, in TCP mode: the second one is used while the first is away.
struct Proxy {
    child: Child,
    port: u16,
    file: PathBuf,
}

impl Proxy {
    /// Cuts connections that were idle for this long, on either side.
    async fn before(first: &Node, second: &Node, idle: Duration) -> Self {
        // Bound, and given back: HAProxy takes no free port of its own choice.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let idle = idle.as_millis();
        let text = format!(
            "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client {idle}ms\n  timeout server {idle}ms\n\
             listen amqp\n  bind 127.0.0.1:{port}\n  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions\n  \
             server first {} on-marked-up shutdown-backup-sessions\n  server second {} backup\n",
            first.address(),
            second.address()
        );
        let file = std::env::temp_dir().join(format!("{}.cfg", unique("haproxy")));
        std::fs::write(&file, text).unwrap();
        let child = Command::new(haproxy())
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Self { child, port, file };
        eventually("the proxy listens", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        proxy
    }

    fn url(&self, query: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/?{query}", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A transport with an exchange of its own: that of other tests is not durable.
async fn open(url: &str, exchange: &str) -> Transport {
    let builder = Transport::builder(url).default_exchange(exchange);
    builder.connect().await.unwrap()
}

/// How many connections of this process the broker has; none where it is away.
async fn connections(node: &Node) -> usize {
    let own = format!(":{}:", std::process::id());
    let list = node
        .control(&["--quiet", "list_connections", "client_properties"])
        .await;
    list.lines().filter(|line| line.contains(&own)).count()
}

/// How many messages wait in the queue of a topic.
async fn waiting(node: &Node, topic: &str) -> usize {
    let list = node
        .control(&["--quiet", "list_queues", "name", "messages"])
        .await;
    let mut rows = list.lines().filter_map(|line| line.split_once('\t'));
    let row = rows.find(|(name, _)| *name == topic);
    row.map_or(0, |(_, count)| count.trim().parse().unwrap())
}

/// Deletes what was made for these topics, wherever it was made.
async fn delete(nodes: [&Node; 2], topics: &[&str]) {
    let list = |suffixes: [&str; 2]| {
        let named = topics
            .iter()
            .flat_map(|topic| suffixes.map(|suffix| format!(r#"<<"{topic}{suffix}">>"#)));
        named.collect::<Vec<_>>().join(", ")
    };
    let program = format!(
        r#"[case rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, N)) of
              {{ok, Q}} -> rabbit_amqqueue:delete(Q, false, false, <<"test">>);
              _ -> ok
            end || N <- [{}]],
           [catch rabbit_exchange:delete(rabbit_misc:r(<<"/">>, exchange, N), false, <<"test">>) || N <- [{}]],
           ok."#,
        list(["", ".one"]),
        list(["", "_fanout"])
    );
    for node in nodes {
        node.control(&["eval", &program]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_the_second_takes_over_when_the_first_is_killed() {
    let _alone = ALONE.lock().await;
    let (first, second) = (Node::first(), Node::second());
    let topic = unique("two-hosts");
    // Everybody begins at the first: the second is there, and refuses.
    second.control(&["stop_app"]).await;
    let url = format!(
        "amqp://guest:guest@{},guest:guest@{}/?rabbit_interval_max=1",
        first.address(),
        second.address()
    );
    let ours = open(&url, &topic).await;
    let callers = open(&url, &topic).await;
    let ledger = Arc::new(Ledger::new());
    let server = serve(&ours, &topic, &ledger).await;
    let load = Load::start(&callers, &topic, &ledger);
    load.answering("on the first").await;
    assert_eq!(connections(&first).await, 4);
    second.control(&["start_app"]).await;

    first.kill().await;
    let took = load.answering("on the second").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(connections(&second).await, 4);

    // What the first had accepted and not delivered is there when everybody is back.
    first.start().await;
    second.control(&["stop_app"]).await;
    load.answering("back on the first").await;
    second.control(&["start_app"]).await;
    load.finish(async || waiting(&second, &topic).await).await;
    assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
    callers.close(PATIENCE).await.unwrap();
    ours.close(PATIENCE).await.unwrap();
    delete([&first, &second], &[&topic]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_switches_the_backend_and_everybody_follows() {
    let _alone = ALONE.lock().await;
    let (first, second) = (Node::first(), Node::second());
    let topic = unique("haproxy-switch");
    let proxy = Proxy::before(&first, &second, Duration::from_secs(60)).await;
    let url = proxy.url("rabbit_interval_max=1");
    let ours = open(&url, &topic).await;
    let callers = open(&url, &topic).await;
    let ledger = Arc::new(Ledger::new());
    let server = serve(&ours, &topic, &ledger).await;
    let load = Load::start(&callers, &topic, &ledger);
    load.answering("on the first").await;

    // Stopped in order: the broker says good-bye, and the proxy finds it closed.
    first.control(&["stop_app"]).await;
    let took = load.answering("on the second").await;
    // HAProxy tries a server that went away three times more, a second apart.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(connections(&second).await, 4);

    // The proxy cuts every connection when the first is back.
    first.control(&["start_app"]).await;
    load.answering("back on the first").await;
    assert_eq!(connections(&first).await, 4);
    load.finish(async || waiting(&second, &topic).await).await;
    assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
    callers.close(PATIENCE).await.unwrap();
    ours.close(PATIENCE).await.unwrap();
    delete([&first, &second], &[&topic]).await;
}

/// How often the health of a transport has left `Up`, until told to stop.
async fn losses(transport: &Transport, during: Duration) -> usize {
    let mut health = transport.health();
    let until = Instant::now() + during;
    let mut losses = 0;
    health.mark_unchanged();
    while let Ok(Ok(())) = tokio::time::timeout_at(until.into(), health.changed()).await {
        if matches!(*health.borrow_and_update(), Health::Down(_)) {
            losses += 1;
        }
    }
    losses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_cuts_what_is_idle_and_servers_and_clients_resume() {
    let _alone = ALONE.lock().await;
    let (first, second) = (Node::first(), Node::second());
    let topic = unique("haproxy-idle");
    let proxy = Proxy::before(&first, &second, Duration::from_millis(1_500)).await;
    // A heartbeat every half threshold: sixty seconds are cut, and two are not.
    for (threshold, is_cut) in [(60, true), (2, false)] {
        let url = proxy.url(&format!("heartbeat_timeout_threshold={threshold}"));
        let ours = open(&url, &topic).await;
        let callers = open(&url, &topic).await;
        let ledger = Arc::new(Ledger::new());
        let server = serve(&ours, &topic, &ledger).await;
        let load = Load::start(&callers, &topic, &ledger);
        load.answering("before").await;
        let summary = load.finish(async || 0).await;
        assert_eq!(summary.failed, 0, "{summary:?}");
        let (at_server, at_client) = tokio::join!(
            losses(&ours, Duration::from_secs(4)),
            losses(&callers, Duration::from_secs(4))
        );
        assert_eq!(
            (at_server > 0, at_client > 0),
            (is_cut, is_cut),
            "{threshold}"
        );

        let again = Arc::new(Ledger::new());
        let server_again = serve(&ours, &format!("{topic}-again"), &again).await;
        let load = Load::start(&callers, &format!("{topic}-again"), &again);
        let took = load.answering("after").await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        load.finish(async || 0).await;
        for server in [server, server_again] {
            assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
        }
        callers.close(PATIENCE).await.unwrap();
        ours.close(PATIENCE).await.unwrap();
    }
    let again = format!("{topic}-again");
    delete([&first, &second], &[&topic, &again]).await;
}
