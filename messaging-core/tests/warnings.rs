//! What configuration warns of instead of refusing it.
//!
//! These tests are a program of their own, and each reaches other warnings than the rest: `tracing` remembers for
//! the whole process whether anybody listens to a warning when a thread first reaches it.

use std::fmt;
use std::sync::{Arc, Mutex};

use messaging_core::TransportUrl;
use messaging_core::config::Config;
use messaging_core::options::{CoreOptions, OptionGroup, OptionKind, OptionSpec, Options};
use tracing::field::{Field, Visit};
use tracing::span;

/// Keeps the messages of the events of one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no test panics while it logs").clone()
    }
}

impl Visit for Log {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0
                .lock()
                .expect("no test panics while it logs")
                .push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn unknown_options_of_file_and_environment_are_warned_of_once() {
    static GROUP: OptionGroup = OptionGroup {
        name: "acme_driver",
        options: &[OptionSpec {
            name: "prefetch",
            kind: OptionKind::Int { min: 0, max: 9 },
            default: None,
            help: "For the test.",
        }],
    };
    let config = Config::from_parts(
        "[acme_driver]\nprefetch = 1\nnewer_option = hunter2\n[other]\nx = 1\n",
        [
            ("OS_ACME_DRIVER__TYPO", "hunter2"),
            ("OS_OTHER__X", "1"),
            ("OS_ACME_DRIVER__PREFETCH", "2"),
        ],
    )
    .expect("a valid file");
    let url = TransportUrl::new("acme");
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        for config in [config.clone(), config.clone()] {
            let options = Options::resolve(&GROUP, &url, &config).expect("no error");
            assert_eq!(options.int("prefetch"), Some(2));
            CoreOptions::resolve(&url, &config).expect("valid options");
        }
    });
    assert_eq!(
        log.lines(),
        [
            "unknown option `newer_option` of group [acme_driver] in (text), line 3, is ignored",
            "environment variable `OS_ACME_DRIVER__TYPO` names no option of group [acme_driver] and is ignored",
        ]
    );
}

#[test]
fn deprecated_names_and_mixed_credentials_are_warned_of() {
    let log = Log::default();
    tracing::subscriber::with_default(log.clone(), || {
        let config = Config::from_parts("[DEFAULT]\nrpc_thread_pool_size = 3\n", [("A", "b")])
            .expect("a valid file");
        for _ in 0..2 {
            config.executor_thread_pool_size().expect("3 is a size");
        }
        "foo://u:hunter2@one,two/"
            .parse::<TransportUrl>()
            .expect("oslo.messaging takes it");
        "foo:u:hunter2@one/"
            .parse::<TransportUrl>()
            .expect("oslo.messaging takes it");
    });
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines[0].contains("rpc_thread_pool_size") && lines[0].contains("executor_thread_pool_size")
    );
    assert!(lines[1].contains("not inherited"));
    assert!(lines[2].contains("without `//`"));
    assert!(
        lines.iter().all(|line| !line.contains("hunter2")),
        "{lines:?}"
    );
}
