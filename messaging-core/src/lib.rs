//! RPC and notifications over pluggable message transports: everything that is the same on every transport.
//!
//! Applications depend on the `longshore` crate, which re-exports what they need. Authors of drivers depend on
//! this one and implement [`driver::Driver`]; authors of executors implement [`executor::Executor`].
//! Nothing here names a broker or opens a socket.

pub mod config;
mod content;
mod context;
pub mod driver;
pub mod error;
pub mod executor;
mod failure;
mod io;
pub mod message;
pub mod options;
mod park;
pub mod registry;
pub mod rpc;
mod serializer;
pub mod target;
mod transport;
pub mod url;
pub mod wire;

pub use config::Config;
pub use context::{Context, DeliveryInfo, IntoContext};
pub use driver::{Accepted, Ack, Capabilities, Health, NobodyGrade};
pub use error::{Error, ErrorKind, Outcome, RemoteError, Result};
pub use failure::Failure;
pub use rpc::{
    AccessPolicy, AllowAll, AllowExposed, AllowPublic, Call, Cast, Drained, Nobody, Retry, Router,
    RpcClient, RpcServer, RpcServerBuilder, ServerCounters,
};
pub use serializer::Serializer;
pub use target::{Target, Version};
pub use transport::{Connect, ReplyCounters, Transport, TransportBuilder};
pub use url::TransportUrl;
pub use wire::CallerContext;

/// What the macros of this crate expand to; not part of the API.
#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
