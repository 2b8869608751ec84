//! Running other programs, with the command line shown and a deadline on every wait.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(20);

/// How long one command may take before it is killed and counts as failed.
///
/// The longest honest one is a cold build of the whole workspace on two cores.
const COMMAND_DEADLINE: Duration = Duration::from_secs(40 * 60);

/// A command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = match program.file_name() {
        // The path of the toolchain that runs us tells nothing.
        Some(name) if name == "cargo" => name,
        _ => program.as_os_str(),
    };
    std::iter::once(program)
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Shows and runs `command` with our own output; an error unless it ends with success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", shown(command));
    run_within(command, COMMAND_DEADLINE)
}

/// Runs `command`, killing it when `limit` is over; an error unless it ends with success.
pub(crate) fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let line = shown(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{line}` failed: {status}"),
        None => bail!("`{line}` was killed: it ran for longer than {limit:?}"),
    }
}

/// Waits for `child`; `None` when `limit` was over first, in which case it has been killed.
fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// What `command` prints on its standard output; its errors go to ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed invalid UTF-8"))
}

/// Whether `command` starts and ends with success, without a word from it.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether the shell would find `program`.
pub(crate) fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// Where the shell would find `program`; one that is a path is where it says, if anywhere.
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// A running process, found by its environment.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// The program's name as the kernel knows it.
    pub(crate) name: String,
}

/// Every process that was started with the environment entry `NAME=value`.
///
/// An entry that only our own processes have survives what a pid file does not: a crash between
/// fork and write, a daemon that forks again, a pid that was given to somebody else.
pub(crate) fn with_environment(name: &str, value: &Path) -> Result<Vec<Process>> {
    let entry = format!("{name}={}", value.display());
    let mut found = Vec::new();
    for directory in fs::read_dir("/proc").context("cannot list the processes in /proc")? {
        let directory = directory?;
        let Some(pid) = directory
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process of another user, or one that ended a moment ago, is not ours.
        let Ok(environment) = fs::read(directory.path().join("environ")) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|candidate| candidate == entry.as_bytes())
        {
            let name = fs::read_to_string(directory.path().join("comm")).unwrap_or_default();
            found.push(Process {
                pid,
                name: name.trim_end().to_owned(),
            });
        }
    }
    Ok(found)
}

/// A signal that ends a process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// Asks it to shut down.
    Term,
    /// Ends it at once, as a crash of the machine would.
    Kill,
}

/// Signals `processes`; those that are gone already do not count as an error.
pub(crate) fn signal(processes: &[Process], signal: Signal) {
    if processes.is_empty() {
        return;
    }
    let name = match signal {
        Signal::Term => "TERM",
        Signal::Kill => "KILL",
    };
    // The shell's own `kill`: the program of that name is not installed everywhere.
    let mut command = Command::new("sh");
    command.args(["-c", "kill -s \"$0\" \"$@\"", name]);
    command.args(processes.iter().map(|process| process.pid.to_string()));
    let _ = succeeds(&mut command);
}

/// Polls `condition` until it holds or `limit` is over, and says whether it came to hold.
pub(crate) fn wait_until(
    limit: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<bool> {
    let deadline = Instant::now() + limit;
    while !condition()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(POLL * 2);
    }
    Ok(true)
}

/// Leads a process group of its own once the leader of the present one is gone, as it may be for what a script has left
/// in the background: oslo.messaging reads the leader's start time to name its queues, and fails without.
pub(crate) fn join_a_living_group() {
    let leader = rustix::process::getpgrp();
    if rustix::process::test_kill_process(leader).is_err() {
        // The leader of a session cannot do this, and its group has a living leader: itself.
        let _ = rustix::process::setpgid(None, None);
    }
}
