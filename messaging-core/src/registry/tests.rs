use std::sync::Arc;

use super::lookup::{distinct, find};
use super::{DriverRegistration, ExecutorRegistration};
use crate::driver::DriverContext;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::executor::{Executor, ExecutorConfig};
use crate::options::OptionGroup;
use crate::url::TransportUrl;

static OPTIONS: OptionGroup = OptionGroup {
    name: "test",
    options: &[],
};

fn open(_: &TransportUrl, _: DriverContext) -> Result<Arc<dyn crate::driver::Driver>> {
    Err(Error::unsupported("a driver for tests of the registry"))
}

fn make(_: ExecutorConfig) -> Result<Arc<dyn Executor>> {
    Err(Error::unsupported("an executor for tests of the registry"))
}

const fn driver(
    schemes: &'static [&'static str],
    crate_name: &'static str,
    crate_version: &'static str,
) -> DriverRegistration {
    DriverRegistration {
        schemes,
        summary: "",
        crate_name,
        crate_version,
        options: &OPTIONS,
        open,
    }
}

const fn executor(
    names: &'static [&'static str],
    crate_name: &'static str,
) -> ExecutorRegistration {
    ExecutorRegistration {
        names,
        summary: "",
        crate_name,
        crate_version: "1.2.3",
        limit: None,
        make,
    }
}

static MEMORY: DriverRegistration = driver(&["memory", "fake"], "messaging-driver-memory", "0.1.0");
static ACME: DriverRegistration = driver(&["acme"], "acme-driver", "0.2.0");
static RIVAL: DriverRegistration = driver(&["rival", "acme"], "rival-driver", "0.3.1");
static YARD: DriverRegistration = driver(&["yard"], "yard-driver", "1.0.0");
static YARD_IPC: DriverRegistration = driver(&["yard+ipc"], "yard-ipc-driver", "1.0.0");
static SHOUTING: DriverRegistration = driver(&["SHOUT"], "shout-driver", "1.0.0");

/// Looks a scheme up as `find_driver` does, among these.
fn among(
    drivers: &[&'static DriverRegistration],
    scheme: &str,
) -> Result<&'static DriverRegistration> {
    let all = distinct(drivers.iter().copied());
    find(&all, scheme, scheme.split('+').next().unwrap_or(scheme))
}

fn crate_of(drivers: &[&'static DriverRegistration], scheme: &str) -> &'static str {
    among(drivers, scheme).expect("it is there").crate_name
}

fn refusal(drivers: &[&'static DriverRegistration], scheme: &str) -> String {
    let error = among(drivers, scheme).expect_err("it is not there");
    assert_eq!(
        (error.kind(), error.outcome()),
        (ErrorKind::Config, Outcome::NotSent)
    );
    error.to_string()
}

#[test]
fn every_scheme_of_a_driver_finds_it_in_any_case() {
    let all = [&MEMORY, &ACME, &SHOUTING];
    for scheme in ["memory", "fake", "Memory", "FAKE"] {
        assert_eq!(
            crate_of(&all, scheme),
            "messaging-driver-memory",
            "{scheme}"
        );
    }
    for scheme in ["shout", "SHOUT", "Shout+loud"] {
        assert_eq!(crate_of(&all, scheme), "shout-driver", "{scheme}");
    }
}

#[test]
fn a_variant_is_looked_up_whole_first_and_then_by_its_first_part() {
    let all = [&YARD, &YARD_IPC];
    assert_eq!(crate_of(&all, "yard+ipc"), "yard-ipc-driver");
    assert_eq!(crate_of(&all, "YARD+IPC"), "yard-ipc-driver");
    assert_eq!(crate_of(&all, "yard+tcp"), "yard-driver");
    assert_eq!(crate_of(&all, "yard+ipc+tls"), "yard-driver");
    let text = refusal(&[&YARD_IPC], "yard+tcp");
    assert!(
        text.starts_with("no transport driver for scheme \"yard+tcp\""),
        "{text}"
    );
}

#[test]
fn an_unknown_scheme_is_answered_with_what_is_linked_and_the_rule() {
    assert_eq!(
        refusal(&[&MEMORY, &ACME], "carrier-pigeon"),
        "no transport driver for scheme \"carrier-pigeon\"; linked in this program: acme (acme-driver 0.2.0); \
         memory, fake (messaging-driver-memory 0.1.0); a crate that is only listed in Cargo.toml is not linked: \
         name it once, as in `use acme_driver as _;`"
    );
    assert_eq!(
        refusal(&[], "acme"),
        "no transport driver for scheme \"acme\"; linked in this program: nothing; a crate that is only listed in \
         Cargo.toml is not linked: name it once, as in `use acme_driver as _;`"
    );
}

#[test]
fn a_slip_is_answered_with_the_nearest_name() {
    let near = |scheme| refusal(&[&MEMORY, &ACME, &SHOUTING], scheme);
    for (slip, meant) in [
        ("memroy", "memory"),
        ("Memori", "memory"),
        ("memor+x", "memory"),
        ("acne", "acme"),
        ("acm", "acme"),
        ("shuot", "SHOUT"),
    ] {
        let text = near(slip);
        assert!(
            text.contains(&format!(": did you mean \"{meant}\"?;")),
            "{text}"
        );
    }
    for other in ["http", "xyz", "am", "", "+", "zmq+ipc"] {
        let text = near(other);
        assert!(!text.contains("did you mean"), "{text}");
    }
}

#[test]
fn a_slip_may_mean_a_driver_of_this_project_that_is_not_linked() {
    let text = refusal(&[&MEMORY], "rabit");
    assert!(
        text.contains(
            ": did you mean \"rabbit\"? it belongs to messaging-driver-amqp, which is not linked; \
             switch on feature \"amqp\" of longshore"
        ),
        "{text}"
    );
}

#[test]
fn a_scheme_of_this_project_that_is_not_linked_names_feature_and_crate() {
    for scheme in ["rabbit", "kombu", "amqp", "amqps", "RABBIT", "kombu+qpid"] {
        assert_eq!(
            refusal(&[&MEMORY], scheme),
            format!(
                "no transport driver for scheme \"{scheme}\": it belongs to messaging-driver-amqp, which is not \
                 linked; switch on feature \"amqp\" of longshore, or depend on messaging-driver-amqp and write \
                 `use messaging_driver_amqp as _;`; linked in this program: memory, fake \
                 (messaging-driver-memory 0.1.0)"
            )
        );
    }
    let text = refusal(&[], "fake");
    assert!(text.contains("feature \"memory\" of longshore"), "{text}");
}

#[test]
fn a_linked_crate_without_the_scheme_is_not_called_unlinked() {
    static OLD: DriverRegistration = driver(&["rabbit"], "messaging-driver-amqp", "0.0.9");
    let text = refusal(&[&OLD], "amqps");
    assert!(
        text.contains("messaging-driver-amqp 0.0.9 as it is linked does not have it"),
        "{text}"
    );
    assert!(!text.contains("which is not linked"), "{text}");
}

#[test]
fn a_scheme_claimed_twice_names_both_crates_and_harms_no_other() {
    let all = [&RIVAL, &MEMORY, &ACME];
    for scheme in ["acme", "ACME", "acme+x"] {
        assert_eq!(
            refusal(&all, scheme),
            "scheme \"acme\" is claimed by acme-driver 0.2.0 and by rival-driver 0.3.1: link only one of them"
        );
    }
    assert_eq!(crate_of(&all, "rival"), "rival-driver");
    assert_eq!(crate_of(&all, "memory"), "messaging-driver-memory");
}

#[test]
fn two_versions_of_one_crate_are_told_apart() {
    static NEWER: DriverRegistration = driver(&["acme"], "acme-driver", "0.3.0");
    assert_eq!(
        refusal(&[&NEWER, &ACME], "acme"),
        "scheme \"acme\" is claimed by acme-driver 0.2.0 and by acme-driver 0.3.0: link only one of them"
    );
    static COPY: DriverRegistration = driver(&["acme"], "acme-driver", "0.2.0");
    assert_eq!(
        refusal(&[&COPY, &ACME], "acme"),
        "scheme \"acme\" is claimed by 2 registrations of acme-driver 0.2.0: register only one static of that crate"
    );
}

#[test]
fn the_same_static_counts_once() {
    assert_eq!(crate_of(&[&ACME, &ACME], "acme"), "acme-driver");
    static REPEATED: DriverRegistration = driver(&["acme", "acme"], "acme-driver", "0.2.0");
    assert_eq!(crate_of(&[&REPEATED], "acme"), "acme-driver");
}

#[test]
fn registering_by_hand_lists_once_and_in_order() {
    static SECOND: DriverRegistration = driver(&["by-hand-2"], "by-hand", "1.0.0");
    static FIRST: DriverRegistration = driver(&["by-hand-1", "BY-HAND-ONE"], "by-hand", "1.0.0");
    for _ in 0..3 {
        super::register_driver(&SECOND);
        super::register_driver(&FIRST);
    }
    let listed: Vec<&str> = super::drivers()
        .iter()
        .filter(|driver| driver.crate_name == "by-hand")
        .map(|driver| driver.schemes[0])
        .collect();
    assert_eq!(listed, ["by-hand-1", "by-hand-2"]);
    let held = super::snapshot(&super::BY_HAND_DRIVERS);
    let times = held.iter().filter(|held| std::ptr::eq(**held, &FIRST));
    assert_eq!(times.count(), 1, "the list must not grow by repetition");
    let found = super::find_driver("by-hand-one+x").expect("it is registered");
    assert!(std::ptr::eq(found, &FIRST));
}

#[test]
fn executors_are_found_by_name_and_alias_and_not_by_a_first_part() {
    static FIBRES: ExecutorRegistration = executor(&["fibres", "fibers"], "fibre-executor");
    for _ in 0..2 {
        super::register_executor(&FIBRES);
    }
    for name in ["fibres", "FIBERS"] {
        let found = super::find_executor(name).expect("it is registered");
        assert!(std::ptr::eq(found, &FIBRES), "{name}");
    }
    let of_crate = super::executors();
    let of_crate = of_crate.iter().filter(|r| r.crate_name == "fibre-executor");
    assert_eq!(of_crate.count(), 1);
    let text = super::find_executor("fibres+fast").expect_err("a variant means nothing here");
    assert!(
        text.to_string().starts_with("no executor \"fibres+fast\""),
        "{text}"
    );
}

#[test]
fn an_unknown_executor_is_answered_with_what_is_there() {
    static FIBRES: ExecutorRegistration = executor(&["fibres"], "fibre-executor");
    let refusal = |name| {
        find(&[&FIBRES], name, name)
            .expect_err("it is not there")
            .to_string()
    };
    assert_eq!(
        refusal("threading"),
        "no executor \"threading\": it belongs to messaging-executors, which is not linked; depend on longshore, \
         which brings it, or depend on messaging-executors and write `use messaging_executors as _;`; linked in \
         this program: fibres (fibre-executor 1.2.3)"
    );
    let text = refusal("fibre");
    assert!(
        text.contains("no executor \"fibre\": did you mean \"fibres\"?;"),
        "{text}"
    );
    let text = refusal("asink");
    assert!(
        text.contains("did you mean \"async\"? it belongs to messaging-executors"),
        "{text}"
    );
    static OTHER: ExecutorRegistration = executor(&["fibres"], "another-executor");
    let error = find(&[&FIBRES, &OTHER], "fibres", "fibres").expect_err("claimed twice");
    assert_eq!(
        error.to_string(),
        "executor name \"fibres\" is claimed by another-executor 1.2.3 and by fibre-executor 1.2.3: \
         link only one of them"
    );
}

#[test]
fn errors_quote_no_control_characters_and_no_endless_names() {
    let text = refusal(&[&ACME], "ac\u{1b}[2J\r\nerror: forged\u{202e}\"");
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(!text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains(r#""ac\u{1b}[2J\r\nerror"#), "{text:?}");

    let long = "x".repeat(64 * 1024);
    let text = refusal(&[&ACME], &long);
    assert!(text.contains(&format!("\"{}…\"", "x".repeat(40))), "{text}");
    assert!(text.len() < 400, "{} bytes", text.len());
    let wide = "語".repeat(50_000);
    assert!(refusal(&[&ACME], &wide).chars().count() < 400);
    let variant = format!("rabbit+{long}");
    assert!(refusal(&[&ACME], &variant).len() < 400);
}

#[test]
fn errors_quote_nothing_of_a_url_passed_by_mistake() {
    for scheme in [
        "rabbit://bob:s3cret@host/",
        "rabbit:s3cret",
        "bob-s3cret@host",
        "s3cret@rabbit://host",
        "rabbit+x://bob:s3cret@host/",
    ] {
        let text = refusal(&[&MEMORY, &ACME], scheme);
        assert!(!text.contains("s3cret"), "{text}");
        assert!(!text.contains("bob"), "{text}");
    }
    let text = refusal(&[&ACME], "rabbit://bob:s3cret@host/");
    assert!(
        text.starts_with("no transport driver for scheme \"rabbit…\""),
        "{text}"
    );
}

/// The note that a transport adds is as clean.
#[test]
fn opening_a_transport_shows_the_url_without_its_password() {
    let error = crate::Transport::builder("carrier-pigeon://bob:s3cret@loft/?api_key=hunter2")
        .lazy()
        .expect_err("no such driver");
    assert_eq!(error.kind(), ErrorKind::Config);
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(text.contains("carrier-pigeon://bob:***@loft/"), "{text}");
        assert!(
            !text.contains("s3cret") && !text.contains("hunter2"),
            "{text}"
        );
    }
}

#[test]
fn the_note_with_the_url_is_bounded_too() {
    let url = format!("{}://bob:s3cret@loft/", "x".repeat(60_000));
    let error = crate::Transport::builder(&url)
        .lazy()
        .expect_err("no such driver");
    let text = error.to_string();
    assert!(text.len() < 700, "{} bytes", text.len());
    assert!(!text.contains("s3cret"), "{text}");
}
