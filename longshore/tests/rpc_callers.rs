//! Callers of all sorts: plain threads, plain handlers, other executors; calls given up; the bound of pending calls.

#![allow(clippy::unwrap_used)]

mod common;

use std::future::IntoFuture;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use common::{Gate, OpensOnDrop, PATIENCE, eventually, kinds, unique};
use longshore::{
    Context, ErrorKind, Nobody, Outcome, Router, RpcClient, RpcServer, RpcServerBuilder, Target,
    Transport,
};
use serde_json::{Value, json};

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

fn echo(transport: &Transport, gate: &Gate) -> RpcServerBuilder {
    let router = Router::with_state(gate.clone())
        .method("echo", async |_: Arc<Gate>, _: Context, q: Value| {
            Ok(q["n"].clone())
        })
        .method("wait", async |gate: Arc<Gate>, _: Context| {
            gate.pass().await;
            Ok(())
        });
    RpcServer::builder(transport, Target::topic("t").server("s"), router)
}

async fn open(name: &str) -> Transport {
    Transport::connect(&format!("memory://{}", unique(name)))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_calls_work_wherever_a_thread_may_block_and_are_refused_elsewhere() {
    let transport = open("blocking").await;
    let _server = echo(&transport, &Gate::default()).start().await.unwrap();
    let calls = |client: &RpcClient| {
        let n: u32 = client.call("echo").arg("n", 7).blocking()?;
        client.cast("echo").arg("n", n).blocking()?;
        Ok::<_, longshore::Error>(n)
    };
    let from_thread = client(&transport);
    let plain = thread::spawn(move || calls(&from_thread));
    let from_pool = client(&transport);
    let pool = tokio::task::spawn_blocking(move || calls(&from_pool));
    assert_eq!(pool.await.unwrap().unwrap(), 7);
    assert_eq!(plain.join().unwrap().unwrap(), 7);
    let in_place = client(&transport);
    let worker = tokio::spawn(async move { tokio::task::block_in_place(|| calls(&in_place)) });
    assert_eq!(worker.await.unwrap().unwrap(), 7);

    let refused = [
        client(&transport)
            .call::<Value>("echo")
            .blocking()
            .unwrap_err(),
        client(&transport).cast("echo").blocking().unwrap_err(),
        Transport::builder("memory://x")
            .connect()
            .blocking()
            .unwrap_err(),
        echo(&transport, &Gate::default())
            .start_blocking()
            .unwrap_err(),
    ];
    for error in refused {
        assert_eq!(kinds(&error), (ErrorKind::Config, Outcome::NotSent));
        assert!(error.to_string().contains(".await"), "{error}");
    }
    let in_task = client(&transport);
    let task = tokio::spawn(async move { in_task.call::<Value>("echo").blocking() });
    assert_eq!(task.await.unwrap().unwrap_err().kind(), ErrorKind::Config);
    assert_eq!(transport.pending_calls(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_handlers_call_others_under_each_executor_and_async_ones_are_refused() {
    for executor in ["async", "threaded", "blocking"] {
        let transport = open("nested").await;
        let _echo = echo(&transport, &Gate::default()).start().await.unwrap();
        let router = Router::with_state(client(&transport))
            .plain_method("plain", |client: Arc<RpcClient>, ctx: Context, q: Value| {
                let n: u32 = client
                    .call("echo")
                    .arg("n", &q["n"])
                    .context(&ctx)
                    .blocking()?;
                // Waiting until nobody is there is over needs a timer as well.
                let late = client.call::<()>("wait").server("x").nobody(Nobody::Wait);
                let late = late.timeout(Duration::from_millis(150)).blocking();
                Ok((n, late.unwrap_err().kind().as_str()))
            })
            .method("awaits", async |client: Arc<RpcClient>, _: Context| {
                let error = client.call::<u32>("echo").arg("n", 1).blocking();
                let n: u32 = client.call("echo").arg("n", 2).await?;
                Ok((error.map_err(|error| error.kind().as_str().to_owned()), n))
            });
        let target = Target::topic("front").server("s");
        let front = RpcServer::builder(&transport, target, router).executor(executor);
        let _front = front.start().await.unwrap();
        let client = RpcClient::new(&transport, Target::topic("front")).timeout(PATIENCE);
        for n in 0..20 {
            let (got, late): (u32, String) = client
                .call("plain")
                .arg("n", n)
                .timeout(PATIENCE)
                .await
                .unwrap();
            assert_eq!((got, &*late), (n, "no_server"), "{executor}");
            if n == 0 {
                let (blocked, two): (Result<u32, String>, u32) =
                    client.call("awaits").await.unwrap();
                // On a thread of its own an async handler may block; on a worker of a runtime it may not.
                if executor == "async" {
                    assert_eq!(blocked, Err("config".to_owned()));
                } else {
                    assert_eq!(blocked, Ok(1), "{executor}");
                }
                assert_eq!(two, 2, "{executor}");
            }
            if n == 2 {
                break;
            }
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Another executor, as plain as can be: it knows neither tokio nor timers.
fn drive<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            return output;
        }
        thread::park_timeout(PATIENCE);
    }
}

/// How many threads of this process wake sleepers.
fn sleeper_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "longshore-sleep")
        .count()
}

#[test]
fn another_executor_drives_everything_with_its_time_limits() {
    let url = format!("memory://{}", unique("foreign"));
    let transport = drive(Transport::builder(&url).connect()).unwrap();
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = echo(&transport, &gate).executor("threaded");
    let server = drive(server.start()).unwrap();
    let client = client(&transport).timeout(Duration::from_secs(3_600));
    for n in 0..50 {
        assert_eq!(drive(client.call::<u32>("echo").arg("n", n)).unwrap(), n);
    }
    drive(client.cast("echo").arg("n", 1)).unwrap();

    let started = Instant::now();
    let short = Duration::from_millis(200);
    let error = drive(client.call::<()>("wait").timeout(short)).unwrap_err();
    assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::Unknown));
    let error = drive(
        client
            .call::<()>("wait")
            .server("x")
            .nobody(Nobody::Wait)
            .timeout(short),
    );
    assert_eq!(
        kinds(&error.unwrap_err()),
        (ErrorKind::NoServer, Outcome::NotSent)
    );
    assert!(started.elapsed() < PATIENCE / 2);
    gate.open();
    let deadline = Instant::now() + PATIENCE;
    while sleeper_threads() > 0 {
        assert!(
            Instant::now() < deadline,
            "calls that ended an hour early left their threads behind"
        );
        thread::yield_now();
    }
    assert_eq!(drive(server.stop(PATIENCE)).unwrap().still_running, 0);
    drive(transport.close(PATIENCE)).unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_frees_its_place_at_once() {
    let transport = open("dropped").await;
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = echo(&transport, &gate).start().await.unwrap();
    let client = client(&transport);
    let never = client.call::<()>("wait");
    drop(never);
    assert_eq!(transport.pending_calls(), 0);
    let calls: Vec<_> = (0..10)
        .map(|_| tokio::spawn(client.call::<()>("wait").into_future()))
        .collect();
    eventually("they run", || gate.inside() == 10).await;
    assert_eq!(transport.pending_calls(), 10);
    for call in &calls {
        call.abort();
    }
    eventually("their places are free", || transport.pending_calls() == 0).await;
    gate.open();
    eventually("they ran to their ends", || {
        server.counters().succeeded == 10
    })
    .await;
    let late = || transport.reply_counters().late;
    eventually("their replies are late ones", || late() == 10).await;
    assert_eq!(client.call::<u32>("echo").arg("n", 1).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_calls_are_bounded_and_a_further_one_waits_for_room() {
    let transport = Transport::builder(&format!("memory://{}", unique("bound")))
        .max_pending(3)
        .connect()
        .await
        .unwrap();
    let gate = Gate::default();
    let _opens = OpensOnDrop(gate.clone());
    let server = echo(&transport, &gate).start().await.unwrap();
    let client = client(&transport);
    let calls: Vec<_> = (0..3)
        .map(|_| tokio::spawn(client.call::<()>("wait").into_future()))
        .collect();
    eventually("all places are taken", || gate.inside() == 3).await;
    let error = client
        .call::<u32>("echo")
        .arg("n", 1)
        .timeout(Duration::from_millis(100));
    assert_eq!(
        kinds(&error.await.unwrap_err()),
        (ErrorKind::Busy, Outcome::NotSent)
    );
    client.cast("echo").args(json!({"n": 1})).await.unwrap();
    let further: Vec<_> = (0..200_u32)
        .map(|n| tokio::spawn(client.call::<u32>("echo").arg("n", n).into_future()))
        .collect();
    assert_eq!(transport.pending_calls(), 3);
    gate.open();
    for (n, call) in further.into_iter().enumerate() {
        assert_eq!(
            call.await.unwrap().unwrap(),
            n as u32,
            "nobody is forgotten"
        );
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(
        (transport.pending_calls(), server.counters().succeeded),
        (0, 204)
    );
}
