//! Waiting without a runtime: `block_on` for plain threads, and a sleep that works in it and on tokio.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::error::{Error, Result};

thread_local! {
    /// Within `block_on`: the earliest time a sleep of the current poll wants to be polled again.
    static NEXT_TIMER: Cell<Option<Option<Instant>>> = const { Cell::new(None) };
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread, which it parks while there is nothing to do.
///
/// # Errors
/// [`Config`](crate::ErrorKind::Config) on a thread that is polling a tokio task, which it would stop.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    if polls_a_tokio_task() {
        return Err(Error::config(
            "a blocking call would stop this runtime worker: use .await here, or call from a plain thread or a plain handler",
        ));
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        let outer = NEXT_TIMER.replace(Some(None));
        let polled = future.as_mut().poll(&mut cx);
        let timer = NEXT_TIMER.replace(outer).flatten();
        if let Poll::Ready(result) = polled {
            return result;
        }
        match timer {
            Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
            None => thread::park(),
        }
    }
}

/// Whether this thread is inside the poll of a tokio task. Threads of `spawn_blocking` and threads that merely
/// entered a runtime are not: only tasks have a cooperative budget that runs out.
fn polls_a_tokio_task() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut cx = Context::from_waker(Waker::noop());
    // A task's budget is 128 operations; asking for more than that is what tells.
    (0..256).any(|_| {
        pin!(tokio::task::consume_budget())
            .poll(&mut cx)
            .is_pending()
    })
}

pin_project! {
    /// Sleeps until a time: on a tokio runtime, within [`block_on`], or under any other executor.
    #[derive(Debug)]
    pub(crate) struct Sleep {
        until: Instant,
        #[pin]
        timer: Timer,
    }
}

pin_project! {
    #[project = TimerProjection]
    #[derive(Debug)]
    enum Timer {
        Unarmed,
        Tokio { #[pin] timer: tokio::time::Sleep },
        /// Under an executor that has no timers we know of, a thread of its own wakes the sleeper.
        Thread { thread: SleeperThread },
    }
}

/// A thread that wakes a sleeper. It ends early when the sleeper needs it no more: a call that is answered must not
/// leave a thread behind until its deadline.
#[derive(Debug)]
struct SleeperThread {
    sleeper: Arc<Sleeper>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Sleeper {
    waker: AtomicWaker,
    is_gone: AtomicBool,
}

impl SleeperThread {
    fn start(until: Instant) -> std::io::Result<Self> {
        let sleeper = Arc::new(Sleeper::default());
        let own = sleeper.clone();
        let thread = thread::Builder::new()
            .name("longshore-sleep".to_owned())
            .spawn(move || {
                loop {
                    let left = until.saturating_duration_since(Instant::now());
                    if own.is_gone.load(Ordering::Acquire) {
                        return;
                    }
                    if left.is_zero() {
                        return own.waker.wake();
                    }
                    thread::park_timeout(left);
                }
            })?;
        Ok(Self {
            sleeper,
            thread: thread.thread().clone(),
        })
    }
}

impl Drop for SleeperThread {
    fn drop(&mut self) {
        self.sleeper.is_gone.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

impl Sleep {
    pub(crate) fn until(until: Instant) -> Self {
        Self {
            until,
            timer: Timer::Unarmed,
        }
    }

    /// Moves the time. A later poll arms it anew.
    pub(crate) fn reset(self: Pin<&mut Self>, until: Instant) {
        let mut this = self.project();
        if until == *this.until {
            return;
        }
        *this.until = until;
        match this.timer.as_mut().project() {
            TimerProjection::Tokio { timer } => timer.reset(until.into()),
            _ => this.timer.set(Timer::Unarmed),
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        let until = *this.until;
        if let Some(earliest) = NEXT_TIMER.get() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            let next = earliest.map_or(until, |earliest| earliest.min(until));
            NEXT_TIMER.set(Some(Some(next)));
            return Poll::Pending;
        }
        if matches!(*this.timer, Timer::Unarmed) {
            this.timer.set(if Handle::try_current().is_ok() {
                Timer::Tokio {
                    timer: tokio::time::sleep_until(until.into()),
                }
            } else {
                if Instant::now() >= until {
                    return Poll::Ready(());
                }
                let Ok(thread) = SleeperThread::start(until) else {
                    // Without a timer, asking again is all that is left.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                };
                Timer::Thread { thread }
            });
        }
        match this.timer.project() {
            TimerProjection::Tokio { timer } => timer.poll(cx),
            TimerProjection::Thread { thread } => {
                thread.sleeper.waker.register(cx.waker());
                if Instant::now() >= until {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }
            TimerProjection::Unarmed => Poll::Pending,
        }
    }
}

/// The future's output, or `None` when the deadline passed first.
pub(crate) async fn before<F: Future>(deadline: Instant, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut sleep = pin!(Sleep::until(deadline));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        sleep.as_mut().poll(cx).map(|()| None)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn sleeps_without_a_runtime() {
        let started = Instant::now();
        block_on(async {
            Sleep::until(started + Duration::from_millis(30)).await;
            Ok(())
        })
        .unwrap();
        assert!(started.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn sleeps_under_another_executor() {
        let started = Instant::now();
        let mut sleep = pin!(Sleep::until(started + Duration::from_millis(30)));
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        while sleep
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            thread::park_timeout(Duration::from_secs(20));
        }
        assert!((Duration::from_millis(30)..Duration::from_secs(15)).contains(&started.elapsed()));
    }

    #[test]
    fn is_woken_by_another_thread() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = thread::spawn(move || sender.send(7).unwrap());
        let got = block_on(async { Ok(receiver.await.unwrap()) }).unwrap();
        thread.join().unwrap();
        assert_eq!(got, 7);
    }

    #[test]
    fn refuses_inside_a_task_but_not_on_a_blocking_thread() {
        for runtime in [
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
        ] {
            runtime.block_on(async {
                assert!(block_on(async { Ok(()) }).is_err());
                assert!(
                    tokio::spawn(async { block_on(async { Ok(()) }).is_err() })
                        .await
                        .unwrap()
                );
                let soon = Instant::now() + Duration::from_millis(5);
                let blocking = tokio::task::spawn_blocking(move || {
                    block_on(async {
                        Sleep::until(soon).await;
                        Ok(())
                    })
                });
                assert!(blocking.await.unwrap().is_ok());
            });
        }
    }
}
