//! `serve`: the life of the diagnostic server.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use longshore::{Error, ErrorKind, Outcome, RpcServer, Target, Transport, registry};

use crate::args::ServeArgs;
use crate::diagnostics;
use crate::exit::{Exit, Failed};
use crate::output;
use crate::request::CONNECT_TIMEOUT;
use crate::signals::Signals;

/// How long the subscription may take once the link is up.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long requests may finish after a signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last replies may take to go out, at the least.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// `timeout` and other supervisors pass a signal on to the process and to its group: it arrives twice, at once.
const ECHO: Duration = Duration::from_millis(50);

/// Serves until a signal comes or the subscription ends.
pub(crate) async fn run(args: ServeArgs) -> Result<(), Failed> {
    // Before anything is served, so that no signal after `ready` can end the process undrained.
    let mut signals = Signals::new().map_err(|error| {
        let text = format!("the signal handlers cannot be set: {error}");
        Error::not_sent(ErrorKind::Internal, text).with_source(error)
    })?;
    registry::find_executor(&args.executor)?;
    let transport = Transport::builder(&args.url).lazy()?;
    let server = tokio::select! {
        server = start(&transport, &args) => {
            server.map_err(|error| Failed::over(&transport, error))?
        }
        () = signals.next() => return Ok(()),
    };
    output::line(&format!("ready {}.{}", args.topic, args.server))?;

    tokio::select! {
        drained = server.wait() => {
            let text = "the subscription ended by itself";
            let error = drained.error.unwrap_or_else(|| Error::unknown(ErrorKind::Closed, text));
            return Err(Failed::new(Exit::Unconnected, error));
        }
        () = signals.next() => {}
    }
    tokio::select! {
        drained = drain(&transport, &server) => drained,
        () = second(&mut signals) => {
            Err(unfinished("a second signal ended the server at once".to_owned()))
        }
    }
}

/// Waits for a signal that is not the echo of the first.
async fn second(signals: &mut Signals) {
    let first = Instant::now();
    loop {
        signals.next().await;
        if first.elapsed() > ECHO {
            return;
        }
    }
}

async fn start(transport: &Transport, args: &ServeArgs) -> Result<RpcServer, Error> {
    transport.ready(CONNECT_TIMEOUT).await?;
    let mut target = Target::topic(args.topic.as_str()).server(args.server.as_str());
    target.exchange = args.interface.exchange.as_deref().map(Into::into);
    let router = diagnostics::router(
        &args.server,
        args.interface.namespace.as_deref(),
        args.interface.rpc_version,
    );
    let mut builder =
        RpcServer::builder(transport, target, router).executor(args.executor.as_str());
    if let Some(concurrency) = args.concurrency.map(NonZeroU32::get) {
        builder = builder.concurrency(concurrency);
    }
    match tokio::time::timeout(START_TIMEOUT, builder.start()).await {
        Ok(server) => server,
        Err(_) => {
            let seconds = START_TIMEOUT.as_secs();
            let text = format!("the subscription was not made within {seconds} s");
            Err(Error::not_sent(ErrorKind::Connect, text))
        }
    }
}

async fn drain(transport: &Transport, server: &RpcServer) -> Result<(), Failed> {
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let drained = server
        .stop(DRAIN_TIMEOUT)
        .await
        .map_err(|error| Failed::new(Exit::Remote, error))?;
    if let Some(error) = &drained.error {
        tracing::warn!("the subscription did not end in order: {error}");
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let closed = transport.close(left.max(CLOSE_TIMEOUT)).await;
    if drained.still_running > 0 {
        return Err(unfinished(format!(
            "{} of the requests did not finish within {} s",
            drained.still_running,
            DRAIN_TIMEOUT.as_secs()
        )));
    }
    closed.map_err(|error| Failed::new(Exit::Remote, error))
}

fn unfinished(text: String) -> Failed {
    let error = Error::new(ErrorKind::Cancelled, Outcome::Unknown, text);
    Failed::new(Exit::Remote, error)
}
