//! The executors of Longshore: where the handlers of a server run.
//!
//! | name (alias) | runs handlers | for |
//! |---|---|---|
//! | `blocking` | one at a time, in order, on one thread of its own | strict order, debugging |
//! | `threaded` (`threading`) | on a bounded pool of threads, grown lazily | handlers that block |
//! | `async` (`eventlet`) | as tasks on the application's runtime; plain handlers on that pool | handlers that await |
//!
//! The same handlers, async or plain, run under each. Under `threaded` and `blocking` an async handler has its
//! thread for itself, and the application's runtime drives its timers and sockets; where the application has no
//! runtime, a small one of the transport's own does (a current-thread runtime: tasks that handlers spawn share one
//! thread then). Plain handlers find the same runtime as the current one.
//!
//! Promised by all three:
//! - A job that is not taken comes back in [`Refused`](messaging_core::executor::Refused); one that is taken and
//!   never begun is dropped, which requeues its message or answers it as not executed.
//! - `close` takes no more jobs from the moment it is called, and its future is ready at the deadline at the latest,
//!   with or without a runtime. Jobs that still wait for a thread then are dropped; those that run go on, and are
//!   what it returns. Dropping that future leaves the executor closed.
//! - A job that panics is logged and ends nothing but itself.
//! - Dropping an executor never waits; jobs it has taken run to their end.
//!
//! Linking the crate is enough to use them by name: an application that does not depend on `longshore` writes
//! `use messaging_executors as _;`.

mod blocking;
mod gauge;
mod park;
mod pool;
mod runners;
mod tasks;
mod threaded;
mod work;

use std::num::NonZeroU32;
use std::sync::Arc;

use messaging_core::registry::ExecutorRegistration;

pub use blocking::BlockingExecutor;
pub use pool::{ThreadPool, ThreadPoolOptions};
pub use tasks::AsyncExecutor;
pub use threaded::ThreadedExecutor;

/// `blocking`: one job at a time.
pub static BLOCKING: ExecutorRegistration = ExecutorRegistration {
    names: &["blocking"],
    summary: "one at a time, in order, on one thread of its own: for strict order and debugging",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    limit: Some(NonZeroU32::MIN),
    make: |config| Ok(Arc::new(BlockingExecutor::new(config)?)),
};

/// `threaded`, also known as `threading`: a thread for each running job.
pub static THREADED: ExecutorRegistration = ExecutorRegistration {
    names: &["threaded", "threading"],
    summary: "on a bounded pool of threads, grown lazily: for handlers that block",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    limit: None,
    make: |config| Ok(Arc::new(ThreadedExecutor::new(config)?)),
};

/// `async`, also known as `eventlet`: tasks of the application's runtime.
pub static ASYNC: ExecutorRegistration = ExecutorRegistration {
    names: &["async", "eventlet"],
    summary: "as tasks on the application's tokio runtime: for handlers that await; the default",
    crate_name: env!("CARGO_PKG_NAME"),
    crate_version: env!("CARGO_PKG_VERSION"),
    limit: None,
    make: |config| Ok(Arc::new(AsyncExecutor::new(config)?)),
};

messaging_core::register_executor!(BLOCKING);
messaging_core::register_executor!(THREADED);
messaging_core::register_executor!(ASYNC);
