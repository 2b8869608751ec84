//! The pump of a server: permit, delivery, executor.

use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::driver::{Incoming, Listener};
use crate::error::{Error, ErrorKind};
use crate::executor::Job;
use crate::rpc::job::{self, Running};
use crate::rpc::server::{Drained, Shared};

/// How many jobs are handed over at once.
const BATCH: usize = 32;
/// The pause after an executor refused jobs, which went back to their queues.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// How long handed jobs may stay unpolled before the log names the server.
const STARVED: Duration = Duration::from_secs(1);
/// How long replies may go on being sent after the last handler ended, at the least.
const CLOSE_GRACE: Duration = Duration::from_millis(300);

/// Moves deliveries to the executor until the server is to stop; then drains it.
pub(crate) async fn run(
    shared: Arc<Shared>,
    mut listener: Box<dyn Listener>,
    mut stop: watch::Receiver<Option<Instant>>,
    ended: watch::Sender<Option<Drained>>,
) {
    let mut error = None;
    loop {
        let (count, handed) = match poll_fn(|cx| step(&shared, &mut *listener, cx)).await {
            Step::One(job) => (1, shared.executor.spawn(job)),
            Step::Several(jobs) => (jobs.len() as u64, shared.executor.spawn_batch(jobs)),
            Step::Stop => break,
            Step::Ended => {
                let text = "the subscription ended by itself: the transport was closed";
                error = Some(Error::unknown(ErrorKind::Closed, text));
                break;
            }
        };
        shared.handed.fetch_add(count, Ordering::Relaxed);
        if let Err(refused) = handed {
            tracing::warn!(
                target: "longshore::rpc",
                server = shared.name, jobs = refused.jobs.len(),
                "the executor refused requests, which go back: {}", refused.error,
            );
            drop(refused);
            tokio::time::sleep(REFUSED_PAUSE).await;
        }
        // A queue that is never empty must not keep the thread from everything else.
        tokio::task::consume_budget().await;
    }
    let drained = drain(&shared, listener, &mut stop, error).await;
    tracing::debug!(target: "longshore::rpc", server = shared.name, ?drained, "server stopped");
    ended.send_replace(Some(drained));
}

/// What one look at the listener brought.
enum Step {
    One(Job),
    Several(Vec<Job>),
    Stop,
    /// The listener ended by itself.
    Ended,
}

fn step(shared: &Arc<Shared>, listener: &mut dyn Listener, cx: &mut Context<'_>) -> Poll<Step> {
    let mut starves = false;
    if let Poll::Ready(step) = look(shared, listener, &mut starves, cx) {
        return Poll::Ready(step);
    }
    // Where there is work none is needed. What comes wakes through the listener; what may have been missed until now
    // is a permit or the stop.
    shared.pump_waker.register(cx.waker());
    if shared.stopping.load(Ordering::Acquire) || (starves && shared.has_permit()) {
        return look(shared, listener, &mut starves, cx);
    }
    Poll::Pending
}

fn look(
    shared: &Arc<Shared>,
    listener: &mut dyn Listener,
    starves: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Step> {
    if shared.stopping.load(Ordering::Acquire) {
        return Poll::Ready(Step::Stop);
    }
    let mut first = None;
    let mut jobs = Vec::new();
    while jobs.len() < BATCH {
        if !shared.has_permit() {
            *starves = true;
            listener.poll_arrivals(cx);
            break;
        }
        match listener.poll_next(cx) {
            Poll::Ready(Some(Incoming::Delivery(delivery))) => {
                let job = Job::request(Running::new(delivery, shared.permit()));
                if jobs.is_empty() {
                    match first.take() {
                        None => first = Some(job),
                        Some(first) => {
                            jobs.reserve(8);
                            jobs.extend([first, job]);
                        }
                    }
                } else {
                    jobs.push(job);
                }
            }
            Poll::Ready(Some(Incoming::Rejected { reason })) => {
                // Counted as handed over too, since its reading is counted as done.
                shared.handed.fetch_add(1, Ordering::Relaxed);
                job::unreadable(shared, &reason);
            }
            Poll::Ready(None) if jobs.is_empty() && first.is_none() => {
                return Poll::Ready(Step::Ended);
            }
            Poll::Ready(None) | Poll::Pending => break,
        }
    }
    match first {
        Some(only) => Poll::Ready(Step::One(only)),
        None if jobs.is_empty() => Poll::Pending,
        None => Poll::Ready(Step::Several(jobs)),
    }
}

async fn drain(
    shared: &Arc<Shared>,
    mut listener: Box<dyn Listener>,
    stop: &mut watch::Receiver<Option<Instant>>,
    mut error: Option<Error>,
) -> Drained {
    let running = shared.in_flight();
    let deadline = stop
        .borrow_and_update()
        .unwrap_or_else(|| Instant::now() + Duration::from_secs(1));
    let close_by = deadline.max(Instant::now() + CLOSE_GRACE);
    if let Err(failed) = listener.stop(close_by).await {
        error.get_or_insert(failed);
    }
    let still_running = close_executor(shared, deadline, stop).await;
    if still_running > 0 {
        shared.abandon.0.send_replace(true);
        tracing::warn!(
            target: "longshore::rpc",
            server = shared.name, still_running, "the server stops while handlers are still running",
        );
    }
    let close_by = close_by.max(Instant::now() + CLOSE_GRACE);
    if let Err(failed) = listener.close(close_by).await {
        error.get_or_insert(failed);
    }
    Drained {
        finished: running.saturating_sub(still_running),
        still_running,
        error,
    }
}

/// Waits for the executor; a second stop with an earlier end shortens the wait.
async fn close_executor(
    shared: &Shared,
    mut deadline: Instant,
    stop: &mut watch::Receiver<Option<Instant>>,
) -> u32 {
    loop {
        tokio::select! {
            still_running = shared.executor.close(deadline) => return still_running,
            Ok(()) = stop.changed() => {
                if let Some(earlier) = *stop.borrow_and_update() {
                    deadline = deadline.min(earlier);
                }
            }
        }
    }
}

/// Logs, once per occasion, that an executor's runtime polls nothing: a handler blocks its threads.
pub(crate) async fn watch_for_starvation(server: Weak<Shared>) {
    let mut ticks = tokio::time::interval(STARVED);
    let (mut last_begun, mut waited, mut logged) = (0, false, false);
    loop {
        ticks.tick().await;
        let Some(shared) = server.upgrade() else {
            return;
        };
        let begun = shared.counters.taken_up();
        let waits = shared.handed.load(Ordering::Relaxed) > begun;
        let starved = waits && waited && begun == last_begun;
        if starved && !logged {
            tracing::warn!(
                target: "longshore::rpc",
                server = shared.name,
                "requests have waited a second for the executor to begin them: a handler blocks its threads; \
                 use the threaded executor, or make the handler a plain method",
            );
        }
        (last_begun, waited, logged) = (begun, waits, starved);
    }
}
