//! Which of upstream's tests a server of Longshore can take part in, and what is to be made of a run.

use crate::suite::{Outcome, Report};

/// What is expected of a test in which no server of Longshore can take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apart {
    /// It passes by itself, with Python at both ends or at none.
    Passes,
    /// Upstream skips it.
    Skips,
    /// It is not run.
    NotRun,
}

const NO_SERVER: &str = "no server takes part in it";
const NOTIFICATIONS: &str =
    "its servers listen for notifications, which Longshore does not have yet";
const OWN_OBJECTS: &str = "it reads the ports of the connections out of Python's own server object, and its server is the \
                           test itself, which kills nodes that pifpaf started";

/// The tests that no server of Longshore can take part in, and why. A name that ends in a full stop means all under it.
pub(crate) const APART: &[(&str, Apart, &str)] = &[
    (
        "test_functional.CallTestCase.test_bad_endpoint",
        Apart::Passes,
        "the wrong endpoint is a Python object that Python's server refuses before it serves",
    ),
    (
        "test_functional.CallTestCase.test_mandatory_call",
        Apart::Passes,
        NO_SERVER,
    ),
    (
        "test_functional.CallTestCase.test_timeout",
        Apart::Passes,
        NO_SERVER,
    ),
    (
        "test_functional.NotifyTestCase.",
        Apart::NotRun,
        NOTIFICATIONS,
    ),
    ("notify.", Apart::NotRun, NOTIFICATIONS),
    (
        "test_rabbitmq.RabbitMQFailoverTests.",
        Apart::Skips,
        OWN_OBJECTS,
    ),
];

/// Whether a name of the list means a test: the whole name, or one that ends in a full stop with more behind it.
pub(crate) fn means(listed: &str, test: &str) -> bool {
    test == listed || (listed.ends_with('.') && test.starts_with(listed))
}

/// Why no server of Longshore can take part in a test, if none can.
pub(crate) fn apart(test: &str) -> Option<(Apart, &'static str)> {
    let found = APART.iter().find(|(listed, ..)| means(listed, test));
    found.map(|(_, apart, why)| (*apart, *why))
}

/// What is wrong with a test of a run in which Longshore served, if anything is.
pub(crate) fn with_longshore(report: &Report) -> Result<(), String> {
    let Report {
        outcome,
        servers,
        detail,
        ..
    } = report;
    match (apart(&report.test), outcome) {
        (_, Outcome::Failed) => Err(detail.clone()),
        (None, Outcome::Skipped) => Err(format!("skipped: {detail}")),
        (None, Outcome::Passed) if *servers == 0 => {
            Err("passed without a server of Longshore, and is not listed as such".to_owned())
        }
        (Some(_), Outcome::Passed) if *servers > 0 => Err(format!(
            "passed with {servers} servers of Longshore, but is listed as one that cannot"
        )),
        (Some((Apart::Skips, _)), Outcome::Passed) => {
            Err("passed, but is listed as one that is skipped".to_owned())
        }
        (Some((Apart::Passes, _)), Outcome::Skipped) => Err(format!("skipped: {detail}")),
        _ => Ok(()),
    }
}

/// What is wrong with a test of a run in which Python served, if anything is.
pub(crate) fn with_python(report: &Report) -> Result<(), String> {
    match report.outcome {
        Outcome::Passed => Ok(()),
        Outcome::Skipped => Err(format!("skipped: {}", report.detail)),
        Outcome::Failed => Err(report.detail.clone()),
    }
}

#[test]
fn what_is_not_as_listed_is_wrong() {
    let verdict = |test: &str, outcome: Outcome, servers: u32| {
        with_longshore(&Report {
            test: test.to_owned(),
            outcome,
            servers,
            seconds: 1.0,
            detail: "why".to_owned(),
        })
    };
    use Outcome::{Failed, Passed, Skipped};

    let served = "test_functional.CallTestCase.test_timeout_with_concurrently_queues";
    assert_eq!(verdict(served, Passed, 1), Ok(()));
    assert!(verdict(served, Failed, 1).is_err());
    assert!(verdict(served, Skipped, 0).is_err());
    assert!(verdict(served, Passed, 0).is_err());

    let alone = "test_functional.CallTestCase.test_timeout";
    assert_eq!(verdict(alone, Passed, 0), Ok(()));
    assert!(verdict(alone, Passed, 1).is_err());
    assert!(verdict(alone, Skipped, 0).is_err());
    assert!(verdict(alone, Failed, 0).is_err());

    let skipped = "test_rabbitmq.RabbitMQFailoverTests.test_failover_scenario";
    assert_eq!(verdict(skipped, Skipped, 0), Ok(()));
    assert!(verdict(skipped, Passed, 0).is_err());
    assert!(verdict(skipped, Passed, 1).is_err());
}
