//! Logs on stderr.

use std::env;
use std::io;

use anstream::{AutoStream, ColorChoice};
use longshore::Error;
use tracing_subscriber::EnvFilter;

use crate::exit::Failed;

/// Starts logging by the filter of the command line, else of `RUST_LOG`, else the default.
pub(crate) fn start(filter: Option<&str>, default: &str) -> Result<(), Failed> {
    let (name, text) = match (filter, env::var("RUST_LOG")) {
        (Some(filter), _) => ("--log", filter.to_owned()),
        (None, Ok(filter)) if !filter.trim().is_empty() => ("RUST_LOG", filter),
        _ => ("the default filter", default.to_owned()),
    };
    let filter = EnvFilter::builder()
        .parse(&text)
        .map_err(|error| Error::config(format!("{name} is not a log filter: {error}")))?;
    let colours = AutoStream::choice(&io::stderr()) != ColorChoice::Never;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .init();
    Ok(())
}
