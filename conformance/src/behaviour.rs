//! The table: what a driver is checked for.

use std::fmt;
use std::time::Duration;

use messaging_core::driver::{AttemptCount, Capabilities, NobodyGrade};
use messaging_core::executor::BoxFuture;

use crate::failure::Failure;
use crate::session::Session;
use crate::{link, rpc};

/// The function that checks one behaviour.
pub type Run = for<'a> fn(&'a Session) -> BoxFuture<'a, Result<(), Failure>>;

/// One promise of a driver, and how it is checked.
#[derive(Debug, Clone, Copy)]
pub struct Behaviour {
    /// Its name, with the group in front: `link::` needs the driver alone, `rpc::` needs an executor too.
    pub id: &'static str,
    /// What holds, in one sentence.
    pub doc: &'static str,
    /// What the driver must be able to do; otherwise the behaviour does not apply to it.
    pub needs: &'static [Need],
    /// How long it may take at most, teardown left out.
    pub budget: Duration,
    /// Checks it.
    pub run: Run,
}

impl Behaviour {
    /// The part of the id before `::`.
    pub fn group(&self) -> &'static str {
        self.id.split("::").next().unwrap_or(self.id)
    }

    /// Whether it is checked under each executor.
    pub fn per_executor(&self) -> bool {
        self.group() != "link"
    }

    /// The first need that these capabilities do not meet.
    pub fn unmet(&self, capabilities: &Capabilities) -> Option<Need> {
        self.needs
            .iter()
            .copied()
            .find(|need| !need.is_met(capabilities))
    }
}

/// What a behaviour needs of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// The broker drops what is older than its time to live.
    Ttl,
    /// Messages of a higher priority come first.
    Priority,
    /// A requeue may ask for a delay.
    RequeueDelay,
    /// The driver counts attempts.
    Attempts,
    /// The driver knows at least so well that nobody is there.
    Nobody(NobodyGrade),
    /// The driver says who serves an address.
    Inspect,
}

impl Need {
    /// Whether these capabilities meet it.
    pub fn is_met(self, capabilities: &Capabilities) -> bool {
        match self {
            Self::Ttl => capabilities.ttl,
            Self::Priority => capabilities.priority,
            Self::RequeueDelay => capabilities.requeue_delay,
            Self::Attempts => capabilities.attempts == AttemptCount::Exact,
            Self::Nobody(grade) => capabilities.nobody >= grade,
            Self::Inspect => capabilities.inspect,
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "ttl",
            Self::Priority => "priority",
            Self::RequeueDelay => "requeue_delay",
            Self::Attempts => "attempts",
            Self::Nobody(NobodyGrade::Live) => "nobody: live",
            Self::Nobody(_) => "nobody: never bound",
            Self::Inspect => "inspect",
        })
    }
}

/// All behaviours, in the order of the documentation.
pub fn behaviours() -> impl Iterator<Item = &'static Behaviour> {
    link::BEHAVIOURS.iter().chain(rpc::BEHAVIOURS)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        let mut seen = HashSet::new();
        for behaviour in behaviours() {
            assert!(seen.insert(behaviour.id), "{} stands twice", behaviour.id);
            assert!(
                matches!(behaviour.group(), "link" | "rpc"),
                "{}",
                behaviour.id
            );
            assert!(behaviour.doc.ends_with('.'), "{}", behaviour.id);
            assert!(!behaviour.budget.is_zero(), "{}", behaviour.id);
        }
        assert!(seen.len() >= 15);
    }

    #[test]
    fn needs_are_met_by_what_is_claimed() {
        let weakest = Capabilities::default();
        for need in [
            Need::Ttl,
            Need::Priority,
            Need::RequeueDelay,
            Need::Attempts,
            Need::Nobody(NobodyGrade::NeverBound),
            Need::Inspect,
        ] {
            assert!(!need.is_met(&weakest), "{need}");
        }
        let mut knowing = Capabilities::default();
        knowing.nobody = NobodyGrade::NeverBound;
        assert!(Need::Nobody(NobodyGrade::NeverBound).is_met(&knowing));
        assert!(!Need::Nobody(NobodyGrade::Live).is_met(&knowing));
    }
}
