//! Many threads at once: nothing is lost, doubled or left lying.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use messaging_core::driver::{Address, Confirm, Delivery, Driver, SendOptions, Verdict};

const SENDERS: u32 = 8;
const EACH: u32 = 2_000;

/// How often each message was accepted by a receiver.
#[derive(Default)]
struct Tally {
    accepted: Mutex<HashMap<String, u32>>,
    count: AtomicU32,
}

impl Tally {
    fn accept(&self, mut delivery: Delivery) {
        let text = text(&delivery.message);
        delivery.settlement.settle(Verdict::Accept).unwrap();
        *self.accepted.lock().unwrap().entry(text).or_default() += 1;
        self.count.fetch_add(1, Ordering::Release);
    }

    async fn reaches(&self, expected: u32) {
        within(async {
            while self.count.load(Ordering::Acquire) < expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    fn check(&self, copies: u32) {
        let accepted = self.accepted.lock().unwrap();
        assert_eq!(accepted.len(), (SENDERS * EACH) as usize);
        for (text, times) in &*accepted {
            assert_eq!(*times, copies, "{text}");
        }
    }
}

async fn send_all(drivers: &[Arc<dyn Driver>], to: Address) {
    let mut tasks = Vec::new();
    for sender in 0..SENDERS {
        let driver = drivers[sender as usize % drivers.len()].clone();
        let to = to.clone();
        tasks.push(tokio::spawn(async move {
            for at in 0..EACH {
                let text = format!("{sender}-{at}");
                let options = SendOptions {
                    confirm: Confirm::Accepted,
                    priority: (at % 10) as u8,
                    ..options()
                };
                let receipt = driver.send(&to, message(&text), &options).await;
                sent(receipt).await.unwrap();
            }
        }));
    }
    for task in tasks {
        within(task).await.unwrap();
    }
}

/// Servers that give back a share of what they get, by every way there is, and come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn competing_servers_that_come_and_go_lose_and_double_nothing() {
    let url = format!("{}?queue_length=50", bus());
    let drivers = [open(&url), open(&url), open(&url)];
    let tally = Arc::new(Tally::default());
    let mut servers = Vec::new();
    for server in 0..6_u64 {
        let (driver, tally) = (drivers[server as usize % 3].clone(), tally.clone());
        servers.push(tokio::spawn(async move {
            let mut turn = server;
            loop {
                let mut listener = serve_with(&driver, &format!("s{server}"), 7).await;
                let mut held = Vec::new();
                for _ in 0..100 {
                    // What others hold back comes only when they end, so that none may wait for it for ever.
                    let quiet = Duration::from_millis(50);
                    let Ok(mut delivery) = tokio::time::timeout(quiet, next(&mut listener)).await
                    else {
                        break;
                    };
                    turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    match (turn >> 33) % 8 {
                        0 => drop(delivery),
                        1 => delivery
                            .settlement
                            .settle(Verdict::Requeue(Duration::ZERO))
                            .unwrap(),
                        2 => delivery
                            .settlement
                            .settle(Verdict::Requeue(Duration::from_millis(turn % 5)))
                            .unwrap(),
                        // Unsettled when the listener ends.
                        3 if held.len() < 6 => held.push(delivery),
                        _ => tally.accept(delivery),
                    }
                }
                match turn % 3 {
                    0 => drop(listener),
                    1 => listener.close(soon()).await.unwrap(),
                    _ => {
                        listener.stop(soon()).await.unwrap();
                        drop(held.pop());
                        drop(listener);
                    }
                }
                for mut delivery in held {
                    delivery.settlement.settle(Verdict::Accept).unwrap_err();
                }
            }
        }));
    }
    send_all(&drivers, topic()).await;
    tally.reaches(SENDERS * EACH).await;
    for server in servers {
        server.abort();
        let _ = server.await;
    }
    tally.check(1);
    let left = drivers[0].inspect(&topic(), soon()).await.unwrap();
    assert_eq!((left.waiting, left.servers), (Some(0), Some(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fanout_reaches_every_server_once() {
    let url = format!("{}?queue_length=20", bus());
    let drivers = [open(&url), open(&url)];
    let tally = Arc::new(Tally::default());
    let mut servers = Vec::new();
    for server in 0..3 {
        let mut listener = serve(&drivers[server % 2], &format!("s{server}")).await;
        let tally = tally.clone();
        servers.push(tokio::spawn(async move {
            for _ in 0..SENDERS * EACH {
                tally.accept(next(&mut listener).await);
            }
            assert_nothing(&mut listener).await;
        }));
    }
    send_all(&drivers, fanout()).await;
    for server in servers {
        within(server).await.unwrap();
    }
    tally.check(3);
}

/// Idle listeners and lone messages: each send must wake somebody who takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_is_lost() {
    let driver = open(&bus());
    let received = Arc::new(AtomicU64::new(0));
    let mut servers = Vec::new();
    for server in 0..4 {
        let mut listener = serve_with(&driver, &format!("s{server}"), 1).await;
        let received = received.clone();
        servers.push(tokio::spawn(async move {
            loop {
                let mut delivery = next(&mut listener).await;
                received.fetch_add(1, Ordering::Release);
                // It is busy for a moment, with this one delivery to settle.
                tokio::task::yield_now().await;
                delivery.settlement.settle(Verdict::Accept).unwrap();
            }
        }));
    }
    let mut expected = 0;
    for round in 0..5_000_u64 {
        // One to three messages, to the topic and to a server by name.
        for at in 0..=round % 3 {
            let to = if at == 1 {
                server(&format!("s{}", round % 4))
            } else {
                topic()
            };
            assert!(try_send(&driver, &to, "lone"));
            expected += 1;
        }
        within(async {
            while received.load(Ordering::Acquire) < expected {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    for server in servers {
        server.abort();
    }
}
