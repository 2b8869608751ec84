//! A hundred forced closes. A program of its own, since it closes every connection of the broker and counts threads.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Instant;

use common::path::{CONSUME, Counts, EXCHANGE_DECLARE, Path, QUEUE_BIND, QUEUE_DECLARE};
use common::*;
use messaging_core::driver::Address;
use messaging_core::{ErrorKind, Outcome};

const CLOSES: usize = 100;
/// After as many closes the process has grown to what it needs.
const WARM: usize = 20;
/// What the memory may grow by over the other eighty: 0.1 MB a close would be eight.
const GROWTH: usize = 4 << 20;
const SERVERS: usize = 3;
/// Each server consumes three queues, and there is the inbox.
const CONSUMERS: usize = 3 * SERVERS + 1;

/// Closes every connection as often as asked, each time when all consumers are there again.
///
/// In the broker, since a `rabbitmqctl` for each would take a second.
fn close(times: usize) {
    let program = format!(
        r#"Wait = fun Wait(0) -> throw(consumers_missing);
                      Wait(N) -> case length(rabbit_amqqueue:consumers_all(<<"/">>)) of
                          {CONSUMERS} -> ok;
                          _ -> timer:sleep(10), Wait(N - 1)
                      end end,
           [begin
                Wait(1500),
                [rabbit_networking:close_connection(P, "test") || P <- rabbit_networking:connections()],
                timer:sleep(20)
            end || _ <- lists:seq(1, {times})],
           Wait(1500)."#
    );
    assert_eq!(ctl(&["eval", &program]).trim(), "ok");
}

fn of_process(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn declarations(counts: &Counts) -> [usize; 4] {
    [EXCHANGE_DECLARE, QUEUE_DECLARE, QUEUE_BIND, CONSUME]
        .map(|method| counts.get(&method).copied().unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_forced_closes_leave_frame_counts_memory_and_threads_constant() {
    let name = unique("closes");
    let (exchange, topic_name) = (format!("{name}_x"), format!("{name}_t"));
    let path = Path::to(&broker_address()).await;
    let bench = open(&path.url("rabbit", ""));
    let mut listeners = Vec::new();
    for n in 0..SERVERS {
        let server_name = format!("s{n}");
        listeners.push(bench.server(&exchange, &topic_name, &server_name).await);
    }
    let inbox = within("the inbox", bench.driver.inbox()).await.unwrap();
    let to = server(&exchange, &topic_name, "s0");
    bench.accepted(&to, "{}").await.unwrap();
    receive(&mut listeners[0]).await;

    tokio::task::spawn_blocking(|| close(WARM)).await.unwrap();
    let (memory, threads) = (of_process("VmRSS:"), of_process("Threads:"));
    let began = Instant::now();
    tokio::task::spawn_blocking(|| close(CLOSES - WARM))
        .await
        .unwrap();
    let took = began.elapsed() / u32::try_from(CLOSES - WARM).unwrap();

    // Every connection that consumed everything had declared exactly as much as the first.
    let whole = [3 * SERVERS, CONSUMERS, 3 * SERVERS, CONSUMERS];
    let complete: Vec<_> = path
        .counts()
        .iter()
        .map(declarations)
        .filter(|counts| counts[3] >= CONSUMERS)
        .collect();
    assert!(complete.len() > CLOSES, "{} recoveries", complete.len());
    assert!(
        complete.iter().all(|counts| *counts == complete[0]),
        "{complete:?}"
    );
    assert_eq!(complete[0], whole);

    // Everything works.
    eventually("a send", async || {
        match bench.accepted(&to, "{}").await {
            Ok(()) => true,
            // The sending link may be the last to be there again.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Disconnected);
                assert_eq!(error.outcome(), Outcome::Unknown);
                false
            }
        }
    })
    .await;
    receive(&mut listeners[0]).await;
    bench.sink.take();
    bench
        .accepted(&Address::Inbox(inbox), r#"{"r":1}"#)
        .await
        .unwrap();
    assert_eq!(&bench.sink.message().await.body[..], br#"{"r":1}"#);

    let grown = of_process("VmRSS:").saturating_sub(memory) << 10;
    println!(
        "{CLOSES} forced closes, {took:?} each; {} recoveries; memory {memory} kB, grown by {grown} bytes; {threads} threads",
        complete.len()
    );
    assert!(grown < GROWTH, "memory grew by {grown} bytes");
    eventually("as many threads as before", async || {
        of_process("Threads:") <= threads
    })
    .await;
    for listener in listeners {
        listener.close(deadline(5)).await.unwrap();
    }
    bench.close().await;
    let mut queues: Vec<_> = (0..SERVERS).map(|n| format!("{topic_name}.s{n}")).collect();
    queues.push(topic_name.clone());
    clean_up(&queues, &[exchange, format!("{topic_name}_fanout")]).await;
}
