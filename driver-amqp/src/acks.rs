//! Settlements: collected from any thread, written in order by the task that owns the channel.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use messaging_core::driver::{Settler, Stale, Verdict};
use tokio::sync::Notify;

/// The settler of one channel. It ends with the channel.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    verdicts: Vec<(u64, Verdict)>,
    closed: bool,
    idle: bool,
}

impl Acks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the first unwritten settlement.
    pub(crate) async fn arrival(&self) {
        loop {
            {
                let mut state = self.lock();
                if !state.verdicts.is_empty() {
                    state.idle = false;
                    return;
                }
                state.idle = true;
            }
            self.arrived.notified().await;
        }
    }

    fn take(&self) -> Vec<(u64, Verdict)> {
        std::mem::take(&mut self.lock().verdicts)
    }

    /// The channel is gone: what is not written never will be, and the broker delivers it again.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.verdicts.clear();
    }
}

impl Settler for Acks {
    fn settle(&self, tag: u64, verdict: Verdict) -> Result<(), Stale> {
        let mut state = self.lock();
        if state.closed {
            return Err(Stale);
        }
        state.verdicts.push((tag, verdict));
        let wake = std::mem::replace(&mut state.idle, false);
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }
}

/// Writes the settlements of one channel: one acknowledgement for all up to the highest contiguous one, single ones
/// for the rest.
#[derive(Debug)]
pub(crate) struct AckWriter {
    /// The lowest tag that is not settled. The broker counts them from 1 on each channel.
    next: u64,
    /// Settled tags above it.
    settled: BTreeSet<u64>,
    /// Deliveries that are to wait before they are requeued.
    held: BTreeSet<(Instant, u64)>,
}

impl AckWriter {
    pub(crate) fn new() -> Self {
        Self {
            next: 1,
            settled: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }

    /// When a held delivery is to be requeued.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.held.first().map(|(due, _)| *due)
    }

    /// Writes everything that was settled, and what is held and due.
    pub(crate) fn write(&mut self, acks: &Acks, channel: &Channel) {
        let now = Instant::now();
        let mut accepted = Vec::new();
        for (tag, verdict) in acks.take() {
            match verdict {
                Verdict::Accept => {
                    self.settle(tag);
                    accepted.push(tag);
                }
                Verdict::Requeue(Duration::ZERO) => self.reject(channel, tag, true),
                Verdict::Requeue(delay) => {
                    self.held.insert((now + delay, tag));
                }
                _ => self.reject(channel, tag, false),
            }
        }
        while let Some((due, tag)) = self.held.first().copied() {
            if due > now {
                break;
            }
            self.held.pop_first();
            self.reject(channel, tag, true);
        }
        accepted.sort_unstable();
        let (through, single) = accepted.split_at(accepted.partition_point(|tag| *tag < self.next));
        if let Some(last) = through.last() {
            // Everything below was accepted here, or is settled already, which the broker passes over.
            ack(channel, *last, through.len() > 1);
        }
        for tag in single {
            ack(channel, *tag, false);
        }
    }

    /// Requeues what is held, whether it is due or not.
    pub(crate) fn release(&mut self, channel: &Channel) {
        for (_, tag) in std::mem::take(&mut self.held) {
            self.reject(channel, tag, true);
        }
    }

    fn settle(&mut self, tag: u64) {
        if tag != self.next {
            self.settled.insert(tag);
            return;
        }
        self.next += 1;
        while !self.settled.is_empty() && self.settled.remove(&self.next) {
            self.next += 1;
        }
    }

    fn reject(&mut self, channel: &Channel, tag: u64, requeue: bool) {
        self.settle(tag);
        let rejected = pin!(channel.basic_reject(tag, BasicRejectOptions { requeue }));
        // The first poll queues the frame; whether it is written is the link's business.
        let _ = rejected.poll(&mut Context::from_waker(Waker::noop()));
    }
}

fn ack(channel: &Channel, tag: u64, multiple: bool) {
    let acked = pin!(channel.basic_ack(tag, BasicAckOptions { multiple }));
    let _ = acked.poll(&mut Context::from_waker(Waker::noop()));
}
