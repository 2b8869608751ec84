//! Whether and when a failed request is sent again.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::park::Sleep;
use crate::rpc::client::{Nobody, Retry, Settings};

/// The first and the longest pause before a request is sent again; each is drawn from zero to its bound.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// With less time left, a request is not sent again: the driver could no longer say whether it was.
const LEAST_LEFT: Duration = Duration::from_millis(100);

/// Decides whether and when a failed request is sent again.
#[derive(Debug)]
pub(crate) struct Retries {
    retry: Retry,
    idempotent: bool,
    wait_for_somebody: bool,
    deadline: Instant,
    done: u32,
    pause: Duration,
}

impl Retries {
    pub(crate) fn new(settings: &Settings, deadline: Instant) -> Self {
        Self {
            retry: settings.retry,
            idempotent: settings.idempotent,
            wait_for_somebody: settings.nobody == Some(Nobody::Wait),
            deadline,
            done: 0,
            pause: FIRST_PAUSE,
        }
    }

    fn allows(&self, error: &Error) -> bool {
        if error.kind() == ErrorKind::NoServer {
            return self.wait_for_somebody && error.outcome() == Outcome::NotSent;
        }
        let passes = matches!(
            error.kind(),
            ErrorKind::Disconnected
                | ErrorKind::Connect
                | ErrorKind::Refused
                | ErrorKind::Busy
                | ErrorKind::Cancelled
        );
        let harmless =
            error.is_safe_to_retry() || (self.idempotent && error.outcome() == Outcome::Unknown);
        let allowed = match self.retry {
            Retry::UntilDeadline => true,
            Retry::Times(times) => self.done < times,
        };
        passes && harmless && allowed
    }

    /// Returns when the request is to be sent again: about now.
    ///
    /// # Errors
    /// The error itself, when it is not to be sent again.
    pub(crate) async fn pause_after(&mut self, error: Error) -> Result<Instant> {
        if !self.allows(&error) {
            return Err(error);
        }
        let until = Instant::now() + self.pause.mul_f64(rand::random());
        if until + LEAST_LEFT >= self.deadline {
            return Err(error);
        }
        tracing::debug!(target: "longshore::rpc", kind = %error.kind(), "a request is sent again after: {error}");
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.done += 1;
        // Boxed, so that the many requests that never pause are not larger for it.
        Box::pin(Sleep::until(until)).await;
        Ok(Instant::now())
    }
}
