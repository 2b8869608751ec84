#![doc = include_str!("../README.md")]

mod behaviour;
mod case;
mod events;
mod failure;
mod harness;
mod ledger;
mod link;
mod link_proxy;
mod logs;

mod rpc;
mod runner;
mod session;

pub use behaviour::{Behaviour, Need, Run, behaviours};
pub use case::{Case, Status, Verdict, cases};
pub use failure::Failure;
pub use harness::{Harness, Served, Skip, Variant, env_url};
pub use ledger::{Account, Guarantee, Ledger, Summary};
pub use link_proxy::LinkProxy;
pub use runner::main;
pub use session::Session;
