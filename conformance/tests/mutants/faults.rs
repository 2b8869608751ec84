//! What is wrong with each broken driver, and which behaviours must notice.

/// One thing wrong with a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// None: the control. Nothing may fail.
    None,
    /// Takes every 19th message to a topic and delivers it to nobody.
    LosesSome,
    /// Delivers every 19th message to a topic twice.
    DuplicatesSome,
    /// Treats a requeue as done.
    NeverRequeues,
    /// Accepts, when a listener closes, what it holds unsettled.
    LosesUnsettledOnClose,
    /// Never tells the broker that a message was accepted.
    NeverAcks,
    /// Accepts a message before it hands it on.
    AcksEarly,
    /// Says of every delivery that it is the first.
    HidesRedelivery,
    /// Sends without the time to live.
    IgnoresTtl,
    /// Fetches as much as there is.
    IgnoresPrefetch,
    /// Sends a fanout to one of the servers.
    FanoutToOne,
    /// Sends a topic's message to all of its servers.
    TopicToAll,
    /// Sends to the topic what is for one server.
    ForgetsServer,
    /// Takes two topics for the same.
    MixesTopics,
    /// Says that a message arrived where nobody is.
    HidesNobody,
    /// Claims to know who is there now, and knows who ever was.
    ClaimsLive,
    /// Claims a time to live, and has none.
    ClaimsTtl,
    /// Does not claim priorities, and takes them in silence.
    TakesInSilence,
    /// Claims to say who is there, and does not.
    ClaimsInspect,
    /// Says that a body that is too large was sent.
    SwallowsTooLarge,
    /// Calls a body that is too large an internal error.
    UntypedTooLarge,
    /// Takes one byte less than it claims to.
    CutsLargest,
    /// Takes every body for text.
    MangleBinary,
    /// Loses headers.
    LosesHeaders,
    /// Shows its password in `Debug`.
    PrintsSecrets,
    /// Logs its URL with the password.
    LogsSecrets,
    /// Puts the URL with the password into errors.
    ErrsWithSecrets,
    /// Loses replies over 64 KiB.
    LosesLargeReplies,
    /// Gives every 50th reply the result of the one before.
    AnswersWrongCaller,
    /// Loses every 100th reply.
    LosesSomeReplies,
    /// Makes calls of casts.
    CastsWantReplies,
    /// Loses the class of a failure.
    FlattensErrors,
    /// Stops receiving once a handler has panicked.
    DiesOfPanic,
    /// Blocks its caller's thread when it hands over a request for `hold`.
    BlocksCaller,
    /// Reports a request for `hold` as not sent, and sends it.
    LiesNotSent,
    /// Loses the deadline of a request.
    LosesDeadline,
    /// Sends no reply once a listener has been stopped.
    DropsRepliesOnStop,
    /// Returns from `close` too late.
    HangsOnClose,
}

/// A broken driver, and what must notice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mutant {
    /// The name in its URL and in the list of tests.
    pub(crate) name: &'static str,
    /// What is wrong.
    pub(crate) fault: Fault,
    /// The options of the memory driver below.
    pub(crate) options: &'static str,
    /// The behaviours that must fail; others may.
    pub(crate) killed_by: &'static [&'static str],
}

/// A fault that fails more behaviours than this says little about any of them.
pub(crate) const NARROW: usize = 10;

const fn mutant(name: &'static str, fault: Fault, killed_by: &'static [&'static str]) -> Mutant {
    with(name, fault, "", killed_by)
}

const fn with(
    name: &'static str,
    fault: Fault,
    options: &'static str,
    killed_by: &'static [&'static str],
) -> Mutant {
    Mutant {
        name,
        fault,
        options,
        killed_by,
    }
}

pub(crate) const MUTANTS: &[Mutant] = &[
    mutant("none", Fault::None, &[]),
    mutant(
        "loses_some",
        Fault::LosesSome,
        &[
            "link::ack_is_final",
            "link::competing_consumers_share",
            "link::concurrent_senders_lose_nothing",
            "rpc::cast_has_no_reply",
            "rpc::thousand_calls_correlate",
        ],
    ),
    mutant(
        "duplicates_some",
        Fault::DuplicatesSome,
        &[
            "link::ack_is_final",
            "link::competing_consumers_share",
            "link::concurrent_senders_lose_nothing",
        ],
    ),
    mutant(
        "never_requeues",
        Fault::NeverRequeues,
        &["link::nack_requeues", "link::drop_delivery_requeues"],
    ),
    mutant(
        "loses_unsettled_on_close",
        Fault::LosesUnsettledOnClose,
        &["link::drop_delivery_requeues"],
    ),
    mutant(
        "never_acks",
        Fault::NeverAcks,
        &["link::ack_is_final", "link::prefetch_respected"],
    ),
    mutant(
        "acks_early",
        Fault::AcksEarly,
        &[
            "link::nack_requeues",
            "link::drop_delivery_requeues",
            "link::prefetch_respected",
        ],
    ),
    mutant(
        "hides_redelivery",
        Fault::HidesRedelivery,
        &["link::nack_requeues"],
    ),
    mutant("ignores_ttl", Fault::IgnoresTtl, &["link::ttl_expires"]),
    mutant(
        "ignores_prefetch",
        Fault::IgnoresPrefetch,
        &["link::prefetch_respected"],
    ),
    mutant(
        "fanout_to_one",
        Fault::FanoutToOne,
        &["link::fanout_reaches_all"],
    ),
    mutant(
        "topic_to_all",
        Fault::TopicToAll,
        &["link::competing_consumers_share"],
    ),
    mutant(
        "forgets_server",
        Fault::ForgetsServer,
        &["link::topics_are_isolated", "rpc::call_specific_server"],
    ),
    mutant(
        "mixes_topics",
        Fault::MixesTopics,
        &["link::topics_are_isolated"],
    ),
    mutant(
        "hides_nobody",
        Fault::HidesNobody,
        &["link::unroutable_reported", "rpc::no_server_is_reported"],
    ),
    with(
        "claims_live",
        Fault::ClaimsLive,
        "without=live_nobody",
        &["link::unroutable_reported"],
    ),
    with(
        "claims_ttl",
        Fault::ClaimsTtl,
        "without=ttl",
        &["link::ttl_expires"],
    ),
    mutant(
        "takes_in_silence",
        Fault::TakesInSilence,
        &["link::unsupported_is_typed"],
    ),
    with(
        "claims_inspect",
        Fault::ClaimsInspect,
        "without=inspect",
        &["link::unsupported_is_typed"],
    ),
    mutant(
        "swallows_too_large",
        Fault::SwallowsTooLarge,
        &["link::body_over_max_is_typed_error"],
    ),
    mutant(
        "untyped_too_large",
        Fault::UntypedTooLarge,
        &["link::body_over_max_is_typed_error"],
    ),
    mutant("cuts_largest", Fault::CutsLargest, &["link::body_at_max"]),
    mutant("mangles_binary", Fault::MangleBinary, &["link::round_trip"]),
    mutant("loses_headers", Fault::LosesHeaders, &["link::round_trip"]),
    mutant(
        "prints_secrets",
        Fault::PrintsSecrets,
        &["link::secrets_not_printed"],
    ),
    mutant(
        "logs_secrets",
        Fault::LogsSecrets,
        &["link::secrets_not_printed"],
    ),
    mutant(
        "errs_with_secrets",
        Fault::ErrsWithSecrets,
        &["link::secrets_not_printed"],
    ),
    mutant(
        "loses_large_replies",
        Fault::LosesLargeReplies,
        &["rpc::call_returns_reply"],
    ),
    mutant(
        "answers_wrong_caller",
        Fault::AnswersWrongCaller,
        &["rpc::thousand_calls_correlate"],
    ),
    mutant(
        "loses_some_replies",
        Fault::LosesSomeReplies,
        &["rpc::thousand_calls_correlate"],
    ),
    mutant(
        "casts_want_replies",
        Fault::CastsWantReplies,
        &["rpc::cast_has_no_reply"],
    ),
    mutant(
        "flattens_errors",
        Fault::FlattensErrors,
        &["rpc::typed_error_arrives"],
    ),
    mutant(
        "dies_of_panic",
        Fault::DiesOfPanic,
        &["rpc::panic_is_remote_error_and_server_lives"],
    ),
    mutant(
        "blocks_caller",
        Fault::BlocksCaller,
        &["rpc::timeout_fires"],
    ),
    mutant(
        "lies_not_sent",
        Fault::LiesNotSent,
        &["rpc::timeout_fires", "rpc::server_stop_finishes_in_flight"],
    ),
    mutant(
        "loses_deadline",
        Fault::LosesDeadline,
        &["rpc::expired_request_not_executed"],
    ),
    mutant(
        "drops_replies_on_stop",
        Fault::DropsRepliesOnStop,
        &["rpc::server_stop_finishes_in_flight"],
    ),
    mutant(
        "hangs_on_close",
        Fault::HangsOnClose,
        &["link::round_trip", "rpc::call_returns_reply"],
    ),
];
