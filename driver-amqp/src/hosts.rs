//! Which host is tried next, and after which pause.

use std::time::Duration;

use messaging_core::Error;
use messaging_core::options::Options;
use rand::seq::SliceRandom as _;

use crate::address::Node;
use crate::backoff::{Backoff, jittered};
use crate::error::Cure;

/// A link that was up this long was a good one.
const STEADY: Duration = Duration::from_secs(30);
/// What is drawn from where the broker has sent all of its clients away at once.
const HERD: Duration = Duration::from_millis(500);
/// The pause after a link that worked and was lost early, from the second in a row on; each doubles it, up to `HERD`.
const FLAP: Duration = Duration::from_millis(50);

/// How the next host is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failover {
    /// In the order of a list that was shuffled once.
    RoundRobin,
    /// In a new order in each round.
    Shuffle,
}

impl Failover {
    pub(crate) fn resolve(options: &Options) -> Self {
        match options.text("kombu_failover_strategy") {
            Some("shuffle") => Self::Shuffle,
            _ => Self::RoundRobin,
        }
    }
}

/// The hosts of one connection, and how they have fared.
#[derive(Debug)]
pub(crate) struct Hosts {
    nodes: Vec<Node>,
    failover: Failover,
    backoff: Backoff,
    next: usize,
    /// Attempts that failed since a link worked.
    failed: u32,
    /// Links in a row that worked and were lost early.
    flaps: u32,
    /// What is wrong with a host of the current round, where another may do.
    unfit: Option<Error>,
}

/// What follows from a failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// The error is one that waiting cannot cure.
    pub(crate) permanent: bool,
    /// Attempts that failed since a link worked.
    pub(crate) attempts: u32,
    pub(crate) pause: Duration,
}

/// How a link ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetime {
    pub(crate) lasted: Duration,
    /// The broker has answered something on it after the login.
    pub(crate) worked: bool,
    /// The broker has sent its client away.
    pub(crate) forced: bool,
}

impl Hosts {
    /// The hosts in an order of this connection's own, so that clients share them out.
    pub(crate) fn new(nodes: &[Node], failover: Failover, backoff: Backoff) -> Self {
        let mut nodes = nodes.to_vec();
        nodes.shuffle(&mut rand::rng());
        Self {
            nodes,
            failover,
            backoff,
            next: 0,
            failed: 0,
            flaps: 0,
            unfit: None,
        }
    }

    /// The one to try now.
    pub(crate) fn current(&self) -> &Node {
        &self.nodes[self.next]
    }

    /// An attempt at the current host failed: the next one is tried.
    pub(crate) fn failed(&mut self, error: Error, cure: Cure) -> Failure {
        let round = self.advance();
        if cure == Cure::AnotherHost {
            self.unfit = Some(error.clone());
        }
        let (error, permanent) = match round.and_then(|_| self.unfit.take()) {
            // No host was fit, and what is wrong with one says more than that another is down.
            Some(unfit) => (unfit, true),
            None => (error, cure == Cure::Change),
        };
        Failure {
            error,
            permanent,
            attempts: self.failed,
            pause: if permanent {
                self.backoff.longest()
            } else {
                self.backoff.pause(round)
            },
        }
    }

    /// The link to the current host is lost. Returns the pause before the next attempt: there again, if it worked.
    pub(crate) fn lost(&mut self, life: Lifetime) -> Duration {
        self.unfit = None;
        let steady = life.lasted >= STEADY;
        // The broker's shutdown sends every client away at once; they must not come back at once.
        let herd = if life.forced { HERD } else { Duration::ZERO };
        if !life.worked && !steady {
            // Whoever lets everybody in and throws everybody out at once is no better than one that is down.
            let round = self.advance();
            return self.backoff.pause(round).max(jittered(herd));
        }
        self.failed = 0;
        self.flaps = if steady {
            0
        } else {
            self.flaps.saturating_add(1)
        };
        let flap = match self.flaps {
            0 | 1 => Duration::ZERO,
            n => FLAP.saturating_mul(1 << n.min(8)).min(HERD),
        };
        jittered(herd.max(flap))
    }

    /// Turns to the next host, and says how many rounds have failed if this was the last of one.
    fn advance(&mut self) -> Option<u32> {
        self.failed = self.failed.saturating_add(1);
        self.next = (self.next + 1) % self.nodes.len();
        let hosts = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let round = self
            .failed
            .is_multiple_of(hosts)
            .then(|| self.failed / hosts);
        if round.is_some() && self.failover == Failover::Shuffle {
            self.nodes.shuffle(&mut rand::rng());
            self.next = 0;
        }
        round
    }
}

#[cfg(test)]
mod tests {
    use messaging_core::{ErrorKind, TransportUrl};

    use super::*;
    use crate::config::Settings;

    fn hosts(url: &str) -> Hosts {
        let url: TransportUrl = url.parse().unwrap();
        let config = messaging_core::config::Config::default();
        let settings = Settings::resolve(&url, &config, 1 << 20).unwrap();
        Hosts::new(&settings.nodes, settings.failover, settings.backoff)
    }

    fn refused() -> Error {
        Error::not_sent(ErrorKind::Connect, "refused")
    }

    fn life(lasted: u64, worked: bool, forced: bool) -> Lifetime {
        Lifetime {
            lasted: Duration::from_secs(lasted),
            worked,
            forced,
        }
    }

    #[test]
    fn a_round_has_no_pauses_and_rounds_have_growing_ones() {
        let mut hosts = hosts("rabbit://a,b,c/");
        for round in 1..6 {
            for host in 1..=3 {
                let failure = hosts.failed(refused(), Cure::Time);
                assert_eq!(failure.attempts, (round - 1) * 3 + host);
                if host < 3 {
                    assert_eq!(failure.pause, Duration::ZERO);
                }
                assert!(failure.pause <= Duration::from_millis(50 << round));
            }
        }
    }

    #[test]
    fn a_host_that_worked_is_tried_again_at_once_and_first() {
        let mut hosts = hosts("rabbit://a,b,c/");
        hosts.failed(refused(), Cure::Time);
        let good = hosts.current().clone();
        assert_eq!(hosts.lost(life(40, true, false)), Duration::ZERO);
        assert_eq!(hosts.lost(life(1, true, false)), Duration::ZERO);
        assert_eq!(*hosts.current(), good);
        // Idle, but steady.
        assert_eq!(hosts.lost(life(40, false, false)), Duration::ZERO);
        assert_eq!(*hosts.current(), good);
        assert_eq!(hosts.failed(refused(), Cure::Time).attempts, 1);
    }

    #[test]
    fn whoever_sends_away_is_given_time() {
        let mut hosts = hosts("rabbit://a/");
        let pauses: Vec<_> = (0..200).map(|_| hosts.lost(life(60, true, true))).collect();
        assert!(pauses.iter().all(|pause| *pause <= HERD));
        assert!(pauses.iter().any(|pause| *pause > HERD / 2));
        // Links that work and are lost again and again.
        let pauses: Vec<_> = (0..200).map(|_| hosts.lost(life(0, true, false))).collect();
        assert!(pauses.iter().all(|pause| *pause <= HERD));
        assert!(pauses.iter().any(|pause| *pause > HERD / 2));
    }

    #[test]
    fn a_host_that_closes_after_the_login_counts_as_one_that_failed() {
        let mut hosts = hosts("rabbit://a,b/");
        let first = hosts.current().clone();
        hosts.lost(life(0, false, false));
        assert_ne!(*hosts.current(), first);
        for _ in 0..39 {
            hosts.lost(life(0, false, false));
        }
        let longest = (0..200)
            .map(|_| hosts.lost(life(0, false, false)))
            .max()
            .unwrap();
        assert!(longest > Duration::from_secs(5), "{longest:?}");
    }

    #[test]
    fn an_unfit_host_is_told_of_when_no_other_is_fit() {
        let mut hosts = hosts("rabbit://a,b/");
        let unfit = Error::config("another host's certificate");
        let first = hosts.failed(unfit, Cure::AnotherHost);
        assert!(!first.permanent);
        let second = hosts.failed(refused(), Cure::Time);
        assert!(second.permanent);
        assert_eq!(second.error.kind(), ErrorKind::Config);
    }
}
