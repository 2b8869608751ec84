//! Why a behaviour does not hold.

use std::fmt;

use messaging_core::Error;
use messaging_core::driver::Stale;

/// Why a behaviour does not hold: one text for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same failure with what was being done in front.
    #[must_use]
    pub(crate) fn during(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(describe(&error))
    }
}

impl From<Stale> for Failure {
    fn from(stale: Stale) -> Self {
        Self(format!("settling failed: {stale}"))
    }
}

/// An error with its kind and outcome, which `Display` leaves out.
pub(crate) fn describe(error: &Error) -> String {
    format!("{error} [{}, {}]", error.kind(), error.outcome())
}

/// Returns a [`Failure`] of a formatted text.
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::failure::Failure::new(format!($($text)*))) };
}

/// Returns a [`Failure`] unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)*) => { if !$condition { $crate::failure::fail!($($text)*) } };
}

pub(crate) use {ensure, fail};
