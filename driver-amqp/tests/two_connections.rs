//! A program of its own, so that the broker's list of its connections holds no other test's.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use tokio::sync::Mutex;

/// These tests count the threads of the one process there is.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A host that accepts and stays silent: whoever gives up waiting for it leaves nothing behind.
#[tokio::test]
async fn silent_host_twenty_abandoned_connects_leave_no_thread() {
    let _alone = ALONE.lock().await;
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let benches: Vec<_> = (0..20)
        .map(|_| open(&format!("rabbit://guest:guest@127.0.0.1:{port}/")))
        .collect();
    for bench in &benches {
        let error = bench.driver.ready(deadline(0)).await.unwrap_err();
        assert_eq!(error.kind(), messaging_core::ErrorKind::Connect);
    }
    eventually("all wait for the host", async || link_threads() == 20).await;
    drop(benches);
    eventually("no thread is left", async || link_threads() == 0).await;
}

#[tokio::test]
async fn a_transport_has_two_connections_however_many_servers() {
    let _alone = ALONE.lock().await;
    let name = unique("two");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let bench = open(&url("rabbit", ""));
    let mut listeners = Vec::new();
    for n in 0..20 {
        let server_name = format!("s{n}");
        listeners.push(bench.server(&exchange, &topic_name, &server_name).await);
    }
    within("the inbox", bench.driver.inbox()).await.unwrap();
    let to = server(&exchange, &topic_name, "s7");
    bench.accepted(&to, "{}").await.unwrap();
    receive(&mut listeners[7]).await;
    let mut ours = connections();
    ours.sort();
    let prefix = "two_connections-";
    assert_eq!(ours.len(), 2, "{ours:?}");
    assert!(ours.iter().all(|name| name.starts_with(prefix)), "{ours:?}");
    assert!(
        ours[0].ends_with(":receive") && ours[1].ends_with(":send"),
        "{ours:?}"
    );
    let mut queues: Vec<String> = vec![topic_name.clone()];
    for (n, listener) in listeners.into_iter().enumerate() {
        listener.close(deadline(5)).await.unwrap();
        queues.push(format!("{topic_name}.s{n}"));
    }
    bench.close().await;
    eventually("no connection is left", async || connections().is_empty()).await;
    eventually("no thread is left", async || link_threads() == 0).await;

    // A transport that is dropped without closing ends as well.
    let bench = open(&url("rabbit", ""));
    let listener = bench.server(&exchange, &topic_name, "dropped").await;
    let to = server(&exchange, &topic_name, "dropped");
    bench.accepted(&to, "{}").await.unwrap();
    assert_eq!(link_threads(), 2);
    let started = std::time::Instant::now();
    drop(bench);
    assert!(started.elapsed() < std::time::Duration::from_millis(200));
    eventually("no thread is left", async || link_threads() == 0).await;
    eventually("no connection is left", async || connections().is_empty()).await;
    // What is left of it does nothing, and does not hang.
    within("closing what is left", listener.close(deadline(5)))
        .await
        .unwrap();
    queues.push(format!("{topic_name}.dropped"));

    clean_up(&queues, &[exchange, format!("{topic_name}_fanout")]).await;
}

/// The names that the connections of this process gave themselves.
fn connections() -> Vec<String> {
    let own = format!(":{}:", std::process::id());
    table(&["list_connections", "client_properties"])
        .into_iter()
        .filter_map(|row| {
            let (_, name) = row[0].split_once(r#"{"connection_name","#)?;
            Some(name.split('"').nth(1)?.to_owned())
        })
        .filter(|name| name.contains(&own))
        .collect()
}

/// lapin's threads in this process: one for each connection.
fn link_threads() -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "lapin-io-loop")
        .count()
}
