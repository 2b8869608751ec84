//! What a server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of a server since its start. Every delivery ends in exactly one of the first seven.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCounters {
    /// Requests whose handler returned a result.
    pub succeeded: u64,
    /// Requests whose handler returned a failure or panicked.
    pub failed: u64,
    /// Requests refused before a handler: no such method, unsupported version, bad arguments.
    pub refused: u64,
    /// Requests dropped because their deadline had passed.
    pub expired: u64,
    /// Requests dropped because they had been seen before.
    pub duplicates: u64,
    /// Messages rejected because they could not be read.
    pub unreadable: u64,
    /// Requests given back unrun: the link was gone, or the server stopped.
    pub requeued: u64,
    /// Requests whose handler was dropped before it ended.
    pub abandoned: u64,
    /// Handlers that panicked; they count as failed too.
    pub panicked: u64,
    /// Requests that a handler is running for now.
    pub running: u64,
}

macro_rules! counters {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            /// Requests that were admitted.
            pub(crate) begun: Counter,
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> ServerCounters {
                // The ends are read first: a request that ends in between still counts as begun.
                let ended = self.ended();
                ServerCounters {
                    $($name: self.$name.get(),)*
                    running: self.begun.get().saturating_sub(ended),
                }
            }
        }
    };
}

counters!(
    succeeded, failed, refused, expired, duplicates, unreadable, requeued, abandoned, panicked
);

impl Counters {
    /// How many jobs were polled at least once or given back; messages that were no requests count too.
    pub(crate) fn taken_up(&self) -> u64 {
        let Self {
            begun,
            expired,
            duplicates,
            unreadable,
            requeued,
            ..
        } = self;
        begun.get() + expired.get() + duplicates.get() + unreadable.get() + requeued.get()
    }

    /// How many requests that were admitted have ended.
    fn ended(&self) -> u64 {
        let Self {
            succeeded,
            failed,
            refused,
            abandoned,
            ..
        } = self;
        succeeded.get() + failed.get() + refused.get() + abandoned.get()
    }
}

/// One count.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
