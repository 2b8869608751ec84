//! The client of an RPC interface: targets and their overrides, timeouts, version caps.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{PATIENCE, kinds, unique};
use longshore::driver::Via;
use longshore::{
    Config, Context, Error, ErrorKind, Outcome, Router, RpcClient, RpcServer, Target, Transport,
    Version,
};
use tokio::sync::mpsc;

const NO_ENVIRONMENT: [(&str, &str); 0] = [];

fn v(text: &str) -> Version {
    text.parse().unwrap()
}

/// Where a request arrived: `exchange/topic/server`, by which address, and at which endpoint.
type Place = (String, Via, &'static str);

/// A server that says where a request arrived, by a result and on a channel, and has an endpoint for each
/// namespace and major version.
async fn site(
    transport: &Transport,
    at: [&str; 3],
    seen: &mpsc::UnboundedSender<Place>,
) -> RpcServer {
    let mut router = Router::new();
    for (namespace, version, label) in [
        (None, "1.9", "none 1"),
        (None, "2.9", "none 2"),
        (None, "3.9", "none 3"),
        (Some("a"), "1.9", "a 1"),
        (Some("b"), "1.9", "b 1"),
    ] {
        let (place, seen) = (at.join("/"), seen.clone());
        let mut endpoint = Router::new().version(version);
        if let Some(namespace) = namespace {
            endpoint = endpoint.namespace(namespace);
        }
        router = router.merge(endpoint.method("where", move |ctx: Context| {
            let _ = seen.send((place.clone(), ctx.delivery().via, label));
            async { Ok(()) }
        }));
    }
    let target = Target::topic(at[1]).exchange(at[0]).server(at[2]);
    RpcServer::builder(transport, target, router)
        .start()
        .await
        .unwrap()
}

/// What one side says of a field of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    Nothing,
    None,
    A,
    B,
}

fn set(target: &mut Target, field: &str, says: Says) {
    let name = match says {
        Says::Nothing => return,
        Says::None => None,
        Says::A => Some("a"),
        Says::B => Some("b"),
    };
    match field {
        "exchange" => target.exchange = name.map(Into::into),
        "topic" => target.topic = name.map(Into::into),
        "server" => target.server = name.map(Into::into),
        "namespace" => target.namespace = name.map(Into::into),
        "version" => target.version = name.map(|name| v(if name == "a" { "2.1" } else { "3.1" })),
        _ => target.fanout = name == Some("b"),
    }
}

#[tokio::test]
async fn each_field_of_a_target_is_given_overridden_and_cleared() {
    let transport = Transport::builder(&format!("memory://{}", unique("fields")))
        .default_exchange("dx")
        .connect()
        .await
        .unwrap();
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut servers = Vec::new();
    for at in [
        ["dx", "t", "s"],
        ["a", "t", "s"],
        ["b", "t", "s"],
        ["dx", "a", "s"],
        ["dx", "b", "s"],
        ["dx", "t2", "a"],
        ["dx", "t2", "b"],
    ] {
        servers.push(site(&transport, at, &sender).await);
    }
    for field in [
        "exchange",
        "topic",
        "server",
        "namespace",
        "version",
        "fanout",
    ] {
        for (constructor, prepared) in [
            (Says::Nothing, Says::Nothing),
            (Says::A, Says::Nothing),
            (Says::Nothing, Says::B),
            (Says::A, Says::B),
            (Says::A, Says::None),
            (Says::B, Says::None),
        ] {
            let case = format!("{field}: {constructor:?} then {prepared:?}");
            let base = if field == "server" { "t2" } else { "t" };
            let mut target = Target::topic(base);
            set(&mut target, field, constructor);
            let client = RpcClient::new(&transport, target.clone()).timeout(PATIENCE);
            let prepare = |client: RpcClient| {
                client.with_target(|mut target| {
                    set(&mut target, field, prepared);
                    target
                })
            };
            let once = prepare(client.clone());
            let twice = prepare(once.clone());
            assert_eq!(
                once.target(),
                twice.target(),
                "{case}: preparing is idempotent"
            );
            assert_eq!(
                *client.target(),
                target,
                "{case}: the first client is as it was"
            );

            let effective = if prepared == Says::Nothing {
                constructor
            } else {
                prepared
            };
            let name = match effective {
                Says::A => Some("a"),
                Says::B => Some("b"),
                _ => None,
            };
            if field == "topic" && name.is_none() && prepared == Says::None {
                let error = twice.cast("where").await.unwrap_err();
                assert_eq!(
                    kinds(&error),
                    (ErrorKind::InvalidTarget, Outcome::NotSent),
                    "{case}"
                );
                continue;
            }
            twice.cast("where").await.unwrap();
            let (place, via, endpoint) = seen.recv().await.unwrap();
            let expected = match (field, name) {
                ("exchange", Some(name)) => format!("{name}/t/s"),
                ("topic", Some(name)) => format!("dx/{name}/s"),
                ("server", Some(name)) => format!("dx/t2/{name}"),
                ("server", None) => {
                    assert!(place.starts_with("dx/t2/"), "{case}: {place}");
                    place.clone()
                }
                _ => "dx/t/s".to_owned(),
            };
            let expected_via = match (field, name) {
                ("server", Some(_)) => Via::Server,
                ("fanout", Some("b")) => Via::Fanout,
                _ => Via::Topic,
            };
            let expected_endpoint = match (field, name) {
                ("namespace", Some("a")) => "a 1",
                ("namespace", Some(_)) => "b 1",
                ("version", Some("a")) => "none 2",
                ("version", Some(_)) => "none 3",
                _ => "none 1",
            };
            assert_eq!(
                (place, via, endpoint),
                (expected, expected_via, expected_endpoint),
                "{case}"
            );
        }
    }
}

#[tokio::test]
async fn a_request_overrides_its_client() {
    let transport = Transport::connect(&format!("memory://{}", unique("overrides")))
        .await
        .unwrap();
    let (sender, mut seen) = mpsc::unbounded_channel();
    let _a = site(&transport, ["ex", "t", "a"], &sender).await;
    let _b = site(&transport, ["openstack", "t", "b"], &sender).await;
    let client = RpcClient::new(&transport, Target::topic("x").server("x").version(v("2.0")))
        .timeout(PATIENCE);
    client
        .call::<()>("where")
        .topic("t")
        .server("b")
        .version(None)
        .namespace(Some("b"))
        .await
        .unwrap();
    assert_eq!(
        seen.recv().await.unwrap(),
        ("openstack/t/b".into(), Via::Server, "b 1")
    );
    client
        .cast("where")
        .exchange("ex")
        .topic("t")
        .fanout()
        .await
        .unwrap();
    assert_eq!(
        seen.recv().await.unwrap(),
        ("ex/t/a".into(), Via::Fanout, "none 2")
    );
}

#[tokio::test]
async fn targets_that_cannot_be_sent_to_are_refused() {
    let transport = Transport::connect(&format!("memory://{}", unique("refused")))
        .await
        .unwrap();
    let refused = |error: Error| {
        assert_eq!(
            kinds(&error),
            (ErrorKind::InvalidTarget, Outcome::NotSent),
            "{error}"
        );
    };
    for target in [
        Target::default(),
        Target::topic(""),
        Target::topic("a\nb"),
        Target::topic("t").exchange(""),
        Target::topic("t").server("x".repeat(300)),
        Target::topic("t").namespace(""),
    ] {
        let client = RpcClient::new(&transport, target);
        refused(client.call::<()>("m").await.unwrap_err());
        refused(client.cast("m").await.unwrap_err());
    }
    let fanout = RpcClient::new(&transport, Target::topic("t").fanout());
    refused(fanout.call::<()>("m").await.unwrap_err());
    let plain = RpcClient::new(&transport, Target::topic("t"));
    refused(
        plain
            .clone()
            .with_target(Target::fanout)
            .call::<()>("m")
            .await
            .unwrap_err(),
    );
    refused(plain.call::<()>("").await.unwrap_err());
    assert_eq!(transport.pending_calls(), 0);
}

#[tokio::test]
async fn timeouts_come_from_configuration_constructor_and_request() {
    let config =
        Config::from_parts("[DEFAULT]\nrpc_response_timeout = 40\n", NO_ENVIRONMENT).unwrap();
    let transport = Transport::from_config(config)
        .url(&format!("memory://{}", unique("timeouts")))
        .connect()
        .await
        .unwrap();
    let router = Router::new().method("left", async |ctx: Context| {
        Ok(ctx.remaining().map(|left| left.as_millis()))
    });
    let _server = RpcServer::builder(&transport, Target::topic("t").server("s"), router)
        .start()
        .await
        .unwrap();
    let client = RpcClient::new(&transport, Target::topic("t"));
    let left = async |client: &RpcClient| client.call::<u128>("left").await.unwrap();
    let within = |ms: u128, limit: u128| assert!(ms <= limit && ms > limit - 5_000, "{ms}");
    within(left(&client).await, 40_000);
    let client = client.timeout(Duration::from_secs_f64(20.5));
    within(left(&client).await, 20_500);
    let over = client.call::<u128>("left").timeout(Duration::from_secs(10));
    within(over.await.unwrap(), 10_000);
    for client in [client.clone().timeout(Duration::ZERO), client.clone()] {
        let error = client
            .call::<u128>("left")
            .timeout(Duration::ZERO)
            .await
            .unwrap_err();
        assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::NotSent));
        let error = client
            .cast("left")
            .timeout(Duration::ZERO)
            .await
            .unwrap_err();
        assert_eq!(kinds(&error), (ErrorKind::Timeout, Outcome::NotSent));
    }
    assert!(left(&client.timeout(Duration::MAX)).await > 40_000);
}

#[tokio::test]
async fn version_caps_decide_alike_on_client_and_request() {
    let transport = Transport::connect(&format!("memory://{}", unique("caps")))
        .await
        .unwrap();
    let (sender, _seen) = mpsc::unbounded_channel();
    let _server = site(&transport, ["openstack", "t", "s"], &sender).await;
    // The client's cap, the request's cap if it sets one, the version, and whether it may be sent.
    type Case<'a> = (
        Option<&'a str>,
        Option<Option<&'a str>>,
        Option<&'a str>,
        bool,
    );
    let cases: [Case<'_>; 11] = [
        (None, None, None, true),
        (None, None, Some("1.1"), true),
        (Some("1.1"), None, Some("1.0"), true),
        (Some("1.1"), None, Some("1.1"), true),
        (Some("1.0"), None, Some("1.1"), false),
        (Some("2.0"), None, Some("1.0"), false),
        (Some("1.0"), None, None, false),
        (Some("1.0"), Some(Some("1.1")), Some("1.1"), true),
        (Some("1.1"), Some(Some("1.0")), Some("1.1"), false),
        (Some("1.0"), Some(None), Some("1.1"), true),
        (Some("1.0"), Some(None), None, true),
    ];
    for (cap, own_cap, version, allowed) in cases {
        let case = format!("cap {cap:?}, request's {own_cap:?}, version {version:?}");
        let mut target = Target::topic("t");
        target.version = version.map(v);
        let client = RpcClient::new(&transport, target)
            .timeout(PATIENCE)
            .version_cap(cap.map(v));
        let prepared = match own_cap {
            Some(cap) => client.clone().version_cap(cap.map(v)),
            None => client.clone(),
        };
        assert_eq!(prepared.can_send_version(None), allowed, "{case}");
        assert_eq!(prepared.can_send_version(version.map(v)), allowed, "{case}");

        let (mut call, mut cast) = (client.call::<()>("where"), client.cast("where"));
        if let Some(cap) = own_cap {
            call = call.version_cap(cap.map(v));
            cast = cast.version_cap(cap.map(v));
        }
        for result in [call.await, cast.await.map(|_| ())] {
            match result {
                Ok(()) => assert!(allowed, "{case}"),
                Err(error) => {
                    assert!(!allowed, "{case}: {error}");
                    assert_eq!(
                        kinds(&error),
                        (ErrorKind::VersionCap, Outcome::NotSent),
                        "{case}"
                    );
                }
            }
        }
    }
    for text in ["5", "5.a", "5.5.a"] {
        assert_eq!(
            text.parse::<Version>().unwrap_err().kind(),
            ErrorKind::Config
        );
    }
}
