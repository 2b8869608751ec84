//! A thousand servers in one process. A program of its own, since it counts the process's connections and closes all
//! those of the broker.

// Failing is what a test is for.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, rabbit_url, unique};
use futures_util::future::{join_all, try_join_all};
use longshore::{Context, Router, RpcClient, RpcServer, Target, Transport};
use tokio::process::Command;

const SERVERS: u32 = 1_000;
/// What is asked for at once, of the start and of the calls.
const AT_ONCE: usize = 64;
/// What the rule gives the servers to answer again, and a second.
const RESUME: Duration = Duration::from_secs(61);

/// `rabbitmqctl` of the broker.
fn control(arguments: &[&str]) -> Command {
    let program = std::env::var("LONGSHORE_RABBITMQCTL").expect(
        "LONGSHORE_RABBITMQCTL is not set: run `cargo xtask brokers up` and `eval \"$(cargo xtask env)\"`",
    );
    let mut command = Command::new(program);
    command.arg("--quiet").args(arguments);
    command
}

/// Runs `rabbitmqctl` and returns what it prints.
async fn ctl(arguments: &[&str]) -> String {
    let output = control(arguments).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A virtual host of this test's own, with which everything it makes is deleted.
struct VirtualHost(String);

impl VirtualHost {
    async fn make() -> Self {
        let name = unique("thousand");
        ctl(&["add_vhost", &name]).await;
        let url = rabbit_url();
        let login = url.split("://").nth(1).unwrap();
        let user = login.split(':').next().unwrap();
        let all = ".*";
        ctl(&["set_permissions", "--vhost", &name, user, all, all, all]).await;
        Self(name)
    }

    fn url(&self) -> String {
        format!("{}/{}", rabbit_url().trim_end_matches('/'), self.0)
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        let _ = control(&["delete_vhost", &self.0]).into_std().status();
    }
}

/// The connections of this process, as the broker names them.
async fn connections() -> HashSet<String> {
    let own = format!(":{}:", std::process::id());
    let listed = ctl(&["list_connections", "pid", "client_properties"]).await;
    let ours = listed.lines().filter(|line| line.contains(&own));
    ours.filter_map(|line| line.split('\t').next().map(str::to_owned))
        .collect()
}

/// The memory of this process in use, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() * 1024
}

async fn start(transport: &Transport, topic: &str, fanouts: &Arc<AtomicU32>, n: u32) -> RpcServer {
    let fanouts = fanouts.clone();
    let router = Router::new()
        .method("who", move |_: Context| async move { Ok(n) })
        .method("spread", move |_: Context| {
            fanouts.fetch_add(1, Ordering::Relaxed);
            std::future::ready(Ok(()))
        });
    let target = Target::topic(topic).server(format!("s{n}"));
    let server = RpcServer::builder(transport, target, router).start();
    server
        .await
        .unwrap_or_else(|error| panic!("server {n}: {error}"))
}

/// Calls every server by its name until it answers. What was on its way when a link broke is never answered, so that
/// each call has a short time.
async fn each_answers(client: &RpcClient, within: Duration) {
    let until = Instant::now() + within;
    let calls = (0..SERVERS).map(|n| async move {
        loop {
            let call = client.call::<u32>("who").server(&format!("s{n}"));
            match call.timeout(PATIENCE / 4).await {
                Ok(answer) => return assert_eq!(answer, n),
                Err(error) => assert!(Instant::now() < until, "server {n}: {error}"),
            }
        }
    });
    join_all(calls).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_servers_share_two_connections_and_come_back_together() {
    let host = VirtualHost::make().await;
    let transport = Transport::connect(&host.url()).await.unwrap();
    let topic = "thousand";
    let fanouts = Arc::new(AtomicU32::new(0));
    let (before, begun) = (resident(), Instant::now());
    let mut servers = Vec::new();
    for first in (0..SERVERS).step_by(AT_ONCE) {
        let batch = first..SERVERS.min(first + AT_ONCE as u32);
        servers.extend(join_all(batch.map(|n| start(&transport, topic, &fanouts, n))).await);
    }
    println!(
        "{SERVERS} servers started in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let client = RpcClient::new(&transport, Target::topic(topic));

    let begun = Instant::now();
    each_answers(&client, PATIENCE).await;
    println!(
        "each answered a call within {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    let each = (resident() - before) / 1024 / u64::from(SERVERS);
    println!("{each} kB of memory each");
    assert!(each < 256, "{each} kB of memory each");
    let first = connections().await;
    assert_eq!(first.len(), 2, "{first:?}");

    let begun = Instant::now();
    client.cast("spread").fanout().await.unwrap();
    common::eventually("a fanout reaches every server", || {
        fanouts.load(Ordering::Relaxed) == SERVERS
    })
    .await;
    println!(
        "a fanout reached all within {:.2} s",
        begun.elapsed().as_secs_f64()
    );

    let begun = Instant::now();
    ctl(&["close_all_connections", "--vhost", &host.0, "a test"]).await;
    println!(
        "closing the connections took {:.2} s",
        begun.elapsed().as_secs_f64()
    );
    each_answers(&client, RESUME).await;
    println!(
        "each answered again {:.2} s after its connections were closed",
        begun.elapsed().as_secs_f64()
    );
    let second = connections().await;
    assert_eq!(second.len(), 2, "{second:?}");
    assert!(second.is_disjoint(&first), "the connections were closed");
    assert_eq!(fanouts.load(Ordering::Relaxed), SERVERS);

    let begun = Instant::now();
    try_join_all(servers.iter().map(|server| server.stop(RESUME)))
        .await
        .unwrap();
    transport.close(PATIENCE).await.unwrap();
    println!("stopped in {:.1} s", begun.elapsed().as_secs_f64());
}
