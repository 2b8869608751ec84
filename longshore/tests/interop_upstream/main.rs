//! The functional tests that oslo.messaging ships, against RabbitMQ: with its own servers, and with ours in their place.
//!
//! Every test of that suite is named on the terminal: `ok`, or why no server of Longshore can take part in it.

#![allow(clippy::unwrap_used)]

mod control;
mod endpoint;
mod suite;
#[path = "../interop/support/mod.rs"]
mod support;
mod verdict;

use control::Control;
use suite::{Report, Servers};
use support::Cases;
use support::broker::VirtualHost;
use tokio::sync::Mutex;
use verdict::{Apart, apart};

/// Beside each other, upstream's tests would miss their time limits of a second.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The tests of the suite that a server of Longshore can take part in.
async fn served() -> Vec<String> {
    let names = suite::names().await.into_iter();
    names.filter(|name| apart(name).is_none()).collect()
}

/// Records what `verdict` has to say of a test's report.
fn judge(
    cases: &mut Cases,
    reports: &[Report],
    name: &str,
    verdict: fn(&Report) -> Result<(), String>,
) {
    let Some(report) = reports.iter().find(|report| report.test == name) else {
        return cases.record(name, Err("was not reached".to_owned()));
    };
    let outcome = verdict(report);
    match apart(name) {
        Some((_, why)) if outcome.is_ok() => cases.set_aside(name, why),
        _ => cases.record(&format!("{name} ({:.1} s)", report.seconds), outcome),
    }
}

#[tokio::test]
async fn upstreams_tests_pass_with_our_servers() {
    let _alone = ALONE.lock().await;
    let (control, host) = (Control::open(), VirtualHost::new().await);
    let mut cases = Cases::of("upstream, served by Longshore");
    let names = suite::names().await;
    let not_run = |name: &str| matches!(apart(name), Some((Apart::NotRun, _)));
    let to_run: Vec<_> = names
        .iter()
        .filter(|name| !not_run(name))
        .cloned()
        .collect();
    let reports = suite::run(Servers::Longshore(control.path()), &host.url, &to_run).await;
    for name in &names {
        match apart(name) {
            Some((Apart::NotRun, why)) => cases.set_aside(name, why),
            _ => judge(&mut cases, &reports, name, verdict::with_longshore),
        }
    }
    for (listed, ..) in verdict::APART {
        let known = names.iter().any(|name| verdict::means(listed, name));
        cases.holds(&format!("{listed} is still in the suite"), known, &names);
    }
    host.delete().await;
    cases.finish();
}

#[tokio::test]
async fn upstreams_tests_pass_with_our_servers_on_quorum_queues() {
    let _alone = ALONE.lock().await;
    let (control, host) = (Control::open(), VirtualHost::new().await);
    let mut cases = Cases::of("upstream, served by Longshore, on quorum queues");
    let url = format!(
        "{}?rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true",
        host.url
    );
    let names = served().await;
    let reports = suite::run(Servers::Longshore(control.path()), &url, &names).await;
    for name in &names {
        judge(&mut cases, &reports, name, verdict::with_longshore);
    }
    host.delete().await;
    cases.finish();
}

/// Tells a fault of ours from one of the surroundings.
#[tokio::test]
async fn upstreams_tests_pass_with_their_own_servers() {
    let _alone = ALONE.lock().await;
    let host = VirtualHost::new().await;
    let mut cases = Cases::of("upstream, served by Python");
    let names = served().await;
    let reports = suite::run(Servers::Python, &host.url, &names).await;
    for name in &names {
        judge(&mut cases, &reports, name, verdict::with_python);
    }
    host.delete().await;
    cases.finish();
}
