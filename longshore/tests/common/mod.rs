//! What the tests share: URLs, gates, waiting for a condition.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used
)]

pub mod executors_cases;
pub mod load;
pub mod logs;
pub mod nodes;
pub mod raw;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use longshore::{Error, ErrorKind, Outcome};

/// Longer than any rule's own figure, so that a slow machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The broker of the tests.
pub fn rabbit_url() -> String {
    std::env::var("RABBITMQ_URL").expect(
        "RABBITMQ_URL is not set: run `cargo xtask brokers up` and `eval \"$(cargo xtask env)\"`",
    )
}

/// What a failure says: its kind, and what is known of the request.
pub fn kinds(error: &Error) -> (ErrorKind, Outcome) {
    (error.kind(), error.outcome())
}

/// A name no other test uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{name}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Waits until the condition holds; fails with `what` if it does not in time.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A gate that handlers of both kinds wait at, and that counts them.
#[derive(Clone, Default)]
pub struct Gate(Arc<Inner>);

#[derive(Default)]
struct Inner {
    open: Mutex<bool>,
    opened: Condvar,
    notify: tokio::sync::Notify,
    inside: AtomicU32,
    peak: AtomicU32,
    passed: AtomicU32,
}

impl Gate {
    fn enter(&self) {
        let inside = self.0.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.peak.fetch_max(inside, Ordering::SeqCst);
    }

    fn leave(&self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
        self.0.passed.fetch_add(1, Ordering::SeqCst);
    }

    /// Blocks the thread until the gate is open.
    pub fn block(&self) {
        self.enter();
        let open = self.0.open.lock().unwrap();
        drop(self.0.opened.wait_while(open, |open| !*open).unwrap());
        self.leave();
    }

    /// Awaits until the gate is open.
    pub async fn pass(&self) {
        self.enter();
        loop {
            let notified = self.0.notify.notified();
            if *self.0.open.lock().unwrap() {
                break;
            }
            notified.await;
        }
        self.leave();
    }

    pub fn open(&self) {
        *self.0.open.lock().unwrap() = true;
        self.0.opened.notify_all();
        self.0.notify.notify_waiters();
    }

    pub fn inside(&self) -> u32 {
        self.0.inside.load(Ordering::SeqCst)
    }

    pub fn peak(&self) -> u32 {
        self.0.peak.load(Ordering::SeqCst)
    }

    pub fn passed(&self) -> u32 {
        self.0.passed.load(Ordering::SeqCst)
    }
}

/// Opens the gate when a test ends, also by a failure: handlers that block hold up the end of their threads.
pub struct OpensOnDrop(pub Gate);

impl Drop for OpensOnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}
