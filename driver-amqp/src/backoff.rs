//! How long a connection waits before it is tried again.

use std::time::Duration;

use messaging_core::options::Options;
use rand::RngExt as _;

const FIRST: Duration = Duration::from_millis(50);

/// The pauses between attempts to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    growth: Growth,
    longest: Duration,
    /// Added after every failed attempt, as `kombu_reconnect_delay` and `kombu_reconnect_splay` say.
    delay: Duration,
    splay: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Growth {
    /// From 50 ms on, with full jitter: many clients must not come back at once.
    Doubling,
    /// As the operator has set it, to the second.
    Adding { first: Duration, step: Duration },
}

impl Backoff {
    pub(crate) fn resolve(options: &Options) -> Self {
        let whole = |name: &str, default: u64| {
            let value = options.int(name).and_then(|value| value.try_into().ok());
            Duration::from_secs(value.unwrap_or(default))
        };
        let set = |name: &str| options.is_set(name);
        let asked = |name: &str| match options.seconds(name) {
            Some(value) if set(name) => value,
            _ => Duration::ZERO,
        };
        let is_oslos = set("rabbit_retry_interval") || set("rabbit_retry_backoff");
        Self {
            growth: if is_oslos {
                Growth::Adding {
                    first: whole("rabbit_retry_interval", 1),
                    step: whole("rabbit_retry_backoff", 2),
                }
            } else {
                Growth::Doubling
            },
            longest: if is_oslos || set("rabbit_interval_max") {
                whole("rabbit_interval_max", 30)
            } else {
                Duration::from_secs(10)
            },
            delay: asked("kombu_reconnect_delay"),
            splay: asked("kombu_reconnect_splay"),
        }
    }

    /// The pause after a failed attempt. `round`: how many times all hosts have failed, if this attempt was the last
    /// of a round; in the middle of one the next host follows at once.
    pub(crate) fn pause(&self, round: Option<u32>) -> Duration {
        let round = match (round, self.growth) {
            (None, _) => Duration::ZERO,
            (Some(round), Growth::Doubling) => {
                let longest = FIRST.saturating_mul(1 << round.min(16)).min(self.longest);
                jittered(longest)
            }
            (Some(round), Growth::Adding { first, step }) => first
                .saturating_add(step.saturating_mul(round.saturating_sub(1)))
                .min(self.longest),
        };
        round
            .saturating_add(self.delay)
            .saturating_add(jittered(self.splay))
    }

    /// The pause after a failure that waiting is not known to cure.
    pub(crate) fn longest(&self) -> Duration {
        self.longest
    }
}

/// Full jitter: anything up to `longest`.
pub(crate) fn jittered(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests {
    use messaging_core::TransportUrl;
    use messaging_core::config::Config;

    use super::*;
    use crate::options::OPTIONS;

    fn backoff(query: &str) -> Backoff {
        let url: TransportUrl = format!("rabbit://h/?{query}").parse().unwrap();
        Backoff::resolve(&Options::resolve(&OPTIONS, &url, &Config::default()).unwrap())
    }

    #[test]
    fn it_doubles_with_full_jitter_up_to_the_longest() {
        let own = backoff("");
        assert_eq!(own.longest(), Duration::from_secs(10));
        assert_eq!(own.pause(None), Duration::ZERO);
        for (round, most) in [
            (1, 100),
            (2, 200),
            (5, 1_600),
            (30, 10_000),
            (u32::MAX, 10_000),
        ] {
            let pauses: Vec<_> = (0..200).map(|_| own.pause(Some(round))).collect();
            let most = Duration::from_millis(most);
            assert!(pauses.iter().all(|pause| *pause <= most), "{round}");
            assert!(pauses.iter().any(|pause| *pause > most / 2), "{round}");
            assert!(pauses.iter().any(|pause| *pause < most / 2), "{round}");
        }
        assert_eq!(
            backoff("rabbit_interval_max=3").longest(),
            Duration::from_secs(3)
        );
    }

    #[test]
    fn what_an_operator_has_set_is_kept_to() {
        let set = backoff("rabbit_retry_interval=2&rabbit_retry_backoff=3&rabbit_interval_max=9");
        let pauses: Vec<_> = [1, 2, 3, 4, 5]
            .map(|round| set.pause(Some(round)).as_secs())
            .into();
        assert_eq!(pauses, [2, 5, 8, 9, 9]);
        assert_eq!(set.pause(None), Duration::ZERO);
        let half = backoff("rabbit_retry_interval=4");
        assert_eq!(half.pause(Some(2)), Duration::from_secs(6));
        assert_eq!(half.longest(), Duration::from_secs(30));

        let slow = backoff("rabbit_retry_interval=1&kombu_reconnect_delay=1.5");
        assert_eq!(slow.pause(None), Duration::from_millis(1_500));
        assert_eq!(slow.pause(Some(1)), Duration::from_millis(2_500));
        let splayed = backoff("kombu_reconnect_splay=2");
        let pauses: Vec<_> = (0..200).map(|_| splayed.pause(None)).collect();
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(2)));
        assert!(pauses.iter().any(|pause| *pause > Duration::from_secs(1)));
    }
}
