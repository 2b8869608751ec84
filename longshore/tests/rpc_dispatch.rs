//! Which method a request reaches: namespaces, versions, endpoints in order, access policies.

#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, unique};
use longshore::{
    AccessPolicy, AllowAll, AllowExposed, AllowPublic, Context, ErrorKind, Outcome, Router,
    RpcClient, RpcServer, RpcServerBuilder, Target, Transport,
};

async fn open(name: &str) -> Transport {
    Transport::connect(&format!("memory://{}", unique(name)))
        .await
        .unwrap()
}

fn server(transport: &Transport, router: Router) -> RpcServerBuilder {
    RpcServer::builder(transport, Target::topic("t").server("s"), router)
}

fn client(transport: &Transport) -> RpcClient {
    RpcClient::new(transport, Target::topic("t")).timeout(PATIENCE)
}

/// An endpoint whose methods say which endpoint they are of.
fn endpoint(
    namespace: Option<&str>,
    version: &str,
    label: &'static str,
    methods: &[&str],
) -> Router {
    let mut router = Router::new().version(version);
    if let Some(namespace) = namespace {
        router = router.namespace(namespace);
    }
    for method in methods {
        router = router.method(*method, move |_: Context| async move { Ok(label) });
    }
    router
}

/// What is answered: the endpoint, or the class of a failure that no handler saw.
async fn answer(
    client: &RpcClient,
    method: &str,
    namespace: Option<&str>,
    version: Option<&str>,
) -> Result<String, &'static str> {
    let call = client.call::<String>(method).namespace(namespace);
    match call
        .version(version.map(|text| text.parse().unwrap()))
        .await
    {
        Ok(label) => Ok(label),
        Err(error) => {
            assert_eq!(error.outcome(), Outcome::NotExecuted, "{error}");
            let remote = error.remote().unwrap();
            assert_eq!(remote.module, "oslo_messaging.rpc.dispatcher");
            match (error.kind(), &*remote.class) {
                (ErrorKind::NoSuchMethod, "NoSuchMethod") => {
                    let text = format!("Endpoint does not support RPC method {method}");
                    assert_eq!(remote.message, text);
                    Err("NoSuchMethod")
                }
                (ErrorKind::UnsupportedVersion, "UnsupportedVersion") => {
                    assert!(
                        remote
                            .message
                            .ends_with(&format!("Attempted method: {method}"))
                    );
                    Err("UnsupportedVersion")
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn requests_are_dispatched_as_in_oslo_messaging() {
    type Case = (
        &'static str,
        Router,
        Option<&'static str>,
        Option<&'static str>,
        Result<&'static str, &'static str>,
    );
    let one =
        |namespace: Option<&str>, version: &str| endpoint(namespace, version, "first", &["m"]);
    let two = |a: (Option<&str>, &str), b: (Option<&str>, &str)| {
        one(a.0, a.1).merge(endpoint(b.0, b.1, "second", &["m"]))
    };
    let cases: Vec<Case> = vec![
        (
            "no endpoints",
            Router::new(),
            None,
            None,
            Err("UnsupportedVersion"),
        ),
        (
            "the default target",
            one(None, "1.0"),
            None,
            None,
            Ok("first"),
        ),
        (
            "version 1.0 said",
            one(None, "1.0"),
            None,
            Some("1.0"),
            Ok("first"),
        ),
        (
            "a lower minor",
            one(None, "1.4"),
            None,
            Some("1.3"),
            Ok("first"),
        ),
        (
            "no version counts as 1.0",
            one(None, "2.0"),
            None,
            None,
            Err("UnsupportedVersion"),
        ),
        (
            "a higher minor",
            one(None, "1.4"),
            None,
            Some("1.5"),
            Err("UnsupportedVersion"),
        ),
        (
            "a namespace",
            one(Some("n"), "1.0"),
            Some("n"),
            None,
            Ok("first"),
        ),
        (
            "a namespace missing",
            one(Some("n"), "1.0"),
            None,
            None,
            Err("UnsupportedVersion"),
        ),
        (
            "a namespace too many",
            one(None, "1.0"),
            Some("n"),
            None,
            Err("UnsupportedVersion"),
        ),
        (
            "the second namespace",
            two((None, "1.0"), (Some("n"), "1.0")),
            Some("n"),
            None,
            Ok("second"),
        ),
        (
            "the second version",
            two((None, "1.5"), (None, "3.4")),
            None,
            Some("3.2"),
            Ok("second"),
        ),
        (
            "neither version",
            two((None, "1.5"), (None, "3.0")),
            None,
            Some("3.2"),
            Err("UnsupportedVersion"),
        ),
        (
            "the first of equals",
            two((None, "1.5"), (None, "1.9")),
            None,
            Some("1.2"),
            Ok("first"),
        ),
        (
            "a legacy null namespace",
            one(Some("n"), "1.0").legacy_namespace(None),
            None,
            None,
            Ok("first"),
        ),
        (
            "a legacy namespace",
            one(Some("n"), "1.0").legacy_namespace(Some("old")),
            Some("old"),
            None,
            Ok("first"),
        ),
        (
            "not among the legacy namespaces",
            one(Some("n"), "1.0").legacy_namespace(None),
            Some("x"),
            None,
            Err("UnsupportedVersion"),
        ),
    ];
    for (case, router, namespace, version, expected) in cases {
        let transport = open("dispatch").await;
        let _server = server(&transport, router).start().await.unwrap();
        let got = answer(&client(&transport), "m", namespace, version).await;
        assert_eq!(
            got.as_deref(),
            expected.as_ref().map(|label| *label),
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_method_is_sought_in_all_endpoints_that_fit() {
    let transport = open("seek").await;
    let router = endpoint(None, "1.1", "first", &["a"])
        .merge(endpoint(Some("n"), "1.1", "other", &["b"]))
        .merge(endpoint(None, "1.1", "second", &["a", "b"]))
        .merge(endpoint(None, "2.0", "third", &["c"]));
    let _server = server(&transport, router).start().await.unwrap();
    let client = client(&transport);
    for (method, version, expected) in [
        ("a", "1.1", Ok("first")),
        ("b", "1.0", Ok("second")),
        ("c", "1.0", Err("NoSuchMethod")),
        ("c", "2.0", Ok("third")),
        ("a", "2.0", Err("NoSuchMethod")),
        ("c", "2.1", Err("UnsupportedVersion")),
    ] {
        let got = answer(&client, method, None, Some(version)).await;
        assert_eq!(
            got.as_deref(),
            expected.as_ref().map(|label| *label),
            "{method} {version}"
        );
    }
}

#[tokio::test]
async fn an_access_policy_hides_methods_and_the_next_endpoint_is_asked() {
    #[derive(Debug)]
    struct Never;
    impl AccessPolicy for Never {
        fn allows(&self, _: &str, _: bool) -> bool {
            false
        }
    }
    type Change = fn(RpcServerBuilder) -> RpcServerBuilder;
    let policies: [(&str, Change, [bool; 3]); 5] = [
        ("the default", |b| b, [true, true, false]),
        (
            "public",
            |b| b.access_policy(AllowPublic),
            [true, true, false],
        ),
        ("all", |b| b.access_policy(AllowAll), [true, true, true]),
        (
            "exposed",
            |b| b.access_policy(AllowExposed),
            [true, false, false],
        ),
        (
            "one's own",
            |b| b.access_policy(Never),
            [false, false, false],
        ),
    ];
    for (policy, change, allowed) in policies {
        let transport = open("policy").await;
        let router = endpoint(None, "1.0", "first", &["open", "plain", "_own"]).expose("open");
        let _server = change(server(&transport, router)).start().await.unwrap();
        for (method, allowed) in ["open", "plain", "_own"].into_iter().zip(allowed) {
            let expected = if allowed {
                Ok("first")
            } else {
                Err("NoSuchMethod")
            };
            let got = answer(&client(&transport), method, None, None).await;
            assert_eq!(
                got.as_deref(),
                expected.as_ref().map(|label| *label),
                "{policy}: {method}"
            );
        }
    }
    let transport = open("policy").await;
    let router = endpoint(None, "1.0", "first", &["m"])
        .merge(endpoint(None, "1.0", "second", &["m"]).expose("m"));
    let _server = server(&transport, router)
        .access_policy(AllowExposed)
        .start()
        .await
        .unwrap();
    assert_eq!(
        answer(&client(&transport), "m", None, None)
            .await
            .as_deref(),
        Ok("second")
    );
}
