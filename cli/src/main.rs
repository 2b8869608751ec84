//! `longshore`: call, serve and inspect from a shell, over any transport.

// The doc comments of arguments are help texts, in which brackets mean what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

mod args;
mod arguments;
mod diagnostics;
mod duration;
mod exit;
mod list;
mod log;
mod output;
mod request;
mod serve;
mod show_url;
mod signals;

use std::future::Future;
use std::process::ExitCode;

use longshore::{Error, ErrorKind};
use tokio::runtime::{Builder, Runtime};

use args::{Cli, Verb};
use exit::{Exit, Failed};
use request::Sending;

fn main() -> ExitCode {
    let Cli { json, log, verb } = match Cli::read() {
        Ok(cli) => cli,
        Err(exit) => return exit.into(),
    };
    match log::start(log.as_deref(), verb.default_log()).and_then(|()| run(verb, json)) {
        Ok(()) => Exit::Done.into(),
        Err(failed) => {
            output::failure(&failed.error, json);
            failed.exit.into()
        }
    }
}

fn run(verb: Verb, json: bool) -> Result<(), Failed> {
    match verb {
        Verb::Call(request) => block_on(
            Builder::new_current_thread(),
            request::run(Sending::Call, request),
        ),
        Verb::Cast(request) => block_on(
            Builder::new_current_thread(),
            request::run(Sending::Cast, request),
        ),
        Verb::Fanout(request) => block_on(
            Builder::new_current_thread(),
            request::run(Sending::Fanout, request),
        ),
        Verb::Serve(server) => block_on(Builder::new_multi_thread(), serve::run(server)),
        Verb::Url { url } => show_url::run(&url, json),
        Verb::Drivers => list::drivers(json),
        Verb::Executors => list::executors(json),
    }
}

fn block_on(
    mut builder: Builder,
    work: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    let runtime: Runtime = builder.enable_all().build().map_err(|error| {
        let text = format!("no runtime could be started: {error}");
        Error::not_sent(ErrorKind::Internal, text).with_source(error)
    })?;
    let result = runtime.block_on(work);
    // A handler that still blocks its thread must not hold up the end of the process.
    runtime.shutdown_background();
    result
}
