//! One server, in a process of its own. It tells its parent of every run of a handler before it answers.

use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use longshore::{Context, Router, RpcServer, Target, Transport};

use crate::record::Key;

/// The method of calls and casts.
pub(crate) const NOTE: &str = "note";
/// The method of fanouts.
pub(crate) const SPREAD: &str = "spread";
/// Answers as a call, and is not written down.
pub(crate) const PROBE: &str = "probe";
/// How long requests that run may take when the server stops.
const STOPPING: Duration = Duration::from_secs(20);

/// Which server of which topic this is.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Its number among the servers of the topic, from 0.
    #[arg(long)]
    index: u8,
    #[arg(long)]
    topic: String,
    /// Where it connects to.
    #[arg(long, env = URL, hide_env_values = true)]
    url: String,
}

/// The variable that hands a server its URL: as an argument every user of the machine could read its password.
pub(crate) const URL: &str = "LONGSHORE_SOAK_SERVER_URL";

/// The name of the server with this number.
pub(crate) fn name(index: u8) -> String {
    format!("s{index}")
}

/// Serves until its standard input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<()> {
    let transport = Transport::connect(&options.url).await?;
    let target = Target::topic(&*options.topic).server(name(options.index));
    let server = RpcServer::builder(&transport, target, router(options.index))
        .start()
        .await?;
    say("ready")?;
    // The parent closes it, or has died.
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await??;
    server.stop(STOPPING).await?;
    say(&format!("duplicates {}", server.counters().duplicates))?;
    transport.close(STOPPING).await?;
    Ok(())
}

fn router(index: u8) -> Router {
    Router::new()
        .method(NOTE, move |_: Context, note: Note| {
            saw(Key::once(note.id));
            std::future::ready(Ok((note.id, index)))
        })
        .method(PROBE, move |_: Context, note: Note| {
            std::future::ready(Ok((note.id, index)))
        })
        .method(SPREAD, move |_: Context, note: Note| {
            saw(Key::at_server(note.id, index));
            std::future::ready(Ok(()))
        })
}

/// What a request carries.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub(crate) struct Note {
    pub(crate) id: u64,
    /// Makes the request as long as it is to be.
    pub(crate) text: String,
}

/// Tells the parent. Without a parent there is nobody to serve for.
fn saw(key: Key) {
    if say(&format!("saw {} {}", key.0, now_us())).is_err() {
        std::process::exit(1);
    }
}

/// Each line is one write, so that nothing is left in a buffer when this process is killed.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").context("nobody reads what the server reports")
}

/// Microseconds of this machine's clock, which parent and servers share.
pub(crate) fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
