//! Which methods a caller may reach.

use std::fmt;

/// Decides whether a method may be called. A method it refuses is answered like one that does not exist.
pub trait AccessPolicy: fmt::Debug + Send + Sync + 'static {
    /// Whether `method` may be called; `exposed` is what the router says of it.
    fn allows(&self, method: &str, exposed: bool) -> bool;
}

/// Everything may be called (oslo.messaging's `LegacyRPCAccessPolicy`).
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowAll;

/// Methods that begin with an underscore are private: the default.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowPublic;

/// Only methods that the router marks as exposed may be called (`ExplicitRPCAccessPolicy`).
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowExposed;

impl AccessPolicy for AllowAll {
    fn allows(&self, _: &str, _: bool) -> bool {
        true
    }
}

impl AccessPolicy for AllowPublic {
    fn allows(&self, method: &str, _: bool) -> bool {
        !method.starts_with('_')
    }
}

impl AccessPolicy for AllowExposed {
    fn allows(&self, _: &str, exposed: bool) -> bool {
        exposed
    }
}
