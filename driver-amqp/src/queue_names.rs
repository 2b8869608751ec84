//! What makes the name of a reply or fanout queue this process's own.

#[cfg(target_os = "linux")]
use std::path::PathBuf;

use messaging_core::config::Config;
use messaging_core::options::Options;
use messaging_core::{Error, Result};

#[cfg(target_os = "linux")]
use crate::counter::Counter;
use crate::topology::unique;

/// Where names come from.
#[derive(Debug, Clone)]
pub(crate) enum QueueNames {
    /// A UUID for each.
    Random,
    /// Those of oslo.messaging's queue manager, which come back when the service restarts.
    #[cfg(target_os = "linux")]
    Stable(Counter),
}

impl QueueNames {
    /// As `use_queue_manager`, `hostname` and `processname` have it.
    ///
    /// # Errors
    /// `Config` when host or process have a name that the file and the queues cannot have.
    pub(crate) fn resolve(options: &Options, config: &Config) -> Result<Self> {
        if !options.bool("use_queue_manager") {
            return Ok(Self::Random);
        }
        stable(options, config)
    }

    /// Whether nobody will ever ask for a queue of such a name again.
    pub(crate) fn is_random(&self) -> bool {
        matches!(self, Self::Random)
    }

    /// The next name. It may wait for another process, up to five seconds: not on the I/O thread.
    ///
    /// # Errors
    /// `Config` when the counter cannot be read and written.
    pub(crate) fn next(&self) -> Result<String> {
        match self {
            Self::Random => Ok(unique()),
            #[cfg(target_os = "linux")]
            Self::Stable(counter) => counter.next(),
        }
    }
}

#[cfg(target_os = "linux")]
fn stable(options: &Options, config: &Config) -> Result<QueueNames> {
    let given = |name: &str| options.text(name).filter(|text| !text.is_empty());
    let host = given("hostname").map_or_else(host_name, str::to_owned);
    let process = given("processname").map_or_else(process_name, str::to_owned);
    for (option, name) in [("hostname", &host), ("processname", &process)] {
        if name.is_empty() || name.contains('/') || name.chars().any(char::is_control) {
            return Err(Error::config(format!(
                "use_queue_manager=true needs a name without slashes and control characters: set {option}"
            )));
        }
    }
    if host.len() + process.len() > 200 {
        return Err(Error::config(
            "hostname and processname together are longer than 200 bytes, which leaves too little of the 255 of a queue's name",
        ));
    }
    let locks = config
        .get("oslo_concurrency", "lock_path")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("OSLO_LOCK_PATH").map(PathBuf::from))
        .filter(|path| !path.as_os_str().is_empty());
    Ok(QueueNames::Stable(Counter {
        host,
        process,
        folder: "/dev/shm".into(),
        locks,
    }))
}

#[cfg(not(target_os = "linux"))]
fn stable(_: &Options, _: &Config) -> Result<QueueNames> {
    Err(Error::unsupported(
        "use_queue_manager=true counts in /dev/shm and reads /proc, which only Linux has: leave it out",
    ))
}

#[cfg(target_os = "linux")]
fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(target_os = "linux")]
fn process_name() -> String {
    std::env::args_os()
        .next()
        .as_deref()
        .and_then(|program| std::path::Path::new(program).file_name())
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
