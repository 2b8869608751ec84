//! What every subject asks and answers, and the account of what was handled.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::cases::Payload;

pub(crate) const CALL: &str = "health_check";
pub(crate) const CAST: &str = "note";
pub(crate) const FANOUT: &str = "refresh";

/// How long the last messages of a run may take to be handled.
const DRAIN: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) seqid: u64,
    pub(crate) host: String,
    pub(crate) req: String,
}

pub(crate) type Answer = (u64, String, String);

/// Asks, answers and counts.
#[derive(Debug)]
pub(crate) struct Service {
    payload: Payload,
    filler: String,
    asked: AtomicU64,
    handled: AtomicU64,
    servers: usize,
    spreading: Mutex<HashMap<u64, Spread>>,
}

/// A fanout that has not reached every server yet.
#[derive(Debug)]
struct Spread {
    missing: usize,
    complete: oneshot::Sender<()>,
}

impl Service {
    pub(crate) fn new(payload: Payload, servers: usize) -> Self {
        Self {
            payload,
            filler: payload.filler(),
            asked: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            servers,
            spreading: Mutex::default(),
        }
    }

    /// The next question; each has a number of its own.
    pub(crate) fn question(&self) -> Question {
        let seqid = self.asked.fetch_add(1, Ordering::Relaxed);
        let req = match self.payload {
            Payload::Short => "How are you?".to_owned(),
            Payload::Mix => self.filler[..self.payload.length(seqid)].to_owned(),
        };
        Question {
            seqid,
            host: "api-1".to_owned(),
            req,
        }
    }

    /// Short questions get a short answer, long ones come back.
    pub(crate) fn answer(&self, q: Question) -> Answer {
        let text = match self.payload {
            Payload::Short => "I'm fine!".to_owned(),
            Payload::Mix => q.req,
        };
        (q.seqid, q.host, text)
    }

    /// A cast was handled.
    pub(crate) fn note(&self, _: &Question) {
        self.handled.fetch_add(1, Ordering::Relaxed);
    }

    /// A fanout reached one server.
    pub(crate) fn refresh(&self, q: &Question) {
        let mut spreading = self
            .spreading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(spread) = spreading.get_mut(&q.seqid) else {
            return;
        };
        spread.missing -= 1;
        if spread.missing == 0
            && let Some(spread) = spreading.remove(&q.seqid)
        {
            let _ = spread.complete.send(());
        }
    }

    /// Becomes ready when the fanout of this number has reached every server.
    pub(crate) fn expect_everywhere(&self, seqid: u64) -> oneshot::Receiver<()> {
        let (complete, completed) = oneshot::channel();
        let missing = self.servers;
        self.spreading
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(seqid, Spread { missing, complete });
        completed
    }

    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// Waits until so many casts were handled.
    pub(crate) async fn drained(&self, expected: u64) -> Result<()> {
        let waited = tokio::time::timeout(DRAIN, async {
            while self.handled() < expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        if waited.await.is_err() {
            bail!(
                "{} of {expected} confirmed casts were handled within {DRAIN:?}",
                self.handled()
            );
        }
        Ok(())
    }
}
