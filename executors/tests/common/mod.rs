//! What the tests share: executors by name, gates that jobs meet at, and waits with a deadline.
#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use messaging_core::executor::{Executor, ExecutorConfig, Shared};
use messaging_core::registry::find_executor;
use messaging_executors as _;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;

/// Every wait ends then, and fails its test.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) const NAMES: [&str; 3] = ["blocking", "threaded", "async"];

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("application")
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn config(runtime: Option<&Handle>, shared: &Shared) -> ExecutorConfig {
    ExecutorConfig {
        runtime: runtime.cloned(),
        server: "topic.server".to_owned(),
        shared: shared.clone(),
    }
}

pub(crate) fn executor(name: &str, runtime: Option<&Handle>, shared: &Shared) -> Arc<dyn Executor> {
    (find_executor(name).unwrap().make)(config(runtime, shared)).unwrap()
}

/// The future's output; fails after [`SOON`].
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future).await.expect("in time")
}

/// Waits on this thread until something is so.
#[track_caller]
pub(crate) fn until<T: PartialEq + Debug>(wanted: T, mut value: impl FnMut() -> T) {
    let end = Instant::now() + SOON;
    loop {
        let now = value();
        if now == wanted {
            return;
        }
        assert!(
            Instant::now() < end,
            "still {now:?} instead of {wanted:?} after {SOON:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a future on this thread without any runtime.
pub(crate) fn without_runtime<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    assert!(Handle::try_current().is_err());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(future);
    let end = Instant::now() + SOON;
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
        assert!(Instant::now() < end, "the future does not end");
        std::thread::park_timeout(SOON);
    }
}

/// Jobs wait in it until `expected` of them are inside at the same time; then it stays open.
pub(crate) struct Gate {
    expected: usize,
    state: Mutex<State>,
    opened: Condvar,
    opened_async: Notify,
}

#[derive(Default)]
struct State {
    inside: usize,
    peak: usize,
    open: bool,
    order: Vec<usize>,
}

impl Gate {
    pub(crate) fn new(expected: usize) -> Arc<Self> {
        Arc::new(Self {
            expected,
            state: Mutex::default(),
            opened: Condvar::new(),
            opened_async: Notify::new(),
        })
    }

    fn enter(&self, job: usize) {
        let mut state = self.state.lock().unwrap();
        state.inside += 1;
        state.peak = state.peak.max(state.inside);
        state.order.push(job);
        if state.inside == self.expected {
            drop(state);
            self.open();
        }
    }

    fn leave(&self) {
        self.state.lock().unwrap().inside -= 1;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().open = true;
        self.opened.notify_all();
        self.opened_async.notify_waiters();
    }

    fn is_open(&self) -> bool {
        self.state.lock().unwrap().open
    }

    pub(crate) async fn pass(&self, job: usize) {
        self.enter(job);
        let met = async {
            loop {
                let mut opened = pin!(self.opened_async.notified());
                opened.as_mut().enable();
                if self.is_open() {
                    return;
                }
                opened.await;
            }
        };
        soon(met).await;
        self.leave();
    }

    pub(crate) fn pass_blocking(&self, job: usize) {
        self.enter(job);
        let state = self.state.lock().unwrap();
        let (state, timeout) = self
            .opened
            .wait_timeout_while(state, SOON, |state| !state.open)
            .unwrap();
        drop(state);
        assert!(!timeout.timed_out(), "the jobs never met");
        self.leave();
    }

    pub(crate) fn inside(&self) -> usize {
        self.state.lock().unwrap().inside
    }

    /// The most that were inside at once.
    pub(crate) fn peak(&self) -> usize {
        self.state.lock().unwrap().peak
    }

    /// The jobs in the order of their entry.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.state.lock().unwrap().order.clone()
    }
}

/// Counts what is dropped, and how much of that had run.
#[derive(Default)]
pub(crate) struct Ledger {
    dropped: AtomicUsize,
    ran: AtomicUsize,
}

impl Ledger {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(crate) fn entry(self: &Arc<Self>) -> Entry {
        Entry(self.clone())
    }

    pub(crate) fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    pub(crate) fn ran(&self) -> usize {
        self.ran.load(Ordering::SeqCst)
    }
}

/// What a job owns.
pub(crate) struct Entry(Arc<Ledger>);

impl Entry {
    pub(crate) fn run(&self) {
        self.0.ran.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}
