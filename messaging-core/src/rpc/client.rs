//! The client of an RPC interface.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::driver::Address;
use crate::error::{Error, ErrorKind, Result};
use crate::rpc::outgoing::{Call, Cast, Outgoing};
use crate::serializer::Serializer;
use crate::target::{Target, Version, check_name};
use crate::transport::{Transport, deadline_after};

/// Calls the methods of the servers of a target.
///
/// Cheap to clone; all clients of a transport share its links, inbox and pending calls. Every setting can be
/// overridden per request on [`Call`] and [`Cast`].
#[derive(Debug, Clone)]
#[must_use]
pub struct RpcClient {
    settings: Arc<Settings>,
}

/// What a request is sent with.
// Every call counts references to it: aligned, so that the count is on another cache line than what they read.
#[repr(align(128))]
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) transport: Transport,
    pub(crate) target: Target,
    pub(crate) timeout: Duration,
    pub(crate) version_cap: Option<Version>,
    pub(crate) retry: Retry,
    pub(crate) idempotent: bool,
    pub(crate) monitor: Option<Duration>,
    pub(crate) nobody: Option<Nobody>,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    /// Made of the target by the first request, and anew when the settings change.
    address: OnceLock<Address>,
}

/// What happens to a request whose address nobody serves, where the driver can know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    /// It fails at once with [`ErrorKind::NoServer`]: the default.
    Fail,
    /// It is sent again until somebody is there or its deadline passes.
    Wait,
    /// Nobody cares: a cast is dropped, a call waits for its deadline.
    Drop,
}

/// How often a request that failed is sent again before its deadline.
///
/// Only what was certainly not executed is sent again, for reasons that pass (a lost link, a busy server); with
/// [`idempotent`](Call::idempotent), also what may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// Until the deadline: the default.
    #[default]
    UntilDeadline,
    /// At most this often; 0: one attempt.
    Times(u32),
}

impl RpcClient {
    /// A client of this target, with the transport's default timeout.
    ///
    /// What is wrong with the target is reported by the first request.
    pub fn new(transport: &Transport, target: Target) -> Self {
        let settings = Settings {
            transport: transport.clone(),
            target,
            timeout: transport.settings().timeout,
            version_cap: None,
            retry: Retry::default(),
            idempotent: false,
            monitor: None,
            nobody: None,
            serializer: None,
            address: OnceLock::new(),
        };
        Self {
            settings: Arc::new(settings),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        Settings::change(&mut self.settings, change);
        self
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.settings.target
    }

    /// The transport.
    pub fn transport(&self) -> &Transport {
        &self.settings.transport
    }

    /// The same client for a changed target, as oslo.messaging's `prepare`.
    pub fn with_target(self, change: impl FnOnce(Target) -> Target) -> Self {
        self.with(|settings| settings.target = change(std::mem::take(&mut settings.target)))
    }

    /// The deadline of each request, from its start: connecting, queueing, work and reply.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.timeout = timeout)
    }

    /// The highest version this client may ask for; `None` lifts the cap.
    pub fn version_cap(self, cap: Option<Version>) -> Self {
        self.with(|settings| settings.version_cap = cap)
    }

    /// How often a failed request is sent again.
    pub fn retry(self, retry: Retry) -> Self {
        self.with(|settings| settings.retry = retry)
    }

    /// Calls fail when the server is not heard of for this long, however far the deadline is. An
    /// interval below 2 s is refused by the request with [`ErrorKind::Config`].
    pub fn monitor(self, every: Option<Duration>) -> Self {
        self.with(|settings| settings.monitor = every)
    }

    /// What happens where nobody serves the address.
    pub fn nobody(self, nobody: Nobody) -> Self {
        self.with(|settings| settings.nobody = Some(nobody))
    }

    /// The serializer of arguments, results and context.
    pub fn serializer(self, serializer: Arc<dyn Serializer>) -> Self {
        self.with(|settings| settings.serializer = Some(serializer))
    }

    /// Whether the version cap allows a request for `version`, or for the target's version where it is `None`.
    pub fn can_send_version(&self, version: Option<Version>) -> bool {
        self.settings
            .allows(version.or(self.settings.target.version))
    }

    /// A call: a request whose result is awaited.
    pub fn call<R: DeserializeOwned>(&self, method: impl AsRef<str>) -> Call<R> {
        Call::new(Outgoing::new(self.settings.clone(), method.as_ref()))
    }

    /// A cast: a request without a result, done when the transport has accepted it.
    pub fn cast(&self, method: impl AsRef<str>) -> Cast {
        Cast::new(Outgoing::new(self.settings.clone(), method.as_ref()))
    }
}

impl Settings {
    fn allows(&self, version: Option<Version>) -> bool {
        // As in oslo.messaging, a request without a version breaks any cap.
        self.version_cap
            .is_none_or(|cap| version.is_some_and(|version| cap.serves(version)))
    }

    pub(crate) fn check_version(&self) -> Result<()> {
        if self.allows(self.target.version) {
            return Ok(());
        }
        let cap = self
            .version_cap
            .map_or_else(String::new, |cap| cap.to_string());
        let version = self
            .target
            .version
            .map_or_else(|| "none".to_owned(), |version| version.to_string());
        Err(Error::not_sent(
            ErrorKind::VersionCap,
            format!("the request's version ({version}) is not allowed by the version cap {cap}"),
        ))
    }

    /// Changes settings that others may share.
    pub(crate) fn change(this: &mut Arc<Self>, change: impl FnOnce(&mut Self)) {
        let settings = Arc::make_mut(this);
        settings.address = OnceLock::new();
        change(settings);
    }

    /// Where requests go.
    pub(crate) fn address(&self, transport: &Transport) -> Result<&Address> {
        match self.address.get() {
            Some(address) => Ok(address),
            None => {
                let address = self.make_address(transport)?;
                Ok(self.address.get_or_init(|| address))
            }
        }
    }

    fn make_address(&self, transport: &Transport) -> Result<Address> {
        let Target {
            exchange,
            topic,
            namespace,
            server,
            fanout,
            ..
        } = &self.target;
        let topic = topic.clone().ok_or_else(|| {
            Error::not_sent(
                ErrorKind::InvalidTarget,
                "a topic is required to send: give the client's target one",
            )
        })?;
        check_name("topic", &topic)?;
        if let Some(namespace) = namespace {
            check_name("namespace", namespace)?;
        }
        let exchange = match exchange {
            Some(exchange) => {
                check_name("exchange", exchange)?;
                exchange.clone()
            }
            None => transport.settings().exchange.clone(),
        };
        Ok(match (server, fanout) {
            (_, true) => Address::Fanout { exchange, topic },
            (Some(server), false) => {
                check_name("server", server)?;
                Address::Server {
                    exchange,
                    topic,
                    server: server.clone(),
                }
            }
            (None, false) => Address::Topic { exchange, topic },
        })
    }

    /// When a request that starts at this time must be over.
    pub(crate) fn deadline(&self, started: Instant, inherited: Option<Instant>) -> Instant {
        let own = deadline_after(started, self.timeout);
        inherited.map_or(own, |inherited| own.min(inherited))
    }
}
