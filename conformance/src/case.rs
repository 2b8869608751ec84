//! One behaviour under one configuration: whether it can run, and its verdict.

use std::any::Any;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use messaging_core::TransportUrl;
use messaging_core::driver::Capabilities;
use messaging_core::registry::{self, DriverRegistration};

use crate::behaviour::{Behaviour, behaviours};
use crate::events::Events;
use crate::failure::{Failure, fail};
use crate::harness::{Harness, Variant};
use crate::rpc;
use crate::session::{self, Progress, Session, Setting};

/// How long after its budget a test may take to tear down before it is given up.
const TEARDOWN: Duration = Duration::from_secs(10);

/// One behaviour, to be run under one executor and variant.
#[derive(Debug, Clone)]
pub struct Case {
    /// The behaviour.
    pub behaviour: &'static Behaviour,
    /// The executor, where the behaviour needs one.
    pub executor: Option<&'static str>,
    /// The variant; `None`: the driver's plain URL.
    pub variant: Option<String>,
    /// Whether it can run.
    pub status: Status,
    url: String,
    registration: Option<&'static DriverRegistration>,
    capabilities: Capabilities,
    patience: Duration,
    max_body: usize,
}

/// Whether a case can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It can.
    Ready,
    /// It does not apply, and why.
    Ignored(String),
    /// It should, and cannot.
    Broken(String),
}

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The behaviour holds.
    Passed,
    /// It does not apply, and why.
    Ignored(String),
    /// It does not hold, and why.
    Failed(Failure),
}

/// All cases of a driver: every behaviour under every executor and variant.
pub fn cases(harness: &dyn Harness) -> Vec<Case> {
    let plain = match harness.url() {
        Ok(url) => url,
        Err(skip) => {
            let status = match is_required(harness.name()) {
                true => Status::Broken(format!("{}, and CONFORMANCE_REQUIRE demands it", skip.0)),
                false => Status::Ignored(skip.0),
            };
            return configured(harness, None, String::new(), None, &|_| status.clone());
        }
    };
    let mut all = probed(harness, None, plain.clone());
    for Variant { name, url } in harness.variants(&plain) {
        all.extend(probed(harness, Some(name), url));
    }
    all
}

/// The cases of one URL. Opening a driver does no I/O, so that listing the tests needs no broker.
fn probed(harness: &dyn Harness, variant: Option<String>, url: String) -> Vec<Case> {
    match probe(&url, harness.max_body()) {
        Ok((registration, capabilities)) => configured(
            harness,
            variant,
            url,
            Some((registration, &capabilities)),
            &|behaviour| match behaviour.unmet(&capabilities) {
                Some(need) => Status::Ignored(format!("needs {need}")),
                None => Status::Ready,
            },
        ),
        Err(failure) => {
            let status = Status::Broken(failure.during("the driver cannot be opened").to_string());
            configured(harness, variant, url, None, &|_| status.clone())
        }
    }
}

fn probe(
    url: &str,
    max_body: usize,
) -> Result<(&'static DriverRegistration, Capabilities), Failure> {
    let url: TransportUrl = url.parse()?;
    let registration = registry::find_driver(&url.scheme)?;
    let driver = session::open(registration, &url, Arc::new(Events::default()), max_body)?;
    Ok((registration, driver.capabilities()))
}

fn configured(
    harness: &dyn Harness,
    variant: Option<String>,
    url: String,
    driver: Option<(&'static DriverRegistration, &Capabilities)>,
    status: &dyn Fn(&Behaviour) -> Status,
) -> Vec<Case> {
    let mut executors: Vec<_> = harness.executors().into_iter().map(Some).collect();
    if variant.is_some() {
        executors.truncate(1);
    }
    let mut cases = Vec::new();
    for behaviour in behaviours() {
        let executors = match behaviour.per_executor() {
            true => executors.as_slice(),
            false => &[None],
        };
        for &executor in executors {
            cases.push(Case {
                behaviour,
                executor,
                variant: variant.clone(),
                status: status(behaviour),
                url: url.clone(),
                registration: driver.map(|(registration, _)| registration),
                capabilities: driver.map(|(_, c)| c.clone()).unwrap_or_default(),
                patience: harness.patience(),
                max_body: harness.max_body(),
            });
        }
    }
    cases
}

fn is_required(driver: &str) -> bool {
    std::env::var("CONFORMANCE_REQUIRE")
        .unwrap_or_default()
        .split(',')
        .any(|name| name.trim() == driver)
}

impl Case {
    /// The name of its test: `link::round_trip`, `rpc::timeout_fires@async#variant`.
    pub fn name(&self) -> String {
        let mut name = self.behaviour.id.to_owned();
        if let Some(executor) = self.executor {
            name.push('@');
            name.push_str(executor);
        }
        if let Some(variant) = &self.variant {
            name.push('#');
            name.push_str(variant);
        }
        name
    }

    /// Checks the behaviour, on a runtime of its own. It returns within the budget and the time to tear down,
    /// even when the driver blocks its threads.
    pub fn run(&self) -> Verdict {
        match &self.status {
            Status::Ignored(reason) => return Verdict::Ignored(reason.clone()),
            Status::Broken(reason) => return Verdict::Failed(Failure::new(reason.clone())),
            Status::Ready => {}
        }
        rpc::quiet_panics();
        let progress = Progress::default();
        match self.run_bounded(progress.clone()) {
            Ok(()) => Verdict::Passed,
            Err(failure) => Verdict::Failed(match progress.get() {
                step if step.is_empty() => failure,
                step => failure.during(format_args!("while: {step}")),
            }),
        }
    }

    fn run_bounded(&self, progress: Progress) -> Result<(), Failure> {
        let registration = self
            .registration
            .ok_or_else(|| Failure::new("no driver was found"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("conformance")
            .enable_all()
            .build()
            .map_err(|e| Failure::new(format!("no runtime: {e}")))?;
        let setting = Setting {
            test: self.behaviour.id.replace("::", "-"),
            url: self.url.clone(),
            registration,
            capabilities: self.capabilities.clone(),
            executor: self.executor,
            patience: self.patience,
            max_body: self.max_body,
        };
        let session = Session::new(setting, progress);
        let (done, ended) = mpsc::sync_channel(1);
        let (run, budget) = (self.behaviour.run, self.behaviour.budget);
        let task = runtime.spawn(async move {
            let result = match tokio::time::timeout(budget, run(&session)).await {
                Ok(result) => result,
                Err(_) => Err(Failure::new(format!("the budget of {budget:?} is used up"))),
            };
            // A behaviour that failed is the news; what it left open says nothing more.
            let torn_down = session.teardown().await;
            let result = result.and_then(|()| torn_down.inspect_err(|_| session.step("teardown")));
            // Nobody listens after the limit below, which is then what counts.
            let _ = done.try_send(result);
        });
        let limit = budget + TEARDOWN;
        let result = match ended.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                fail!("it neither ended nor could be stopped within {limit:?}: a thread is blocked")
            }
            Err(RecvTimeoutError::Disconnected) => Err(match runtime.block_on(task) {
                Err(error) if error.is_panic() => Failure::new(format!(
                    "panicked: {}",
                    panic_text(error.into_panic().as_ref())
                )),
                _ => Failure::new("it ended without a result"),
            }),
        };
        runtime.shutdown_background();
        result
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
