//! The server of an RPC interface: building, starting, stopping.

use std::error::Error as StdError;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::driver::{Ack, ListenOptions, Subscription};
use crate::error::{Error, ErrorKind, RemoteError, Result};
use crate::executor::{Executor, ExecutorConfig};
use crate::failure::ErrorMap;
use crate::park;
use crate::registry;
use crate::rpc::access::{AccessPolicy, AllowPublic};
use crate::rpc::counters::{Counters, ServerCounters};
use crate::rpc::pump;
use crate::rpc::router::{Router, Routes};
use crate::rpc::window::{Clocks, Window};
use crate::serializer::Serializer;
use crate::target::{Target, check_name};
use crate::transport::{Transport, deadline_in};

/// How many ids of requests a server remembers, to drop those that come twice.
const DUPLICATE_WINDOW: usize = 1_024;
/// The method of oslo.messaging's ping endpoint.
const PING: &str = "oslo_rpc_server_ping";

/// Builds an [`RpcServer`].
#[must_use = "a builder does nothing until start()"]
pub struct RpcServerBuilder {
    transport: Transport,
    target: Target,
    routes: Result<Routes>,
    executor: Result<Chosen>,
    concurrency: Option<u32>,
    prefetch: Option<u32>,
    ack: Ack,
    policy: Arc<dyn AccessPolicy>,
    serializer: Option<Arc<dyn Serializer>>,
    errors: ErrorMap,
    expose_errors: bool,
    ping: bool,
    window: usize,
}

/// An executor as a builder takes it: a name out of the registry, or an [`Executor`].
pub trait IntoExecutor {
    /// The name, or the executor itself.
    fn into_executor(self) -> Result<String, Arc<dyn Executor>>;
}

impl IntoExecutor for &str {
    fn into_executor(self) -> Result<String, Arc<dyn Executor>> {
        Ok(self.to_owned())
    }
}

impl IntoExecutor for String {
    fn into_executor(self) -> Result<String, Arc<dyn Executor>> {
        Ok(self)
    }
}

impl IntoExecutor for Arc<dyn Executor> {
    fn into_executor(self) -> Result<String, Arc<dyn Executor>> {
        Err(self)
    }
}

#[derive(Debug)]
enum Chosen {
    Named(String),
    Given(Arc<dyn Executor>),
}

impl RpcServerBuilder {
    /// Where handlers run: `blocking`, `threaded` or `async` (the default), another name out of the registry, or an
    /// [`Executor`].
    pub fn executor(mut self, executor: impl IntoExecutor) -> Self {
        self.executor = Ok(match executor.into_executor() {
            Ok(name) => Chosen::Named(name),
            Err(executor) => Chosen::Given(executor),
        });
        self
    }

    /// How many requests run at once, by default the configuration's `executor_thread_pool_size` (64), or what the
    /// executor can give if that is less.
    pub fn concurrency(mut self, requests: u32) -> Self {
        self.concurrency = Some(requests);
        self
    }

    /// How many deliveries per queue may wait in this process; by default the driver chooses.
    pub fn prefetch(mut self, deliveries: u32) -> Self {
        self.prefetch = Some(deliveries);
        self
    }

    /// When deliveries are acknowledged; see [`Ack`].
    pub fn ack(mut self, ack: Ack) -> Self {
        self.ack = ack;
        self
    }

    /// Which methods may be called, by default [`AllowPublic`].
    pub fn access_policy(mut self, policy: impl AccessPolicy) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// The serializer of arguments, results and context.
    pub fn serializer(mut self, serializer: Arc<dyn Serializer>) -> Self {
        self.serializer = Some(serializer);
        self
    }

    /// How errors of type `E` that handlers return cross to the caller. The first entry for a type counts.
    ///
    /// ```ignore
    /// .map_error(|e: &StackNotFound| RemoteError::new("heat.common.exception", "StackNotFound", e.to_string()))
    /// ```
    ///
    /// A Python caller gets the class itself only if its `allowed_remote_exmods` has the module, else
    /// `oslo_messaging.RemoteError`.
    pub fn map_error<E: StdError + 'static>(
        mut self,
        map: impl Fn(&E) -> RemoteError + Send + Sync + 'static,
    ) -> Self {
        self.errors.add(map);
        self
    }

    /// Errors of type `E` are part of the interface: they are logged at debug level only.
    pub fn expect_error<E: StdError + 'static>(mut self) -> Self {
        self.errors.expect::<E>();
        self
    }

    /// Whether the text of an error that [`map_error`](Self::map_error) does not know crosses to the caller, instead of staying in the log.
    pub fn expose_errors(mut self, expose: bool) -> Self {
        self.expose_errors = expose;
        self
    }

    /// Whether the method `oslo_rpc_server_ping` answers `pong`; by default what the configuration's
    /// `rpc_ping_enabled` says.
    pub fn ping(mut self, ping: bool) -> Self {
        self.ping = ping;
        self
    }

    /// How many ids of requests are remembered to drop duplicates, 1,024 by default; 0: none.
    pub fn duplicate_window(mut self, ids: usize) -> Self {
        self.window = ids.min(1 << 20);
        self
    }

    /// Starts the server. A request sent after this returned is received. It waits for the link as long as the
    /// transport's default timeout.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidTarget`] without a topic and a server name; [`ErrorKind::Config`] for an unknown executor,
    /// a concurrency it cannot give, or a fault of the router; what the driver says of the subscription.
    ///
    /// # Cancel safety
    /// Dropped before it returned, the server is not started.
    pub async fn start(self) -> Result<RpcServer> {
        let Target {
            exchange,
            topic,
            server,
            ..
        } = &self.target;
        let (Some(topic), Some(server)) = (topic, server) else {
            let text = "a server needs a topic and a name of its own: Target::topic(..).server(..)";
            return Err(Error::not_sent(ErrorKind::InvalidTarget, text));
        };
        for (what, name) in [
            ("topic", Some(topic)),
            ("server", Some(server)),
            ("exchange", exchange.as_ref()),
        ] {
            name.map_or(Ok(()), |name| check_name(what, name))?;
        }
        let mut routes = self.routes?;
        if self.ping && !routes.has_method(PING) {
            routes.push(
                Router::new()
                    // Whatever it is given, as Python's.
                    .method(PING, async |_: crate::Context, _: serde::de::IgnoredAny| {
                        Ok("pong")
                    })
                    .expose(PING),
            )?;
        }
        let transport = self.transport;
        let name = format!("{topic}.{server}");
        let (executor, concurrency) = choose(self.executor?, self.concurrency, &transport, &name)?;
        let zero = |what: &str| {
            Error::config(format!(
                "a {what} of 0 would receive nothing: give 1 or more"
            ))
        };
        let prefetch = self
            .prefetch
            .map(|n| NonZeroU32::new(n).ok_or_else(|| zero("prefetch")))
            .transpose()?;

        let subscription = Subscription::Server {
            exchange: exchange
                .clone()
                .unwrap_or_else(|| transport.settings().exchange.clone()),
            topic: topic.clone(),
            server: server.clone(),
        };
        let options = ListenOptions {
            concurrency,
            prefetch,
            ack: self.ack,
        };
        let deadline = deadline_in(transport.settings().timeout);
        let listener =
            match park::before(deadline, transport.driver().listen(subscription, options)).await {
                Some(listener) => listener?,
                None => {
                    return Err(
                        transport.no_link("the server's subscription could not be made in time")
                    );
                }
            };
        let pump_runtime = transport.pump_runtime()?;
        let (stop, stopping) = watch::channel(None);
        let (ended, end) = watch::channel(None);
        let (abandon, abandoned) = watch::channel(false);
        let shared = Arc::new(Shared {
            name,
            routes,
            executor,
            ack: self.ack,
            policy: self.policy,
            serializer: self.serializer,
            errors: self.errors,
            expose_errors: self.expose_errors,
            counters: Counters::default(),
            permits: AtomicU32::new(concurrency.get()),
            concurrency: concurrency.get(),
            pump_waker: AtomicWaker::new(),
            handed: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            memory: Mutex::new(Memory {
                window: Window::new(self.window),
                clocks: Clocks::default(),
            }),
            hasher: RandomState::new(),
            abandon,
            abandoned,
            pump_runtime: pump_runtime.clone(),
            transport,
        });
        pump_runtime.spawn(pump::run(shared.clone(), listener, stopping, ended));
        pump_runtime.spawn(pump::watch_for_starvation(Arc::downgrade(&shared)));
        Ok(RpcServer {
            shared,
            stop,
            end,
            target: self.target,
        })
    }

    /// Starts the server from a plain thread.
    ///
    /// # Errors
    /// As [`start`](Self::start), and [`ErrorKind::Config`] on a runtime worker.
    pub fn start_blocking(self) -> Result<RpcServer> {
        park::block_on(self.start())
    }
}

impl fmt::Debug for RpcServerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcServerBuilder")
            .field("target", &self.target)
            .field("executor", &self.executor)
            .finish_non_exhaustive()
    }
}

fn choose(
    chosen: Chosen,
    wanted: Option<u32>,
    transport: &Transport,
    server: &str,
) -> Result<(Arc<dyn Executor>, NonZeroU32)> {
    let executor = match chosen {
        Chosen::Given(executor) => executor,
        Chosen::Named(name) => {
            let config = ExecutorConfig {
                runtime: Handle::try_current().ok(),
                server: server.to_owned(),
                shared: transport.shared().clone(),
            };
            (registry::find_executor(&name)?.make)(config)?
        }
    };
    let limit = executor.limit();
    let concurrency = match wanted {
        None => limit.map_or(transport.settings().concurrency, |limit| {
            limit.min(transport.settings().concurrency)
        }),
        Some(wanted) => match NonZeroU32::new(wanted) {
            Some(wanted) if limit.is_none_or(|limit| wanted <= limit) => wanted,
            Some(_) => {
                let limit = limit.map_or(0, NonZeroU32::get);
                return Err(Error::config(format!(
                    "a concurrency of {wanted} was asked for, the executor of server {server} can give {limit}: leave it out or choose another executor"
                )));
            }
            None => {
                return Err(Error::config(
                    "a concurrency of 0 would run nothing: give 1 or more",
                ));
            }
        },
    };
    Ok((executor, concurrency))
}

/// What the pump and the jobs of a server share.
pub(crate) struct Shared {
    /// `topic.server`, for logs.
    pub(crate) name: String,
    pub(crate) routes: Routes,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) ack: Ack,
    pub(crate) policy: Arc<dyn AccessPolicy>,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) errors: ErrorMap,
    pub(crate) expose_errors: bool,
    pub(crate) counters: Counters,
    permits: AtomicU32,
    concurrency: u32,
    /// Wakes the pump: a permit came back, or the server is to stop.
    pub(crate) pump_waker: AtomicWaker,
    /// Jobs handed to the executor, and jobs that were polled at least once.
    pub(crate) handed: AtomicU64,
    pub(crate) begun: AtomicU64,
    pub(crate) stopping: AtomicBool,
    memory: Mutex<Memory>,
    hasher: RandomState,
    pub(crate) abandon: watch::Sender<bool>,
    pub(crate) abandoned: watch::Receiver<bool>,
    pub(crate) pump_runtime: Handle,
    pub(crate) transport: Transport,
}

/// What a server remembers of its requests.
pub(crate) struct Memory {
    pub(crate) window: Window,
    pub(crate) clocks: Clocks,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// One of the server's permits, if one is free.
    pub(crate) fn permit(self: &Arc<Self>) -> Option<Permit> {
        self.permits
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |free| {
                free.checked_sub(1)
            })
            .ok()
            .map(|_| Permit(Some(self.clone())))
    }

    /// A keyed hash of a stranger's text.
    pub(crate) fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.concurrency - self.permits.load(Ordering::Acquire)
    }
}

/// The right to run one request. Dropping it lets the pump take another.
#[derive(Debug)]
pub(crate) struct Permit(Option<Arc<Shared>>);

impl Permit {
    /// Gives back a permit for which there was no request. The pump holds it itself, so that nobody needs waking;
    /// and waking itself would keep it busy for ever.
    pub(crate) fn unused(mut self) {
        if let Some(shared) = self.0.take() {
            shared.permits.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(shared) = self.0.take() {
            shared.permits.fetch_add(1, Ordering::AcqRel);
            shared.pump_waker.wake();
        }
    }
}

/// A running server. Dropping it stops it without waiting: what was received and not begun is given back.
pub struct RpcServer {
    shared: Arc<Shared>,
    target: Target,
    stop: watch::Sender<Option<Instant>>,
    end: watch::Receiver<Option<Drained>>,
}

/// How a server ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Drained {
    /// How many of the requests that ran when it was told to stop have finished.
    pub finished: u32,
    /// How many had not when its time was over. Those of plain handlers run on: threads cannot be killed.
    pub still_running: u32,
    /// What went wrong while the subscription was closed.
    pub error: Option<Error>,
}

impl RpcServer {
    /// A builder for the server of a target with a topic and a server name. Namespace, version and fanout of the
    /// target are not used: those of the router count.
    pub fn builder<S: Send + Sync + 'static>(
        transport: &Transport,
        target: Target,
        router: Router<S>,
    ) -> RpcServerBuilder {
        RpcServerBuilder {
            ping: transport.settings().ping,
            transport: transport.clone(),
            target,
            routes: router.into_routes(),
            executor: Ok(Chosen::Named("async".to_owned())),
            concurrency: None,
            prefetch: None,
            ack: Ack::default(),
            policy: Arc::new(AllowPublic),
            serializer: None,
            errors: ErrorMap::default(),
            expose_errors: false,
            window: DUPLICATE_WINDOW,
        }
    }

    /// The target it serves.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What it counted so far.
    pub fn counters(&self) -> ServerCounters {
        self.shared.counters.snapshot()
    }

    /// Takes no new requests, lets those that run finish and their replies go out, and ends the subscription. What
    /// is unfinished after `timeout` is reported, and its [`Context`](crate::Context) is cancelled.
    ///
    /// Idempotent, callable from anywhere, and back a second after `timeout` at the latest. A later call with an
    /// earlier end shortens the wait of all.
    ///
    /// # Errors
    /// [`ErrorKind::Timeout`] when the subscription itself could not be closed in time.
    pub async fn stop(&self, timeout: Duration) -> Result<Drained> {
        let deadline = deadline_in(timeout);
        self.signal(deadline);
        let grace = deadline + Duration::from_secs(1);
        match park::before(grace, self.wait()).await {
            Some(drained) => Ok(drained),
            None => Err(Error::unknown(
                ErrorKind::Timeout,
                format!("server {} did not stop in time", self.shared.name),
            )),
        }
    }

    /// As [`stop`](Self::stop), from a plain thread.
    ///
    /// # Errors
    /// As [`stop`](Self::stop), and [`ErrorKind::Config`] on a runtime worker.
    pub fn stop_blocking(&self, timeout: Duration) -> Result<Drained> {
        park::block_on(self.stop(timeout))
    }

    /// Waits until the server has stopped, for whatever reason. It does not stop it.
    pub async fn wait(&self) -> Drained {
        let mut end = self.end.clone();
        let drained = end
            .wait_for(Option::is_some)
            .await
            .map(|drained| drained.clone());
        // The sender goes without a word only when the runtime of the pump is shut down.
        drained.ok().flatten().unwrap_or_else(|| Drained {
            finished: 0,
            still_running: self.shared.in_flight(),
            error: Some(Error::unknown(
                ErrorKind::Cancelled,
                "the runtime of the server was shut down",
            )),
        })
    }

    fn signal(&self, deadline: Instant) {
        self.stop.send_if_modified(|stop| {
            let earlier = stop.is_none_or(|at| deadline < at);
            if earlier {
                *stop = Some(deadline);
            }
            earlier
        });
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.pump_waker.wake();
    }
}

impl Drop for RpcServer {
    fn drop(&mut self) {
        if self.end.borrow().is_none() {
            self.signal(Instant::now());
        }
    }
}

impl fmt::Debug for RpcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcServer")
            .field("name", &self.shared.name)
            .field("in_flight", &self.shared.in_flight())
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}
