//! One RPC and notification API over pluggable message transports.
//!
//! This is the crate applications depend on: the API of `messaging-core`, the executors, and the drivers that its
//! features switch on.
//!
//! | feature | URLs | default |
//! |---|---|---|
//! | `memory` | `memory://`, `fake://` | yes |
//! | `amqp` | `rabbit://`, `kombu://`, `amqp://` | yes |
//!
//! A driver or executor of another crate takes one line in Cargo.toml and one in the code: `use acme_driver as _;`.
//! [`registry::drivers`] and [`registry::executors`] list what a program has.
//!
//! ```
//! use std::time::Duration;
//! use longshore::{Context, Router, RpcClient, RpcServer, Target, Transport};
//!
//! #[derive(serde::Deserialize)]
//! struct HealthCheck { seqid: u64, req: String }
//!
//! # #[tokio::main] async fn main() -> longshore::Result<()> {
//! let transport = Transport::connect("memory://").await?;
//! let router = Router::new().method("health_check", |_ctx: Context, q: HealthCheck| async move {
//!     Ok((q.seqid, format!("you asked: {}", q.req)))
//! });
//! let target = Target::topic("engine");
//! let server = RpcServer::builder(&transport, target.clone().server("engine-1"), router).start().await?;
//!
//! let engine = RpcClient::new(&transport, target).timeout(Duration::from_secs(5));
//! let (id, answer): (u64, String) =
//!     engine.call("health_check").arg("seqid", 1).arg("req", "How are you?").await?;
//! assert_eq!((id, answer.as_str()), (1, "you asked: How are you?"));
//!
//! server.stop(Duration::from_secs(10)).await?;
//! # Ok(()) }
//! ```

// rustc links a crate only if some path names it, and a crate that is not linked registers nothing. These lines are
// that path, for the programs that depend on this crate alone.
#[cfg(feature = "amqp")]
use messaging_driver_amqp as _;
#[cfg(feature = "memory")]
use messaging_driver_memory as _;
use messaging_executors as _;

#[doc(inline)]
pub use messaging_core::*;

/// The executors as types, for those who make one themselves or register it by hand.
pub mod executors {
    #[doc(inline)]
    pub use messaging_executors::*;
}

/// The linked drivers' crates.
///
/// A program finds drivers by the scheme of its URL and needs nothing of this. It is for places where nothing runs
/// before `main`, such as static libraries, which call
/// `longshore::registry::register_driver(&longshore::drivers::memory::DRIVER)`, and the executors likewise.
pub mod drivers {
    #[cfg(feature = "amqp")]
    pub use messaging_driver_amqp as amqp;
    #[cfg(feature = "memory")]
    pub use messaging_driver_memory as memory;
}
