//! Exit codes, and which failure ends in which.

use std::process::ExitCode;

use longshore::{Error, ErrorKind, Health, Outcome, Transport};

/// How the process ends. The numbers are part of the interface of scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The server answered with an error, or a server was stopped with work unfinished.
    Remote = 1,
    /// Usage or configuration.
    Usage = 2,
    /// Sent, and unanswered by the deadline.
    Unanswered = 3,
    /// Not delivered.
    Undelivered = 4,
    /// Never connected, or the link was lost.
    Unconnected = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failure and the exit code it ends in.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) exit: Exit,
}

impl Failed {
    pub(crate) fn new(exit: Exit, error: Error) -> Self {
        Self { error, exit }
    }

    /// A failure of something that was tried over this transport.
    pub(crate) fn over(transport: &Transport, error: Error) -> Self {
        let connected = matches!(
            &*transport.health().borrow(),
            Health::Up | Health::Blocked(_)
        );
        Self::new(exit_of(&error, connected), error)
    }
}

/// A failure before there was a transport.
impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::new(exit_of(&error, false), error)
    }
}

/// `connected`: whether the link was up when the failure was seen.
fn exit_of(error: &Error, connected: bool) -> Exit {
    if error.remote().is_some() {
        return Exit::Remote;
    }
    match (error.kind(), error.outcome()) {
        (
            ErrorKind::Config
            | ErrorKind::InvalidTarget
            | ErrorKind::Unsupported
            | ErrorKind::Unauthorized
            | ErrorKind::VersionCap,
            _,
        )
        | (ErrorKind::TooLarge | ErrorKind::Codec, Outcome::NotSent) => Exit::Usage,
        (ErrorKind::Connect | ErrorKind::Disconnected | ErrorKind::Closed, _) => Exit::Unconnected,
        (ErrorKind::Timeout, Outcome::NotSent) if !connected => Exit::Unconnected,
        (ErrorKind::Timeout, Outcome::Unknown) | (ErrorKind::Expired, _) => Exit::Unanswered,
        // Whatever else is known not to have left: nobody there, refused, no room, no time.
        (ErrorKind::NoServer | ErrorKind::Refused, _) | (_, Outcome::NotSent) => Exit::Undelivered,
        _ => Exit::Remote,
    }
}

#[cfg(test)]
mod tests {
    use longshore::RemoteError;

    use super::*;

    #[test]
    fn each_failure_has_its_exit_code() {
        use ErrorKind as Kind;
        use Outcome::{Executed, NotExecuted, NotSent, Unknown};
        let cases = [
            (Kind::Config, NotSent, true, Exit::Usage),
            (Kind::InvalidTarget, NotSent, true, Exit::Usage),
            (Kind::Unsupported, NotSent, true, Exit::Usage),
            (Kind::Unauthorized, NotSent, false, Exit::Usage),
            (Kind::VersionCap, NotSent, true, Exit::Usage),
            (Kind::TooLarge, NotSent, true, Exit::Usage),
            (Kind::Codec, NotSent, true, Exit::Usage),
            (Kind::Codec, Executed, true, Exit::Remote),
            (Kind::Connect, NotSent, false, Exit::Unconnected),
            (Kind::Disconnected, Unknown, true, Exit::Unconnected),
            (Kind::Closed, Unknown, true, Exit::Unconnected),
            (Kind::Timeout, NotSent, false, Exit::Unconnected),
            (Kind::Timeout, NotSent, true, Exit::Undelivered),
            (Kind::Timeout, Unknown, true, Exit::Unanswered),
            (Kind::Timeout, Unknown, false, Exit::Unanswered),
            (Kind::NoServer, NotSent, true, Exit::Undelivered),
            (Kind::Refused, Unknown, true, Exit::Undelivered),
            (Kind::Busy, NotSent, true, Exit::Undelivered),
            (Kind::Cancelled, Unknown, true, Exit::Remote),
        ];
        for (kind, outcome, connected, expected) in cases {
            let error = Error::new(kind, outcome, "text");
            assert_eq!(
                exit_of(&error, connected),
                expected,
                "{kind} {outcome} {connected}"
            );
        }
        for kind in [
            Kind::NoSuchMethod,
            Kind::UnsupportedVersion,
            Kind::BadArguments,
            Kind::Panic,
            Kind::Busy,
            Kind::Remote,
            Kind::Codec,
            Kind::TooLarge,
            Kind::Cancelled,
        ] {
            let remote = RemoteError::new("builtins", "ValueError", "boom");
            let error = Error::new(kind, NotExecuted, "text").with_remote(remote);
            assert_eq!(exit_of(&error, true), Exit::Remote, "{kind}");
        }
    }
}
