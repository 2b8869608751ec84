//! Callers that time out leave nothing behind. A program of its own, since it measures its memory.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::nodes::Node;
use common::{PATIENCE, rabbit_url, raw, unique};
use longshore::driver::{Address, Message, SendOptions};
use longshore::{ErrorKind, Outcome, RpcClient, Target, Transport};
use tokio::task::JoinSet;

const TIMEOUTS: u64 = 300_000;
/// After as many the process has grown to what it needs.
const WARM: u64 = 100_000;
/// What the memory may grow by over the others. A confirm that is kept costs 0.67 kB, which would be 80 MB in all.
const GROWTH: usize = 8 << 20;
/// How many callers there are at once, and how long each waits.
const CALLERS: u64 = 1_000;
const TIMEOUT: Duration = Duration::from_millis(50);

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes: usize = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kilobytes << 10
}

/// Lets callers time out until so many have: calls that nobody answers, and senders of confirmed messages who do not
/// wait for what becomes of them.
async fn time_out(client: &RpcClient, raw: &raw::Raw, deaf: &Address, count: u64) {
    let next = Arc::new(AtomicU64::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, next, deaf) = (client.clone(), Arc::clone(&next), deaf.clone());
        let driver = Arc::clone(&raw.driver);
        callers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                if n % 2 == 0 {
                    let error = client.call::<()>("deaf").await.unwrap_err();
                    assert!(
                        matches!(
                            (error.kind(), error.outcome()),
                            (ErrorKind::Timeout, Outcome::Unknown | Outcome::NotSent)
                        ),
                        "{error:?}"
                    );
                } else {
                    let mut options = SendOptions::new(Instant::now() + PATIENCE);
                    options.ttl = Some(TIMEOUT);
                    let sent = driver.send(&deaf, Message::json("{}"), &options).await;
                    drop(sent.unwrap());
                }
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_thousand_caller_timeouts_leave_memory_constant() {
    let topic = unique("deaf");
    let transport = Transport::connect(&rabbit_url()).await.unwrap();
    let raw = raw::Raw::open(&rabbit_url());
    // A server that never looks at what it is sent. What waits for it is dropped by the broker when its time is over.
    let _deaf = raw.listen(&topic, "one").await;
    let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(TIMEOUT);
    let address = raw::topic(&topic);
    let began = Instant::now();
    time_out(&client, &raw, &address, WARM).await;
    let memory = resident();
    time_out(&client, &raw, &address, TIMEOUTS - WARM).await;
    let grown = resident().saturating_sub(memory);
    println!(
        "{TIMEOUTS} time-outs in {:.1?}; memory {memory} bytes, grown by {grown}",
        began.elapsed()
    );
    assert!(grown < GROWTH, "memory grew by {grown} bytes");
    assert_eq!(transport.pending_calls(), 0);
    transport.close(PATIENCE).await.unwrap();
    raw.driver.close(Instant::now() + PATIENCE).await.unwrap();
    let program = format!(
        r#"[rabbit_amqqueue:with(rabbit_misc:r(<<"/">>, queue, N), fun(Q) -> rabbit_amqqueue:delete(Q, false, false, <<"test">>) end)
            || N <- [<<"{topic}">>, <<"{topic}.one">>]], ok."#
    );
    Node::first().control(&["eval", &program]).await;
}
