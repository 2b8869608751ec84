//! The full test run: its stages in order, their times, and the table at the end.

use std::{
    ffi::OsString,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    broker::{Brokers, ROLES, Release},
    process, python,
    suites::{self, Suite, TestProgram},
    workspace,
};

/// One stage of the test run, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Stage {
    /// Formatting is rustfmt's
    Fmt,
    /// No warning from clippy or the compiler, in any target
    Clippy,
    /// Every test program of the workspace is built
    Build,
    /// Tests that need nothing but themselves, the memory driver's conformance included
    Unit,
    /// Documentation examples run, and the documentation builds without a warning
    Doc,
    /// The brokers are up and the Python environment is made
    Brokers,
    /// Drivers against the broker: conformance, faults
    Integration,
    /// The conformance suite on RabbitMQ 4 with its deprecated features denied, and what it and
    /// the other broker do together; without this stage RabbitMQ 4 is not brought up
    #[value(name = "rabbitmq-4")]
    RabbitMq4,
    /// Real oslo.messaging on the other side
    Interop,
    /// Drivers from other crates register in every kind of build
    Linkage,
    /// The examples and the command-line tool, as users run them
    Heat,
    /// Licences, advisories and sources of the dependencies
    Deny,
}

/// How a stage that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Ok,
    /// Its tool is not there. Only for checks that are not the project's own tests.
    NotChecked,
}

/// What the stages hand on to those after them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    programs: Vec<TestProgram>,
    brokers: Brokers,
    without_rabbitmq_4: bool,
    environment: Vec<(&'static str, OsString)>,
}

impl Stage {
    /// What has to have run before this one.
    fn needs(self) -> &'static [Self] {
        match self {
            Self::Unit | Self::Linkage => &[Self::Build],
            Self::Integration | Self::RabbitMq4 | Self::Interop | Self::Heat => {
                &[Self::Build, Self::Brokers]
            }
            Self::Fmt | Self::Clippy | Self::Build | Self::Doc | Self::Brokers | Self::Deny => &[],
        }
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("no stage is hidden");
        value.get_name().to_owned()
    }

    fn run(self, run: &mut Run) -> Result<Ended> {
        match self {
            Self::Fmt => cargo(&["fmt", "--all", "--check"])?,
            Self::Clippy => cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "--deny",
                "warnings",
            ])?,
            Self::Build => run.build()?,
            Self::Unit => run.suite(Suite::Unit)?,
            Self::Doc => {
                cargo(&["test", "--workspace", "--doc"])?;
                process::run(
                    cargo_command(&["doc", "--workspace", "--no-deps"])
                        .env("RUSTDOCFLAGS", "--deny warnings"),
                )?;
            }
            Self::Brokers => run.bring_up()?,
            Self::Integration => run.suite(Suite::Integration)?,
            Self::RabbitMq4 => run.rabbitmq_4()?,
            Self::Interop => run.suite(Suite::Interop)?,
            Self::Linkage => run.suite(Suite::Linkage)?,
            Self::Heat => run.suite(Suite::EndToEnd)?,
            Self::Deny => return deny(),
        }
        Ok(Ended::Ok)
    }
}

impl Run {
    /// Builds every test program.
    pub(crate) fn build(&mut self) -> Result<()> {
        self.programs = suites::build()?;
        self.environment
            .push(("CONFORMANCE_REQUIRE", "memory".into()));
        Ok(())
    }

    /// Brings up what the tests need from outside of themselves.
    pub(crate) fn bring_up(&mut self) -> Result<()> {
        let mut roles: Vec<_> = ROLES.iter().collect();
        if self.without_rabbitmq_4 {
            roles.retain(|role| role.release != Release::Four);
        }
        self.brokers = Brokers::up(roles)?;
        let mut environment = self.brokers.environment()?;
        python::ensure()?;
        environment.push(python::environment());
        environment.push(("CONFORMANCE_REQUIRE", "memory,amqp".into()));
        for (name, value) in &environment {
            println!("{name}={}", value.display());
        }
        self.environment = environment;
        Ok(())
    }

    /// Runs the driver tests against the broker, and every run of the conformance suite.
    pub(crate) fn driver_tests(&self) -> Result<()> {
        let chosen = self.programs.iter().filter(|program| {
            matches!(program.suite(), Suite::Integration | Suite::RabbitMq4)
                || program.is_conformance()
        });
        suites::run(chosen, &self.environment)
    }

    /// Runs what needs RabbitMQ 4, and then the RabbitMQ driver's conformance suite with it in the place of the
    /// system's.
    fn rabbitmq_4(&self) -> Result<()> {
        self.suite(Suite::RabbitMq4)?;
        let [ordinary, four] = &ROLES;
        let mut environment = self.environment.clone();
        for (name, value) in &self.environment {
            let renamed = [
                (four.url, ordinary.url),
                (four.control, ordinary.control),
                (four.node, ordinary.node),
                (four.tls, ordinary.tls),
                (four.tls_wrong_name, ordinary.tls_wrong_name),
            ];
            if let Some((_, ordinary)) = renamed.iter().find(|(four, _)| four == name) {
                environment.retain(|(name, _)| name != ordinary);
                environment.push((ordinary, value.clone()));
            }
        }
        let chosen = self
            .programs
            .iter()
            .filter(|program| program.suite() == Suite::Integration && program.is_conformance());
        suites::run(chosen, &environment)
    }

    /// Stops the brokers that this run has started.
    pub(crate) fn release(&mut self) -> Result<()> {
        std::mem::take(&mut self.brokers).release()
    }

    fn suite(&self, suite: Suite) -> Result<()> {
        let chosen = self.programs.iter().filter(|p| p.suite() == suite);
        suites::run(chosen, &self.environment)
    }
}

/// Runs the chosen stages up to the first that fails, and prints what each took.
pub(crate) fn test(only: &[Stage], skip: &[Stage]) -> Result<()> {
    let chosen = choose(only, skip);
    if chosen.is_empty() {
        bail!("no stage is left to run");
    }
    let started = Instant::now();
    let mut run = Run {
        without_rabbitmq_4: skip.contains(&Stage::RabbitMq4),
        ..Run::default()
    };
    let mut table = Vec::new();
    let mut failure = None;
    for stage in &chosen {
        println!("\n=== {} ===", stage.name());
        let begun = Instant::now();
        let ended = stage.run(&mut run);
        let took = begun.elapsed();
        println!("=== {}: {} min ===", stage.name(), minutes(took));
        table.push((*stage, took, ended.as_ref().ok().copied()));
        if let Err(error) = ended {
            eprintln!("{} failed: {error:#}", stage.name());
            failure = Some(error.context(format!("stage `{}` failed", stage.name())));
            break;
        }
    }
    let released = run.release().context("the brokers are not stopped");

    println!("\n{:<12} {:>7}  result", "stage", "minutes");
    for (stage, took, ended) in &table {
        let result = match ended {
            Some(Ended::Ok) => "ok",
            Some(Ended::NotChecked) => "NOT CHECKED",
            None => "FAILED",
        };
        println!("{:<12} {:>7}  {result}", stage.name(), minutes(*took));
    }
    for stage in &chosen[table.len()..] {
        println!("{:<12} {:>7}  not run", stage.name(), "");
    }
    println!("{:<12} {:>7}", "all", minutes(started.elapsed()));
    failure.map_or(released, Err)
}

/// The stages to run, with what they need, in order.
fn choose(only: &[Stage], skip: &[Stage]) -> Vec<Stage> {
    let asked = |stage: &Stage| only.is_empty() || only.contains(stage);
    let wanted: Vec<_> = Stage::value_variants()
        .iter()
        .copied()
        .filter(|stage| asked(stage) && !skip.contains(stage))
        .collect();
    Stage::value_variants()
        .iter()
        .copied()
        .filter(|stage| {
            wanted.contains(stage) || wanted.iter().any(|other| other.needs().contains(stage))
        })
        .collect()
}

fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.current_dir(workspace::root()).args(arguments);
    command
}

fn cargo(arguments: &[&str]) -> Result<()> {
    process::run(&mut cargo_command(arguments))
}

fn deny() -> Result<Ended> {
    if !process::succeeds(&mut cargo_command(&["deny", "--version"])) {
        eprintln!(
            "NOT CHECKED: licences and advisories of the dependencies, because cargo-deny is not \
             installed (`cargo install --locked cargo-deny`)"
        );
        return Ok(Ended::NotChecked);
    }
    cargo(&["deny", "check"])?;
    Ok(Ended::Ok)
}

fn minutes(took: Duration) -> String {
    format!("{:.2}", took.as_secs_f64() / 60.0)
}

#[cfg(test)]
mod tests {
    use super::{Stage, choose};

    #[test]
    fn a_stage_brings_what_it_needs_with_it() {
        assert_eq!(
            choose(&[Stage::Interop], &[]),
            [Stage::Build, Stage::Brokers, Stage::Interop]
        );
        assert_eq!(choose(&[Stage::Fmt], &[]), [Stage::Fmt]);
    }

    #[test]
    fn what_others_need_cannot_be_skipped_away() {
        let chosen = choose(&[], &[Stage::Clippy, Stage::Brokers]);
        assert!(!chosen.contains(&Stage::Clippy));
        assert!(chosen.contains(&Stage::Brokers));
        let unbrokered = [
            Stage::Brokers,
            Stage::Integration,
            Stage::RabbitMq4,
            Stage::Interop,
            Stage::Heat,
        ];
        assert!(!choose(&[], &unbrokered).contains(&Stage::Brokers));
    }
}
