//! Options from a file and the environment.

use std::path::Path;
use std::time::Duration;

use crate::error::Result;

/// Where options come from besides the URL: an oslo.config INI file and the environment.
#[derive(Clone, Debug, Default)]
pub struct Config {}

impl Config {
    /// The environment alone (`OS_<GROUP>__<OPTION>`).
    pub fn from_env() -> Self {
        Self {}
    }

    /// A file, overridden by the environment.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) when the file cannot be read or parsed.
    pub fn from_file(_path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self {})
    }

    /// One option of a group, environment before file; `None`: unset.
    pub fn get(&self, _group: &str, _option: &str) -> Option<&str> {
        None
    }

    /// `[DEFAULT] transport_url`.
    pub fn transport_url(&self) -> Option<&str> {
        None
    }

    /// `[DEFAULT] control_exchange`.
    pub fn control_exchange(&self) -> Option<&str> {
        None
    }

    /// `[DEFAULT] rpc_response_timeout`, in seconds.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) naming the option and where the bad value came from.
    pub fn rpc_response_timeout(&self) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// `[DEFAULT] executor_thread_pool_size`.
    ///
    /// # Errors
    /// As [`rpc_response_timeout`](Self::rpc_response_timeout).
    pub fn executor_thread_pool_size(&self) -> Result<Option<std::num::NonZeroU32>> {
        Ok(None)
    }

    /// `[DEFAULT] rpc_ping_enabled`.
    ///
    /// # Errors
    /// As [`rpc_response_timeout`](Self::rpc_response_timeout).
    pub fn rpc_ping_enabled(&self) -> Result<Option<bool>> {
        Ok(None)
    }
}
