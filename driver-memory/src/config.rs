//! The options of a URL, typed and checked.

use messaging_core::driver::{AttemptCount, Capabilities, NobodyGrade};
use messaging_core::options::{OptionGroup, OptionKind, OptionSpec, Options};
use messaging_core::{Error, Result, TransportUrl};

use crate::queue::Limits;

const QUEUE_LENGTH: usize = 10_000;
const QUEUE_BYTES: usize = 256 << 20;

/// What a URL, a file's group `longshore_memory` and the environment may set.
pub(crate) static OPTIONS: OptionGroup = OptionGroup {
    name: "longshore_memory",
    options: &[
        OptionSpec {
            name: "queue_length",
            kind: OptionKind::Int {
                min: 1,
                max: 10_000_000,
            },
            default: Some("10000"),
            help: "How many messages wait in one queue at most; beyond that, senders wait.",
        },
        OptionSpec {
            name: "queue_bytes",
            kind: OptionKind::Int {
                min: 1,
                max: 1 << 40,
            },
            default: Some("268435456"),
            help: "How many bytes of bodies wait in one queue at most; beyond that, senders wait.",
        },
        OptionSpec {
            name: "without",
            kind: OptionKind::List,
            default: None,
            help: "Capabilities to switch off, so that a test meets a weaker driver: attempts, durable, fanout_count, \
                   inspect, live_nobody, nobody, priority, redelivered, requeue_delay, ttl.",
        },
    ],
};

/// The names `without` takes, and what each takes away.
type SwitchOff = (&'static str, fn(&mut Capabilities));

const SWITCHES: &[SwitchOff] = &[
    ("attempts", |c| {
        c.attempts = weaker(c.attempts, AttemptCount::Redelivered);
    }),
    ("durable", |c| c.durable = false),
    ("fanout_count", |c| c.fanout_count = false),
    ("inspect", |c| c.inspect = false),
    ("live_nobody", |c| {
        c.nobody = c.nobody.min(NobodyGrade::NeverBound);
    }),
    ("nobody", |c| c.nobody = NobodyGrade::None),
    ("priority", |c| c.priority = false),
    ("redelivered", |c| c.attempts = AttemptCount::None),
    ("requeue_delay", |c| c.requeue_delay = false),
    ("ttl", |c| c.ttl = false),
];

fn weaker(has: AttemptCount, limit: AttemptCount) -> AttemptCount {
    if has == AttemptCount::None {
        has
    } else {
        limit
    }
}

/// One driver instance's settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The bus; empty: the one unnamed bus of this process.
    pub(crate) bus: String,
    /// What this instance admits to.
    pub(crate) capabilities: Capabilities,
    /// The bounds of the queues this instance makes.
    pub(crate) limits: Limits,
}

impl Settings {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`Config`](messaging_core::ErrorKind::Config) naming the part of the URL or the option that has no meaning here.
    pub(crate) fn new(url: &TransportUrl, options: &Options) -> Result<Self> {
        let bound = |name, default| {
            options
                .int(name)
                .and_then(|value| usize::try_from(value).ok())
                .unwrap_or(default)
        };
        Ok(Self {
            bus: bus_name(url)?,
            capabilities: capabilities(&options.list("without"))?,
            limits: Limits {
                messages: bound("queue_length", QUEUE_LENGTH),
                bytes: bound("queue_bytes", QUEUE_BYTES),
            },
        })
    }
}

/// What the driver can do, less what is switched off.
fn capabilities(without: &[&str]) -> Result<Capabilities> {
    let mut capabilities = Capabilities::default();
    capabilities.nobody = NobodyGrade::Live;
    capabilities.ttl = true;
    capabilities.priority = true;
    capabilities.requeue_delay = true;
    capabilities.attempts = AttemptCount::Exact;
    capabilities.fanout_count = true;
    capabilities.inspect = true;
    // Not `durable`: nothing here outlives the process.
    for name in without {
        let Some((_, switch_off)) = SWITCHES.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = SWITCHES.iter().map(|(known, _)| *known).collect();
            let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(Error::config(format!(
                "option without: no capability \"{shown}\" to switch off; there are {}",
                known.join(", ")
            )));
        };
        switch_off(&mut capabilities);
    }
    Ok(capabilities)
}

/// The name of the bus. A memory bus has no port, no users and no virtual hosts: a URL with any of them was meant
/// for another driver, and is refused. None of their values is quoted, since one may be a password.
fn bus_name(url: &TransportUrl) -> Result<String> {
    let refused = |what: &str| {
        Err(Error::config(format!(
            "a memory URL has no {what}: write memory:// for this process's unnamed bus or memory://NAME for a named one"
        )))
    };
    if url
        .virtual_host
        .as_deref()
        .is_some_and(|path| !path.is_empty())
    {
        return refused("virtual host");
    }
    let [host] = url.hosts.as_slice() else {
        return if url.hosts.is_empty() {
            Ok(String::new())
        } else {
            refused("list of hosts")
        };
    };
    if host.username.is_some() || host.password.is_some() {
        return refused("user and password");
    }
    if host.port.is_some() {
        return refused("port");
    }
    Ok(host.hostname.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use messaging_core::ErrorKind;
    use messaging_core::url::Host;

    use super::*;

    fn url(hosts: Vec<Host>, virtual_host: Option<&str>) -> TransportUrl {
        TransportUrl {
            scheme: "memory".to_owned(),
            hosts,
            virtual_host: virtual_host.map(str::to_owned),
            query: BTreeMap::new(),
        }
    }

    fn named(name: &str) -> Host {
        Host {
            hostname: Some(name.to_owned()),
            ..Host::default()
        }
    }

    #[test]
    fn a_bus_is_named_by_the_host() {
        assert_eq!(bus_name(&url(vec![], None)).unwrap(), "");
        assert_eq!(bus_name(&url(vec![Host::default()], Some(""))).unwrap(), "");
        assert_eq!(bus_name(&url(vec![named("a")], None)).unwrap(), "a");
    }

    #[test]
    fn what_means_nothing_is_refused_and_not_quoted() {
        let with_password = Host {
            username: Some("geheim-user".to_owned()),
            password: Some("geheim".to_owned()),
            ..named("a")
        };
        let with_port = Host {
            port: Some(5672),
            ..named("a")
        };
        for bad in [
            url(vec![named("a")], Some("vhost")),
            url(vec![named("a"), named("b")], None),
            url(vec![with_password], None),
            url(vec![with_port], None),
        ] {
            let error = bus_name(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!format!("{error} {error:?}").contains("geheim"));
        }
    }

    #[test]
    fn capabilities_are_switched_off_by_name() {
        let all = capabilities(&[]).unwrap();
        assert_eq!(all.nobody, NobodyGrade::Live);
        assert_eq!(all.attempts, AttemptCount::Exact);
        assert!(all.ttl && all.priority && all.requeue_delay && all.fanout_count && all.inspect);

        let weak = capabilities(&["ttl", "priority", "live_nobody", "attempts"]).unwrap();
        assert!(!weak.ttl && !weak.priority && weak.requeue_delay);
        assert_eq!(weak.nobody, NobodyGrade::NeverBound);
        assert_eq!(weak.attempts, AttemptCount::Redelivered);

        let names: Vec<&str> = SWITCHES.iter().map(|(name, _)| *name).collect();
        assert_eq!(capabilities(&names).unwrap(), Capabilities::default());

        let error = capabilities(&["ttll"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains("ttll") && error.message().contains("requeue_delay"));
    }

    #[test]
    fn the_help_names_every_switch() {
        let help = OPTIONS.options[2].help;
        for (name, _) in SWITCHES {
            assert!(help.contains(name), "{name}");
        }
    }
}
