//! What was sent, accepted, handled and replied, and what each sender was told.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use messaging_core::{Error, Outcome};
use tokio::sync::Notify;

use crate::failure::Failure;

/// How many of a list of ids an error shows.
const SHOWN: usize = 8;

/// The account of a test that counts: every message by its id.
///
/// Senders and handlers write into it from anywhere; [`check`](Self::check) compares both sides.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<BTreeMap<u64, Entry>>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Entry {
    sent: bool,
    told: Option<Told>,
    handled: u32,
}

/// What the sender of a message was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Accepted,
    Replied,
    Failed(Outcome),
}

/// What a delivery promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guarantee {
    /// What was accepted is handled exactly this many times; once, or once by each server of a fanout.
    Exactly(u32),
    /// What was accepted is handled; repetitions are allowed.
    AtLeastOnce,
    /// Nothing is handled twice; what was accepted may be lost.
    AtMostOnce,
}

/// What a ledger holds in the end, when nothing is wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages sent.
    pub sent: usize,
    /// Of these: accepted or replied to.
    pub succeeded: usize,
    /// Of these: failed with an outcome.
    pub failed: usize,
    /// Messages that were handled at all.
    pub handled: usize,
    /// Failed as [`Outcome::Unknown`], and handled all the same.
    pub recovered: usize,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// The message is about to be sent. It stands first, since a handler may be faster than the sender's next line.
    pub fn sent(&self, id: u64) {
        self.entries().entry(id).or_default().sent = true;
    }

    /// The other side took it over.
    pub fn accepted(&self, id: u64) {
        self.entries().entry(id).or_default().told = Some(Told::Accepted);
    }

    /// The sender was told that it failed, and what is known of it.
    pub fn failed(&self, id: u64, error: &Error) {
        self.entries().entry(id).or_default().told = Some(Told::Failed(error.outcome()));
    }

    /// A consumer or handler saw it. Returns how many times it has been seen now.
    pub fn handled(&self, id: u64) -> u32 {
        let mut entries = self.entries();
        let entry = entries.entry(id).or_default();
        entry.handled += 1;
        let times = entry.handled;
        drop(entries);
        self.changed.notify_waiters();
        times
    }

    /// Waits until this many messages were handled at least once; false: they were not, in that time.
    pub async fn wait_handled(&self, count: usize, within: Duration) -> bool {
        let enough = async {
            loop {
                let mut changed = pin!(self.changed.notified());
                // Enabled before the look, so that no change falls between look and wait.
                changed.as_mut().enable();
                if self.handled_count() >= count {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, enough).await.is_ok()
    }

    /// The caller has its reply.
    pub fn replied(&self, id: u64) {
        self.entries().entry(id).or_default().told = Some(Told::Replied);
    }

    /// How many messages were handled at least once.
    pub fn handled_count(&self) -> usize {
        self.entries().values().filter(|e| e.handled > 0).count()
    }

    /// How many times messages were handled, repetitions included.
    pub fn handlings(&self) -> u64 {
        self.entries().values().map(|e| u64::from(e.handled)).sum()
    }

    /// Compares both sides.
    ///
    /// # Errors
    /// A text that lists what was lost, run too often or unexpected, whose sender was told nothing, and which
    /// outcomes were not true, as in the [`Account`].
    pub fn check(&self, guarantee: Guarantee) -> Result<Summary, Failure> {
        let account = self.account(guarantee);
        match account.is_clean() {
            true => Ok(account.summary),
            false => Err(Failure::new(format!(
                "the ledger of {} messages does not add up: {account}",
                account.summary.sent
            ))),
        }
    }

    /// Compares both sides, and says what is wrong as well as what is right.
    pub fn account(&self, guarantee: Guarantee) -> Account {
        let entries = self.entries();
        let mut account = Account::default();
        for (&id, entry) in entries.iter() {
            account.summary.handled += usize::from(entry.handled > 0);
            if !entry.sent {
                account.unexpected.push(id);
                continue;
            }
            account.summary.sent += 1;
            let most = match guarantee {
                Guarantee::Exactly(times) => times,
                Guarantee::AtMostOnce => 1,
                Guarantee::AtLeastOnce => u32::MAX,
            };
            if entry.handled > most {
                account.run_too_often.push(id);
            }
            match entry.told {
                None => account.untold.push(id),
                Some(Told::Accepted) => {
                    account.summary.succeeded += 1;
                    let least = match guarantee {
                        Guarantee::Exactly(times) => times,
                        Guarantee::AtLeastOnce => 1,
                        Guarantee::AtMostOnce => 0,
                    };
                    if entry.handled < least {
                        account.lost.push(id);
                    }
                }
                Some(Told::Replied) => {
                    account.summary.succeeded += 1;
                    if entry.handled == 0 {
                        account.untrue.push((id, "replied"));
                    }
                }
                Some(Told::Failed(outcome)) => {
                    account.summary.failed += 1;
                    let claims_run = match outcome {
                        Outcome::NotSent | Outcome::NotExecuted => Some(false),
                        Outcome::Executed => Some(true),
                        Outcome::Unknown => None,
                    };
                    if claims_run.is_some_and(|run| run != (entry.handled > 0)) {
                        account.untrue.push((id, outcome.as_str()));
                    }
                    if outcome == Outcome::Unknown && entry.handled > 0 {
                        account.summary.recovered += 1;
                    }
                }
            }
        }
        account
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a ledger holds, and what is wrong with it. As text it is what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// How many there are of what.
    pub summary: Summary,
    /// Accepted, and not handled as often as the guarantee says.
    pub lost: Vec<u64>,
    /// Handled more often than the guarantee allows.
    pub run_too_often: Vec<u64>,
    /// Never sent, and handled all the same.
    pub unexpected: Vec<u64>,
    /// Sent, and the sender was told nothing.
    pub untold: Vec<u64>,
    /// The sender was told what is not true: [`NotSent`](Outcome::NotSent) or
    /// [`NotExecuted`](Outcome::NotExecuted) of what was handled, [`Executed`](Outcome::Executed) or a reply of what
    /// was not.
    pub untrue: Vec<(u64, &'static str)>,
}

impl Account {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.run_too_often.is_empty()
            && self.unexpected.is_empty()
            && self.untold.is_empty()
            && self.untrue.is_empty()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (what, ids) in [
            ("lost", &self.lost),
            ("run too often", &self.run_too_often),
            ("never sent but handled", &self.unexpected),
            ("sender told nothing", &self.untold),
        ] {
            if !ids.is_empty() {
                write!(f, "{separator}{} {what} (", ids.len())?;
                list(f, ids.iter())?;
                f.write_str(")")?;
                separator = ", ";
            }
        }
        if !self.untrue.is_empty() {
            write!(
                f,
                "{separator}{} told what is not true (",
                self.untrue.len()
            )?;
            list(
                f,
                self.untrue.iter().map(|(id, told)| format!("{id}: {told}")),
            )?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

fn list(
    f: &mut fmt::Formatter<'_>,
    items: impl ExactSizeIterator<Item = impl fmt::Display>,
) -> fmt::Result {
    let count = items.len();
    for (n, item) in items.take(SHOWN).enumerate() {
        write!(f, "{}{item}", if n == 0 { "" } else { ", " })?;
    }
    if count > SHOWN {
        write!(f, ", …")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use messaging_core::ErrorKind;

    use super::*;

    fn ledger(write: impl FnOnce(&Ledger)) -> Ledger {
        let ledger = Ledger::new();
        write(&ledger);
        ledger
    }

    fn fault(guarantee: Guarantee, write: impl FnOnce(&Ledger)) -> String {
        ledger(write).check(guarantee).unwrap_err().to_string()
    }

    fn failed(ledger: &Ledger, id: u64, outcome: Outcome) {
        ledger.failed(id, &Error::new(ErrorKind::Timeout, outcome, "x"));
    }

    #[test]
    fn what_adds_up_is_summed_up() {
        let summary = ledger(|l| {
            for id in 0..4 {
                l.sent(id);
            }
            l.accepted(0);
            l.handled(0);
            l.handled(1);
            l.replied(1);
            failed(l, 2, Outcome::NotSent);
            l.handled(3);
            failed(l, 3, Outcome::Unknown);
        })
        .check(Guarantee::Exactly(1))
        .unwrap();
        assert_eq!(
            summary,
            Summary {
                sent: 4,
                succeeded: 2,
                failed: 2,
                handled: 3,
                recovered: 1
            }
        );
    }

    #[test]
    fn an_accepted_message_nobody_handled_is_lost() {
        let lost = |l: &Ledger| {
            l.sent(7);
            l.accepted(7);
        };
        assert!(fault(Guarantee::Exactly(1), lost).contains("1 lost (7)"));
        assert!(fault(Guarantee::AtLeastOnce, lost).contains("1 lost (7)"));
        assert!(ledger(lost).check(Guarantee::AtMostOnce).is_ok());
    }

    #[test]
    fn repetitions_count_as_the_guarantee_says() {
        let twice = |l: &Ledger| {
            l.sent(7);
            l.accepted(7);
            l.handled(7);
            l.handled(7);
        };
        assert!(fault(Guarantee::Exactly(1), twice).contains("1 run too often (7)"));
        assert!(fault(Guarantee::AtMostOnce, twice).contains("1 run too often (7)"));
        assert!(ledger(twice).check(Guarantee::AtLeastOnce).is_ok());
        assert!(ledger(twice).check(Guarantee::Exactly(2)).is_ok());
        assert!(fault(Guarantee::Exactly(3), twice).contains("1 lost (7)"));
    }

    #[test]
    fn outcomes_must_be_true() {
        for (outcome, handled, truth) in [
            (Outcome::NotSent, true, false),
            (Outcome::NotExecuted, true, false),
            (Outcome::Unknown, true, true),
            (Outcome::Unknown, false, true),
            (Outcome::Executed, true, true),
            (Outcome::Executed, false, false),
        ] {
            let ledger = ledger(|l| {
                l.sent(1);
                if handled {
                    l.handled(1);
                }
                failed(l, 1, outcome);
            });
            assert_eq!(
                ledger.check(Guarantee::AtLeastOnce).is_ok(),
                truth,
                "{outcome}, handled: {handled}"
            );
        }
        let fabricated = fault(Guarantee::AtLeastOnce, |l| {
            l.sent(1);
            l.replied(1);
        });
        assert!(fabricated.contains("1: replied"), "{fabricated}");
    }

    #[test]
    fn what_was_never_sent_or_never_answered_is_a_fault() {
        assert!(
            fault(Guarantee::AtLeastOnce, |l| {
                l.handled(3);
            })
            .contains("1 never sent but handled (3)")
        );
        assert!(fault(Guarantee::AtLeastOnce, |l| l.sent(3)).contains("1 sender told nothing (3)"));
    }

    #[test]
    fn long_lists_are_cut() {
        let text = fault(Guarantee::Exactly(1), |l| {
            for id in 0..100 {
                l.sent(id);
                l.accepted(id);
            }
        });
        assert!(
            text.contains("100 lost (0, 1, 2, 3, 4, 5, 6, 7, …)"),
            "{text}"
        );
    }
}
