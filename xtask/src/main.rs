//! Chores of the workspace: `cargo xtask --help` lists them.
#![allow(
    clippy::print_stdout,
    reason = "this program talks to the person who runs it"
)]

mod broker;
mod process;
mod python;
mod stages;
mod suites;
mod workspace;

use std::{
    num::NonZeroU32,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use broker::{Brokers, Node, ROLES, Release};
use stages::{Run, Stage};

/// Chores of the Longshore workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Runs every test of the project, stage by stage, and brings up what they need
    Test {
        /// Run these stages alone, and what they need
        #[arg(long, value_delimiter = ',', value_name = "STAGE")]
        only: Vec<Stage>,
        /// Leave these stages out
        #[arg(
            long,
            value_delimiter = ',',
            value_name = "STAGE",
            hide_possible_values = true
        )]
        skip: Vec<Stage>,
    },
    /// Runs the driver tests and the conformance suite again and again, or a long load with faults,
    /// such as `soak amqp`
    Soak {
        /// How many rounds of the tests, up to the first failure
        #[arg(long, default_value = "20")]
        repeat: NonZeroU32,
        /// The load and its options, in the place of the tests
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        load: Vec<String>,
    },
    /// Starts and stops the RabbitMQ nodes that the tests use
    #[command(after_help = BROKERS_HELP)]
    Brokers(BrokersArguments),
    /// Makes the Python environment with oslo.messaging, and prints its interpreter
    Python,
    /// Prints the variables that tests need, for `eval "$(cargo xtask env)"`
    Env,
    /// Runs a benchmark, such as `bench memory`
    Bench {
        /// The benchmark and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        arguments: Vec<String>,
    },
}

const BROKERS_HELP: &str = "\
Without --node and --broker it is the two nodes that the tests use: `rabbit`, of rabbitmq-3, and \
`rabbit-4`, of rabbitmq-4. With --broker alone it is the node of that release. A node with another \
name is of rabbitmq-3 unless --broker says otherwise, and of what it was last from then on.";

#[derive(Debug, Args)]
struct BrokersArguments {
    /// Which node; each has its own ports and data
    #[arg(long)]
    node: Option<String>,
    /// What the node is to run
    #[arg(long, value_name = "RELEASE")]
    broker: Option<Release>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum Action {
    /// Brings the node up, with fresh data unless it is running already, and prints its URLs
    Up,
    /// Stops the node and all that belongs to it
    Down,
    /// Prints which nodes run, and where
    Status,
    /// Starts a stopped or killed node, with its data and on the same port
    Start,
    /// Shuts the node down in order; `start` brings it back
    Stop,
    /// Ends the node as a crash would (SIGKILL); `start` brings it back
    Kill,
    /// Stops and starts the node
    Restart,
}

/// How long a load may take, however many minutes it is asked for.
const SOAK_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

fn main() -> ExitCode {
    let outcome = match Arguments::parse().chore {
        Chore::Test { only, skip } => stages::test(&only, &skip),
        Chore::Soak { repeat, load } if load.is_empty() => soak(repeat),
        Chore::Soak { load, .. } => soak_load(&load),
        Chore::Brokers(arguments) => brokers(&arguments),
        Chore::Python => python::ensure().map(|interpreter| println!("{}", interpreter.display())),
        Chore::Env => environment(),
        Chore::Bench { arguments } => bench(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn brokers(arguments: &BrokersArguments) -> Result<()> {
    let BrokersArguments {
        node,
        broker,
        action,
    } = arguments;
    if matches!(action, Action::Status) {
        return status();
    }
    match (node, broker) {
        (Some(name), release) => act(&Node::new(name, *release)?, *action),
        (None, Some(release)) => act(&Node::default_of(*release)?, *action),
        (None, None) => all_roles(*action),
    }
}

/// Does `action` to every broker that the tests use.
fn all_roles(action: Action) -> Result<()> {
    for role in &ROLES {
        // Before anything is done to the others.
        if let (Some(_), Action::Start | Action::Stop | Action::Kill | Action::Restart) =
            (role.outside(), action)
        {
            bail!(
                "{} names an outside broker, which is left alone: unset it, or name a node of the \
                 project's own with --node",
                role.url
            );
        }
    }
    for role in &ROLES {
        match (role.outside(), action) {
            (None, _) => act(&role.node()?, action)?,
            (Some(url), Action::Up) => role.describe_outside(&url)?,
            (Some(_), _) => {}
        }
    }
    match action {
        Action::Up => broker::install_proxy(),
        _ => Ok(()),
    }
}

fn act(node: &Node, action: Action) -> Result<()> {
    match action {
        Action::Up => {
            let started = node.up()?;
            let how = if started { "started" } else { "already up" };
            println!("{how}: {} of {}", node.name(), node.version());
            println!("url      {}", node.url()?);
            println!("tls      {}", node.tls_url("localhost")?);
            println!("control  {}", node.control_script().display());
            println!("node     {}", node.node_script().display());
            Ok(())
        }
        Action::Down => node.down(),
        Action::Status => node.status().map(|status| println!("{status}")),
        Action::Start => node.start(),
        Action::Stop => node.stop(),
        Action::Kill => node.kill(),
        Action::Restart => node.restart(),
    }
}

fn status() -> Result<()> {
    for role in &ROLES {
        if let Some(url) = role.outside() {
            role.describe_outside(&url)?;
        }
    }
    let known = broker::known_nodes()?;
    if known.is_empty() {
        println!("no node has been up in this checkout");
    }
    for node in known {
        println!(
            "{:<16} {:<24} {}",
            node.name(),
            node.version(),
            node.status()?
        );
    }
    Ok(())
}

fn environment() -> Result<()> {
    let mut variables = Brokers::running()?.environment()?;
    if !python::is_made() {
        bail!("the Python environment is not made: run `cargo xtask python`");
    }
    variables.push(python::environment());
    for (name, value) in variables {
        let value = value.to_str().context("a path is not UTF-8")?;
        println!("export {name}={}", broker::quoted(value));
    }
    Ok(())
}

fn soak(repeat: NonZeroU32) -> Result<()> {
    let mut run = Run::default();
    let outcome = soak_rounds(&mut run, repeat);
    let released = run.release();
    outcome.and(released)
}

fn soak_rounds(run: &mut Run, repeat: NonZeroU32) -> Result<()> {
    run.build()?;
    run.bring_up()?;
    for round in 1..=repeat.get() {
        println!("\n=== round {round} of {repeat} ===");
        run.driver_tests()
            .with_context(|| format!("round {round} of {repeat}"))?;
    }
    println!("\n{repeat} rounds without a failure");
    Ok(())
}

/// Runs a long load with faults against a broker of the project's own.
fn soak_load(arguments: &[String]) -> Result<()> {
    let mut command = release_program("longshore-soak", arguments);
    let brokers = Brokers::up([&ROLES[0]])?;
    let outcome = brokers.environment().and_then(|environment| {
        println!("$ {}", process::shown(&command));
        process::run_within(command.envs(environment), SOAK_LIMIT)
    });
    outcome.and(brokers.release())
}

/// `cargo run` of a package's program, optimized.
fn release_program(package: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(workspace::cargo());
    command
        .current_dir(workspace::root())
        .args(["run", "--release", "--package", package, "--"])
        .args(arguments);
    command
}

fn bench(arguments: &[String]) -> Result<()> {
    let mut command = release_program("longshore-bench", arguments);
    // The others need nothing but this machine.
    if arguments.first().is_none_or(|name| name != "amqp") {
        return process::run(&mut command);
    }
    let brokers = Brokers::up([&ROLES[0]])?;
    let outcome = python::ensure().and_then(|_| {
        let (name, interpreter) = python::environment();
        command.envs(brokers.environment()?).env(name, interpreter);
        process::run(&mut command)
    });
    outcome.and(brokers.release())
}
