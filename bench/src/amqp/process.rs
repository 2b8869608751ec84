//! Each run is a process of its own: this program again, Python, or this program under valgrind.

use std::env;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::cases::{Case, Operation, Payload, Subject};
use super::one::{One, Sample};
use super::subject::raw;

/// What starting, draining and stopping may take besides the run itself.
const MARGIN: Duration = Duration::from_secs(90);
/// How long a run under valgrind may take.
const SLOW: Duration = Duration::from_secs(900);
/// The variable that names the Python interpreter with oslo.messaging.
const PYTHON: &str = "LONGSHORE_PYTHON";

/// Runs one subject once.
pub(crate) fn sample(case: Case, one: &One) -> Result<Sample> {
    let limit = Duration::from_millis(one.warm_up + one.millis) + MARGIN;
    let mut command = match one.subject {
        Subject::Oslo => python(case, one)?,
        _ => again(one)?,
    };
    let name = one.subject.name();
    let text = output(&mut command, limit).with_context(|| format!("{name} in {}", one.case))?;
    if one.subject == Subject::Oslo {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(raw::clean_up(&one.url, &one.topic, case.servers))?;
    }
    // Libraries of Python may print, too.
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{name} printed no sample: {line:?}"))
}

fn again(one: &One) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments(one));
    // Not as an argument, where every user of the machine could read its password.
    command.env("RABBITMQ_URL", &one.url);
    Ok(command)
}

fn arguments(one: &One) -> Vec<String> {
    let mut arguments = vec![
        "amqp-one".to_owned(),
        format!("--subject={}", one.subject.name()),
        format!("--case={}", one.case),
        format!("--in-flight={}", one.in_flight),
        format!("--millis={}", one.millis),
        format!("--warm-up={}", one.warm_up),
        format!("--topic={}", one.topic),
    ];
    arguments.extend(one.calls.map(|calls| format!("--calls={calls}")));
    arguments
}

fn python(case: Case, one: &One) -> Result<Command> {
    let interpreter = env::var_os(PYTHON).with_context(|| {
        format!("{PYTHON} is not set: `cargo xtask python` makes it, `--skip oslo` does without")
    })?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop/load.py");
    let operation = match case.operation {
        Operation::Call => "call",
        Operation::Cast => "cast",
        Operation::Fanout => "fanout",
    };
    let mut command = Command::new(interpreter);
    command.arg("-W").arg("ignore").arg(script).args([
        operation.to_owned(),
        format!("--topic={}", one.topic),
        format!("--in-flight={}", one.in_flight),
        format!("--servers={}", case.servers),
        format!("--millis={}", one.millis),
        format!("--warm-up={}", one.warm_up),
    ]);
    if case.payload == Payload::Mix {
        let lengths: Vec<String> = (0..64)
            .map(|number| Payload::Mix.length(number).to_string())
            .collect();
        command.arg(format!("--lengths={}", lengths.join(",")));
    }
    command.env("RABBITMQ_URL", &one.url);
    Ok(command)
}

/// User instructions per call: two runs of which one makes twice as many calls, so that start and stop cancel out.
pub(crate) fn instructions(one: &One, calls: usize, profiles: Option<&Path>) -> Result<f64> {
    let once = counted(one, calls, profiles)?;
    let twice = counted(one, calls * 2, profiles)?;
    Ok((twice - once) / calls as f64)
}

fn counted(one: &One, calls: usize, profiles: Option<&Path>) -> Result<f64> {
    let directory = profiles.map_or_else(env::temp_dir, PathBuf::from);
    let file = directory.join(format!(
        "callgrind.{}.{}.{}.{calls}",
        one.subject.name(),
        one.case,
        one.in_flight
    ));
    let one = One {
        calls: Some(calls),
        ..one.clone()
    };
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe()?)
        .args(arguments(&one))
        .env("RABBITMQ_URL", &one.url);
    output(&mut command, SLOW)?;
    let profile = fs::read_to_string(&file)
        .with_context(|| format!("valgrind wrote no profile {}", file.display()))?;
    if profiles.is_none() {
        fs::remove_file(&file)?;
    }
    profile
        .lines()
        .find_map(|line| line.strip_prefix("totals:")?.trim().parse().ok())
        .context("the profile has no totals")
}

/// Fails unless valgrind can be started.
pub(crate) fn check_valgrind() -> Result<()> {
    let found = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    ensure!(
        found.is_ok_and(|status| status.success()),
        "instructions are counted by valgrind, which is not installed (on Debian: `apt-get install valgrind`): \
         install it, or leave out --instructions"
    );
    Ok(())
}

/// What a command prints; it is killed when the limit is over.
fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let status = wait(&mut child, limit)?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text)?;
    }
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => bail!("{program} failed: {status}"),
        None => bail!("{program} was killed: it ran for longer than {limit:?}"),
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
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
        thread::sleep(Duration::from_millis(10));
    }
}
