//! The health check of OpenStack Heat: an API asks its engine how it is.
//!
//! `cargo run --example heat` runs both in one process over `memory://`. Over a broker they are two:
//!
//! ```sh
//! cargo run --example heat -- --role engine --transport-url rabbit://guest:guest@localhost:5672/
//! cargo run --example heat -- --role api --transport-url rabbit://guest:guest@localhost:5672/
//! ```
//!
//! Either half works with the Python services of the sample: exchange `heat`, topic `engine`, server `heat-engine`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use longshore::{Context, Result, Router, RpcClient, RpcServer, Target, Transport, Version};
use longshore_examples::{Stop, hostname, init_logging, say};
use serde::Deserialize;
use tokio::time::sleep;

const EXCHANGE: &str = "heat";
const TOPIC: &str = "engine";
const SERVER: &str = "heat-engine";

/// The health check between an API and an engine.
#[derive(Parser)]
struct Options {
    /// Which half to run; without it both, in this process.
    #[arg(long)]
    role: Option<Role>,
    /// Where they meet; without it the file's transport_url, and without a file memory://.
    #[arg(long)]
    transport_url: Option<String>,
    /// An oslo.config file, for example heat.conf.
    #[arg(long)]
    config_file: Option<PathBuf>,
    /// Where the engine's handlers run: blocking, threaded or async.
    #[arg(long, default_value = "async")]
    executor: String,
    /// How often the API asks; both halves end after as many requests. Default: 5 in one process, else until a signal.
    #[arg(long)]
    count: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Role {
    Engine,
    Api,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthCheck {
    seqid: u64,
    host: String,
    req: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    init_logging();
    match run(Options::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("heat: {error} ({}, {})", error.kind(), error.outcome());
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<ExitCode> {
    let mut stop = Stop::on_signals();
    let transport = connect(&options).await?;
    let count = options.count.or(options.role.is_none().then_some(5));
    let code = match options.role {
        Some(Role::Engine) => {
            let (server, mut asked) = engine(&transport, &options.executor).await?;
            tokio::select! {
                () = stop.requested() => {}
                _ = asked.wait_for(|asked| count.is_some_and(|count| *asked >= count)) => {}
            }
            ended(&server).await?
        }
        Some(Role::Api) => api(&transport, count, &mut stop).await,
        None => {
            let (server, _asked) = engine(&transport, &options.executor).await?;
            let code = api(&transport, count, &mut stop).await;
            if ended(&server).await? == ExitCode::SUCCESS {
                code
            } else {
                ExitCode::FAILURE
            }
        }
    };
    transport.close(Duration::from_secs(5)).await?;
    Ok(code)
}

async fn connect(options: &Options) -> Result<Transport> {
    let builder = match (&options.config_file, &options.transport_url) {
        (Some(file), Some(url)) => Transport::from_config_file(file).url(url),
        (Some(file), None) => Transport::from_config_file(file),
        (None, url) => Transport::builder(url.as_deref().unwrap_or("memory://")),
    };
    builder.default_exchange(EXCHANGE).connect().await
}

/// The engine, and a counter of the requests it has answered.
async fn engine(
    transport: &Transport,
    executor: &str,
) -> Result<(RpcServer, tokio::sync::watch::Receiver<u64>)> {
    let (asked, seen) = tokio::sync::watch::channel(0);
    // No namespace, and version 1.35 for requests of any 1.x up to it, as the sample's engine.
    let router = Router::with_state(asked).version("1.35").method(
        "health_check",
        async |asked: std::sync::Arc<tokio::sync::watch::Sender<u64>>,
               _: Context,
               q: HealthCheck| {
            say(format_args!(
                "### Request: id=[{}], host=[{}], content=[{}]",
                q.seqid, q.host, q.req
            ));
            asked.send_modify(|asked| *asked += 1);
            Ok((q.seqid, hostname(), "I'm fine!"))
        },
    );
    let target = Target::topic(TOPIC).server(SERVER);
    let server = RpcServer::builder(transport, target, router)
        .executor(executor)
        .start()
        .await?;
    Ok((server, seen))
}

async fn ended(server: &RpcServer) -> Result<ExitCode> {
    let drained = server.stop(Duration::from_secs(10)).await?;
    Ok(if drained.still_running == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn api(transport: &Transport, count: Option<u64>, stop: &mut Stop) -> ExitCode {
    let engine = RpcClient::new(transport, Target::topic(TOPIC).version(Version::new(1, 0)));
    let mut code = ExitCode::SUCCESS;
    let mut seqid = 0;
    while count.is_none_or(|count| seqid < count) {
        seqid += 1;
        let question = engine
            .call::<(u64, String, String)>("health_check")
            .arg("seqid", seqid)
            .arg("host", hostname())
            .arg("req", "How are you?");
        let answer = tokio::select! {
            answer = question => answer,
            () = stop.requested() => break,
        };
        match answer {
            Ok((id, host, content)) => {
                say(format_args!(
                    "### Response: id=[{id}], host=[{host}], content=[{content}]"
                ));
            }
            Err(error) => {
                eprintln!(
                    "### Failed: id=[{seqid}], {error} ({}, {})",
                    error.kind(),
                    error.outcome()
                );
                code = ExitCode::FAILURE;
            }
        }
        if count == Some(seqid) {
            break;
        }
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            () = stop.requested() => break,
        }
    }
    code
}
