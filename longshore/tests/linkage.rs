//! What a program must name to have a driver, in builds that drop all they can: the crates in `linkage/`, which are
//! outside the workspace as a stranger's are, built by cargo and run.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// A cold build of one profile takes a minute on two idle cores.
const BUILD_LIMIT: Duration = Duration::from_secs(20 * 60);
const RUN_LIMIT: Duration = Duration::from_secs(60);

const NOTE: &str = "a crate that is only listed in Cargo.toml is not linked: name it once, \
                    as in `use acme_driver as _;`";

/// What must work.
const LINKED: &[&str] = &["linkage-app", "linkage-transitive"];
/// What must not, in so many words.
const REFUSED: &[&str] = &["linkage-forgotten", "linkage-twice"];

/// The one with the facade's default features: nothing is left out but speed.
#[test]
fn debug_builds_with_the_default_drivers() {
    let arguments = ["--features", "linkage-app/default-drivers"];
    let built = build("dev", &[LINKED, REFUSED].concat(), &arguments);
    let listed = check_linked(&built);
    let amqp = format!("messaging-driver-amqp {}", env!("CARGO_PKG_VERSION"));
    assert!(
        listed
            .iter()
            .any(|line| line.starts_with("driver rabbit ") && line.ends_with(&amqp)),
        "{listed:#?}"
    );
    check_refused(&built);
    // The guard that the README recommends names what was forgotten, and nothing else.
    let unused: Vec<&str> = built
        .messages
        .lines()
        .filter(|line| line.contains("is unused in crate"))
        .collect();
    let [unused] = unused[..] else {
        panic!("one crate is forgotten: {}", built.messages)
    };
    assert!(
        unused.contains("`acme_driver`") && unused.contains("`linkage_forgotten`"),
        "{unused}"
    );
}

#[test]
fn release_builds() {
    let built = build("release", &[LINKED, REFUSED].concat(), &[]);
    check_linked(&built);
    check_refused(&built);
}

/// Link-time optimization over the whole program, in one codegen unit.
#[test]
fn lto_builds() {
    check_linked(&build("lto", LINKED, &[]));
}

/// Optimized for size, stripped of symbols, aborting on panic.
#[test]
fn stripped_builds() {
    let built = build("stripped", LINKED, &[]);
    let program = fs::read(&built.programs["linkage-app"]).unwrap();
    let has = |section: &[u8]| program.windows(section.len()).any(|part| part == section);
    // A profile that is no longer what its name says would prove nothing.
    if cfg!(target_os = "linux") {
        assert!(has(b".shstrtab") && !has(b".symtab"), "symbols are left");
    }
    check_linked(&built);
}

/// What the programs have that name the driver, themselves or by a library, and that it answers their calls; returns
/// what the app lists.
fn check_linked(built: &Built) -> Vec<String> {
    let version = env!("CARGO_PKG_VERSION");
    let listed = printed(&built.programs["linkage-app"]);
    for line in [
        "driver acme of acme-driver 0.2.0".to_owned(),
        format!("driver memory fake of messaging-driver-memory {version}"),
        format!("executor async eventlet of messaging-executors {version}"),
        format!("executor blocking of messaging-executors {version}"),
        format!("executor threaded threading of messaging-executors {version}"),
        "acme://yard answered 42".to_owned(),
        "memory://yard answered 42".to_owned(),
    ] {
        assert!(
            listed.contains(&line),
            "\"{line}\" is missing in {listed:#?}"
        );
    }
    let lines = printed(&built.programs["linkage-transitive"]);
    assert_eq!(
        lines.last().map(String::as_str),
        Some("acme://yard answered good morning, stranger")
    );
    listed
}

/// The errors of the program that does not name the driver, and of the one that has two for its scheme.
fn check_refused(built: &Built) {
    let lines = printed(&built.programs["linkage-forgotten"]);
    let [error] = &lines[..] else {
        panic!("one line was expected: {lines:#?}")
    };
    assert!(
        error.starts_with(
            "no transport driver for scheme \"acme\"; linked in this program: memory, fake"
        ),
        "{error}"
    );
    assert!(error.contains(NOTE), "{error}");
    assert!(
        !error.contains("acme-driver") && !error.contains("s3cret"),
        "{error}"
    );

    let lines = printed(&built.programs["linkage-twice"]);
    assert_eq!(
        lines,
        [
            "scheme \"acme\" is claimed by acme-driver 0.2.0 and by rival-driver 0.3.1: link only one of them; \
             the URL is acme://bob:***@yard/",
            "rival://yard/ is open",
            "memory://yard/ is open",
        ]
    );
}

/// Each version would have a registry of its own, and drivers that registered in the other would be invisible.
#[test]
fn two_versions_of_core_are_refused_by_cargo() {
    let (accepted, messages) = graph_with_another_core("linked", |manifest| manifest);
    assert!(!accepted, "cargo accepted two versions of messaging-core");
    for part in [
        "package `messaging-core` links to the native library `messaging-core`, but it conflicts with a previous \
         package which links to `messaging-core` as well",
        &format!("`longshore v{} ", env!("CARGO_PKG_VERSION")),
        "`other-driver v0.1.0 ",
    ] {
        assert!(
            messages.contains(part),
            "\"{part}\" is missing in: {messages}"
        );
    }

    // The same graph without the key resolves: it is the key that refuses it, and no slip in this test.
    let (resolved, messages) = graph_with_another_core("unlinked", |manifest| {
        let without = manifest.replace("links = \"messaging-core\"\n", "");
        assert_ne!(without, manifest, "the manifest has no `links` key");
        without
    });
    assert!(resolved, "{messages}");
}

/// Whether cargo resolves an application of the facade and of a driver that was made for core 0.99.0.
fn graph_with_another_core(
    name: &str,
    change_manifest: impl Fn(String) -> String,
) -> (bool, String) {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("linkage")
        .join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    let write = |path: &str, text: &str| {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    // The copy of core inherits versions and dependencies from the workspace it is in.
    let root = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let inherited = &root[root.find("[workspace.package]").unwrap()..];
    let members = "[workspace]\nresolver = \"3\"\nmembers = [\"app\", \"driver\", \"core\"]\n";
    write("Cargo.toml", &format!("{members}\n{inherited}"));
    let core = fs::read_to_string(root_of("messaging-core").join("Cargo.toml")).unwrap();
    let other = core.replace("\nversion.workspace = true\n", "\nversion = \"0.99.0\"\n");
    assert_ne!(
        core, other,
        "the manifest of core has its version elsewhere"
    );
    write("core/Cargo.toml", &change_manifest(other));
    write("core/build.rs", "fn main() {}\n");
    write("core/src/lib.rs", "");
    let package = |name: &str, dependencies: &str| {
        format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}\n"
        )
    };
    write(
        "driver/Cargo.toml",
        &package(
            "other-driver",
            "messaging-core = { path = \"../core\", version = \"0.99\" }",
        ),
    );
    write("driver/src/lib.rs", "");
    let facade = toml_string(&root_of("longshore"));
    write(
        "app/Cargo.toml",
        &package(
            "app",
            &format!(
                "other-driver = {{ path = \"../driver\" }}\nlongshore = {{ path = {facade} }}"
            ),
        ),
    );
    write("app/src/main.rs", "fn main() {}\n");
    fs::copy(root_of("Cargo.lock"), directory.join("Cargo.lock")).unwrap();
    let mut command = cargo(&directory);
    command.args(["update", "--workspace", "--offline"]);
    let Finished {
        success, errors, ..
    } = finish(&mut command, &format!("resolve-{name}"), RUN_LIMIT);
    (success, errors)
}

#[test]
fn sources_are_formatted() {
    let mut command = cargo(&root_of("linkage"));
    command.args(["fmt", "--check"]);
    let Finished {
        success,
        output,
        errors,
    } = finish(&mut command, "fmt", RUN_LIMIT);
    assert!(success, "{output}{errors}");
}

/// What a build left.
struct Built {
    /// By name.
    programs: BTreeMap<String, PathBuf>,
    /// Cargo's, warnings included.
    messages: String,
}

/// Builds programs of `linkage/` in a profile.
fn build(profile: &str, packages: &[&str], arguments: &[&str]) -> Built {
    static LOCKED: OnceLock<()> = OnceLock::new();
    LOCKED.get_or_init(lock_versions);
    let mut command = cargo(&root_of("linkage"));
    command
        .args(["build", "--locked", "--offline", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--target-dir")
        .arg(target())
        .args(packages.iter().flat_map(|name| ["--package", name]))
        .args(arguments);
    let Finished {
        success,
        output,
        errors,
    } = finish(&mut command, &format!("build-{profile}"), BUILD_LIMIT);
    assert!(success, "the {profile} build failed: {errors}");
    let mut programs = BTreeMap::new();
    for line in output.lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        if let (Some(name), Some(executable)) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
        ) {
            programs.insert(name.to_owned(), PathBuf::from(executable));
        }
    }
    Built {
        programs,
        messages: errors,
    }
}

/// Makes `linkage/Cargo.lock` from the workspace's: the same versions, all of which are on this machine already.
fn lock_versions() {
    let path = root_of("linkage").join("Cargo.lock");
    let wanted = locked_packages(&root_of("Cargo.lock"));
    let is_current = || {
        let mut command = cargo(&root_of("linkage"));
        command.args(["update", "--workspace", "--locked", "--offline"]);
        path.exists()
            && locked_packages(&path).is_subset(&wanted)
            && finish(&mut command, "lock-check", RUN_LIMIT).success
    };
    if !is_current() {
        fs::copy(root_of("Cargo.lock"), &path).unwrap();
        let mut command = cargo(&root_of("linkage"));
        command.args(["update", "--workspace", "--offline"]);
        let finished = finish(&mut command, "lock", RUN_LIMIT);
        assert!(finished.success, "{}", finished.errors);
    }
    let locked = locked_packages(&path);
    assert!(!locked.is_empty());
    let others: Vec<_> = locked.difference(&wanted).collect();
    assert!(
        others.is_empty(),
        "not the versions of the workspace: {others:#?}"
    );
}

/// Name, version, source and checksum of each package in a lock file that comes from a registry.
fn locked_packages(path: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(path).unwrap();
    text.split("[[package]]\n")
        .filter(|package| package.contains("\nsource = "))
        .map(|package| {
            let lines = package
                .lines()
                .take_while(|line| !line.is_empty() && !line.starts_with("dependencies"));
            lines.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

/// The lines that a program prints. It must succeed.
fn printed(program: &Path) -> Vec<String> {
    let profile = program.parent().and_then(Path::file_name).unwrap();
    let log = format!(
        "run-{}-{}",
        profile.display(),
        program.file_stem().unwrap().display()
    );
    let Finished {
        success,
        output,
        errors,
    } = finish(&mut Command::new(program), &log, RUN_LIMIT);
    assert!(success, "{} failed: {output}{errors}", program.display());
    output.lines().map(str::to_owned).collect()
}

struct Finished {
    success: bool,
    output: String,
    errors: String,
}

/// Runs a command to its end or the limit; `log` names the files that hold what it printed.
fn finish(command: &mut Command, log: &str, limit: Duration) -> Finished {
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linkage-logs");
    fs::create_dir_all(&logs).unwrap();
    let (output, errors) = (
        logs.join(format!("{log}.out")),
        logs.join(format!("{log}.err")),
    );
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(&output).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{command:?} took longer than {limit:?}");
        }
        thread::sleep(Duration::from_millis(20));
    };
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    Finished {
        success: status.success(),
        output: read(&output),
        errors: read(&errors),
    }
}

/// The cargo that runs this test, in a directory.
fn cargo(directory: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(directory)
        .env("CARGO_TERM_COLOR", "never");
    command
}

/// A target directory of its own, as the versions are the workspace's and the features are not.
fn target() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).join("linkage")
}

fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap().to_owned()
}

fn root_of(name: &str) -> PathBuf {
    root().join(name)
}

/// A path as TOML writes it, which is as JSON does.
fn toml_string(path: &Path) -> String {
    serde_json::to_string(path).unwrap()
}
