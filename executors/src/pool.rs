//! Threads of the operating system, started when they are needed and shared by the executors of a transport.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use messaging_core::executor::{Job, Refused};
use messaging_core::{Error, ErrorKind, Outcome};
use tokio::runtime::Handle;

use crate::gauge::{Gauge, Tracked, report_panic};
use crate::park::Parker;
use crate::work::Work;

/// The bounds of a [`ThreadPool`].
#[derive(Debug, Clone)]
pub struct ThreadPoolOptions {
    /// The first part of the threads' names; a number follows.
    pub name: String,
    /// The most threads at once. What comes when all are busy waits in the order of its arrival.
    pub max_threads: usize,
    /// The most jobs that wait for a thread; one more is refused. Plain work of jobs that already run is not
    /// counted against it: the permits of the servers bound that.
    pub max_queued: usize,
    /// A thread that had nothing to do for so long ends; `None`: threads end with the pool only.
    pub idle_time: Option<Duration>,
    /// The stack of each thread in bytes; `None`: what Rust gives threads.
    pub stack_size: Option<usize>,
}

impl Default for ThreadPoolOptions {
    fn default() -> Self {
        Self {
            name: "longshore".to_owned(),
            max_threads: 4_096,
            max_queued: 65_536,
            idle_time: Some(Duration::from_secs(10)),
            stack_size: None,
        }
    }
}

/// A bounded pool of threads, grown lazily.
///
/// There are never more threads than jobs that ran at the same time, and an idle thread is used before one is
/// started, the one that was busy last first, so that the others can end. Executors take their transport's pool
/// from [`ExecutorConfig::shared`](messaging_core::executor::ExecutorConfig::shared); whoever puts one with other
/// bounds there first decides.
///
/// Dropping it never waits: idle threads end at once, busy ones when all that was taken has run.
pub struct ThreadPool(Arc<Inner>);

impl ThreadPool {
    /// A pool without threads yet.
    pub fn new(mut options: ThreadPoolOptions) -> Self {
        // The standard library panics on a thread name with a zero in it.
        options.name.retain(|c| c != '\0');
        Self(Arc::new(Inner {
            options,
            state: Mutex::default(),
        }))
    }

    /// How many threads there are, busy and idle.
    pub fn threads(&self) -> usize {
        self.0.lock().threads
    }

    /// How many of them have nothing to do.
    pub fn idle(&self) -> usize {
        self.0.lock().idle.len()
    }

    /// How many jobs and pieces of work wait for a thread.
    pub fn queued(&self) -> usize {
        self.0.lock().queued.len()
    }

    /// Runs a job on a thread of the pool.
    pub(crate) fn run(&self, job: Tracked, runtime: &Handle) -> Result<(), Refused> {
        let task = Task::Job {
            job: Box::new(job),
            runtime: runtime.clone(),
        };
        Inner::place(&self.0, task, WhenFull::Refuse).map_err(|(task, why)| {
            let (error, source) = match why {
                Rejected::Full => (
                    format!(
                        "{} jobs already wait for a thread",
                        self.0.options.max_queued
                    ),
                    None,
                ),
                Rejected::NoThread(e) => {
                    ("the operating system gives no thread".to_owned(), Some(e))
                }
            };
            let mut error = Error::new(ErrorKind::Busy, Outcome::NotExecuted, error);
            if let Some(source) = source {
                error = error.with_source(source);
            }
            Refused {
                jobs: task.into_job().into_iter().collect(),
                error,
            }
        })
    }

    /// Runs work on a thread of the pool. Where the operating system gives none it waits for one that is there;
    /// if there is not one, it comes back.
    pub(crate) fn run_work(&self, work: Work) -> Result<(), (Work, io::Error)> {
        match Inner::place(&self.0, Task::Work(work), WhenFull::Queue) {
            Err((Task::Work(work), Rejected::NoThread(e))) => Err((work, e)),
            // Nothing is refused for want of room where all is queued, and what comes back is what was given.
            _ => Ok(()),
        }
    }

    /// Drops what waits for a thread and belongs to `gauge`.
    pub(crate) fn withdraw(&self, gauge: &Arc<Gauge>) {
        let mut state = self.0.lock();
        let (withdrawn, kept): (Vec<_>, Vec<_>) = state
            .queued
            .drain(..)
            .partition(|task| task.gauge().is_some_and(|of| Arc::ptr_eq(of, gauge)));
        state.queued = kept.into();
        drop(state);
        for task in withdrawn {
            task.discard();
        }
    }
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (threads, queued) = {
            let state = self.0.lock();
            (state.threads, state.queued.len())
        };
        f.debug_struct("ThreadPool")
            .field("options", &self.0.options)
            .field("threads", &threads)
            .field("queued", &queued)
            .finish()
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let idle = {
            let mut state = self.0.lock();
            state.dropped = true;
            state.threads -= state.idle.len();
            std::mem::take(&mut state.idle)
        };
        for thread in idle {
            thread.hand(Letter::End);
            thread.thread.unpark();
        }
    }
}

struct Inner {
    options: ThreadPoolOptions,
    state: Mutex<State>,
}

/// While a thread is idle nothing is queued.
#[derive(Default)]
struct State {
    queued: VecDeque<Task>,
    idle: Vec<Idle>,
    threads: usize,
    started: u64,
    dropped: bool,
}

/// A parked thread and where it looks when it is woken.
struct Idle {
    thread: Thread,
    mailbox: Arc<Mailbox>,
}

type Mailbox = Mutex<Option<Letter>>;

enum Letter {
    Run(Task),
    End,
}

impl Idle {
    fn hand(&self, letter: Letter) {
        *lock(&self.mailbox) = Some(letter);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WhenFull {
    Refuse,
    Queue,
}

enum Rejected {
    Full,
    NoThread(io::Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Gives the task to an idle thread, a new one, or the queue.
    fn place(this: &Arc<Self>, task: Task, full: WhenFull) -> Result<(), (Task, Rejected)> {
        let mut state = this.lock();
        let task = match Self::hand_to_idle(&mut state, task) {
            Ok(thread) => {
                drop(state);
                thread.unpark();
                return Ok(());
            }
            Err(task) => task,
        };
        if state.threads >= this.options.max_threads {
            if full == WhenFull::Refuse && state.queued.len() >= this.options.max_queued {
                drop(state);
                return Err((task, Rejected::Full));
            }
            state.queued.push_back(task);
            return Ok(());
        }
        state.threads += 1;
        state.started += 1;
        let number = state.started;
        drop(state);

        match Self::start(this, number, task) {
            Ok(()) => Ok(()),
            Err((task, e)) => Self::not_started(this, task, full, e),
        }
    }

    fn hand_to_idle(state: &mut State, task: Task) -> Result<Thread, Task> {
        let Some(idle) = state.idle.pop() else {
            return Err(task);
        };
        idle.hand(Letter::Run(task));
        Ok(idle.thread)
    }

    fn start(this: &Arc<Self>, number: u64, task: Task) -> Result<(), (Task, io::Error)> {
        let mut builder =
            std::thread::Builder::new().name(format!("{}-{number}", this.options.name));
        if let Some(size) = this.options.stack_size {
            builder = builder.stack_size(size);
        }
        // The task is left where it can be fetched back from if the thread never starts.
        let mailbox = Arc::new(Mutex::new(Some(Letter::Run(task))));
        let started = builder.spawn({
            let (pool, mailbox) = (this.clone(), mailbox.clone());
            move || pool.thread(&mailbox)
        });
        let Err(e) = started else {
            return Ok(());
        };
        let unrun = lock(&mailbox).take();
        match unrun {
            Some(Letter::Run(task)) => Err((task, e)),
            _ => Ok(()),
        }
    }

    fn not_started(
        &self,
        task: Task,
        full: WhenFull,
        e: io::Error,
    ) -> Result<(), (Task, Rejected)> {
        let mut state = self.lock();
        state.threads -= 1;
        // A thread may have become idle meanwhile.
        let task = match Self::hand_to_idle(&mut state, task) {
            Ok(thread) => {
                drop(state);
                thread.unpark();
                return Ok(());
            }
            Err(task) => task,
        };
        if state.threads > 0 && full == WhenFull::Queue {
            state.queued.push_back(task);
            return Ok(());
        }
        // What was queued in the hope of this thread would wait for ever: it counts as not executed.
        let stranded = if state.threads == 0 {
            std::mem::take(&mut state.queued)
        } else {
            VecDeque::new()
        };
        drop(state);
        for task in stranded {
            task.discard();
        }
        Err((task, Rejected::NoThread(e)))
    }

    /// The life of a thread.
    fn thread(&self, mailbox: &Arc<Mailbox>) {
        let parker = Parker::new();
        let first = lock(mailbox).take();
        let mut next = match first {
            Some(Letter::Run(task)) => Some(task),
            _ => self.next(mailbox),
        };
        while let Some(task) = next {
            task.run(&parker);
            next = self.next(mailbox);
        }
    }

    /// The next task; `None`: the thread has been counted out and ends.
    fn next(&self, mailbox: &Arc<Mailbox>) -> Option<Task> {
        let mut state = self.lock();
        if let Some(task) = state.queued.pop_front() {
            return Some(task);
        }
        if state.dropped {
            state.threads -= 1;
            return None;
        }
        state.idle.push(Idle {
            thread: std::thread::current(),
            mailbox: mailbox.clone(),
        });
        drop(state);

        let end = self.options.idle_time.map(|time| Instant::now() + time);
        loop {
            let letter = lock(mailbox).take();
            match letter {
                Some(Letter::Run(task)) => return Some(task),
                Some(Letter::End) => return None,
                None => {}
            }
            let Some(end) = end else {
                std::thread::park();
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let mut state = self.lock();
                // If it is not among the idle any more, a letter is in the box already.
                if let Some(at) = state
                    .idle
                    .iter()
                    .position(|idle| Arc::ptr_eq(&idle.mailbox, mailbox))
                {
                    state.idle.remove(at);
                    state.threads -= 1;
                    return None;
                }
            } else {
                std::thread::park_timeout(left);
            }
        }
    }
}

/// What a thread runs.
enum Task {
    Job { job: Box<Tracked>, runtime: Handle },
    Work(Work),
}

impl Task {
    fn run(self, parker: &Parker) {
        match self {
            // A tracked job does not unwind.
            Self::Job { job, runtime } => parker.block_on(*job, Some(&runtime)),
            Self::Work(work) => work.run(),
        }
    }

    fn gauge(&self) -> Option<&Arc<Gauge>> {
        match self {
            Self::Job { job, .. } => job.gauge(),
            Self::Work(work) => Some(work.gauge()),
        }
    }

    fn into_job(self) -> Option<Job> {
        match self {
            Self::Job { job, .. } => job.into_job(),
            Self::Work(_) => None,
        }
    }

    /// Drops it unrun: the job requeues or answers its request.
    fn discard(self) {
        let gauge = self.gauge().cloned();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(self)));
        if let (Err(_), Some(gauge)) = (dropped, gauge) {
            report_panic(&gauge, "drop of a job");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use messaging_core::executor::{Job, Shared};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn task(gauge: &Arc<Gauge>, runtime: &Handle, run: impl FnOnce() + Send + 'static) -> Task {
        Task::Job {
            job: Box::new(gauge.admit_one(Job::new(async move { run() })).unwrap()),
            runtime: runtime.clone(),
        }
    }

    fn no_thread() -> io::Error {
        io::Error::from(io::ErrorKind::WouldBlock)
    }

    #[test]
    fn work_without_a_thread_waits_for_one_that_is_busy() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let gauge = Gauge::new("topic.server".to_owned(), &Shared::default());
        let pool = ThreadPool::new(ThreadPoolOptions::default());
        let (release, released) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel();
        let busy = task(&gauge, runtime.handle(), move || {
            released.recv_timeout(SOON).unwrap();
        });
        assert!(Inner::place(&pool.0, busy, WhenFull::Refuse).is_ok());
        // As if a second thread had been counted in and then not been given.
        pool.0.lock().threads += 1;
        let waiting = task(&gauge, runtime.handle(), move || done.send(()).unwrap());
        assert!(
            pool.0
                .not_started(waiting, WhenFull::Queue, no_thread())
                .is_ok()
        );
        assert_eq!((pool.threads(), pool.queued()), (1, 1));
        release.send(()).unwrap();
        ended.recv_timeout(SOON).unwrap();
    }

    #[test]
    fn jobs_stranded_without_any_thread_are_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let gauge = Gauge::new("topic.server".to_owned(), &Shared::default());
        let pool = ThreadPool::new(ThreadPoolOptions {
            max_threads: 1,
            ..ThreadPoolOptions::default()
        });
        pool.0.lock().threads += 1;
        let queued = task(&gauge, runtime.handle(), || unreachable!());
        assert!(Inner::place(&pool.0, queued, WhenFull::Refuse).is_ok());
        assert_eq!((pool.queued(), gauge.running()), (1, 1));
        let first = task(&gauge, runtime.handle(), || unreachable!());
        let Err((first, Rejected::NoThread(_))) =
            pool.0.not_started(first, WhenFull::Refuse, no_thread())
        else {
            panic!("the job comes back");
        };
        assert_eq!((pool.threads(), pool.queued()), (0, 0));
        assert!(first.into_job().is_some());
        assert_eq!(gauge.running(), 0);
    }
}
