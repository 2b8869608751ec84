//! What comes back, seen where frames come in: lapin tells nobody when the broker returns a message.
//!
//! A return passes here before lapin reads it, and the confirm of the same message after it. So whoever has read a
//! confirm and then finds that every return counted here is accounted for knows that the message was not returned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

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
}

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
}

impl Returned {
    /// How many came so far.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    /// Waits until one has come since the last wait.
    pub(crate) async fn arrival(&self) {
        self.arrived.notified().await;
    }
}
