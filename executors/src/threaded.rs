//! The executor `threaded`: a thread for each running job.

use std::sync::Arc;
use std::time::Instant;

use messaging_core::Result;
use messaging_core::executor::{BoxFuture, Executor, ExecutorConfig, Job, Refused};

use crate::gauge::Gauge;
use crate::park::HandlerRuntime;
use crate::pool::{ThreadPool, ThreadPoolOptions};

/// Runs each job on a thread of its transport's [`ThreadPool`]: for handlers that block.
///
/// A transport has as many threads as jobs that run at once, whatever the number of its servers and their
/// concurrency, and at most 4,096: beyond that jobs wait in the order of their arrival, up to 65,536 of them, then
/// they are refused as busy. Where the operating system gives no thread, jobs are refused as busy too. Idle threads
/// end after 10 seconds.
///
/// A handler that waits for another server of its own transport holds its thread meanwhile, so such a chain takes as
/// many threads as it has links.
#[derive(Debug)]
pub struct ThreadedExecutor {
    gauge: Arc<Gauge>,
    pool: Arc<ThreadPool>,
    runtime: HandlerRuntime,
}

impl ThreadedExecutor {
    /// An executor on the pool of `config.shared`. Async handlers use the runtime of `config`; without one, a
    /// current-thread runtime on a thread of its own, which a transport's executors share.
    ///
    /// # Errors
    /// [`Internal`](messaging_core::ErrorKind::Internal): that runtime could not be started.
    pub fn new(config: ExecutorConfig) -> Result<Self> {
        Ok(Self {
            runtime: HandlerRuntime::of(&config)?,
            pool: config
                .shared
                .get_or_init(|| ThreadPool::new(ThreadPoolOptions::default())),
            gauge: Gauge::new(config.server, &config.shared),
        })
    }
}

impl Executor for ThreadedExecutor {
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
