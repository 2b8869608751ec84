//! The record of a phase: the ledger, and when what was run during which fault.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore::Error;
use messaging_conformance::{Account, Guarantee, Ledger};

use crate::server::now_us;

/// The servers of a topic.
pub(crate) const SERVER_COUNT: u8 = 3;

/// How long before a link dies a request may have been run whose acknowledgement is not written yet. They are written
/// at once; this is for a machine with other work.
const UNWRITTEN: Duration = Duration::from_secs(1);

/// An entry of the ledger: a request that is to be run once, or the part of a fanout that one server is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) u64);

impl Key {
    pub(crate) fn once(id: u64) -> Self {
        Self(id << 8)
    }

    pub(crate) fn at_server(id: u64, index: u8) -> Self {
        Self((id << 8) + u64::from(index) + 1)
    }
}

/// A fault from its beginning to when everything answered again, in microseconds of the machine's clock.
#[derive(Debug, Clone, Copy)]
struct Fault {
    began: u64,
    ended: u64,
}

/// A run of a handler.
#[derive(Debug, Clone, Copy)]
struct Run {
    server: u8,
    at: u64,
}

/// What is written down while a phase runs.
#[derive(Debug, Default)]
pub(crate) struct Record {
    ledger: Ledger,
    more: Mutex<More>,
    handled: AtomicU64,
    accepted: AtomicU64,
}

#[derive(Debug, Default)]
struct More {
    first_runs: HashMap<u64, Run>,
    second_runs: Vec<(u64, Run)>,
    faults: Vec<Fault>,
    recoveries: Vec<(String, Duration)>,
    failures: Failures,
    /// Answers that are not those of the question, and requests that outlived their deadline.
    wrong: Vec<String>,
    latencies_us: Vec<u32>,
    duplicates_dropped: u64,
}

/// How often what failed how, and what was said of the first.
pub(crate) type Failures = BTreeMap<String, (u64, String)>;

/// What came of a phase.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) account: Account,
    /// Requests that more than one server ran around a fault.
    pub(crate) twice_in_window: usize,
    /// Any other second run.
    pub(crate) twice_outside: Vec<String>,
    pub(crate) wrong: Vec<String>,
    pub(crate) failures: Failures,
    pub(crate) recoveries: Vec<(String, Duration)>,
    pub(crate) latencies_us: Vec<u32>,
    pub(crate) duplicates_dropped: u64,
}

impl Record {
    fn more(&self) -> MutexGuard<'_, More> {
        self.more.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These are about to be sent.
    pub(crate) fn sent(&self, keys: &[Key]) {
        for key in keys {
            self.ledger.sent(key.0);
        }
    }

    pub(crate) fn accepted(&self, keys: &[Key]) {
        for key in keys {
            self.ledger.accepted(key.0);
        }
        self.accepted
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
    }

    pub(crate) fn replied(&self, key: Key, took: Duration) {
        self.ledger.replied(key.0);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.more().latencies_us.push(micros);
    }

    pub(crate) fn failed(&self, keys: &[Key], verb: &str, error: &Error) {
        for key in keys {
            self.ledger.failed(key.0, error);
        }
        let what = format!("{verb}: {}, {}", error.kind(), error.outcome());
        let mut more = self.more();
        let (count, _) = more
            .failures
            .entry(what)
            .or_insert_with(|| (0, error.message().to_owned()));
        *count += 1;
    }

    /// Something that must never be.
    pub(crate) fn wrong(&self, what: String) {
        self.more().wrong.push(what);
    }

    /// A handler of this server ran.
    pub(crate) fn saw(&self, key: u64, server: u8, at: u64) {
        let run = Run { server, at };
        if self.ledger.handled(key) == 1 {
            self.handled.fetch_add(1, Ordering::Relaxed);
            self.more().first_runs.insert(key, run);
        } else {
            self.more().second_runs.push((key, run));
        }
    }

    /// A server ended, and has dropped so many requests that it knew.
    pub(crate) fn dropped_duplicates(&self, count: u64) {
        self.more().duplicates_dropped += count;
    }

    /// How many entries were accepted, and how many were run.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (count(&self.accepted), count(&self.handled))
    }

    /// A fault begins. Returns its beginning, for [`fault_ended`](Self::fault_ended).
    pub(crate) fn fault_begins(&self) -> u64 {
        let began = now_us();
        let ended = u64::MAX;
        self.more().faults.push(Fault { began, ended });
        began
    }

    /// Everything answers again, this long after the fault was taken away.
    pub(crate) fn fault_ended(&self, what: &str, recovered: Duration) {
        let mut more = self.more();
        more.recoveries.push((what.to_owned(), recovered));
        if let Some(fault) = more.faults.last_mut() {
            fault.ended = now_us();
        }
    }

    /// Closes the record.
    pub(crate) fn outcome(&self) -> Outcome {
        let account = self.ledger.account(Guarantee::AtLeastOnce);
        let mut more = self.more();
        let mut twice_outside = Vec::new();
        for (key, second) in &more.second_runs {
            let first = more.first_runs.get(key);
            if !first.is_some_and(|first| is_in_window(&more.faults, *first, *second)) {
                twice_outside.push(format!("{key} by {second:?} after {first:?}"));
            }
        }
        Outcome {
            account,
            twice_in_window: more.second_runs.len() - twice_outside.len(),
            twice_outside,
            wrong: std::mem::take(&mut more.wrong),
            failures: std::mem::take(&mut more.failures),
            recoveries: std::mem::take(&mut more.recoveries),
            latencies_us: std::mem::take(&mut more.latencies_us),
            duplicates_dropped: more.duplicates_dropped,
        }
    }
}

/// Whether a second run is one that the documentation allows: by another server, of what was run when a link died.
fn is_in_window(faults: &[Fault], first: Run, second: Run) -> bool {
    let margin = u64::try_from(UNWRITTEN.as_micros()).unwrap_or(u64::MAX);
    first.server != second.server
        && faults.iter().any(|fault| {
            (fault.began.saturating_sub(margin)..=fault.ended).contains(&first.at)
                && second.at >= fault.began
        })
}

#[cfg(test)]
mod tests {
    use longshore::{ErrorKind, Outcome as Known};

    use super::*;

    #[test]
    fn a_second_run_is_allowed_to_another_server_around_a_fault_only() {
        let fault = Fault {
            began: 10_000_000,
            ended: 20_000_000,
        };
        let run = |server, at| Run { server, at };
        for (first, second, allowed) in [
            (run(0, 9_500_000), run(1, 12_000_000), true),
            (run(0, 15_000_000), run(1, 25_000_000), true),
            (run(0, 9_500_000), run(0, 12_000_000), false),
            (run(0, 5_000_000), run(1, 12_000_000), false),
            (run(0, 21_000_000), run(1, 22_000_000), false),
        ] {
            assert_eq!(is_in_window(&[fault], first, second), allowed, "{first:?}");
        }
        assert!(!is_in_window(&[], run(0, 1), run(1, 2)));
    }

    #[test]
    fn what_is_lost_or_untrue_is_told_apart_from_what_is_recovered() {
        let record = Record::default();
        let keys = [1, 2, 3, 4].map(Key::once);
        record.sent(&keys);
        record.accepted(&keys[..1]);
        let error = |known| Error::new(ErrorKind::Disconnected, known, "x");
        record.failed(&keys[1..2], "cast", &error(Known::NotSent));
        record.failed(&keys[2..3], "cast", &error(Known::Unknown));
        record.accepted(&keys[3..]);
        for key in &keys[1..] {
            record.saw(key.0, 0, 1);
        }
        record.saw(keys[3].0, 1, 2);
        let outcome = record.outcome();
        assert_eq!(outcome.account.lost, [keys[0].0]);
        assert_eq!(outcome.account.untrue, [(keys[1].0, "not_sent")]);
        assert_eq!(outcome.account.summary.recovered, 1);
        assert_eq!(
            (outcome.twice_in_window, outcome.twice_outside.len()),
            (0, 1)
        );
    }
}
