//! A running server of an RPC interface: what its parts share, and how it stops.

use std::fmt;
use std::hash::BuildHasher as _;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use foldhash::quality::RandomState;
use futures_util::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::driver::{Ack, Listener};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::failure::ErrorMap;
use crate::park;
use crate::rpc::access::AccessPolicy;
use crate::rpc::builder::RpcServerBuilder;
use crate::rpc::counters::{Counters, ServerCounters};
use crate::rpc::pump;
use crate::rpc::router::{Router, Routes};
use crate::rpc::window::{Clocks, Window};
use crate::serializer::Serializer;
use crate::target::Target;
use crate::transport::{Transport, deadline_in};

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
    // What every request writes is on cache lines of its own, or all that the others read would travel with it.
    pub(crate) counters: CachePadded<Counters>,
    permits: CachePadded<AtomicU32>,
    concurrency: u32,
    /// Wakes the pump: a permit came back that it waits for, or the server is to stop.
    pub(crate) pump_waker: CachePadded<AtomicWaker>,
    /// Whether the pump found no permit. Nobody wakes it for one it does not wait for.
    pump_starves: AtomicBool,
    /// Jobs handed to the executor.
    pub(crate) handed: CachePadded<AtomicU64>,
    pub(crate) stopping: AtomicBool,
    memory: CachePadded<Mutex<Memory>>,
    hasher: RandomState,
    pub(crate) abandon: Abandon,
    pub(crate) pump_runtime: Handle,
    pub(crate) transport: Transport,
}

/// Tells the contexts of a server that nobody waits for their results any more; a server that is gone waits for none.
pub(crate) struct Abandon(pub(crate) Arc<watch::Sender<bool>>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// What a builder found out: all that a server is made of, but its listener.
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) routes: Routes,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) concurrency: NonZeroU32,
    pub(crate) ack: Ack,
    pub(crate) policy: Arc<dyn AccessPolicy>,
    pub(crate) serializer: Option<Arc<dyn Serializer>>,
    pub(crate) errors: ErrorMap,
    pub(crate) expose_errors: bool,
    pub(crate) window: usize,
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
    /// Whether a permit is free; if none is, the pump is woken when there is.
    pub(crate) fn has_permit(&self) -> bool {
        if self.permits.load(Ordering::SeqCst) > 0 {
            return true;
        }
        // Said before the second look: whoever gives a permit back after that look reads it.
        self.pump_starves.store(true, Ordering::SeqCst);
        self.permits.load(Ordering::SeqCst) > 0
    }

    /// Takes a permit that is free. Only the pump takes any, so that what it saw free still is.
    pub(crate) fn permit(self: &Arc<Self>) -> Permit {
        self.permits.fetch_sub(1, Ordering::SeqCst);
        Permit(self.clone())
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
pub(crate) struct Permit(Arc<Shared>);

impl Permit {
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.permits.fetch_add(1, Ordering::SeqCst);
        if self.0.pump_starves.load(Ordering::SeqCst)
            && self.0.pump_starves.swap(false, Ordering::SeqCst)
        {
            self.0.pump_waker.wake();
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
        RpcServerBuilder::new(transport, target, router)
    }

    /// Starts the pump of a server that is subscribed.
    pub(crate) fn launch(
        service: Service,
        target: Target,
        listener: Box<dyn Listener>,
    ) -> Result<Self> {
        let pump_runtime = service.transport.pump_runtime()?;
        let (stop, stopping) = watch::channel(None);
        let (ended, end) = watch::channel(None);
        let shared = Arc::new(Shared {
            name: service.name,
            routes: service.routes,
            executor: service.executor,
            ack: service.ack,
            policy: service.policy,
            serializer: service.serializer,
            errors: service.errors,
            expose_errors: service.expose_errors,
            counters: CachePadded::default(),
            permits: CachePadded::new(AtomicU32::new(service.concurrency.get())),
            concurrency: service.concurrency.get(),
            pump_waker: CachePadded::default(),
            pump_starves: AtomicBool::new(false),
            handed: CachePadded::default(),
            stopping: AtomicBool::new(false),
            memory: CachePadded::new(Mutex::new(Memory {
                window: Window::new(service.window),
                clocks: Clocks::default(),
            })),
            hasher: RandomState::default(),
            abandon: Abandon(Arc::new(watch::Sender::new(false))),
            pump_runtime: pump_runtime.clone(),
            transport: service.transport,
        });
        pump_runtime.spawn(pump::run(shared.clone(), listener, stopping, ended));
        pump_runtime.spawn(pump::watch_for_starvation(Arc::downgrade(&shared)));
        Ok(Self {
            shared,
            stop,
            end,
            target,
        })
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
