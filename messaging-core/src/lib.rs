//! RPC and notifications over pluggable message transports: everything that is the same on every transport.
//!
//! Applications depend on the `longshore` crate, which re-exports what they need. Authors of drivers depend on
//! this one and implement [`driver::Driver`]; authors of executors implement [`executor::Executor`].
//! Nothing here names a broker or opens a socket.

pub mod config;
pub mod driver;
pub mod error;
pub mod executor;
mod io;
pub mod message;
pub mod options;
pub mod registry;
pub mod target;
pub mod url;
pub mod wire;

pub use error::{Error, ErrorKind, Outcome, RemoteError, Result};
pub use target::{Target, Version};
pub use url::TransportUrl;

/// What the macros of this crate expand to; not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
