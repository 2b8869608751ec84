//! The Python environment with the real oslo.messaging, under `target/python`.

use std::{ffi::OsString, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// What the pinned oslo.messaging asks for.
const OLDEST: (u32, u32) = (3, 11);

/// Installing some fifty small packages, from a slow mirror.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// What the environment is for; all of it must import before it counts as made.
const NEEDED: &str = "import oslo_messaging, eventlet, pika, oslotest, pifpaf, testscenarios";

/// What was installed, written when all of it is.
const STAMP: &str = "installed-requirements.txt";

/// Makes the environment if it is missing or out of date, and returns its interpreter.
pub(crate) fn ensure() -> Result<PathBuf> {
    let directory = directory();
    let interpreter = interpreter();
    let requirements = workspace::root().join("interop/requirements.txt");
    let wanted = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;

    // The stamp is the whole list: what was installed can be read, and no hash can collide.
    let stamp = directory.join(STAMP);
    if interpreter.exists() && fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(interpreter);
    }

    let python = find_interpreter()?;
    println!("making the Python environment {}", directory.display());
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    process::run(Command::new(&python).args(["-m", "venv"]).arg(&directory)).with_context(
        || "cannot make a virtual environment (on Debian: `apt-get install python3-venv`)",
    )?;
    let mut install = Command::new(&interpreter);
    install
        .args(["-m", "pip", "install", "--quiet", "--no-input"])
        .args(["--disable-pip-version-check", "--requirement"])
        .arg(&requirements);
    println!("$ {}", process::shown(&install));
    process::run_within(&mut install, INSTALL_LIMIT)?;
    process::run(Command::new(&interpreter).args(["-W", "ignore", "-c", NEEDED]))?;
    fs::write(stamp, wanted)?;
    Ok(interpreter)
}

/// The variable that tells tests where the interpreter is.
pub(crate) fn environment() -> (&'static str, OsString) {
    ("LONGSHORE_PYTHON", interpreter().into())
}

/// Whether the environment has been made.
pub(crate) fn is_made() -> bool {
    directory().join(STAMP).exists()
}

fn directory() -> PathBuf {
    workspace::target().join("python")
}

fn interpreter() -> PathBuf {
    directory().join("bin/python")
}

fn find_interpreter() -> Result<PathBuf> {
    let (major, minor) = OLDEST;
    let check = format!("import sys; sys.exit(sys.version_info < ({major}, {minor}))");
    for candidate in ["python3", "python3.11", "python3.12", "python3.13"] {
        if process::succeeds(Command::new(candidate).args(["-c", &check])) {
            return Ok(candidate.into());
        }
    }
    bail!(
        "no Python {major}.{minor} or newer is on the PATH: \
         install python3 and python3-venv for the interoperability tests"
    )
}
