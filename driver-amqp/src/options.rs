//! The table of options, under the names oslo.messaging gives them.

use messaging_core::options::{OptionGroup, OptionKind, OptionSpec};

/// The options of `rabbit://`, `kombu://`, `amqp://` and `amqps://`, under the names oslo.messaging gives them.
pub static OPTIONS: OptionGroup = OptionGroup {
    name: "oslo_messaging_rabbit",
    options: &[
        option(
            "profile",
            OptionKind::Choice(&["oslo", "durable"]),
            None,
            "`oslo`: exactly the exchanges and queues of oslo.messaging; `durable`: durable ones that RabbitMQ 4 accepts; without it the scheme decides",
        ),
        boolean(
            "amqp_durable_queues",
            "topic exchanges and queues survive a restart of the broker",
        ),
        boolean(
            "amqp_auto_delete",
            "topic exchanges and queues go with their last user",
        ),
        integer(
            "rpc_conn_pool_size",
            1,
            100_000,
            "30",
            "ignored: there is one sending connection",
        ),
        integer(
            "conn_pool_min_size",
            0,
            100_000,
            "2",
            "ignored: there is one sending connection",
        ),
        integer(
            "conn_pool_ttl",
            0,
            i64::MAX,
            "1200",
            "ignored: there is one sending connection",
        ),
        boolean(
            "ssl",
            "TLS, as amqps:// has it; the port stays 5672 unless the URL has another",
        ),
        text(
            "ssl_version",
            "TLSv1_2 or TLSv1_3 alone; both unless it is set",
        ),
        text(
            "ssl_key_file",
            "the key of ssl_cert_file in PEM; in the same file unless it is set",
        ),
        text(
            "ssl_cert_file",
            "the certificate, in PEM, that is shown to a broker that asks for one",
        ),
        text(
            "ssl_ca_file",
            "the authorities to trust, in PEM; those of the system unless it is set",
        ),
        option(
            "ssl_enforce_hostname_verification",
            OptionKind::Bool,
            Some("true"),
            "whether the broker's certificate must be for the host of the URL; false needs ssl_ca_file",
        ),
        boolean(
            "ssl_enforce_fips_mode",
            "validated cryptography; not built, so that true is refused with TLS",
        ),
        seconds(
            "kombu_reconnect_delay",
            "1.0",
            "seconds to wait after every failed attempt to connect, besides the back-off; none unless it is set",
        ),
        seconds(
            "kombu_reconnect_splay",
            "0.0",
            "up to so many seconds more, at random, after every failed attempt; none unless it is set",
        ),
        text(
            "kombu_compression",
            "how what is sent is compressed: gzip (zlib on the wire), bzip2 or zstd; every receiver reads all of them",
        ),
        integer(
            "kombu_missing_consumer_retry_timeout",
            0,
            i64::MAX,
            "60",
            "ignored: the RPC server decides how long a reply is sent again",
        ),
        option(
            "kombu_failover_strategy",
            OptionKind::Choice(&["round-robin", "shuffle"]),
            Some("round-robin"),
            "how the next host is chosen: in the order of a list that is shuffled once, or shuffled anew in each round",
        ),
        option(
            "rabbit_login_method",
            OptionKind::Choice(&["AMQPLAIN", "PLAIN", "EXTERNAL", "RABBIT-CR-DEMO"]),
            Some("AMQPLAIN"),
            "the SASL mechanism: AMQPLAIN, PLAIN, or EXTERNAL, which logs in by ssl_cert_file",
        ),
        integer(
            "rabbit_retry_interval",
            1,
            86_400,
            "1",
            "the first pause when all hosts have failed, in seconds; unless it or rabbit_retry_backoff is set, pauses double from 50 ms with full jitter",
        ),
        integer(
            "rabbit_retry_backoff",
            0,
            86_400,
            "2",
            "seconds by which each further pause is longer; see rabbit_retry_interval",
        ),
        integer(
            "rabbit_interval_max",
            1,
            86_400,
            "30",
            "the longest pause between two attempts to connect, in seconds; 10 unless it or rabbit_retry_interval is set",
        ),
        boolean(
            "rabbit_ha_queues",
            "queues are declared with x-ha-policy, which RabbitMQ has ignored since 3.0",
        ),
        boolean(
            "rabbit_quorum_queue",
            "topic, server and notification queues are quorum queues, and durable",
        ),
        boolean(
            "rabbit_transient_quorum_queue",
            "reply and fanout queues are quorum queues, and durable",
        ),
        integer(
            "rabbit_quorum_delivery_limit",
            0,
            i64::MAX,
            "0",
            "deliveries of a message after which a quorum queue drops it; 0: the broker decides",
        ),
        integer(
            "rabbit_quorum_max_memory_length",
            0,
            i64::MAX,
            "0",
            "messages a quorum queue keeps in memory; 0: the broker decides",
        ),
        integer(
            "rabbit_quorum_max_memory_bytes",
            0,
            i64::MAX,
            "0",
            "bytes a quorum queue keeps in memory; 0: the broker decides",
        ),
        integer(
            "rabbit_transient_queues_ttl",
            0,
            // The broker takes at most 2^32 - 1 milliseconds.
            4_294_967,
            "1800",
            "seconds after which an unused reply or fanout queue is deleted, and a message of a stream; 0: never",
        ),
        integer(
            "rabbit_qos_prefetch_count",
            0,
            65_535,
            "0",
            "deliveries fetched per queue and not yet accepted; 0: twice the concurrency, at least 16",
        ),
        integer(
            "heartbeat_timeout_threshold",
            0,
            65_535,
            "60",
            "seconds of silence after which the link counts as lost; 0: the broker decides",
        ),
        integer(
            "heartbeat_rate",
            1,
            1_000,
            "3",
            "ignored: a heartbeat is sent every half threshold",
        ),
        option(
            "direct_mandatory_flag",
            OptionKind::Bool,
            Some("true"),
            "ignored: replies are always sent as mandatory",
        ),
        boolean(
            "enable_cancel_on_failover",
            "consumers are cancelled when a mirrored queue fails over (x-cancel-on-ha-failover)",
        ),
        boolean(
            "use_queue_manager",
            "reply and fanout queues have names that come back when the service restarts: host, process, count",
        ),
        text(
            "hostname",
            "the host in stable names; its own name unless it is set",
        ),
        text(
            "processname",
            "the process in stable names; the program's file name unless it is set",
        ),
        boolean(
            "rabbit_stream_fanout",
            "one stream per topic takes the place of all its fanout queues; needs rabbit_transient_quorum_queue and rabbit_qos_prefetch_count",
        ),
    ],
};

const fn option(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    help: &'static str,
) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default,
        help,
    }
}

const fn boolean(name: &'static str, help: &'static str) -> OptionSpec {
    option(name, OptionKind::Bool, Some("false"), help)
}

const fn text(name: &'static str, help: &'static str) -> OptionSpec {
    option(name, OptionKind::Text, None, help)
}

const fn integer(
    name: &'static str,
    min: i64,
    max: i64,
    default: &'static str,
    help: &'static str,
) -> OptionSpec {
    option(name, OptionKind::Int { min, max }, Some(default), help)
}

const fn seconds(name: &'static str, default: &'static str, help: &'static str) -> OptionSpec {
    let kind = OptionKind::Seconds {
        min: 0.0,
        max: 86_400.0,
    };
    option(name, kind, Some(default), help)
}
