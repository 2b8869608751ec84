//! What a handler fails with, and how it crosses to the caller.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Outcome, RemoteError};

/// The failure of a handler.
///
/// `?` turns any error into one. Such an error crosses by the server's error map
/// ([`map_error`](crate::rpc::RpcServerBuilder::map_error)); without an entry there, the caller learns that the
/// method failed, and the text stays in the server's log. A failure made by [`Failure::new`] crosses as it is.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    remote: Option<Box<RemoteError>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    expected: bool,
}

impl Failure {
    /// A failure that Python callers catch as the built-in exception `class`, for example `ValueError`.
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of_module("builtins", class, message)
    }

    /// A failure of a class in a module of the application, with the message as its one argument. A Python caller
    /// gets the class itself only if its `allowed_remote_exmods` has the module, else `oslo_messaging.RemoteError`.
    pub fn of_module(
        module: impl Into<String>,
        class: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        RemoteError::new(module, class, message).into()
    }

    /// The same failure as one the method is known to raise: the server logs it at debug level only.
    #[must_use]
    pub fn expected(mut self) -> Self {
        self.expected = true;
        self
    }

    pub(crate) fn of_kind(kind: ErrorKind, message: String) -> Self {
        let (module, class) = class_of(kind);
        let remote = RemoteError::new(module, class, message);
        Self {
            kind,
            remote: Some(Box::new(remote)),
            source: None,
            expected: false,
        }
    }

    /// The kind of the failure: [`ErrorKind::Remote`] for what a handler returned.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// How it crosses, once the error map has had its say.
    pub(crate) fn into_remote(
        self,
        method: &str,
        map: &ErrorMap,
        expose: bool,
    ) -> (RemoteError, ErrorKind) {
        let Self {
            kind,
            remote,
            source,
            ..
        } = self;
        if let Some(remote) = remote {
            return (*remote, kind);
        }
        let source = source.expect("a failure holds a remote error or a source");
        if let Some(mapped) = map.find(&*source) {
            return (mapped, kind);
        }
        // A failure of a nested call goes on to our caller as what it was.
        if let Some(relayed) = source.downcast_ref::<Error>().and_then(Error::remote) {
            return (relayed.clone(), kind);
        }
        let text = if expose {
            source.to_string()
        } else {
            format!("{method} failed; the server's log says why")
        };
        let remote = RemoteError::new("builtins", "RuntimeError", text);
        (remote, kind)
    }

    /// Whether the error map or the failure itself says that the method is known to fail so.
    pub(crate) fn is_expected_by(&self, map: &ErrorMap) -> bool {
        self.expected
            || self
                .source
                .as_ref()
                .is_some_and(|source| map.is_expected(&**source))
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let source: Box<dyn StdError + Send + Sync> = Box::new(error);
        // A remote error that a handler makes or passes on crosses as it is.
        let (remote, source) = match source.downcast::<RemoteError>() {
            Ok(remote) => (Some(remote), None),
            Err(source) => (None, Some(source)),
        };
        Self {
            kind: ErrorKind::Remote,
            remote,
            source,
            expected: false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.remote, &self.source) {
            (Some(remote), _) => remote.fmt(f),
            (None, Some(source)) => source.fmt(f),
            (None, None) => f.write_str("failure"),
        }
    }
}

/// The Python class a failure of core's own crosses as. Those that oslo.messaging has keep its names.
fn class_of(kind: ErrorKind) -> (&'static str, &'static str) {
    match kind {
        ErrorKind::NoSuchMethod => (DISPATCHER, "NoSuchMethod"),
        ErrorKind::UnsupportedVersion => (DISPATCHER, "UnsupportedVersion"),
        ErrorKind::BadArguments => ("builtins", "TypeError"),
        ErrorKind::Codec | ErrorKind::TooLarge => ("builtins", "ValueError"),
        ErrorKind::Panic => ("longshore", "Panic"),
        ErrorKind::Busy => ("longshore", "Busy"),
        _ => ("longshore", "Cancelled"),
    }
}

/// The kinds that cross by name, so that a Longshore client learns what a Python class cannot say.
const CROSSING: [ErrorKind; 8] = [
    ErrorKind::NoSuchMethod,
    ErrorKind::UnsupportedVersion,
    ErrorKind::BadArguments,
    ErrorKind::Codec,
    ErrorKind::TooLarge,
    ErrorKind::Panic,
    ErrorKind::Busy,
    ErrorKind::Cancelled,
];

/// The module of oslo.messaging's own failures of dispatch.
const DISPATCHER: &str = "oslo_messaging.rpc.dispatcher";

/// The name a kind crosses by, if it does.
///
/// A handler's failure has none, unless its class would be taken for the server's own word that no handler ran:
/// one that a handler passes on from a call it made.
pub(crate) fn crossing(kind: ErrorKind, remote: &RemoteError) -> Option<&'static str> {
    (CROSSING.contains(&kind) || remote.module == DISPATCHER).then(|| kind.as_str())
}

/// The error a remote failure becomes in the caller: `kind` is what a Longshore server said, if one did.
pub(crate) fn error_of(remote: RemoteError, kind: Option<&str>) -> Error {
    let kind = match kind {
        Some(name) => CROSSING.into_iter().find(|kind| kind.as_str() == name),
        None if remote.module == DISPATCHER && !is_of_a_handler(&remote) => match &*remote.class {
            "NoSuchMethod" => Some(ErrorKind::NoSuchMethod),
            "UnsupportedVersion" => Some(ErrorKind::UnsupportedVersion),
            _ => None,
        },
        None => None,
    };
    let kind = kind.unwrap_or(ErrorKind::Remote);
    let outcome = match kind {
        ErrorKind::NoSuchMethod
        | ErrorKind::UnsupportedVersion
        | ErrorKind::BadArguments
        | ErrorKind::Busy => Outcome::NotExecuted,
        ErrorKind::Cancelled => Outcome::Unknown,
        _ => Outcome::Executed,
    };
    Error::new(kind, outcome, remote.to_string()).with_remote(remote)
}

/// Whether a failure of dispatch that came from Python was raised in a handler, which then did run: it stands below
/// the frame that calls handlers, or was passed on, which puts a traceback into its message.
fn is_of_a_handler(remote: &RemoteError) -> bool {
    remote.message.contains('\n')
        || remote
            .traceback
            .iter()
            .any(|line| line.contains("in _do_dispatch"))
}

type MapEntry = Arc<dyn Fn(&(dyn StdError + 'static)) -> Option<RemoteError> + Send + Sync>;
type ExpectEntry = Arc<dyn Fn(&(dyn StdError + 'static)) -> bool + Send + Sync>;

/// Which error types of an application cross as which classes.
#[derive(Clone, Default)]
pub(crate) struct ErrorMap {
    entries: Vec<MapEntry>,
    expected: Vec<ExpectEntry>,
}

impl ErrorMap {
    pub(crate) fn add<E: StdError + 'static>(
        &mut self,
        map: impl Fn(&E) -> RemoteError + Send + Sync + 'static,
    ) {
        self.entries
            .push(Arc::new(move |error| error.downcast_ref::<E>().map(&map)));
    }

    pub(crate) fn expect<E: StdError + 'static>(&mut self) {
        self.expected.push(Arc::new(|error| error.is::<E>()));
    }

    fn find(&self, error: &(dyn StdError + 'static)) -> Option<RemoteError> {
        self.entries.iter().find_map(|entry| entry(error))
    }

    fn is_expected(&self, error: &(dyn StdError + 'static)) -> bool {
        self.expected.iter().any(|entry| entry(error))
    }
}

impl fmt::Debug for ErrorMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorMap")
            .field("entries", &self.entries.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_such_method(message: &str, traceback: &[&str]) -> RemoteError {
        let mut remote = RemoteError::new(DISPATCHER, "NoSuchMethod", message);
        remote.traceback = traceback.iter().map(|line| (*line).to_owned()).collect();
        remote
    }

    #[test]
    fn a_failure_of_dispatch_claims_that_nothing_ran_only_where_it_is_the_servers_own() {
        let own = no_such_method(
            "Endpoint does not support RPC method x",
            &["  File \"dispatcher.py\", line 318, in dispatch\n"],
        );
        let error = error_of(own.clone(), None);
        assert_eq!(
            (error.kind(), error.outcome()),
            (ErrorKind::NoSuchMethod, Outcome::NotExecuted)
        );

        let of_handlers = [
            // As Python passes it on, and as a handler raises it.
            (no_such_method("Endpoint\nTraceback", &[]), None),
            (
                no_such_method(
                    "Endpoint",
                    &["  File \"dispatcher.py\", line 229, in _do_dispatch\n"],
                ),
                None,
            ),
            // As a handler of ours passes it on.
            (own.clone(), crossing(ErrorKind::Remote, &own)),
        ];
        for (remote, kind) in of_handlers {
            let error = error_of(remote, kind);
            assert_eq!(
                (error.kind(), error.outcome()),
                (ErrorKind::Remote, Outcome::Executed)
            );
        }
    }
}
