//! The executor `blocking`: one job at a time, in order.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use messaging_core::Result;
use messaging_core::executor::{BoxFuture, Executor, ExecutorConfig, Job, Refused};

use crate::gauge::Gauge;
use crate::park::HandlerRuntime;
use crate::pool::{ThreadPool, ThreadPoolOptions};

/// Jobs that may wait for the thread. A server of one permit has none; this is for callers that are not core.
const MAX_QUEUED: usize = 16;

/// Runs one job at a time, in the order in which they came, all on one thread of its own: for handlers that need
/// strict order or always the same thread, and for debugging.
///
/// The thread starts with the first job and stays until the executor is dropped. It bears the server's name.
/// Waiting jobs are bounded at 16; one more is refused as busy.
#[derive(Debug)]
pub struct BlockingExecutor {
    gauge: Arc<Gauge>,
    pool: ThreadPool,
    runtime: HandlerRuntime,
}

impl BlockingExecutor {
    /// An executor without a thread yet. Async handlers use the runtime of `config`; without one, a
    /// current-thread runtime on a thread of its own, which a transport's executors share.
    ///
    /// # Errors
    /// [`Internal`](messaging_core::ErrorKind::Internal): that runtime could not be started.
    pub fn new(config: ExecutorConfig) -> Result<Self> {
        Ok(Self {
            runtime: HandlerRuntime::of(&config)?,
            pool: ThreadPool::new(ThreadPoolOptions {
                name: config.server.clone(),
                max_threads: 1,
                max_queued: MAX_QUEUED,
                idle_time: None,
                stack_size: None,
            }),
            gauge: Gauge::new(config.server, &config.shared),
        })
    }
}

impl Executor for BlockingExecutor {
    fn limit(&self) -> Option<NonZeroU32> {
        Some(NonZeroU32::MIN)
    }

    fn spawn(&self, job: Job) -> Result<(), Refused> {
        let job = self.gauge.admit_one(job)?;
        self.pool.run(job, self.runtime.handle())
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        Box::pin(async move { work() })
    }

    fn close(&self, deadline: Instant) -> BoxFuture<'_, u32> {
        self.gauge.refuse_more();
        Box::pin(self.gauge.drained(&self.pool, deadline))
    }
}
