//! What each executor promises for each kind of handler, on any transport.

use std::time::{Duration, Instant};

use longshore::{
    Ack, Context, ErrorKind, Health, Outcome, Router, RpcClient, RpcServer, Target, Transport,
};

use super::{Gate, OpensOnDrop, PATIENCE, eventually, unique};

/// Executor and the concurrency its server asks for.
pub const EXECUTORS: [(&str, u32); 3] = [("blocking", 1), ("threaded", 5), ("async", 5)];

fn router(gate: &Gate) -> Router<Gate> {
    Router::with_state(gate.clone())
        .method("awaits", async |gate: std::sync::Arc<Gate>, _: Context| {
            gate.pass().await;
            Ok(())
        })
        .plain_method("blocks", |gate: std::sync::Arc<Gate>, _: Context| {
            gate.block();
            Ok(())
        })
        .method("ping", async |_: Context| Ok("pong"))
}

async fn serve(
    transport: &Transport,
    topic: &str,
    executor: &str,
    n: u32,
    gate: &Gate,
) -> RpcServer {
    RpcServer::builder(transport, Target::topic(topic).server("one"), router(gate))
        .executor(executor)
        .concurrency(n)
        .start()
        .await
        .unwrap()
}

/// Peak concurrency is the server's concurrency exactly; and while every slot is busy with a handler of that kind,
/// a server on another executor answers, and the link stays up for `hold`.
pub async fn peak_is_exact_and_the_rest_goes_on(url: &str, hold: Duration) {
    for (executor, n) in EXECUTORS {
        for method in ["awaits", "blocks"] {
            let case = format!("{executor} × {method}");
            let (gate, topic, other) = (Gate::default(), unique("busy"), unique("free"));
            let _opens = OpensOnDrop(gate.clone());
            let transport = Transport::connect(url).await.unwrap();
            let health = transport.health();
            let server = serve(&transport, &topic, executor, n, &gate).await;
            let other_executor = if executor == "threaded" {
                "async"
            } else {
                "threaded"
            };
            let free = serve(&transport, &other, other_executor, 4, &Gate::default()).await;

            let client =
                RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE + hold);
            let calls: Vec<_> = (0..3 * n)
                .map(|_| {
                    let call = client.call::<()>(method);
                    tokio::spawn(async move { call.await })
                })
                .collect();
            eventually(&format!("{case}: {n} inside"), || gate.inside() == n).await;

            // Calls go out, are handled elsewhere, and their replies come in, for as long as the slots are busy.
            let pinger = RpcClient::new(&transport, Target::topic(&*other)).timeout(PATIENCE);
            let end = Instant::now() + hold;
            let mut pings = 0;
            while pings < 20 || Instant::now() < end {
                assert_eq!(
                    pinger.call::<String>("ping").await.unwrap(),
                    "pong",
                    "{case}"
                );
                pings += 1;
                if hold > Duration::from_secs(1) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            assert_eq!(gate.inside(), n, "{case}: no slot more while all are busy");
            assert_eq!(*health.borrow(), Health::Up, "{case}");
            assert!(
                !health.has_changed().unwrap_or(true),
                "{case}: the link was lost meanwhile"
            );

            gate.open();
            for call in calls {
                call.await.unwrap().unwrap();
            }
            assert_eq!((gate.peak(), gate.passed()), (n, 3 * n), "{case}");
            for server in [server, free] {
                let drained = server.stop(PATIENCE).await.unwrap();
                assert_eq!(
                    (drained.still_running, drained.error.map(|e| e.to_string())),
                    (0, None),
                    "{case}"
                );
            }
            transport.close(PATIENCE).await.unwrap();
        }
    }
}

/// `stop` returns by its deadline whatever handlers do, and says which of them still run.
pub async fn stop_is_bounded_and_says_what_still_runs(url: &str) {
    for (executor, n) in EXECUTORS {
        for method in ["awaits", "blocks"] {
            let case = format!("{executor} × {method}");
            let (gate, topic) = (Gate::default(), unique("stuck"));
            let _opens = OpensOnDrop(gate.clone());
            let transport = Transport::connect(url).await.unwrap();
            let server = serve(&transport, &topic, executor, n, &gate).await;
            let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
            let calls: Vec<_> = (0..n)
                .map(|_| {
                    let call = client.call::<()>(method);
                    tokio::spawn(async move { call.await })
                })
                .collect();
            eventually(&format!("{case}: {n} inside"), || gate.inside() == n).await;

            let started = Instant::now();
            let drained = server.stop(Duration::from_millis(300)).await.unwrap();
            assert!(
                started.elapsed() < Duration::from_millis(300) + Duration::from_secs(1),
                "{case}"
            );
            assert_eq!((drained.finished, drained.still_running), (0, n), "{case}");
            let again = server.stop(PATIENCE).await.unwrap();
            assert_eq!(
                again.still_running, n,
                "{case}: a second stop says the same"
            );

            // The stragglers end later, and their callers have their answers.
            gate.open();
            for call in calls {
                call.await.unwrap().unwrap();
            }
            transport.close(PATIENCE).await.unwrap();
        }
    }
}

/// What runs when a server is told to stop finishes, and is answered.
pub async fn stop_drains(url: &str) {
    for (executor, n) in EXECUTORS {
        let (gate, topic) = (Gate::default(), unique("drains"));
        let _opens = OpensOnDrop(gate.clone());
        let transport = Transport::connect(url).await.unwrap();
        let server = serve(&transport, &topic, executor, n, &gate).await;
        let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
        let calls: Vec<_> = (0..n)
            .map(|_| {
                let call = client.call::<()>("awaits");
                tokio::spawn(async move { call.await })
            })
            .collect();
        eventually(&format!("{executor}: {n} inside"), || gate.inside() == n).await;
        let opener = gate.clone();
        let (drained, ()) = tokio::join!(server.stop(PATIENCE), async move {
            tokio::task::yield_now().await;
            opener.open();
        });
        // The gate may open before the server counts what runs, so that `finished` may be less than all.
        let drained = drained.unwrap();
        assert!(
            drained.still_running == 0 && drained.finished <= n,
            "{executor}: {drained:?}"
        );
        for call in calls {
            call.await.unwrap().unwrap();
        }
        transport.close(PATIENCE).await.unwrap();
    }
}

/// A panic gives its slot back, a thousand times over.
pub async fn panics_give_their_slots_back(url: &str) {
    for (executor, n) in EXECUTORS {
        let topic = unique("panics");
        let transport = Transport::connect(url).await.unwrap();
        let router = Router::new()
            .method(
                "awaits",
                async |_: Context| -> Result<(), longshore::Failure> {
                    panic!("in an async handler")
                },
            )
            .plain_method("blocks", |_: Context| -> Result<(), longshore::Failure> {
                panic!("in a plain handler")
            });
        let server = RpcServer::builder(&transport, Target::topic(&*topic).server("one"), router)
            .executor(executor)
            .concurrency(n)
            .ack(Ack::AfterWork)
            .start()
            .await
            .unwrap();
        let client = RpcClient::new(&transport, Target::topic(&*topic)).timeout(PATIENCE);
        for turn in 0..50 {
            let method = if turn % 2 == 0 { "awaits" } else { "blocks" };
            let error = client.call::<()>(method).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.outcome()),
                (ErrorKind::Panic, Outcome::Executed),
                "{executor}"
            );
        }
        let counters = server.counters();
        assert_eq!(
            (counters.panicked, counters.failed, counters.running),
            (50, 50, 0),
            "{executor}"
        );
        assert_eq!(server.stop(PATIENCE).await.unwrap().still_running, 0);
        transport.close(PATIENCE).await.unwrap();
    }
}
