//! The options of this driver, typed, and what they mean together.

use messaging_core::config::Config;
use messaging_core::options::Options;
use messaging_core::{Error, Result, TransportUrl};

use crate::address::{Node, nodes, virtual_host};
use crate::backoff::Backoff;
use crate::compression::Packing;
use crate::hosts::Failover;
use crate::options::OPTIONS;
use crate::queue_names::QueueNames;
use crate::tls::Tls;

const PLAIN_PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;

/// Which exchanges and queues are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Exactly those of oslo.messaging.
    Oslo,
    /// Durable ones, which RabbitMQ 4 accepts with its deprecated features denied.
    Durable,
}

/// How the driver logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Login {
    AmqPlain,
    Plain,
    /// By what the broker knows of the link: the certificate.
    External,
}

/// Limits of quorum queues; 0: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuorumLimits {
    pub(crate) deliveries: i64,
    pub(crate) memory_length: i64,
    pub(crate) memory_bytes: i64,
}

/// Everything a driver instance was told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) profile: Profile,
    pub(crate) nodes: Vec<Node>,
    pub(crate) vhost: String,
    pub(crate) login: Login,
    /// Without it the links are not encrypted.
    pub(crate) tls: Option<Tls>,
    /// Flags of topic exchanges, topic, server and notification queues.
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// Whether topic, server and notification queues are quorum queues, and whether reply and fanout queues are.
    pub(crate) quorum: bool,
    pub(crate) transient_quorum: bool,
    pub(crate) quorum_limits: QuorumLimits,
    /// Whether queues ask to be mirrored, which RabbitMQ has ignored since 3.0.
    pub(crate) mirrored: bool,
    /// Whether one stream takes the place of the fanout queues of a topic.
    pub(crate) stream_fanout: bool,
    pub(crate) names: QueueNames,
    /// `x-expires` of reply and fanout queues, `x-max-age` of streams, in seconds.
    pub(crate) transient_ttl: Option<u32>,
    pub(crate) prefetch: Option<u16>,
    /// Seconds; 0: as the broker wishes.
    pub(crate) heartbeat: u16,
    pub(crate) backoff: Backoff,
    pub(crate) failover: Failover,
    pub(crate) cancel_on_failover: bool,
    /// How what is sent is packed.
    pub(crate) packing: Option<Packing>,
    pub(crate) max_body: usize,
}

impl Settings {
    /// Reads and checks the options.
    ///
    /// # Errors
    /// `Config` for a bad value, `Unsupported` for an option that is known and not built.
    pub(crate) fn resolve(url: &TransportUrl, config: &Config, max_body: usize) -> Result<Self> {
        let options = Options::resolve(&OPTIONS, url, config)?;
        let profile = match options.text("profile") {
            Some("durable") => Profile::Durable,
            Some(_) => Profile::Oslo,
            None if url.scheme.starts_with("amqp") => Profile::Durable,
            None => Profile::Oslo,
        };
        let quorum = options.bool("rabbit_quorum_queue");
        // A quorum queue is durable, and Python makes its exchange so as well.
        let durable = profile == Profile::Durable || options.bool("amqp_durable_queues") || quorum;
        let auto_delete = options.bool("amqp_auto_delete");
        let transient =
            options.is_set("amqp_durable_queues") && !options.bool("amqp_durable_queues");
        let contradiction = match profile {
            Profile::Oslo => None,
            Profile::Durable if auto_delete => Some("amqp_auto_delete=true"),
            Profile::Durable => transient.then_some("amqp_durable_queues=false"),
        };
        if let Some(option) = contradiction {
            return Err(Error::config(format!(
                "{option} contradicts profile=durable: leave it out, or choose profile=oslo"
            )));
        }
        check_queues(&options, profile)?;
        let tls = Tls::resolve(url, &options)?;
        let login = login(&options, tls.as_ref())?;
        // With ssl=true the port stays as it is in oslo.messaging.
        let port = match url.scheme.as_str() {
            "amqps" => TLS_PORT,
            _ => PLAIN_PORT,
        };
        let number = |name: &str, default: i64| options.int(name).unwrap_or(default);
        let ttl = number("rabbit_transient_queues_ttl", 1800);
        let prefetch = number("rabbit_qos_prefetch_count", 0);
        Ok(Self {
            profile,
            nodes: nodes(url, url.scheme.starts_with("amqp"), port),
            vhost: virtual_host(url)?,
            login,
            tls,
            durable,
            auto_delete,
            quorum,
            transient_quorum: options.bool("rabbit_transient_quorum_queue"),
            quorum_limits: QuorumLimits {
                deliveries: number("rabbit_quorum_delivery_limit", 0),
                memory_length: number("rabbit_quorum_max_memory_length", 0),
                memory_bytes: number("rabbit_quorum_max_memory_bytes", 0),
            },
            mirrored: options.bool("rabbit_ha_queues"),
            stream_fanout: options.bool("rabbit_stream_fanout"),
            names: QueueNames::resolve(&options, config)?,
            transient_ttl: u32::try_from(ttl).ok().filter(|ttl| *ttl > 0),
            prefetch: u16::try_from(prefetch).ok().filter(|count| *count > 0),
            heartbeat: u16::try_from(number("heartbeat_timeout_threshold", 60)).unwrap_or(60),
            backoff: Backoff::resolve(&options),
            failover: Failover::resolve(&options),
            cancel_on_failover: options.bool("enable_cancel_on_failover"),
            packing: Packing::asked(options.text("kombu_compression").unwrap_or_default())?,
            max_body,
        })
    }

    /// Whether reply and fanout queues, and fanout exchanges, are durable.
    pub(crate) fn transient_durable(&self) -> bool {
        self.profile == Profile::Durable || self.transient_quorum
    }
}

/// Refuses combinations of options for queues that RabbitMQ or oslo.messaging refuses, and says what to change.
fn check_queues(options: &Options, profile: Profile) -> Result<()> {
    let quorum = ["rabbit_quorum_queue", "rabbit_transient_quorum_queue"]
        .into_iter()
        .find(|name| options.bool(name));
    if let Some(quorum) = quorum
        && options.bool("rabbit_ha_queues")
    {
        return Err(Error::config(format!(
            "rabbit_ha_queues=true contradicts {quorum}=true, a queue is mirrored or a quorum queue: leave rabbit_ha_queues out"
        )));
    }
    if options.bool("rabbit_quorum_queue") && options.bool("amqp_auto_delete") {
        return Err(Error::config(
            "amqp_auto_delete=true contradicts rabbit_quorum_queue=true, RabbitMQ has no quorum queue that deletes itself: leave amqp_auto_delete out",
        ));
    }
    if options.bool("rabbit_stream_fanout") && profile == Profile::Oslo {
        // Without it publishers would declare another exchange than servers do.
        if !options.bool("rabbit_transient_quorum_queue") {
            return Err(Error::config(
                "rabbit_stream_fanout=true needs rabbit_transient_quorum_queue=true, as in oslo.messaging",
            ));
        }
        if options.int("rabbit_qos_prefetch_count").unwrap_or(0) == 0 {
            return Err(Error::config(
                "rabbit_stream_fanout=true needs rabbit_qos_prefetch_count above 0, as in oslo.messaging",
            ));
        }
    }
    Ok(())
}

fn login(options: &Options, tls: Option<&Tls>) -> Result<Login> {
    match options.text("rabbit_login_method") {
        Some("PLAIN") => Ok(Login::Plain),
        Some("EXTERNAL") if tls.is_none_or(|tls| tls.identity.is_none()) => Err(Error::config(
            "rabbit_login_method=EXTERNAL logs in by a certificate: use TLS (amqps:// or ssl=true) with ssl_cert_file and ssl_key_file",
        )),
        Some("EXTERNAL") => Ok(Login::External),
        Some("RABBIT-CR-DEMO") => Err(Error::unsupported(
            "rabbit_login_method=RABBIT-CR-DEMO is a demonstration and not built: use AMQPLAIN, PLAIN or EXTERNAL",
        )),
        _ => Ok(Login::AmqPlain),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings> {
        Settings::resolve(&url.parse()?, &Config::default(), 1 << 20)
    }

    /// The addresses in AMQP's own form.
    fn addresses(url: &str) -> Vec<String> {
        let settings = settings(url).unwrap();
        let vhost = settings.vhost;
        let shown = |node: &Node| format!("{}:{}@{node}/{vhost}", node.user, node.password.0);
        settings.nodes.iter().map(shown).collect()
    }

    #[test]
    fn addresses_are_those_of_oslo_messaging() {
        for (url, expected) in [
            ("rabbit://", &["guest:guest@localhost:5672//"][..]),
            ("rabbit:///", &["guest:guest@localhost:5672//"]),
            ("rabbit://localhost/", &[":@localhost:5672//"]),
            ("rabbit:///vhost", &["guest:guest@localhost:5672/vhost"]),
            ("rabbit://host/virtual_host", &[":@host:5672/virtual_host"]),
            (
                "rabbit://u:p@host/virtual_host",
                &["u:p@host:5672/virtual_host"],
            ),
            (
                "rabbit://u:p@host:10/virtual_host",
                &["u:p@host:10/virtual_host"],
            ),
            ("rabbit://u:p@host:10", &["u:p@host:10//"]),
            ("rabbit://u:p@host:10//v", &["u:p@host:10//v"]),
            ("kombu://u@host/", &["u:@host:5672//"]),
            (
                "rabbit://u:p@host1:10,u2:p2@host2:20/v",
                &["u:p@host1:10/v", "u2:p2@host2:20/v"],
            ),
            (
                "rabbit://u:p@host1,host2/v",
                &["u:p@host1:5672/v", ":@host2:5672/v"],
            ),
            ("rabbit://u:p@[ffff::1]:10/v", &["u:p@[ffff::1]:10/v"]),
            ("rabbit://u:p@10.0.0.1/v", &["u:p@10.0.0.1:5672/v"]),
            ("rabbit://u%24:p%26@host/%24", &["u$:p&@host:5672/$"]),
            ("amqp://", &["guest:guest@localhost:5672//"]),
            ("amqp://host", &["guest:guest@host:5672//"]),
            ("amqp://u@host", &["u:@host:5672//"]),
            ("amqp://u:p@host", &["u:p@host:5672//"]),
        ] {
            assert_eq!(addresses(url), expected, "{url}");
        }
    }

    #[test]
    fn the_scheme_or_the_profile_decides_what_is_durable() {
        for (url, durable, transient) in [
            ("rabbit://h/", false, false),
            ("kombu://h/?amqp_durable_queues=true", true, false),
            ("rabbit://h/?profile=durable", true, true),
            ("amqp://h/", true, true),
            ("amqp://h/?profile=oslo", false, false),
            ("amqp://h/?profile=oslo&amqp_durable_queues=1", true, false),
            ("amqp://h/?amqp_durable_queues=true", true, true),
        ] {
            let settings = settings(url).unwrap();
            assert_eq!(settings.durable, durable, "{url}");
            assert_eq!(settings.transient_durable(), transient, "{url}");
        }
    }

    #[test]
    fn numbers_are_read_and_bounded() {
        let defaults = settings("rabbit://h/").unwrap();
        assert_eq!(defaults.transient_ttl, Some(1_800));
        assert_eq!(defaults.prefetch, None);
        assert_eq!(defaults.heartbeat, 60);
        let set = settings(
            "rabbit://h/?rabbit_transient_queues_ttl=0&rabbit_qos_prefetch_count=9&heartbeat_timeout_threshold=5",
        )
        .unwrap();
        assert_eq!(set.transient_ttl, None);
        assert_eq!(set.prefetch, Some(9));
        assert_eq!(set.heartbeat, 5);
        for bad in [
            "heartbeat_timeout_threshold=70000",
            "rabbit_qos_prefetch_count=-1",
            "rabbit_transient_queues_ttl=4294968",
            "amqp_durable_queues=maybe",
        ] {
            let error = settings(&format!("rabbit://h/?{bad}")).unwrap_err();
            assert_eq!(error.kind(), messaging_core::ErrorKind::Config, "{bad}");
        }
        let vhost = "v".repeat(256);
        assert!(settings(&format!("rabbit://h/{vhost}")).is_err());
    }

    #[test]
    fn options_for_queues_that_contradict_each_other_are_refused() {
        for (query, named) in [
            (
                "rabbit_ha_queues=true&rabbit_quorum_queue=true",
                "rabbit_ha_queues",
            ),
            (
                "rabbit_ha_queues=true&rabbit_transient_quorum_queue=true",
                "rabbit_transient_quorum_queue",
            ),
            (
                "rabbit_quorum_queue=true&amqp_auto_delete=true",
                "amqp_auto_delete",
            ),
            (
                "rabbit_stream_fanout=true&rabbit_qos_prefetch_count=1",
                "rabbit_transient_quorum_queue",
            ),
            (
                "rabbit_stream_fanout=true&rabbit_transient_quorum_queue=true",
                "rabbit_qos_prefetch_count",
            ),
            ("use_queue_manager=true&hostname=a/b", "hostname"),
            (
                "profile=durable&amqp_auto_delete=true",
                "amqp_auto_delete=true",
            ),
            (
                "profile=durable&amqp_durable_queues=false",
                "amqp_durable_queues=false",
            ),
        ] {
            let error = settings(&format!("rabbit://h/?{query}")).unwrap_err();
            assert_eq!(error.kind(), messaging_core::ErrorKind::Config, "{query}");
            assert!(error.message().contains(named), "{query}: {error}");
        }
        let stream = settings("amqp://h/?rabbit_stream_fanout=true").unwrap();
        assert!(stream.stream_fanout && stream.transient_durable());
    }

    #[test]
    fn debug_shows_no_password() {
        let shown = format!("{:?}", settings("rabbit://u:hunter2@h/").unwrap());
        assert!(
            shown.contains("***") && !shown.contains("hunter2"),
            "{shown}"
        );
    }
}
