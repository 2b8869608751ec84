//! Running a future on a plain thread.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use messaging_core::Result;
use messaging_core::driver::Io;
use messaging_core::executor::ExecutorConfig;
use tokio::runtime::Handle;

/// Parks one thread until it is woken.
///
/// It trusts its flag and not the thread's park token, which handlers may use up by parking themselves.
#[derive(Debug)]
pub(crate) struct Parker {
    signal: Arc<Signal>,
    waker: Waker,
}

#[derive(Debug)]
struct Signal {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

impl Parker {
    /// For the calling thread, the only one that may use it.
    pub(crate) fn new() -> Self {
        let signal = Arc::new(Signal {
            woken: AtomicBool::new(false),
            thread: std::thread::current(),
        });
        let waker = Waker::from(signal.clone());
        Self { signal, waker }
    }

    /// Runs `future` to its end on this thread. Within it the runtime `handle` is the current one, so that timers,
    /// sockets and spawned tasks work as they do on that runtime, which drives them.
    pub(crate) fn block_on<F: Future>(&self, future: F, handle: Option<&Handle>) -> F::Output {
        let _entered = handle.map(Handle::enter);
        let mut cx = Context::from_waker(&self.waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
                return output;
            }
            while !self.signal.woken.swap(false, Ordering::AcqRel) {
                std::thread::park();
            }
        }
    }
}

/// A thread with a current-thread runtime, started at first use; it ends by itself once nobody holds it.
#[derive(Debug)]
pub(crate) struct Background(Io);

impl Background {
    pub(crate) fn new(name: &str) -> Self {
        Self(Io::new(name))
    }

    pub(crate) fn handle(&self) -> Result<Handle> {
        self.0.handle()
    }
}

/// The runtime of handlers where the application has none; one for each transport.
#[derive(Debug)]
struct OwnRuntime(Background);

/// What async handlers find as the current runtime on the threads of ours.
#[derive(Debug)]
pub(crate) struct HandlerRuntime {
    handle: Handle,
    // The runtime ends with the last executor that holds it.
    _own: Option<Arc<OwnRuntime>>,
}

impl HandlerRuntime {
    /// The application's runtime; without one a small runtime of our own.
    pub(crate) fn of(config: &ExecutorConfig) -> Result<Self> {
        if let Some(handle) = &config.runtime {
            return Ok(Self {
                handle: handle.clone(),
                _own: None,
            });
        }
        let own = config
            .shared
            .get_or_init(|| OwnRuntime(Background::new("longshore-tokio")));
        Ok(Self {
            handle: own.0.handle()?,
            _own: Some(own),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}
