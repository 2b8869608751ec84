//! The workspace's test programs: built once, then run stage by stage.
//!
//! Cargo can select tests by package or by name but not by both, and selecting packages changes
//! the features of their dependencies, which builds them again. So everything is built in one go,
//! and each program is run as `cargo test` would run it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{process, workspace};

/// A test program that is still running after this hangs.
const PROGRAM_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Marks a test program and the processes that it starts.
const MARK: &str = "LONGSHORE_TEST_PROGRAM";

/// Which kind of test a program holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// Needs nothing but itself.
    Unit,
    /// Needs the broker.
    Integration,
    /// Needs RabbitMQ 4 beside it.
    RabbitMq4,
    /// Needs the broker and real oslo.messaging.
    Interop,
    /// Builds projects of its own against the workspace.
    Linkage,
    /// Runs the programs that users run, over the broker.
    EndToEnd,
}

/// One test program.
#[derive(Debug)]
pub(crate) struct TestProgram {
    /// The directory of its package, relative to the root.
    package: String,
    /// The target's name: the file in `tests/`, or the crate's for unit tests.
    target: String,
    unit: bool,
    executable: PathBuf,
}

/// Packages whose integration tests need no broker.
const WITHOUT_BROKER: &[&str] = &[
    "messaging-core",
    "driver-memory",
    "executors",
    "conformance",
    "bench",
    "soak",
    "xtask",
];

impl TestProgram {
    /// Where the program belongs. Each is in exactly one suite; one that nothing is known of is
    /// given the broker.
    pub(crate) fn suite(&self) -> Suite {
        if self.unit {
            Suite::Unit
        } else if self.target.starts_with("linkage") {
            Suite::Linkage
        } else if self.target.starts_with("interop") {
            Suite::Interop
        } else if self.target.starts_with("rabbitmq4") {
            Suite::RabbitMq4
        } else if WITHOUT_BROKER.contains(&self.package.as_str()) {
            Suite::Unit
        } else if ["cli", "examples"].contains(&self.package.as_str()) {
            Suite::EndToEnd
        } else {
            Suite::Integration
        }
    }

    /// Whether this is a driver's run of the conformance suite.
    pub(crate) fn is_conformance(&self) -> bool {
        !self.unit && self.target.starts_with("conformance")
    }

    fn run(&self, environment: &[(&'static str, OsString)]) -> Result<()> {
        let kind = if self.unit { "unittests of" } else { "tests" };
        println!("\n     Running {kind} {}::{}", self.package, self.target);
        let directory = workspace::root().join(&self.package);
        process::join_a_living_group();
        let mut command = Command::new(&self.executable);
        command
            .env("CARGO", workspace::cargo())
            .env("CARGO_MANIFEST_DIR", &directory)
            .env(MARK, &self.executable)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir(directory)
            .stdin(Stdio::null());
        let outcome = process::run_within(&mut command, PROGRAM_LIMIT);
        if outcome.is_err() {
            // A test that failed or was killed may have left servers behind, which would answer
            // the next one's calls.
            let leftovers = process::with_environment(MARK, &self.executable)?;
            process::signal(&leftovers, process::Signal::Kill);
        }
        outcome.with_context(|| format!("{}::{}", self.package, self.target))
    }
}

/// Builds every test program of the workspace.
pub(crate) fn build() -> Result<Vec<TestProgram>> {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args([
        "test",
        "--workspace",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    println!("$ {}", process::shown(&command));
    let programs = process::output(&mut command)?
        .lines()
        .map(parse)
        .filter_map(Result::transpose)
        .collect::<Result<Vec<_>>>()?;
    if programs.is_empty() {
        bail!("the workspace has no tests");
    }
    Ok(programs)
}

/// Runs all of `programs`, so that one failure does not hide another, and names those that failed.
pub(crate) fn run<'a>(
    programs: impl IntoIterator<Item = &'a TestProgram>,
    environment: &[(&'static str, OsString)],
) -> Result<()> {
    let mut failed = BTreeSet::new();
    let mut ran = 0_u32;
    for program in programs {
        ran += 1;
        if let Err(error) = program.run(environment) {
            eprintln!("{error:#}");
            failed.insert(format!("{}::{}", program.package, program.target));
        }
    }
    if ran == 0 {
        bail!("there are no tests of this kind: a stage that runs nothing proves nothing");
    }
    if !failed.is_empty() {
        let names: Vec<_> = failed.into_iter().collect();
        bail!("failed: {}", names.join(", "));
    }
    Ok(())
}

/// The test program that one of cargo's messages announces, if it does.
fn parse(line: &str) -> Result<Option<TestProgram>> {
    let message: Value = serde_json::from_str(line).context("cargo printed something else")?;
    let Some(executable) = message["executable"].as_str() else {
        return Ok(None);
    };
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return Ok(None);
    }
    let manifest = message["manifest_path"]
        .as_str()
        .context("cargo named no manifest")?;
    let package = Path::new(manifest)
        .parent()
        .and_then(|directory| directory.strip_prefix(workspace::root()).ok())
        .and_then(Path::to_str)
        .with_context(|| format!("{manifest} is outside the workspace"))?;
    let target = message["target"]["name"]
        .as_str()
        .context("cargo named no target")?;
    Ok(Some(TestProgram {
        package: package.to_owned(),
        target: target.to_owned(),
        unit: message["target"]["kind"][0] != "test",
        executable: executable.into(),
    }))
}

#[cfg(test)]
mod tests {
    use super::{Suite, TestProgram, parse};

    fn suite_of(package: &str, target: &str, unit: bool) -> Suite {
        let program = TestProgram {
            package: package.to_owned(),
            target: target.to_owned(),
            unit,
            executable: "x".into(),
        };
        program.suite()
    }

    #[test]
    fn each_program_is_in_the_suite_that_brings_what_it_needs() {
        let cases = [
            ("driver-amqp", "messaging_driver_amqp", true, Suite::Unit),
            ("driver-amqp", "conformance", false, Suite::Integration),
            ("driver-memory", "conformance", false, Suite::Unit),
            ("longshore", "interop_python_client", false, Suite::Interop),
            ("longshore", "linkage", false, Suite::Linkage),
            ("longshore", "rabbitmq4_failover", false, Suite::RabbitMq4),
            ("cli", "commands", false, Suite::EndToEnd),
            ("examples", "heat", false, Suite::EndToEnd),
            ("driver-new", "anything", false, Suite::Integration),
        ];
        for (package, target, unit, expected) in cases {
            assert_eq!(
                suite_of(package, target, unit),
                expected,
                "{package}::{target}"
            );
        }
    }

    #[test]
    fn only_test_programs_are_taken_from_cargos_messages() {
        let root = crate::workspace::root().display().to_string();
        let artifact = |test: bool, kind: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{root}/cli/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"commands"}},
                "profile":{{"test":{test}}},"executable":"/x/commands"}}"#
            )
            .replace('\n', "")
        };
        let program = parse(&artifact(true, "test")).unwrap().unwrap();
        assert_eq!(program.package, "cli");
        assert_eq!(program.target, "commands");
        assert!(!program.unit);
        assert!(parse(&artifact(true, "bin")).unwrap().unwrap().unit);
        assert!(parse(&artifact(false, "bin")).unwrap().is_none());
        let finished = r#"{"reason":"build-finished","success":true}"#;
        assert!(parse(finished).unwrap().is_none());
        assert!(parse("warning: not JSON").is_err());
    }
}
