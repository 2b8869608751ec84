//! Work that blocks its thread, of a job that does not have one.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::gauge::{Gauge, Running, report_panic};

/// A plain handler on its way to a thread.
///
/// Its job counts as running while it waits for the work. If the job ends before that, at a time limit, the work
/// is counted in its place: `close` must not report that nothing runs while a thread still does.
pub(crate) struct Work {
    work: Option<Box<dyn FnOnce() + Send>>,
    runtime: Handle,
    link: Arc<Link>,
    // Dropped when the work has ended or was dropped.
    _done: oneshot::Sender<()>,
}

struct Link {
    gauge: Arc<Gauge>,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    ended: bool,
    abandoned: Option<Running>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// The work, and the wait for its end.
    pub(crate) fn new(
        work: Box<dyn FnOnce() + Send>,
        gauge: Arc<Gauge>,
        runtime: Handle,
    ) -> (Self, Ended) {
        let link = Arc::new(Link {
            gauge,
            state: Mutex::default(),
        });
        let (done, ended) = oneshot::channel();
        let ended = Ended {
            link: link.clone(),
            ended,
        };
        let work = Self {
            work: Some(work),
            runtime,
            link,
            _done: done,
        };
        (work, ended)
    }

    /// Runs it on this thread, unless nobody waits for it any more: then it is dropped, as a whole.
    pub(crate) fn run(mut self) {
        let Some(work) = self.work.take() else {
            return;
        };
        let wanted = self.link.lock().abandoned.is_none();
        let _entered = self.runtime.enter();
        let ran = catch_unwind(AssertUnwindSafe(|| {
            if wanted {
                work();
            } else {
                drop(work);
            }
        }));
        if ran.is_err() {
            report_panic(&self.link.gauge, "piece of work");
        }
    }

    pub(crate) fn gauge(&self) -> &Arc<Gauge> {
        &self.link.gauge
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What was never run goes first: it is counted until it is gone.
        let unrun = self.work.take();
        if catch_unwind(AssertUnwindSafe(|| drop(unrun))).is_err() {
            report_panic(&self.link.gauge, "drop of a piece of work");
        }
        let counted = {
            let mut state = self.link.lock();
            state.ended = true;
            state.abandoned.take()
        };
        drop(counted);
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

/// Ready when the work has ended, or was dropped unrun.
pub(crate) struct Ended {
    link: Arc<Link>,
    ended: oneshot::Receiver<()>,
}

impl Future for Ended {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.ended).poll(cx).map(|_| ())
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        // This runs within the job, which is counted itself until later.
        let mut state = self.link.lock();
        if !state.ended {
            state.abandoned = Some(self.link.gauge.count());
        }
    }
}
