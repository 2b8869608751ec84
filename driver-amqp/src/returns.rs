//! What comes back, seen where frames come in: lapin tells nobody when the broker returns a message.
//!
//! A return passes here before lapin reads it, and the confirm of the same message after it. So whoever has read a
//! confirm and then finds that every return counted here is accounted for knows that the message was not returned.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use messaging_core::driver::SendId;
use tokio::sync::Notify;

/// The channels of a link that want to know of their returns.
#[derive(Debug, Clone, Default)]
pub(crate) struct Returns(Arc<Mutex<Channels>>);

type Channels = Vec<(u16, Arc<Returned>)>;

/// The returns on one channel.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    seen: AtomicU64,
    arrived: Notify,
    latest: Mutex<VecDeque<SendId>>,
}

/// How many of the latest returns are known by id: as many as may be unanswered on a channel.
const LATEST: usize = crate::outlet::WINDOW;

impl Returns {
    /// The returns on a channel that was just opened.
    pub(crate) fn on(&self, channel: u16) -> Arc<Returned> {
        let returned = Arc::<Returned>::default();
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers of closed channels are given out again.
        channels.retain(|(known, _)| *known != channel);
        channels.push((channel, Arc::clone(&returned)));
        returned
    }

    /// A message comes back.
    pub(crate) fn count(&self, channel: u16) {
        let channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, returned)) = channels.iter().find(|(known, _)| *known == channel) {
            returned.seen.fetch_add(1, Ordering::AcqRel);
            returned.arrived.notify_one();
        }
    }

    /// A message that comes back is this one.
    pub(crate) fn identify(&self, channel: u16, id: SendId) {
        let channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, returned)) = channels.iter().find(|(known, _)| *known == channel) {
            let mut latest = returned.latest();
            if latest.len() >= LATEST {
                latest.pop_front();
            }
            latest.push_back(id);
        }
    }
}

impl Returned {
    fn latest(&self) -> MutexGuard<'_, VecDeque<SendId>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this message, which is not answered yet, came back: where the link broke before its confirm, lapin
    /// keeps the return to itself.
    pub(crate) fn includes(&self, id: SendId) -> bool {
        self.latest().contains(&id)
    }

    /// How many came so far.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Waits until one has come since the last wait.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }
}
