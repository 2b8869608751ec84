//! The threads: started late, used again, shared, bounded, ended; and the runtime handlers find on them.
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod common;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use common::{Gate, Ledger, NAMES, config, executor, runtime, until, without_runtime};
use messaging_core::executor::{Executor, Job, Shared};
use messaging_core::registry::{executors, find_executor};
use messaging_core::{ErrorKind, Outcome};
use messaging_executors::{BlockingExecutor, ThreadPool, ThreadPoolOptions};
use tokio::runtime::Handle;

fn pool(shared: &Shared, options: ThreadPoolOptions) -> Arc<ThreadPool> {
    shared.get_or_init(|| ThreadPool::new(options))
}

/// Runs plain work as a job and returns the thread it ran on.
fn thread_of(executor: &Arc<dyn Executor>) -> ThreadId {
    let (sender, receiver) = mpsc::channel();
    let inner = executor.clone();
    executor
        .spawn(Job::new(async move {
            inner
                .blocking(Box::new(move || {
                    sender.send(std::thread::current().id()).unwrap();
                }))
                .await;
        }))
        .unwrap();
    receiver.recv_timeout(common::SOON).unwrap()
}

#[test]
fn all_names_are_registered() {
    for (name, canonical) in [
        ("blocking", "blocking"),
        ("threaded", "threaded"),
        ("threading", "threaded"),
        ("async", "async"),
        ("eventlet", "async"),
        ("Eventlet", "async"),
    ] {
        let found = find_executor(name).unwrap();
        assert_eq!(found.names[0], canonical);
        assert_eq!(found.crate_name, "messaging-executors");
    }
    assert_eq!(executors().len(), 3);
    let runtime = runtime();
    for registration in executors() {
        let made = (registration.make)(config(Some(runtime.handle()), &Shared::default())).unwrap();
        assert_eq!(made.limit(), registration.limit);
        let one = registration.names[0] == "blocking";
        assert_eq!(made.limit().map(|limit| limit.get()), one.then_some(1));
    }
}

#[test]
fn async_without_a_runtime_names_the_remedy() {
    let error = (find_executor("async").unwrap().make)(config(None, &Shared::default()))
        .expect_err("there is no runtime");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("use \"threaded\""), "{error}");
}

#[test]
fn idle_threads_are_used_again_by_all_executors_of_a_transport() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = pool(&shared, ThreadPoolOptions::default());
    let servers: Vec<_> = ["threaded", "async", "threaded"]
        .map(|name| executor(name, Some(runtime.handle()), &shared))
        .into();
    assert_eq!(pool.threads(), 0);
    let mut threads = HashSet::new();
    for server in servers.iter().cycle().take(30) {
        threads.insert(thread_of(server));
        until(1, || pool.idle());
    }
    assert_eq!((threads.len(), pool.threads()), (1, 1));
    // Another transport has its own.
    let other = executor("threaded", Some(runtime.handle()), &Shared::default());
    assert!(!threads.contains(&thread_of(&other)));
}

#[test]
fn many_servers_need_no_more_threads_than_running_jobs() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = pool(&shared, ThreadPoolOptions::default());
    let servers: Vec<_> = (0..200)
        .map(|_| executor("threaded", Some(runtime.handle()), &shared))
        .collect();
    for round in 0..5 {
        let gate = Gate::new(8);
        for (number, server) in servers[round * 8..].iter().take(8).enumerate() {
            let gate = gate.clone();
            server
                .spawn(Job::new(async move { gate.pass_blocking(number) }))
                .unwrap();
        }
        until(8, || gate.order().len());
        until(pool.threads(), || pool.idle());
    }
    assert_eq!(pool.threads(), 8);
}

#[test]
fn idle_threads_end() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = pool(
        &shared,
        ThreadPoolOptions {
            idle_time: Some(Duration::from_millis(50)),
            ..ThreadPoolOptions::default()
        },
    );
    let executor = executor("threaded", Some(runtime.handle()), &shared);
    // Again after they have ended, and in the moment in which they end.
    for round in 0..20 {
        let gate = Gate::new(8);
        for number in 0..8 {
            let gate = gate.clone();
            executor
                .spawn(Job::new(async move { gate.pass_blocking(number) }))
                .unwrap();
        }
        until(8, || gate.order().len());
        until(0, || gate.inside());
        assert!(pool.threads() <= 8);
        if round < 2 {
            until(0, || pool.threads());
        } else {
            // Not to wait for anything: the next jobs come just before, when or just after the threads end.
            std::thread::sleep(Duration::from_millis(45 + round));
        }
    }
    until(0, || pool.threads());
    assert_eq!((pool.idle(), pool.queued()), (0, 0));
}

#[test]
fn beyond_its_threads_jobs_wait_in_order_and_beyond_that_are_refused() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = pool(
        &shared,
        ThreadPoolOptions {
            max_threads: 1,
            max_queued: 5,
            ..ThreadPoolOptions::default()
        },
    );
    let executor = executor("threaded", Some(runtime.handle()), &shared);
    let gate = Gate::new(usize::MAX);
    let order = Arc::new(Mutex::new(Vec::new()));
    let job = |number: usize| {
        let (gate, order) = (gate.clone(), order.clone());
        Job::new(async move {
            gate.pass_blocking(number);
            order.lock().unwrap().push(number);
        })
    };
    executor.spawn(job(0)).unwrap();
    until(1, || gate.inside());
    let refused = executor
        .spawn_batch((1..10).map(job).collect())
        .unwrap_err();
    assert_eq!(refused.jobs.len(), 4);
    assert_eq!(refused.error.kind(), ErrorKind::Busy);
    assert_eq!(refused.error.outcome(), Outcome::NotExecuted);
    assert_eq!((pool.threads(), pool.queued()), (1, 5));
    gate.open();
    assert_eq!(
        without_runtime(executor.close(Instant::now() + common::SOON)),
        0
    );
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
}

/// A thread with a stack of an exabyte is given by no operating system.
#[test]
fn without_threads_jobs_come_back_and_plain_work_still_runs() {
    let runtime = runtime();
    let shared = Shared::default();
    let pool = pool(
        &shared,
        ThreadPoolOptions {
            stack_size: Some(1 << 60),
            ..ThreadPoolOptions::default()
        },
    );
    let ledger = Ledger::new();
    let threaded = executor("threaded", Some(runtime.handle()), &shared);
    let entry = ledger.entry();
    let refused = threaded
        .spawn(Job::new(async move { entry.run() }))
        .unwrap_err();
    assert_eq!(refused.error.kind(), ErrorKind::Busy);
    assert_eq!(refused.error.outcome(), Outcome::NotExecuted);
    assert_eq!(refused.jobs.len(), 1);
    assert_eq!((ledger.ran(), ledger.dropped()), (0, 0));
    assert_eq!(without_runtime(threaded.close(Instant::now())), 0);
    let tasks = executor("async", Some(runtime.handle()), &shared);
    thread_of(&tasks);
    assert_eq!((pool.threads(), pool.queued()), (0, 0));
}

#[test]
fn blocking_has_one_thread_with_the_name_of_its_server() {
    let runtime = runtime();
    let shared = Shared::default();
    let mut config = config(Some(runtime.handle()), &shared);
    // Such a name must not bring the thread down either.
    config.server = "engine\0.heat".to_owned();
    let executor: Arc<dyn Executor> = Arc::new(BlockingExecutor::new(config).unwrap());
    let (sender, receiver) = mpsc::channel();
    executor
        .spawn(Job::new(async move {
            let name = std::thread::current().name().map(str::to_owned);
            sender.send(name).unwrap();
        }))
        .unwrap();
    let name = receiver.recv_timeout(common::SOON).unwrap();
    assert_eq!(name.as_deref(), Some("engine.heat-1"));
    let threads: HashSet<_> = (0..20).map(|_| thread_of(&executor)).collect();
    assert_eq!(threads.len(), 1);
}

#[test]
fn blocking_refuses_more_than_its_small_queue() {
    let runtime = runtime();
    let executor = executor("blocking", Some(runtime.handle()), &Shared::default());
    let gate = Gate::new(usize::MAX);
    let job = |number: usize| {
        let gate = gate.clone();
        Job::new(async move { gate.pass_blocking(number) })
    };
    executor.spawn(job(0)).unwrap();
    until(1, || gate.inside());
    let refused = executor
        .spawn_batch((1..20).map(job).collect())
        .unwrap_err();
    assert_eq!(refused.jobs.len(), 3);
    assert_eq!(refused.error.kind(), ErrorKind::Busy);
    gate.open();
    assert_eq!(
        without_runtime(executor.close(Instant::now() + common::SOON)),
        0
    );
    assert_eq!(gate.order(), (0..17).collect::<Vec<_>>());
}

/// Async and plain handlers, on every executor: tasks they spawn run on the application's runtime.
#[test]
fn handlers_find_the_applications_runtime() {
    for name in NAMES {
        let runtime = runtime();
        let executor = executor(name, Some(runtime.handle()), &Shared::default());
        let (sender, receiver) = mpsc::channel();
        let (inner, plain) = (executor.clone(), sender.clone());
        let tell = |sender: mpsc::Sender<Option<String>>| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let name = std::thread::current().name().map(str::to_owned);
            sender.send(name).unwrap();
        };
        executor
            .spawn(Job::new(async move {
                tokio::spawn(tell(sender)).await.unwrap();
                inner
                    .blocking(Box::new(move || {
                        Handle::current().block_on(tell_from(plain))
                    }))
                    .await;
            }))
            .unwrap();
        let first = receiver.recv_timeout(common::SOON).unwrap();
        assert_eq!(first.as_deref(), Some("application"));
        receiver.recv_timeout(common::SOON).unwrap();
    }
}

async fn tell_from(sender: mpsc::Sender<Option<String>>) {
    tokio::time::sleep(Duration::from_millis(1)).await;
    sender.send(None).unwrap();
}

#[test]
fn without_an_application_runtime_handlers_have_timers_and_tasks() {
    for name in ["blocking", "threaded"] {
        let shared = Shared::default();
        let executor = executor(name, None, &shared);
        let (sender, receiver) = mpsc::channel();
        executor
            .spawn(Job::new(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let task = tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
                sender.send(task.await.unwrap()).unwrap();
            }))
            .unwrap();
        let name = receiver.recv_timeout(common::SOON).unwrap();
        assert_eq!(name.as_deref(), Some("longshore-tokio"));
    }
}

/// Jobs that are ready at once share the task of their batch, at most 32 of them; others get their own.
#[test]
fn a_batch_is_one_task_and_spawns_only_what_waits() {
    let runtime = runtime();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let (sender, receiver) = mpsc::channel();
    let job = |waits: bool| {
        let sender = sender.clone();
        Job::new(async move {
            let first = tokio::task::id();
            if waits {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            sender.send((first, tokio::task::id())).unwrap();
        })
    };
    let tasks = |jobs: Vec<Job>| {
        let count = jobs.len();
        executor.spawn_batch(jobs).unwrap();
        (0..count)
            .map(|_| receiver.recv_timeout(common::SOON).unwrap())
            .unzip::<_, _, HashSet<_>, HashSet<_>>()
    };
    let (first, last) = tasks((0..32).map(|_| job(false)).collect());
    assert_eq!((first.len(), last.len()), (1, 1));
    let (first, last) = tasks((0..70).map(|_| job(false)).collect());
    assert_eq!((first.len(), last.len()), (3, 3));
    let (first, last) = tasks((0..10).map(|number| job(number % 2 == 0)).collect());
    assert_eq!((first.len(), last.len()), (1, 6));
    let (first, last) = tasks(vec![job(true)]);
    assert_ne!(
        first, last,
        "the task that polls single jobs must be free again"
    );
    let (first, last) = tasks(Vec::new());
    assert_eq!((first.len(), last.len()), (0, 0));
}

#[test]
fn single_jobs_share_the_tasks_that_poll_them_and_these_end_with_the_executor() {
    let runtime = runtime();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let (sender, receiver) = mpsc::channel();
    let polled_by: HashSet<_> = (0..100)
        .map(|_| {
            let sender = sender.clone();
            let job = Job::new(async move { sender.send(tokio::task::id()).unwrap() });
            executor.spawn(job).unwrap();
            receiver.recv_timeout(common::SOON).unwrap()
        })
        .collect();
    assert!(polled_by.len() <= runtime.metrics().num_workers());
    drop(executor);
    until(0, || runtime.metrics().num_alive_tasks());
}

/// A handler that keeps its thread must not hold up the next one while another thread is free.
#[test]
fn single_jobs_run_on_all_threads_of_the_runtime() {
    let runtime = runtime();
    let workers = runtime.metrics().num_workers();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    let all_there = Arc::new(std::sync::Barrier::new(workers));
    let (sender, receiver) = mpsc::channel();
    for _ in 0..3 * workers {
        let (all_there, sender) = (all_there.clone(), sender.clone());
        let job = Job::new(async move {
            all_there.wait();
            sender.send(()).unwrap();
        });
        executor.spawn(job).unwrap();
    }
    for _ in 0..3 * workers {
        receiver.recv_timeout(common::SOON).unwrap();
    }
}

#[test]
fn single_jobs_are_dropped_with_their_runtime() {
    struct Told(mpsc::Sender<()>);
    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(());
        }
    }
    let runtime = runtime();
    let executor = executor("async", Some(runtime.handle()), &Shared::default());
    runtime.shutdown_timeout(common::SOON);
    let (sender, receiver) = mpsc::channel();
    let told = Told(sender);
    executor
        .spawn(Job::new(async move {
            let _told = told;
            std::future::pending::<()>().await;
        }))
        .unwrap();
    receiver.recv_timeout(common::SOON).unwrap();
}
