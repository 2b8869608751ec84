//! The handle an application holds on a message transport.

use std::fmt;
use std::future::IntoFuture;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, watch};

use crate::config::Config;
use crate::driver::{Capabilities, Correlation, Driver, DriverContext, Health, InboxAddress, Io};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{BoxFuture, Shared};
use crate::message::fresh_number;
use crate::options::CoreOptions;
use crate::park;
use crate::registry;
use crate::rpc::{Outbox, Pending, ReplySink};
use crate::target::check_name;
use crate::url::TransportUrl;

/// How long [`connect`](TransportBuilder::connect) waits for the link.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// oslo.messaging's `control_exchange`.
const DEFAULT_EXCHANGE: &str = "openstack";
/// oslo.messaging's `rpc_response_timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// oslo.messaging's `executor_thread_pool_size`.
const DEFAULT_CONCURRENCY: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");
/// How many calls may be pending at once, unless the builder says otherwise.
const DEFAULT_MAX_PENDING: usize = 65_536;
/// How many look-ups for the text of a timeout run at once; a flood of timeouts must not become one of questions.
const CONCURRENT_INSPECTIONS: usize = 8;

/// A message transport, opened by URL. Clones share it: its links, its inbox and its pending calls.
///
/// The last clone dropped ends the links without waiting. [`close`](Self::close) waits for what is queued.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

// Every call counts references to it: aligned, so that the count is on another cache line than what they read.
#[repr(align(128))]
struct Inner {
    // Before `io`: the driver's tasks end before the thread they run on.
    driver: Arc<dyn Driver>,
    url: TransportUrl,
    capabilities: Capabilities,
    settings: Settings,
    pending: Arc<Pending>,
    outbox: Arc<Outbox>,
    inbox: OnceCell<InboxAddress>,
    inspections: Semaphore,
    shared: Shared,
    /// Tells the unique ids of this transport from all others.
    nonce: u64,
    io: Io,
}

/// What clients and servers of a transport start from.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) exchange: Arc<str>,
    pub(crate) timeout: Duration,
    pub(crate) concurrency: NonZeroU32,
    pub(crate) ping: bool,
    pub(crate) max_body: usize,
}

impl Transport {
    /// Opens a transport by URL: [`builder`](Self::builder) with its defaults.
    ///
    /// # Errors
    /// As [`TransportBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder(url).connect().await
    }

    /// A builder for the transport of this URL.
    pub fn builder(url: &str) -> TransportBuilder {
        TransportBuilder::new(Some(url.to_owned()), Ok(Config::from_env()))
    }

    /// A builder for the transport an oslo.config file describes. The environment overrides the file.
    pub fn from_config_file(path: impl AsRef<Path>) -> TransportBuilder {
        TransportBuilder::new(None, Config::from_file(path))
    }

    /// A builder from a configuration that was read already.
    pub fn from_config(config: Config) -> TransportBuilder {
        TransportBuilder::new(None, Ok(config))
    }

    /// What the driver can do, after its URL options.
    pub fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    /// The URL, for logs: its `Display` shows no secret.
    pub fn url(&self) -> &TransportUrl {
        &self.0.url
    }

    /// The exchange used where a target names none.
    pub fn default_exchange(&self) -> &str {
        &self.0.settings.exchange
    }

    /// The state of the link, as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.driver.health()
    }

    /// Waits until the link is up.
    ///
    /// # Errors
    /// What stands in the way; see [`Driver::ready`].
    pub async fn ready(&self, timeout: Duration) -> Result<()> {
        self.0.driver.ready(deadline_in(timeout)).await
    }

    /// How many calls wait for a reply.
    pub fn pending_calls(&self) -> usize {
        self.0.pending.len()
    }

    /// Counters of the replies this transport's servers sent and its clients received.
    pub fn reply_counters(&self) -> ReplyCounters {
        self.0.outbox.counters()
    }

    /// Sends what is queued and ends the links; pending calls fail. Idempotent.
    ///
    /// # Errors
    /// What could not be finished within the timeout; the transport is closed all the same.
    pub async fn close(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline_in(timeout);
        self.0.pending.close();
        match park::before(
            deadline + Duration::from_millis(500),
            self.0.driver.close(deadline),
        )
        .await
        {
            Some(result) => result,
            None => Err(Error::unknown(
                ErrorKind::Timeout,
                "the driver did not close in time",
            )),
        }
    }

    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.0.driver
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The largest body in bytes, packed or unpacked.
    pub(crate) fn max_body(&self) -> usize {
        self.0
            .capabilities
            .max_body
            .map_or(self.0.settings.max_body, |max| {
                max.min(self.0.settings.max_body)
            })
    }

    pub(crate) fn pending(&self) -> &Arc<Pending> {
        &self.0.pending
    }

    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.0.outbox
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) fn inspections(&self) -> &Semaphore {
        &self.0.inspections
    }

    /// The runtime for a server's pump: the I/O thread where the driver uses one, else the caller's.
    pub(crate) fn pump_runtime(&self) -> Result<Handle> {
        match self.0.io.started() {
            Some(handle) => Ok(handle),
            None => Handle::try_current().or_else(|_| self.0.io.handle()),
        }
    }

    pub(crate) fn unique_id(&self) -> Correlation {
        Correlation((u128::from(self.0.nonce) << 64) | u128::from(fresh_number()))
    }

    /// The private address of replies, if it was made already.
    pub(crate) fn known_inbox(&self) -> Option<&InboxAddress> {
        self.0.inbox.get()
    }

    /// The private address of replies, made at the first call.
    pub(crate) async fn inbox(&self, deadline: Instant) -> Result<&InboxAddress> {
        match park::before(
            deadline,
            self.0.inbox.get_or_try_init(|| self.0.driver.inbox()),
        )
        .await
        {
            Some(result) => result,
            None => Err(self.no_link("no reply address could be made in time")),
        }
    }

    /// A time-out before anything was sent, with what the link is like.
    pub(crate) fn no_link(&self, what: &str) -> Error {
        let health = self.0.driver.health().borrow().clone();
        match health {
            Health::Up => Error::not_sent(ErrorKind::Timeout, what),
            Health::Connecting(None) => {
                Error::not_sent(ErrorKind::Connect, format!("{what}: not connected yet"))
            }
            Health::Connecting(Some(why)) => {
                Error::not_sent(ErrorKind::Connect, format!("{what}: {why}"))
            }
            Health::Down(why) => Error::not_sent(
                ErrorKind::Disconnected,
                format!("{what}: the link is down: {why}"),
            ),
            Health::Blocked(why) => Error::not_sent(
                ErrorKind::Timeout,
                format!("{what}: the broker is blocked: {why}"),
            ),
            Health::Closed => Error::not_sent(
                ErrorKind::Closed,
                format!("{what}: the transport is closed"),
            ),
        }
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("url", &self.0.url)
            .field("settings", &self.0.settings)
            .field("pending_calls", &self.pending_calls())
            .finish_non_exhaustive()
    }
}

/// A time from now that never overflows.
pub(crate) fn deadline_in(timeout: Duration) -> Instant {
    deadline_after(Instant::now(), timeout)
}

/// A time from a recent one that never overflows.
pub(crate) fn deadline_after(start: Instant, timeout: Duration) -> Instant {
    // A century is as good as for ever, and leaves room for additions.
    start + timeout.min(Duration::from_secs(100 * 365 * 86_400))
}

/// Counts of replies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplyCounters {
    /// Replies handed to the driver.
    pub sent: u64,
    /// Replies sent again after a loss.
    pub resent: u64,
    /// Replies given up: the caller's inbox is gone, is none, or the outbox was full.
    pub lost: u64,
    /// Replies that arrived for a call nobody waits for any more.
    pub late: u64,
    /// Messages in the inbox that are no replies.
    pub unreadable: u64,
}

/// Makes a [`Transport`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until connect() or lazy()"]
pub struct TransportBuilder {
    url: Option<String>,
    config: Result<Config>,
    exchange: Option<String>,
    max_pending: usize,
}

impl TransportBuilder {
    fn new(url: Option<String>, config: Result<Config>) -> Self {
        Self {
            url,
            config,
            exchange: None,
            max_pending: DEFAULT_MAX_PENDING,
        }
    }

    /// The URL, before that of the configuration.
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// Options from a configuration: URL query before environment before file.
    pub fn config(mut self, config: Config) -> Self {
        self.config = Ok(config);
        self
    }

    /// The exchange where neither a target nor the configuration's `control_exchange` names one.
    pub fn default_exchange(mut self, exchange: &str) -> Self {
        self.exchange = Some(exchange.to_owned());
        self
    }

    /// How many calls may be pending at once, by default 65,536 and 1,048,576 at most. A further call waits for
    /// room until its deadline and then fails with [`ErrorKind::Busy`].
    pub fn max_pending(mut self, calls: usize) -> Self {
        self.max_pending = calls;
        self
    }

    /// Opens the transport without waiting for the link: each call waits by itself.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for what is wrong with URL, options or configuration.
    pub fn lazy(self) -> Result<Transport> {
        let config = self.config?;
        let url = self.url.as_deref().or(config.transport_url()).ok_or_else(|| {
            Error::config("no transport URL: give one, or set transport_url in [DEFAULT] of the file, or OS_DEFAULT__TRANSPORT_URL")
        })?;
        let url: TransportUrl = url.parse()?;
        let core = CoreOptions::resolve(&url, &config)?;
        let exchange = config
            .control_exchange()
            .or(self.exchange.as_deref())
            .unwrap_or(DEFAULT_EXCHANGE);
        check_name("exchange", exchange)?;
        let settings = Settings {
            exchange: exchange.into(),
            timeout: config.rpc_response_timeout()?.unwrap_or(DEFAULT_TIMEOUT),
            concurrency: config
                .executor_thread_pool_size()?
                .unwrap_or(DEFAULT_CONCURRENCY),
            ping: config.rpc_ping_enabled()?.unwrap_or(false),
            max_body: core.max_body,
        };
        let registration = registry::find_driver(&url.scheme)
            // Masked first and cut then: a URL may be 64 KiB long.
            .map_err(|e| e.with_note(format!("the URL is {:.200}", url.to_string())))?;
        let io = Io::new(format!(
            "{}-io",
            registration.schemes.first().unwrap_or(&"transport")
        ));
        let (pending, outbox) = (Pending::new(self.max_pending), Outbox::new());
        let context = DriverContext {
            io: io.clone(),
            config,
            events: Arc::new(ReplySink::new(pending.clone(), outbox.clone())),
            max_body: core.max_body,
        };
        let driver = (registration.open)(&url, context)?;
        outbox.attach(&driver, &io);
        Ok(Transport(Arc::new(Inner {
            capabilities: driver.capabilities(),
            driver,
            url,
            settings,
            pending,
            outbox,
            inbox: OnceCell::new(),
            inspections: Semaphore::new(CONCURRENT_INSPECTIONS),
            shared: Shared::default(),
            nonce: rand::random(),
            io,
        })))
    }

    /// Opens the transport and waits for the link, ten seconds at most.
    pub fn connect(self) -> Connect {
        Connect(self)
    }
}

/// A transport about to be opened: `.await` it, or call [`blocking`](Self::blocking).
#[derive(Debug)]
#[must_use = "nothing is opened until this is awaited"]
pub struct Connect(TransportBuilder);

impl Connect {
    async fn run(self) -> Result<Transport> {
        let transport = self.0.lazy()?;
        transport.ready(CONNECT_TIMEOUT).await?;
        Ok(transport)
    }

    /// Opens it from a plain thread, which it parks.
    ///
    /// # Errors
    /// As awaiting it, and [`ErrorKind::Config`] on a runtime worker.
    pub fn blocking(self) -> Result<Transport> {
        park::block_on(self.run())
    }
}

impl IntoFuture for Connect {
    type Output = Result<Transport>;
    type IntoFuture = BoxFuture<'static, Result<Transport>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}
