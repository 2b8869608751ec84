//! What RabbitMQ and the link answer, in the terms of the driver interface.

use std::fmt;
use std::time::Duration;

use messaging_core::{Error, ErrorKind};

use crate::config::{Login, Settings};
use crate::socket::FirstByte;

/// The reply codes of AMQP this driver acts on.
pub(crate) mod code {
    /// An operator or the broker's shutdown closed the connection.
    pub(crate) const CONNECTION_FORCED: u16 = 320;
    /// The credentials or a permission were refused.
    pub(crate) const ACCESS_REFUSED: u16 = 403;
    /// A queue or exchange does not exist.
    pub(crate) const NOT_FOUND: u16 = 404;
    /// A queue or exchange exists with other flags or arguments.
    pub(crate) const PRECONDITION_FAILED: u16 = 406;
    /// The virtual host is missing or not allowed.
    pub(crate) const NOT_ALLOWED: u16 = 530;
    /// An internal error, or a feature the broker denies.
    pub(crate) const INTERNAL_ERROR: u16 = 541;
}

/// Why an operation on a channel or connection did not succeed.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The broker or the link said so.
    Amqp(lapin::Error),
    /// The broker did not answer within this time.
    Silent(Duration),
}

impl From<lapin::Error> for Fault {
    fn from(error: lapin::Error) -> Self {
        Self::Amqp(error)
    }
}

impl Fault {
    /// The reply code, where the broker gave one.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Amqp(error) => match error.kind() {
                lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
                _ => None,
            },
            Self::Silent(_) => None,
        }
    }

    /// The broker's text, empty where it gave none.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Amqp(error) => match error.kind() {
                lapin::ErrorKind::ProtocolError(error) => error.get_message().as_str(),
                _ => "",
            },
            Self::Silent(_) => "",
        }
    }

    /// A queue or exchange exists with another `durable` flag.
    pub(crate) fn is_durable_mismatch(&self) -> bool {
        self.code() == Some(code::PRECONDITION_FAILED)
            && self.text().contains("inequivalent arg 'durable'")
    }

    /// A queue or exchange exists with other flags or arguments, and of the same type.
    pub(crate) fn is_adoptable_mismatch(&self) -> bool {
        self.code() == Some(code::PRECONDITION_FAILED)
            && !self.text().contains("inequivalent arg 'type'")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amqp(error) => match error.kind() {
                lapin::ErrorKind::ProtocolError(error) => {
                    // The broker's text may quote a name that a stranger chose.
                    write!(f, "{} ", error.get_id())?;
                    for c in error.get_message().as_str().chars().take(400) {
                        write!(f, "{}", c.escape_debug())?;
                    }
                    Ok(())
                }
                lapin::ErrorKind::IOError(error) => write!(f, "{error}"),
                _ => write!(f, "{error}"),
            },
            Self::Silent(limit) => {
                write!(f, "the broker did not answer within {} s", limit.as_secs())
            }
        }
    }
}

/// What everything on a link fails with once it is cut.
pub(crate) fn severed() -> lapin::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// What may cure a failure to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cure {
    /// Trying again, there or elsewhere.
    Time,
    /// Another host of the list: this one is not as the options say.
    AnotherHost,
    /// Nothing but a change at the broker or of the options.
    Change,
}

/// A failed login, and what may cure it.
pub(crate) fn login_failed(
    address: &str,
    fault: &Fault,
    settings: &Settings,
    first: &FirstByte,
) -> (Error, Cure) {
    if first.is_tls() {
        let text = format!(
            "{address} speaks TLS on this port: use amqps://, or ssl=true, or its port without TLS"
        );
        return (Error::config(text), Cure::AnotherHost);
    }
    #[cfg(feature = "tls")]
    if let (Some(tls), Fault::Amqp(error)) = (&settings.tls, fault)
        && let lapin::ErrorKind::IOError(error) = error.kind()
        && let Some(error) = crate::handshake::refusal(error)
    {
        // Under TLS 1.3 a broker judges a client's certificate when the client is through with the handshake.
        return crate::handshake::explain(tls, address, error);
    }
    let (kind, cure) = match fault.code() {
        Some(code::ACCESS_REFUSED) => (ErrorKind::Unauthorized, Cure::Change),
        // The broker has one code for a virtual host that is not there and one the user may not enter.
        Some(code::NOT_ALLOWED) if fault.text().contains("not found") => {
            (ErrorKind::Config, Cure::Change)
        }
        Some(code::NOT_ALLOWED) => (ErrorKind::Unauthorized, Cure::Change),
        _ => (ErrorKind::Connect, Cure::Time),
    };
    let text = match kind {
        ErrorKind::Unauthorized if settings.login == Login::External => format!(
            "{address} refused the login by certificate or the access to the virtual host: {fault}; check that it offers EXTERNAL and knows the certificate's name as a user"
        ),
        ErrorKind::Unauthorized => format!(
            "{address} refused the user or its access to the virtual host: {fault}; check user, password and virtual host of the transport URL"
        ),
        ErrorKind::Config => format!(
            "{address} has no such virtual host: {fault}; check the path of the transport URL"
        ),
        _ => format!("{address} did not complete the AMQP handshake: {fault}"),
    };
    (Error::not_sent(kind, text), cure)
}

/// A failed declaration, binding or subscription, before anything was sent.
pub(crate) fn topology_failed(what: &str, fault: &Fault) -> Error {
    let (kind, remedy) = match fault.code() {
        Some(code::ACCESS_REFUSED) => (
            ErrorKind::Unauthorized,
            "; grant the user configure, write and read on it",
        ),
        Some(code::PRECONDITION_FAILED) => (
            ErrorKind::Config,
            "; make the options of all peers agree (profile, amqp_durable_queues, amqp_auto_delete, rabbit_quorum_queue and its limits, rabbit_transient_queues_ttl), or delete it",
        ),
        Some(code::INTERNAL_ERROR) => (
            ErrorKind::Config,
            "; a RabbitMQ 4 that denies deprecated_features.permit.transient_nonexcl_queues takes no transient queues: use amqp:// or profile=durable, or rabbit_quorum_queue=true with rabbit_transient_quorum_queue=true",
        ),
        Some(code::NOT_FOUND) => (ErrorKind::NoServer, ""),
        _ => (ErrorKind::Disconnected, ""),
    };
    Error::not_sent(kind, format!("{what} failed: {fault}{remedy}"))
}
