//! Runs the real binary, and leaves no process behind.

#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes, shorter than anybody waits.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What the run of a command left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Finished {
    /// The object on stderr.
    pub(crate) fn error(&self) -> Value {
        serde_json::from_str(&self.stderr).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The one line on stdout.
    pub(crate) fn line(&self) -> &str {
        let line = self
            .stdout
            .strip_suffix('\n')
            .unwrap_or_else(|| panic!("{self:?}"));
        assert!(!line.contains('\n'), "more than a line: {self:?}");
        line
    }

    /// The one line on stdout as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.line()).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts success and silence.
    #[track_caller]
    pub(crate) fn succeeds_silently(self) -> Self {
        assert_eq!((self.stdout.as_str(), self.stderr.as_str()), ("", ""));
        self.exits(0)
    }

    /// Asserts an error of this kind and outcome as the one line of stderr, and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, kind: &str, outcome: &str) -> Self {
        let start = format!("error: {kind} ({outcome}): ");
        assert!(self.stderr.starts_with(&start), "{start}: {self:?}");
        assert!(
            self.stderr.ends_with('\n') && self.stderr.matches('\n').count() == 1,
            "{self:?}"
        );
        assert_eq!(self.stdout, "");
        self.exits(code)
    }
}

/// The binary, deaf to the environment of whoever runs the tests.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("OS_") || ["RUST_LOG", "NO_COLOR", "CLICOLOR_FORCE"].contains(&&*name) {
            command.env_remove(&*name);
        }
    }
    command
}

/// Runs the binary to its end.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Finished {
    let mut command = command();
    command.args(args);
    finish(&mut command)
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn finish(command: &mut Command) -> Finished {
    Running::spawn(command).finish()
}

/// A process that dies with its guard.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    stderr: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Running {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let started = Instant::now();
        let stdout = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    return;
                }
            }
        });
        let mut pipe = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let stderr = Arc::new(Mutex::new(String::new()));
        let log = Arc::clone(&stderr);
        let reader = thread::spawn(move || {
            let mut line = String::new();
            while pipe.read_line(&mut line).expect("stderr is UTF-8") > 0 {
                log.lock().unwrap().push_str(&std::mem::take(&mut line));
            }
        });
        Self {
            child,
            started,
            lines,
            stderr,
            reader: Some(reader),
        }
    }

    /// Starts a server and waits until it receives.
    #[track_caller]
    pub(crate) fn serve(url: &str, topic: &str, server: &str, options: &[&str]) -> Self {
        let mut command = command();
        command
            .args(["serve", url, topic, "--server", server])
            .args(options);
        let mut server_process = Self::spawn(&mut command);
        match server_process.lines.recv_timeout(PATIENCE) {
            Ok(line) => assert_eq!(line, format!("ready {topic}.{server}\n")),
            Err(_) => {
                let _ = server_process.child.kill();
                panic!("no server: {:?}", server_process.finish());
            }
        }
        server_process
    }

    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("the process takes a signal");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours").is_none()
    }

    /// Waits until stderr holds this text.
    #[track_caller]
    pub(crate) fn logs(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stderr.lock().unwrap().contains(text) {
            let late = Instant::now() >= deadline;
            assert!(
                self.is_running() && !late,
                "{text:?} is not in {:?}",
                self.stderr
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let deadline = Instant::now() + PATIENCE;
        while self.is_running() {
            assert!(Instant::now() < deadline, "the command does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let took = self.started.elapsed();
        let code = self.child.wait().expect("the child is ours").code();
        let reader = self.reader.take().expect("taken once");
        reader.join().expect("the reader ends with the pipe");
        let stderr = std::mem::take(&mut *self.stderr.lock().unwrap());
        // The writing end is closed, so the channel ends after the last line.
        let stdout = self.lines.iter().collect();
        Finished {
            code,
            stdout,
            stderr,
            took,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
