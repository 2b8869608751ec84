//! The load: requests of all kinds at a stated rate, each in the record before it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use longshore::{RpcClient, Target, Transport};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::record::{Key, Record, SERVER_COUNT};
use crate::server::{NOTE, Note, PROBE, SPREAD, name};

/// The deadline of every request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The deadline of a probe, which is sent again.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// By how much a request may outlive it.
const LATE: Duration = Duration::from_secs(1);
/// Requests are sent in bunches at this interval.
const TICK: Duration = Duration::from_millis(5);
/// More than this are never under way: during an outage, what is sent within a deadline.
const MOST: usize = 30_000;
/// A server answers again when it has answered so many calls in a row.
const ANSWERS: u32 = 5;
const LOOK: Duration = Duration::from_millis(20);

/// The lengths of the texts that go with requests, one after another.
const LENGTHS: [usize; 8] = [0, 20, 200, 800, 1_500, 2_500, 4_000, 11_000];

/// A client and what it has sent.
#[derive(Debug)]
pub(crate) struct Load {
    transport: Transport,
    client: RpcClient,
    record: Arc<Record>,
    next: AtomicU64,
    stop: AtomicBool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
enum Request {
    Call,
    CallTo(u8),
    Cast,
    CastTo(u8),
    Fanout,
}

impl Request {
    /// Of twenty: eight calls and six casts to any server, four calls and one cast to a certain one, one to all.
    fn of(id: u64) -> Self {
        let index = (id / 20 % u64::from(SERVER_COUNT)) as u8;
        match id % 20 {
            0..8 => Self::Call,
            8..12 => Self::CallTo(index),
            12..18 => Self::Cast,
            18 => Self::CastTo(index),
            _ => Self::Fanout,
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::CallTo(_) => "call to a server",
            Self::Cast => "cast",
            Self::CastTo(_) => "cast to a server",
            Self::Fanout => "fanout",
        }
    }

    fn keys(self, id: u64) -> Vec<Key> {
        match self {
            Self::Fanout => (0..SERVER_COUNT).map(|n| Key::at_server(id, n)).collect(),
            _ => vec![Key::once(id)],
        }
    }
}

impl Load {
    pub(crate) async fn connect(url: &str, topic: &str, record: &Arc<Record>) -> Result<Arc<Self>> {
        let transport = Transport::connect(url).await?;
        Ok(Arc::new(Self {
            client: RpcClient::new(&transport, Target::topic(topic)).timeout(TIMEOUT),
            transport,
            record: Arc::clone(record),
            next: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        }))
    }

    /// Sends so many requests a second until it is [finished](Self::finish).
    pub(crate) fn begin(self: &Arc<Self>, per_second: u32) -> JoinHandle<()> {
        tokio::spawn(Arc::clone(self).run(per_second))
    }

    async fn run(self: Arc<Self>, per_second: u32) {
        let room = Arc::new(Semaphore::new(MOST));
        let mut running = JoinSet::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut ticked, mut sent) = (0_u64, 0_u64);
        while !self.stop.load(Ordering::Relaxed) {
            ticks.tick().await;
            ticked += 1;
            let due = ticked * u64::from(per_second) * TICK.as_millis() as u64 / 1_000;
            while sent < due {
                let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                    return;
                };
                let load = Arc::clone(&self);
                running.spawn(async move {
                    let id = load.next.fetch_add(1, Ordering::Relaxed);
                    load.request(Request::of(id), id).await;
                    drop(place);
                });
                sent += 1;
            }
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    /// Sends this many confirmed casts, so many at a time.
    pub(crate) async fn casts(self: &Arc<Self>, count: u64, at_a_time: usize) {
        let mut sending = JoinSet::new();
        for _ in 0..at_a_time {
            let load = Arc::clone(self);
            sending.spawn(async move {
                loop {
                    let id = load.next.fetch_add(1, Ordering::Relaxed);
                    if id > count {
                        break;
                    }
                    load.request(Request::Cast, id).await;
                }
            });
        }
        while sending.join_next().await.is_some() {}
    }

    /// Sends one request, waits for what becomes of it, and writes it down.
    async fn request(&self, request: Request, id: u64) {
        let text = "x".repeat(LENGTHS[(id % LENGTHS.len() as u64) as usize]);
        let note = Note { id, text };
        let keys = request.keys(id);
        self.record.sent(&keys);
        let begun = Instant::now();
        let failure = match request {
            Request::Call | Request::CallTo(_) => {
                let mut call = self.client.call::<(u64, u8)>(NOTE).args(&note);
                if let Request::CallTo(index) = request {
                    call = call.server(&name(index));
                }
                match call.await {
                    Ok((answered, by)) => {
                        let fits = match request {
                            Request::CallTo(index) => by == index,
                            _ => by < SERVER_COUNT,
                        };
                        if answered != id || !fits {
                            let what = format!("{request:?} {id} answered {answered} by {by}");
                            self.record.wrong(what);
                        }
                        self.record.replied(keys[0], begun.elapsed());
                        None
                    }
                    Err(error) => Some(error),
                }
            }
            Request::Cast | Request::CastTo(_) | Request::Fanout => {
                let method = match request {
                    Request::Fanout => SPREAD,
                    _ => NOTE,
                };
                let mut cast = self.client.cast(method).args(&note);
                match request {
                    Request::CastTo(index) => cast = cast.server(&name(index)),
                    Request::Fanout => cast = cast.fanout(),
                    _ => {}
                }
                match cast.await {
                    Ok(_) => {
                        self.record.accepted(&keys);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        if let Some(error) = failure {
            self.record.failed(&keys, request.verb(), &error);
        }
        let took = begun.elapsed();
        if took > TIMEOUT + LATE {
            self.record
                .wrong(format!("{request:?} {id} took {took:.1?}"));
        }
    }

    /// Waits until each server answers calls again, and returns how long that took.
    pub(crate) async fn answering(&self, within: Duration) -> Result<Duration> {
        let begun = Instant::now();
        for index in 0..SERVER_COUNT {
            let mut answered = 0;
            while answered < ANSWERS {
                let left = within.saturating_sub(begun.elapsed());
                ensure!(
                    !left.is_zero(),
                    "server {index} did not answer within {within:?}"
                );
                match timeout(left, self.probe(index)).await {
                    Ok(true) => answered += 1,
                    Ok(false) | Err(_) => answered = 0,
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(begun.elapsed())
    }

    /// A short call that is no part of the record; whether it was answered.
    async fn probe(&self, index: u8) -> bool {
        let note = Note {
            id: 0,
            text: String::new(),
        };
        let call = self.client.call::<(u64, u8)>(PROBE).args(&note);
        let answer = call.server(&name(index)).timeout(PROBE_TIMEOUT).await;
        answer.is_ok_and(|answer| answer == (0, index))
    }

    /// Sends nothing more, and waits for what is under way.
    pub(crate) async fn finish(&self, running: JoinHandle<()>) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        timeout(TIMEOUT + LATE + TIMEOUT, running).await??;
        Ok(())
    }

    pub(crate) async fn close(&self) -> Result<()> {
        ensure!(
            self.transport.pending_calls() == 0,
            "calls are pending after all have ended"
        );
        self.transport.close(TIMEOUT).await?;
        Ok(())
    }
}
