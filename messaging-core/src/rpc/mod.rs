//! Remote procedure calls: clients, servers, and all that happens between them on every transport alike.

pub(crate) mod access;
mod builder;
mod call;
mod cast;
mod client;
mod counters;
mod guard;
mod handler;
mod job;
mod outbox;
mod outgoing;
mod pending;
mod pump;
mod request;
mod retry;
mod router;
mod server;
mod waiting;
mod window;

pub use access::{AccessPolicy, AllowAll, AllowExposed, AllowPublic};
pub use builder::{IntoExecutor, RpcServerBuilder};
pub use client::{Nobody, Retry, RpcClient};
pub use counters::ServerCounters;
pub use handler::{Handler, PlainHandler, StateWithArgs, StateWithoutArgs, WithArgs, WithoutArgs};
pub use outgoing::{Call, Cast};
pub use router::Router;
pub use server::{Drained, RpcServer};

pub(crate) use job::Running;
pub(crate) use outbox::{Outbox, ReplySink};
pub(crate) use pending::Pending;
