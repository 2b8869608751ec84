//! Calls and casts that go on whatever happens to the link, and the account of them.

#![allow(
    clippy::print_stdout,
    reason = "the account is for whoever reads what the tests print"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use longshore::{Context, Error, ErrorKind, Router, RpcClient, RpcServer, Target, Transport};
use messaging_conformance::{Guarantee, Ledger, Summary};
use tokio::task::{JoinHandle, JoinSet};

/// The deadline of each request.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// How much longer than its deadline a request may take.
const GRACE: Duration = Duration::from_secs(1);
/// The time between two requests.
const PACE: Duration = Duration::from_millis(5);
/// Ids that a server remembers: more than come while a broker is away, which delivers again what was not yet
/// acknowledged when it went.
const REMEMBERED: usize = 32_768;
/// How long everything may take to work again.
const RESUME: Duration = Duration::from_secs(60);
/// How long what was accepted may wait for its handler in the end.
const SETTLED: Duration = Duration::from_secs(10);

#[derive(serde::Deserialize)]
struct Record {
    id: u64,
}

/// A server that writes what it handles into the ledger.
pub async fn serve(transport: &Transport, topic: &str, ledger: &Arc<Ledger>) -> RpcServer {
    let router = Router::with_shared_state(Arc::clone(ledger)).method(
        "record",
        async |ledger: Arc<Ledger>, _: Context, record: Record| {
            ledger.handled(record.id);
            Ok(record.id)
        },
    );
    RpcServer::builder(transport, Target::topic(topic).server("one"), router)
        .duplicate_window(REMEMBERED)
        .start()
        .await
        .unwrap()
}

#[derive(Debug, Default)]
struct Account {
    stop: AtomicBool,
    answered: AtomicU64,
    /// How many requests ended in which way, and how long the longest of them took.
    ends: Mutex<BTreeMap<String, (u64, Duration)>>,
    /// Failures that no fault of a link explains.
    odd: Mutex<Vec<String>>,
}

/// A load that runs until it is finished.
#[derive(Debug)]
pub struct Load {
    pub ledger: Arc<Ledger>,
    account: Arc<Account>,
    task: JoinHandle<()>,
}

impl Load {
    /// A request every five milliseconds; every fourth is a cast.
    pub fn start(transport: &Transport, topic: &str, ledger: &Arc<Ledger>) -> Self {
        let client = RpcClient::new(transport, Target::topic(topic)).timeout(TIMEOUT);
        let (ledger, account) = (Arc::clone(ledger), Arc::<Account>::default());
        let task = tokio::spawn(run(client, Arc::clone(&ledger), Arc::clone(&account)));
        Self {
            ledger,
            account,
            task,
        }
    }

    /// Waits until a hundred calls that were made after now are answered, and says how long that took.
    pub async fn answering(&self, what: &str) -> Duration {
        let since = Instant::now();
        self.account.answered.store(0, Ordering::Relaxed);
        while self.account.answered.load(Ordering::Relaxed) < 100 {
            assert!(
                since.elapsed() < RESUME,
                "{what}: no answers within {RESUME:?}; {:?}",
                self.account.ends.lock().unwrap()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let took = since.elapsed();
        println!("{what}: answering after {took:.2?}");
        took
    }

    /// Ends the load, prints what became of it, and holds what was said against what was handled.
    ///
    /// What was accepted is handled, but for as many as were left behind in a broker that nobody is connected to.
    pub async fn finish(self, left_behind: impl AsyncFnOnce() -> usize) -> Summary {
        self.account.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let ends = std::mem::take(&mut *self.account.ends.lock().unwrap());
        let mut longest = Duration::ZERO;
        for (end, (count, most)) in ends {
            println!("{count:>7} {end}, longest {most:.2?}");
            longest = longest.max(most);
        }
        assert!(
            longest < TIMEOUT + GRACE,
            "a request outlived its deadline: {longest:?}"
        );
        let odd = std::mem::take(&mut *self.account.odd.lock().unwrap());
        assert!(odd.is_empty(), "{:?}", &odd[..odd.len().min(5)]);
        let left_behind = left_behind().await;
        // What was accepted late is handled a moment after the last call.
        let until = Instant::now() + SETTLED;
        loop {
            let mut account = self.ledger.account(Guarantee::Exactly(1));
            if account.lost.len() <= left_behind {
                account.lost.clear();
            }
            if account.is_clean() {
                println!("{:?}, left behind {left_behind}", account.summary);
                return account.summary;
            }
            assert!(Instant::now() < until, "{account}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn run(client: RpcClient, ledger: Arc<Ledger>, account: Arc<Account>) {
    let mut ticks = tokio::time::interval(PACE);
    let mut running = JoinSet::new();
    for id in 0_u64.. {
        if account.stop.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        ledger.sent(id);
        let (client, ledger, account) = (client.clone(), Arc::clone(&ledger), Arc::clone(&account));
        running.spawn(async move {
            let started = Instant::now();
            if id % 4 == 0 {
                let told = client.cast("record").arg("id", id).await.map(drop);
                match &told {
                    Ok(()) => ledger.accepted(id),
                    Err(error) => ledger.failed(id, error),
                }
                account.note("cast", told, started.elapsed());
            } else {
                let told = client.call::<u64>("record").arg("id", id).await;
                match &told {
                    Ok(answer) => {
                        assert_eq!(*answer, id);
                        ledger.replied(id);
                        account.answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => ledger.failed(id, error),
                }
                account.note("call", told.map(drop), started.elapsed());
            }
        });
        while let Some(ended) = running.try_join_next() {
            ended.unwrap();
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

impl Account {
    fn note(&self, verb: &str, told: Result<(), Error>, took: Duration) {
        let end = match &told {
            Ok(()) => format!("{verb}s answered or accepted"),
            Err(error) => format!("{verb}s failed: {}, {}", error.kind(), error.outcome()),
        };
        let mut ends = self.ends.lock().unwrap();
        let (count, longest) = ends.entry(end).or_default();
        *count += 1;
        *longest = took.max(*longest);
        drop(ends);
        if let Err(error) = told
            && !matches!(
                error.kind(),
                ErrorKind::Timeout
                    | ErrorKind::Disconnected
                    | ErrorKind::Connect
                    | ErrorKind::NoServer
                    | ErrorKind::Refused
            )
        {
            self.odd.lock().unwrap().push(error.to_string());
        }
    }
}
