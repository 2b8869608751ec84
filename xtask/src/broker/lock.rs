//! Excluding other runs of this program from what one of them is changing.

use std::{
    fs::{self, File, TryLockError},
    path::Path,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::process;

/// Holds `file` against others until what is returned is dropped. When somebody else has held it
/// for `limit`, the error says what they have been doing.
pub(super) fn hold(file: &Path, limit: Duration, doing: &str) -> Result<File> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory)?;
    }
    let file = File::create(file)?;
    let held = process::wait_until(limit, || match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error.into()),
    })?;
    if !held {
        bail!("somebody else has been {doing} for {limit:?}");
    }
    Ok(file)
}
