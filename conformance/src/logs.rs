//! What the program logs: printed when `CONFORMANCE_LOG` asks for it, and searched for secrets.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing_subscriber::filter::{EnvFilter, dynamic_filter_fn};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failure::Failure;

/// How many lines with a secret in them are kept.
const KEPT: usize = 4;

static WATCHES: AtomicUsize = AtomicUsize::new(0);
static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

struct Watched {
    secret: String,
    lines: Vec<String>,
}

/// Installs the subscriber of this program, once.
///
/// # Errors
/// When another one is installed: then nobody could say what is logged.
pub(crate) fn install() -> Result<(), Failure> {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let printed = fmt::layer().with_writer(io::stderr).with_filter(
            EnvFilter::try_from_env("CONFORMANCE_LOG").unwrap_or_else(|_| EnvFilter::new("off")),
        );
        let searched = fmt::layer()
            .with_ansi(false)
            .with_writer(|| Search)
            .with_filter(dynamic_filter_fn(|_, _| {
                WATCHES.load(Ordering::Relaxed) > 0
            }));
        tracing_subscriber::registry()
            .with(searched)
            .with(printed)
            .try_init()
            .is_ok()
    });
    match installed {
        true => Ok(()),
        false => Err(Failure::new(
            "another tracing subscriber is installed, so that logs cannot be searched for secrets",
        )),
    }
}

/// Looks for one secret in everything that is logged, at any level, while it lives.
#[derive(Debug)]
pub(crate) struct Watch {
    secret: String,
}

impl Watch {
    /// Starts looking. The secret must be unique in this process.
    pub(crate) fn start(secret: &str) -> Result<Self, Failure> {
        install()?;
        WATCHED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Watched {
                secret: secret.to_owned(),
                lines: Vec::new(),
            });
        WATCHES.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            secret: secret.to_owned(),
        })
    }

    /// The lines that held it.
    pub(crate) fn lines(&self) -> Vec<String> {
        WATCHED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter(|watched| watched.secret == self.secret)
            .flat_map(|watched| watched.lines.clone())
            .collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
        WATCHED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|watched| watched.secret != self.secret);
    }
}

/// Receives each formatted event as one write.
struct Search;

impl io::Write for Search {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let mut all = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        for watched in all.iter_mut() {
            if watched.lines.len() < KEPT && text.contains(&watched.secret) {
                watched
                    .lines
                    .push(text.trim_end().replace(&watched.secret, "<the secret>"));
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logged_secret_is_found() {
        let watch = Watch::start("hush-4711").unwrap();
        tracing::trace!(url = "acme://u:hush-4711@host", "connecting");
        tracing::error!("nothing to see");
        let lines = watch.lines();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("<the secret>"), "{lines:?}");
    }
}
