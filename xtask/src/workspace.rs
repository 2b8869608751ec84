//! Where things are: the checkout this program was built in, and its target directory.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    // This program is never installed: it runs in the checkout that it was compiled from.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a directory of the workspace")
}

/// Cargo's target directory, which also holds the brokers' data and the Python environment.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// The cargo that runs us, so that a `+toolchain` choice carries over.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
