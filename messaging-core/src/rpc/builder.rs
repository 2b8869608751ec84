//! Building and starting the server of an RPC interface.

use std::error::Error as StdError;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::driver::{Ack, ListenOptions, Subscription};
use crate::error::{Error, ErrorKind, RemoteError, Result};
use crate::executor::{Executor, ExecutorConfig};
use crate::failure::ErrorMap;
use crate::park;
use crate::registry;
use crate::rpc::access::{AccessPolicy, AllowPublic};
use crate::rpc::router::{Router, Routes};
use crate::rpc::server::{RpcServer, Service};
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
    executor: Chosen,
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
    pub(crate) fn new<S: Send + Sync + 'static>(
        transport: &Transport,
        target: Target,
        router: Router<S>,
    ) -> Self {
        Self {
            ping: transport.settings().ping,
            transport: transport.clone(),
            target,
            routes: router.into_routes(),
            executor: Chosen::Named("async".to_owned()),
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

    /// Where handlers run: `blocking`, `threaded` or `async` (the default), another name out of the registry, or an
    /// [`Executor`].
    pub fn executor(mut self, executor: impl IntoExecutor) -> Self {
        self.executor = match executor.into_executor() {
            Ok(name) => Chosen::Named(name),
            Err(executor) => Chosen::Given(executor),
        };
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
        let (executor, concurrency) = choose(self.executor, self.concurrency, &transport, &name)?;
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
        let service = Service {
            name,
            routes,
            executor,
            concurrency,
            ack: self.ack,
            policy: self.policy,
            serializer: self.serializer,
            errors: self.errors,
            expose_errors: self.expose_errors,
            window: self.window,
            transport,
        };
        RpcServer::launch(service, self.target, listener)
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
