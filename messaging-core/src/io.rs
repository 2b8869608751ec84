//! The I/O thread of a transport: links, timers, acknowledgements and replies run there, user code never.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::{Error, ErrorKind, Result};

/// A lazily started thread with a current-thread runtime, shared by the clones of this handle.
///
/// When the last clone is dropped the thread is told to end; it is never joined.
#[derive(Clone)]
pub struct Io(Arc<Inner>);

struct Inner {
    name: String,
    state: Mutex<Option<Running>>,
}

struct Running {
    handle: Handle,
    // Dropping it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Io {
    /// A thread of this name, not started yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            name: name.into(),
            state: Mutex::new(None),
        }))
    }

    /// The handle of the thread's runtime; the first call starts the thread.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the operating system gives no thread.
    pub fn handle(&self) -> Result<Handle> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*state {
            return Ok(running.handle.clone());
        }
        let failed = |e: std::io::Error| {
            Error::not_sent(
                ErrorKind::Internal,
                format!("no I/O thread could be started: {e}"),
            )
        };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(self.0.name.clone())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
                // Blocking tasks of drivers (name look-ups) must not hold up the end of the thread.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        *state = Some(Running {
            handle: handle.clone(),
            _stop: stop,
        });
        Ok(handle)
    }

    /// The handle, if the thread was started.
    pub fn started(&self) -> Option<Handle> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.as_ref().map(|running| running.handle.clone())
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io")
            .field("name", &self.0.name)
            .field("started", &self.started().is_some())
            .finish()
    }
}
