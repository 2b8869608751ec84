//! What went wrong, and what is known of the message it happened to.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// The result of everything in Longshore that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The sort of a failure; [`ErrorKind::as_str`] is its stable name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A URL, option, name or builder setting is wrong.
    Config,
    /// The target lacks what the operation needs (a topic, a server name), or has what it must not have.
    InvalidTarget,
    /// The driver or executor in use cannot do what was asked.
    Unsupported,
    /// The other side refused the credentials or the permission.
    Unauthorized,
    /// No connection could be made.
    Connect,
    /// The connection was lost.
    Disconnected,
    /// Nobody serves the address, as far as the driver can know.
    NoServer,
    /// The broker refused the message (a negative confirm, a full queue).
    Refused,
    /// The deadline passed.
    Timeout,
    /// A bound was reached: pending calls, queue places, a server's slots.
    Busy,
    /// The body is larger than the transport allows.
    TooLarge,
    /// A value could not be encoded or decoded.
    Codec,
    /// The version asked for breaks the client's version cap.
    VersionCap,
    /// No endpoint has this method.
    NoSuchMethod,
    /// No endpoint has this namespace in a compatible version.
    UnsupportedVersion,
    /// The arguments do not fit the method.
    BadArguments,
    /// The handler panicked.
    Panic,
    /// The handler ran and answered with a failure of its own.
    Remote,
    /// The request reached the server after its deadline.
    Expired,
    /// The operation was abandoned: the server stopped or its runtime was shut down.
    Cancelled,
    /// The transport, server or listener is closed.
    Closed,
    /// A bug or a state that no other kind describes.
    Internal,
}

impl ErrorKind {
    /// The stable name in snake case, as logs and the command line print it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::InvalidTarget => "invalid_target",
            Self::Unsupported => "unsupported",
            Self::Unauthorized => "unauthorized",
            Self::Connect => "connect",
            Self::Disconnected => "disconnected",
            Self::NoServer => "no_server",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::TooLarge => "too_large",
            Self::Codec => "codec",
            Self::VersionCap => "version_cap",
            Self::NoSuchMethod => "no_such_method",
            Self::UnsupportedVersion => "unsupported_version",
            Self::BadArguments => "bad_arguments",
            Self::Panic => "panic",
            Self::Remote => "remote",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Closed => "closed",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of the message or request a failure is about.
///
/// It never claims more than is known: what is [`NotSent`](Self::NotSent) or
/// [`NotExecuted`](Self::NotExecuted) was run by nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It never left this process, or came back undelivered. Sending it again is safe.
    NotSent,
    /// It reached a server, and no handler ran. Sending it again is safe.
    NotExecuted,
    /// It may or may not have been run.
    Unknown,
    /// A handler ran and answered with a failure.
    Executed,
}

impl Outcome {
    /// The stable name in snake case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::NotExecuted => "not_executed",
            Self::Unknown => "unknown",
            Self::Executed => "executed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure that a remote endpoint answered with, as it crossed the wire.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RemoteError {
    /// The exception class, for example `ValueError`.
    pub class: String,
    /// The module of the class, for example `builtins`.
    pub module: String,
    /// The text of the exception.
    pub message: String,
    /// The positional arguments it was raised with.
    pub args: Vec<serde_json::Value>,
    /// Its keyword arguments.
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// The lines of the remote traceback, where the server sent one.
    pub traceback: Vec<String>,
}

impl RemoteError {
    /// A remote failure of the given class, with the message as its one argument and without a traceback.
    pub fn new(
        module: impl Into<String>,
        class: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self {
            class: class.into(),
            module: module.into(),
            args: vec![message.clone().into()],
            message,
            kwargs: serde_json::Map::new(),
            traceback: Vec::new(),
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

impl StdError for RemoteError {}

/// A failed operation: its kind, what is known of the message, and why.
///
/// Cheap to clone. Neither `Display` nor `Debug` ever holds a password: whoever makes an error
/// redacts what it quotes.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    message: String,
    remote: Option<RemoteError>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure of `kind`; `message` is lower-case, without a full stop, and names the thing and the remedy.
    pub fn new(kind: ErrorKind, outcome: Outcome, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            outcome,
            message: message.into(),
            remote: None,
            source: None,
        }))
    }

    /// A failure before anything was handed over.
    pub fn not_sent(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::new(kind, Outcome::NotSent, message)
    }

    /// A failure of which nobody knows whether the request ran.
    pub fn unknown(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::new(kind, Outcome::Unknown, message)
    }

    /// A configuration error.
    pub fn config(message: impl Into<String>) -> Self {
        Self::not_sent(ErrorKind::Config, message)
    }

    /// What the driver or executor cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::not_sent(ErrorKind::Unsupported, message)
    }

    /// The same failure with its cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// The same failure with the remote exception it came from.
    #[must_use]
    pub fn with_remote(mut self, remote: RemoteError) -> Self {
        self.0.remote = Some(remote);
        self
    }

    /// The same failure with another outcome, for a layer that knows more, or must admit to less.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.0.outcome = outcome;
        self
    }

    /// The same failure with `note` appended to its message.
    #[must_use]
    pub fn with_note(mut self, note: impl fmt::Display) -> Self {
        use fmt::Write as _;
        let _ = write!(self.0.message, "; {note}");
        self
    }

    /// The sort of failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What is known of the message or request.
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// The text, without kind and outcome.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The exception a remote endpoint answered with, if one did.
    pub fn remote(&self) -> Option<&RemoteError> {
        self.0.remote.as_ref()
    }

    /// Whether sending the same request again cannot run it twice.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self.0.outcome, Outcome::NotSent | Outcome::NotExecuted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind)
            .field("outcome", &self.0.outcome)
            .field("message", &self.0.message);
        if let Some(remote) = &self.0.remote {
            s.field("remote", remote);
        }
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|s| &**s as _)
    }
}
