//! The health check of OpenStack Heat: the sample's own two scripts, unchanged, and the two halves of the example,
//! in every pairing over RabbitMQ; and the example by itself in memory.

#![allow(clippy::unwrap_used)]

#[path = "../../longshore/tests/interop/support/mod.rs"]
mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::process::{Child, Command};

use support::broker::VirtualHost;
use support::peer::{Peer, folder, tail};
use support::{Cases, eventually, required, unique};

/// How many answers each pairing is watched for; the sample's scripts never end by themselves.
const ANSWERS: u64 = 3;
const LIMIT: Duration = Duration::from_secs(60);

/// Which program plays a half.
#[derive(Clone, Copy, PartialEq)]
enum Half {
    /// The sample's script.
    Python,
    /// The example, its engine on this executor.
    Rust(&'static str),
}

/// A running half. Dropped, it is killed.
struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program in the folder that holds `conf/heat.conf`.
    fn start(mut command: Command, name: &str, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).unwrap();
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { child, log }
    }

    fn half(half: Half, role: &str, folder: &Path) -> Self {
        let command = match half {
            Half::Python => script(&format!("heat-{role}.py")),
            Half::Rust(executor) => {
                let mut command = example();
                command.args(["--role", role, "--config-file", "conf/heat.conf"]);
                command.args(["--executor", executor]);
                command
            }
        };
        Self::start(command, role, folder)
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until each of these has been printed.
    async fn prints(&mut self, expected: &[String]) -> Result<(), String> {
        let until = std::time::Instant::now() + LIMIT;
        loop {
            let printed = self.printed();
            let Some(missing) = expected.iter().find(|line| !printed.contains(*line)) else {
                return Ok(());
            };
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || std::time::Instant::now() >= until {
                return Err(format!("no {missing:?} ({ended:?}): {}", tail(&self.log)));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends a half of ours by SIGTERM; it must end well.
    async fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().unwrap().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(killed.unwrap().success());
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        ended.expect("the example ends at SIGTERM").unwrap()
    }
}

/// One of the sample's scripts, as it was published.
fn script(name: &str) -> Command {
    let mut command = Command::new(required("LONGSHORE_PYTHON"));
    command
        .args(["-W", "ignore"])
        .arg(folder().canonicalize().unwrap().join("heat").join(name))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// The example, which cargo builds with the tests.
fn example() -> Command {
    let here = std::env::current_exe().unwrap();
    let built = here
        .parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples/heat");
    assert!(
        built.exists(),
        "{} is missing: run `cargo build -p longshore-examples --example heat`",
        built.display()
    );
    let mut command = Command::new(built);
    // What configures the test run must not configure the example.
    command.env_remove("OS_DEFAULT__TRANSPORT_URL");
    command
}

fn hostname() -> String {
    longshore_examples::hostname()
}

/// The lines of the first answers, after whatever a logger puts before them.
fn lines(what: &str, content: &str) -> Vec<String> {
    let host = hostname();
    (1..=ANSWERS)
        .map(|id| format!("### {what}: id=[{id}], host=[{host}], content=[{content}]"))
        .collect()
}

/// Runs a pairing in a virtual host of its own: its exchange and topic are the sample's.
async fn pairing(cases: &mut Cases, name: &str, engine: Half, api: Half) {
    let host = VirtualHost::new().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("heat"));
    std::fs::create_dir_all(folder.join("conf")).unwrap();
    let conf = format!("[DEFAULT]\ntransport_url = {}\n", host.url);
    std::fs::write(folder.join("conf/heat.conf"), conf).unwrap();

    let mut running = Program::half(engine, "engine", &folder);
    // Neither engine says when it listens.
    let raw = Peer::raw(&host.url).await;
    eventually("the engine listens", LIMIT, async || {
        let ready = async |queue: &str| {
            let found = raw.ask(json!({"op": "depth", "queue": queue})).await;
            found["consumers"]
                .as_u64()
                .is_some_and(|consumers| consumers > 0)
        };
        ready("engine").await && ready("engine.heat-engine").await
    })
    .await;
    let mut calling = Program::half(api, "api", &folder);

    let answered = calling.prints(&lines("Response", "I'm fine!")).await;
    cases.record(&format!("{name}: the API prints the responses"), answered);
    let asked = running.prints(&lines("Request", "How are you?")).await;
    cases.record(&format!("{name}: the engine prints the requests"), asked);
    for (role, half, program) in [("API", api, calling), ("engine", engine, running)] {
        if half != Half::Python {
            let ended = program.terminate().await;
            cases.equal(
                &format!("{name}: the {role} ends at SIGTERM"),
                ended.code(),
                Some(0),
            );
        }
    }
    drop(raw);
    host.delete().await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_samples_scripts_work_with_each_other_and_with_either_half() {
    let mut cases = Cases::of("heat, the sample's scripts");
    let rust = Half::Rust("async");
    pairing(
        &mut cases,
        "Python engine, Python API",
        Half::Python,
        Half::Python,
    )
    .await;
    pairing(&mut cases, "Rust engine, Python API", rust, Half::Python).await;
    pairing(&mut cases, "Python engine, Rust API", Half::Python, rust).await;
    cases.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_halves_work_under_each_executor() {
    let mut cases = Cases::of("heat, the example's halves");
    for executor in ["blocking", "threaded", "async"] {
        let half = Half::Rust(executor);
        pairing(
            &mut cases,
            &format!("Rust engine and API, {executor}"),
            half,
            half,
        )
        .await;
    }
    cases.finish();
}

/// The scripts that run here are the published ones, byte for byte.
#[test]
fn the_samples_scripts_are_unchanged() {
    // FNV-1a, which is enough to notice an edit.
    let sum = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    };
    for (file, expected) in [
        ("heat-engine.py", 0x278b_0b5d_6a5c_a258),
        ("heat-api.py", 0x2498_997a_b090_f627),
        ("conf/heat.conf", 0xb412_3286_e0b0_9825),
    ] {
        let content = std::fs::read(folder().join("heat").join(file)).unwrap();
        assert_eq!(sum(&content), expected, "{file} is not as it was published");
    }
}

#[tokio::test]
async fn the_example_needs_nothing_and_answers_five_times() {
    let output = tokio::time::timeout(LIMIT, example().stdin(Stdio::null()).output()).await;
    let output = output.expect("the example ends by itself").unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let host = hostname();
    let expected: String = (1..=5)
        .map(|id| {
            format!(
                "### Request: id=[{id}], host=[{host}], content=[How are you?]\n\
                 ### Response: id=[{id}], host=[{host}], content=[I'm fine!]\n"
            )
        })
        .collect();
    assert_eq!(printed, expected);
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "", "nothing to complain of");
}
