//! The executor `async`: jobs as tasks of the application's runtime.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use messaging_core::executor::{BoxFuture, Executor, ExecutorConfig, Job, Refused};
use messaging_core::{Error, Result};
use tokio::runtime::Handle;

use crate::gauge::Gauge;
use crate::pool::{ThreadPool, ThreadPoolOptions};
use crate::runners::Runners;
use crate::work::Work;

/// The most jobs that one task polls first. A handler that blocks holds up the rest of its batch.
const MAX_BATCH: usize = 32;

/// Runs jobs as tasks of the application's tokio runtime, and plain handlers on its transport's [`ThreadPool`]: the
/// default, for handlers that await.
///
/// A batch of jobs is one task that polls each of them once, single jobs are polled by tasks that stay; only those
/// that have to wait become tasks of their own. When the runtime is shut down it drops the jobs, and what was not begun
/// is requeued or answered as not executed.
#[derive(Debug)]
pub struct AsyncExecutor {
    gauge: Arc<Gauge>,
    pool: Arc<ThreadPool>,
    runners: Arc<Runners>,
    runtime: Handle,
}

impl AsyncExecutor {
    /// An executor on `config.runtime`.
    ///
    /// # Errors
    /// [`Config`](messaging_core::ErrorKind::Config): there is no runtime.
    pub fn new(config: ExecutorConfig) -> Result<Self> {
        let Some(runtime) = config.runtime else {
            return Err(Error::config(format!(
                "executor \"async\" of server \"{}\" needs a tokio runtime: start inside a tokio runtime, or use \"threaded\"",
                config.server
            )));
        };
        let gauge = Gauge::new(config.server, &config.shared);
        Ok(Self {
            pool: config
                .shared
                .get_or_init(|| ThreadPool::new(ThreadPoolOptions::default())),
            runners: Runners::new(gauge.clone(), runtime.clone()),
            gauge,
            runtime,
        })
    }
}

impl Executor for AsyncExecutor {
    fn spawn(&self, job: Job) -> Result<(), Refused> {
        self.runners.run(self.gauge.admit(job)?);
        Ok(())
    }

    fn spawn_batch(&self, jobs: Vec<Job>) -> Result<(), Refused> {
        let mut jobs = self.gauge.admit_all(jobs)?;
        while jobs.len() > MAX_BATCH {
            let rest = jobs.split_off(MAX_BATCH);
            self.start(jobs);
            jobs = rest;
        }
        self.start(jobs);
        Ok(())
    }

    fn blocking(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        let (pool, gauge, runtime) = (self.pool.clone(), self.gauge.clone(), self.runtime.clone());
        Box::pin(async move {
            let (work, ended) = Work::new(work, gauge, runtime);
            if let Err((work, error)) = pool.run_work(work) {
                // The last resort, where the process may not have a single thread more: late beats never.
                tracing::warn!(
                    server = work.gauge().server(),
                    %error,
                    "no thread for a plain handler: it runs on the runtime's own"
                );
                work.run();
            }
            ended.await;
        })
    }

    fn close(&self, deadline: Instant) -> BoxFuture<'_, u32> {
        self.gauge.refuse_more();
        self.runners.close();
        Box::pin(self.gauge.drained(&self.pool, deadline))
    }
}

impl Drop for AsyncExecutor {
    fn drop(&mut self) {
        self.runners.close();
    }
}

impl AsyncExecutor {
    fn start(&self, mut jobs: Vec<Job>) {
        if jobs.len() > 1 {
            self.runtime.spawn(Batch::new(self.gauge.clone(), jobs));
        } else if let Some(job) = jobs.pop() {
            self.runners.run(job);
        }
    }
}

/// Polls each job once and makes tasks of those that have to wait.
struct Batch {
    gauge: Arc<Gauge>,
    jobs: std::vec::IntoIter<Job>,
}

impl Batch {
    /// A batch of jobs that are counted already.
    fn new(gauge: Arc<Gauge>, jobs: Vec<Job>) -> Self {
        Self {
            gauge,
            jobs: jobs.into_iter(),
        }
    }
}

impl Future for Batch {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(job) = self.jobs.next() {
            self.gauge.begin(job, cx);
        }
        Poll::Ready(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        for job in self.jobs.by_ref() {
            self.gauge.end(job);
        }
    }
}
