//! What the interoperability tests share: where the broker and Python are, peers, services, cases.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod broker;
pub(crate) mod peer;
pub(crate) mod service;

use std::fmt::Debug;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The value of a variable that the test run sets; without it the test fails and says what to do.
pub(crate) fn required(name: &str) -> String {
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => value,
        _ => panic!(
            "{name} is not set: run `cargo xtask brokers up` and `cargo xtask python`, then `eval \"$(cargo xtask env)\"`, \
             or run all of it by `cargo xtask test --only interop`"
        ),
    }
}

/// A name that no other test, and no earlier run, has used.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{prefix}-{:x}-{:x}-{count}",
        std::process::id(),
        now.as_micros()
    )
}

/// Waits until `condition` holds; panics with `what` after `limit`.
pub(crate) async fn eventually(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) {
    let until = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The cases of one test: each is named on the terminal, all run, and the test fails if one did.
pub(crate) struct Cases {
    of: &'static str,
    passed: u32,
    failed: Vec<String>,
}

impl Cases {
    pub(crate) fn of(of: &'static str) -> Self {
        Self {
            of,
            passed: 0,
            failed: Vec::new(),
        }
    }

    /// Names a case that does not apply, and why.
    pub(crate) fn set_aside(&self, name: &str, why: &str) {
        self.print(name, &format!("not possible, because {why}"));
    }

    fn print(&self, name: &str, what: &str) {
        // Not by println!, which the test harness hides.
        let _ = writeln!(
            std::io::stdout().lock(),
            "    case {}: {name} ... {what}",
            self.of
        );
    }

    /// Records a case by what it found, if anything, to be wrong.
    pub(crate) fn record(&mut self, name: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.print(name, "ok");
                self.passed += 1;
            }
            Err(why) => {
                self.print(name, &format!("FAILED: {why}"));
                self.failed.push(format!("{name}: {why}"));
            }
        }
    }

    /// Records a case that compares.
    pub(crate) fn equal<T: PartialEq + Debug>(&mut self, name: &str, found: T, expected: T) {
        let outcome = if found == expected {
            Ok(())
        } else {
            Err(format!("found {found:?}, expected {expected:?}"))
        };
        self.record(name, outcome);
    }

    /// Records a case that holds or not.
    pub(crate) fn holds(&mut self, name: &str, holds: bool, otherwise: impl Debug) {
        let outcome = if holds {
            Ok(())
        } else {
            Err(format!("{otherwise:?}"))
        };
        self.record(name, outcome);
    }

    pub(crate) fn finish(self) {
        assert!(
            self.failed.is_empty(),
            "{} of {} cases of {} failed:\n  {}",
            self.failed.len(),
            self.failed.len() + self.passed as usize,
            self.of,
            self.failed.join("\n  ")
        );
        assert!(self.passed > 0, "{} had no cases", self.of);
    }
}
