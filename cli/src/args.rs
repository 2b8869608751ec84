//! The command line: verbs, options, help, and usage errors that quote no secret.

use std::ffi::OsString;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use longshore::{Error, Version};

use crate::duration::parse_duration;
use crate::exit::Exit;
use crate::output;

/// Call, serve and inspect from a shell, over any transport.
#[derive(Parser)]
#[command(name = "longshore", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Print errors, and what `url`, `drivers` and `executors` list, as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(crate) json: bool,

    /// What to log on stderr, before RUST_LOG: a level (off, error, warn, info, debug, trace) or a filter such as
    /// `warn,longshore=debug`. Without either `serve` logs warnings, the other verbs nothing
    #[arg(long, global = true, value_name = "FILTER", help_heading = GLOBAL)]
    pub(crate) log: Option<String>,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Call a method and print its result as one line of JSON
    #[command(after_help = CALL_EXAMPLES)]
    Call(RequestArgs),

    /// Send a request to one server, without waiting for a result
    #[command(after_help = CAST_EXAMPLES)]
    Cast(RequestArgs),

    /// Send a request to every server of a topic, without waiting for results
    #[command(after_help = FANOUT_EXAMPLES)]
    Fanout(RequestArgs),

    /// Serve a diagnostic endpoint until SIGINT or SIGTERM
    ///
    /// Prints `ready TOPIC.SERVER` on stdout once it receives. Its methods:
    ///
    ///   echo(value)           returns the value
    ///   add(a, b)             returns the sum of two numbers
    ///   sleep(seconds)        blocks its thread that long, a day at most, and returns the seconds
    ///   fail(class, message)  fails as that built-in exception of Python, such as ValueError
    ///   whoami()              returns the name of the server
    ///   count()               returns how many requests ended so far, failed ones too;
    ///                         not those for count, nor those refused before a method ran
    ///   context()             returns the caller's context as it was sent
    ///
    /// A signal lets what runs finish, for ten seconds at most; a second one ends the process at
    /// once. Exit code 0 says that everything finished, 1 that something did not.
    #[command(after_help = SERVE_EXAMPLES, verbatim_doc_comment)]
    Serve(ServeArgs),

    /// Parse a transport URL of any scheme and print its parts, passwords masked
    #[command(after_help = URL_EXAMPLES)]
    Url {
        /// The transport URL: SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,…]/[VIRTUAL_HOST][?OPTION=VALUE&…]
        url: String,
    },

    /// List the transport drivers of this program (with --json: and their options)
    #[command(after_help = DRIVERS_EXAMPLES)]
    Drivers,

    /// List the executors of this program
    #[command(after_help = EXECUTORS_EXAMPLES)]
    Executors,
}

#[derive(Args)]
pub(crate) struct RequestArgs {
    /// The transport URL, such as rabbit://guest:guest@localhost:5672/
    pub(crate) url: String,

    /// The topic; a name after the first slash is the one server that is asked
    #[arg(value_name = "TOPIC[/SERVER]")]
    pub(crate) address: String,

    /// The method
    pub(crate) method: String,

    /// Arguments by name; a value that is JSON is sent as that, any other as text
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) pairs: Vec<String>,

    /// Arguments as a JSON object; KEY=VALUE pairs may be added, each name once
    #[arg(long, value_name = "JSON")]
    pub(crate) args: Option<String>,

    /// The deadline for everything, connecting included: 5s, 500ms, 1.5s, 2m, 1h, or seconds
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) timeout: Duration,

    #[command(flatten)]
    pub(crate) interface: Interface,

    /// The caller's context as a JSON object
    #[arg(long, value_name = "JSON")]
    pub(crate) context: Option<String>,
}

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// The transport URL, such as rabbit://guest:guest@localhost:5672/
    pub(crate) url: String,

    /// The topic
    pub(crate) topic: String,

    /// The name of this server, its own within the topic
    #[arg(long, value_name = "NAME")]
    pub(crate) server: String,

    #[command(flatten)]
    pub(crate) interface: Interface,

    /// What runs the methods; `longshore executors` lists them
    #[arg(long, value_name = "NAME", default_value = "async")]
    pub(crate) executor: String,

    /// How many requests run at once [default: what the configuration or the executor says]
    #[arg(long, value_name = "N")]
    pub(crate) concurrency: Option<NonZeroU32>,
}

/// What client and server have to agree on.
#[derive(Args)]
pub(crate) struct Interface {
    /// The exchange [default: openstack, or OS_DEFAULT__CONTROL_EXCHANGE]
    #[arg(long, value_name = "NAME")]
    pub(crate) exchange: Option<String>,

    /// The namespace of the methods
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,

    /// The version of the methods, such as 1.0
    #[arg(long, value_name = "VERSION")]
    pub(crate) rpc_version: Option<Version>,
}

impl Cli {
    /// Reads the command line of this process. Help, version and usage errors are printed here, and the exit code
    /// is what is left to do.
    pub(crate) fn read() -> Result<Self, Exit> {
        Self::try_parse().map_err(|error| {
            if !error.use_stderr() {
                // Help that nobody reads to its end is no failure.
                let _ = error.print();
                return Exit::Done;
            }
            let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
            if arguments.iter().any(|argument| argument == "--json") {
                let text = hide_secrets(error.render().to_string(), &arguments);
                let text = text.strip_prefix("error: ").unwrap_or(&text);
                let first = text.split("\n\n").next().unwrap_or_default();
                output::failure(&Error::config(first.trim_end()), true);
            } else {
                let text = hide_secrets(error.render().ansi().to_string(), &arguments);
                let _ = anstream::stderr().write_all(text.as_bytes());
            }
            Exit::Usage
        })
    }
}

impl Verb {
    /// What is logged when nobody says: a server runs unattended, whereas the error of a request says it all.
    pub(crate) fn default_log(&self) -> &'static str {
        match self {
            // lapin reports by its log what the driver reports by errors, bodies included.
            Self::Serve(_) => "warn,lapin=off",
            _ => "off",
        }
    }
}

/// Masks every argument that may be a transport URL: a usage error quotes whatever stood in the wrong place.
fn hide_secrets(mut text: String, arguments: &[OsString]) -> String {
    let arguments: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    // Of `--option=value` the value alone is quoted.
    let values = arguments
        .iter()
        .filter_map(|a| a.split_once('=').map(|(_, value)| value));
    let mut quoted: Vec<&str> = arguments.iter().map(AsRef::as_ref).chain(values).collect();
    // The longest first, for one may be the beginning of another.
    quoted.sort_unstable_by_key(|quoted| std::cmp::Reverse(quoted.len()));
    for quoted in quoted {
        let masked = match quoted.split_once("://") {
            Some((_, "")) => continue,
            Some((scheme, _)) => format!("{scheme}://***"),
            None if quoted.contains('@') => "***".to_owned(),
            None => continue,
        };
        text = text.replace(quoted, &masked);
    }
    text
}

const GLOBAL: &str = "Global options";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the server answered with an error
  2  usage or configuration: also an unknown scheme or option, or a wrong password
  3  sent, and unanswered by the deadline
  4  not delivered: nobody there, returned, or refused
  5  never connected, or the link was lost

Examples:
  longshore serve rabbit://guest:guest@localhost/ engine --server engine-1
  longshore call rabbit://guest:guest@localhost/ engine add a=40 b=2
  longshore help call";

const CALL_EXAMPLES: &str = "\
Examples:
  longshore call rabbit://guest:guest@localhost/ engine add a=40 b=2
  longshore call rabbit://guest:guest@localhost/ engine/engine-1 whoami
  longshore call rabbit://guest:guest@localhost/ engine echo value='{\"a\": [1, 2]}' --timeout 500ms
  longshore call rabbit://guest:guest@localhost/ engine health_check \\
      --args '{\"seqid\": 1}' req=hello --exchange heat --rpc-version 1.0 \\
      --context '{\"request_id\": \"r-1\"}'";

const CAST_EXAMPLES: &str = "\
Examples:
  longshore cast rabbit://guest:guest@localhost/ engine refresh host=h1
  longshore cast rabbit://guest:guest@localhost/ engine/engine-1 refresh --args '{\"host\": \"h1\"}'";

const FANOUT_EXAMPLES: &str = "\
Examples:
  longshore fanout rabbit://guest:guest@localhost/ engine refresh host=h1";

const SERVE_EXAMPLES: &str = "\
Examples:
  longshore serve rabbit://guest:guest@localhost/ engine --server engine-1
  longshore serve rabbit://guest:guest@localhost/ engine --server engine-1 \\
      --executor threaded --concurrency 8 --exchange heat --log info";

const URL_EXAMPLES: &str = "\
Examples:
  longshore url 'rabbit://bob:s%2Fcret@one:5672,two/prod?heartbeat_rate=3'
  longshore url rabbit://guest:guest@localhost/ --json";

const DRIVERS_EXAMPLES: &str = "\
Examples:
  longshore drivers
  longshore drivers --json";

const EXECUTORS_EXAMPLES: &str = "\
Examples:
  longshore executors
  longshore executors --json";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn secrets_in_misplaced_arguments_are_masked() {
        let arguments = [
            "rabbit://u:s3cret@h/",
            "--timeout=amqp://u:s3cret@h",
            "u:s3cret@h",
        ];
        let arguments = arguments.map(OsString::from);
        let text = "'rabbit://u:s3cret@h/' and 'amqp://u:s3cret@h' and 'u:s3cret@h'".to_owned();
        assert_eq!(
            hide_secrets(text, &arguments),
            "'rabbit://***' and 'amqp://***' and '***'"
        );
    }
}
