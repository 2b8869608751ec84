//! TLS against a real RabbitMQ, and against peers that RabbitMQ cannot be made to be.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use messaging_core::{Error, ErrorKind, Outcome};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What is wrong with TLS is found much sooner than any time limit.
const AT_ONCE: Duration = Duration::from_secs(5);

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: this test needs a RabbitMQ with TLS; run `cargo xtask brokers up` and set what it prints")
    })
}

/// A file that `cargo xtask brokers up` has made.
fn certificate(name: &str) -> String {
    let path = Path::new(&variable("LONGSHORE_CERTS")).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path.display().to_string()
}

/// The broker's TLS listener, with another scheme, user and options.
fn tls_url(variable_name: &str, scheme: &str, user: &str, query: &str) -> String {
    let url = variable(variable_name);
    let address = url.split_once('@').expect("the URL has a user").1;
    let address = address.split('/').next().unwrap_or(address);
    let user = match user {
        "" => String::new(),
        user => format!("{user}@"),
    };
    format!("{scheme}://{user}{address}/?{query}")
}

fn encrypted(query: &str) -> String {
    tls_url("RABBITMQ_TLS_URL", "amqps", "guest:guest", query)
}

fn trusting() -> String {
    format!("ssl_ca_file={}", certificate("ca.pem"))
}

/// Connects, sends to itself and receives.
async fn works(url: &str) {
    let bench = open(url);
    let (exchange, topic_name) = (unique("x"), unique("t"));
    let ready = within("connecting", bench.driver.ready(deadline(10))).await;
    ready.unwrap_or_else(|error| panic!("{url}: {error}"));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    // Larger than a TLS record and a frame.
    let body = "x".repeat(300_000);
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, &body).await.unwrap();
    let delivery = receive(&mut listener).await;
    assert_eq!(delivery.message.body, body.as_bytes());
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}

/// Fails at once, for good, and with nothing sent.
async fn refused(url: &str) -> Error {
    let began = Instant::now();
    let bench = open(url);
    // The driver gives up long before the deadline, because it knows that waiting is of no use.
    let error = bench
        .driver
        .ready(deadline(60))
        .await
        .expect_err("it must not connect");
    assert!(
        began.elapsed() < AT_ONCE,
        "{url}: {error} after {:?}",
        began.elapsed()
    );
    assert_eq!(error.outcome(), Outcome::NotSent);
    bench.close().await;
    error
}

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} in {error}");
    }
}

#[tokio::test]
async fn the_authority_of_ssl_ca_file_is_trusted_under_every_way_to_ask_for_tls() {
    let ca = trusting();
    works(&encrypted(&ca)).await;
    // Quorum queues, which a strict RabbitMQ 4 takes as well.
    let of_oslo =
        format!("{ca}&ssl=true&rabbit_quorum_queue=true&rabbit_transient_quorum_queue=true");
    works(&encrypted(&format!("{of_oslo}&profile=oslo"))).await;
    works(&tls_url(
        "RABBITMQ_TLS_URL",
        "rabbit",
        "guest:guest",
        &of_oslo,
    ))
    .await;
    for version in ["TLSv1_2", "TLSv1_3", "SSLv23"] {
        works(&encrypted(&format!("{ca}&ssl_version={version}"))).await;
    }
    works(&encrypted(&format!("{ca}&rabbit_login_method=PLAIN"))).await;
}

#[tokio::test]
async fn another_authority_is_not_trusted() {
    let other = certificate("other-ca.pem");
    let error = refused(&encrypted(&format!("ssl_ca_file={other}"))).await;
    says(
        &error,
        ErrorKind::Config,
        &["not trusted", "ssl_ca_file", &other],
    );
    // Without the check of the name the authority is still checked.
    let error = refused(&encrypted(&format!(
        "ssl_ca_file={other}&ssl_enforce_hostname_verification=false"
    )))
    .await;
    says(&error, ErrorKind::Config, &["not trusted"]);
    let error = refused(&encrypted("")).await;
    says(
        &error,
        ErrorKind::Config,
        &["not trusted", "set ssl_ca_file"],
    );
}

#[tokio::test]
async fn a_certificate_for_another_host_is_not_accepted() {
    let wrong = |query: &str| tls_url("RABBITMQ_TLS_WRONG_NAME_URL", "amqps", "guest:guest", query);
    let ca = trusting();
    let error = refused(&wrong(&ca)).await;
    says(
        &error,
        ErrorKind::Config,
        &[
            "not for this host but for localhost",
            "ssl_enforce_hostname_verification",
        ],
    );
    works(&wrong(&format!(
        "{ca}&ssl_enforce_hostname_verification=false"
    )))
    .await;
}

#[tokio::test]
async fn another_host_is_used_where_one_is_not_fit() {
    let at = |name: &str| {
        let url = variable(name);
        let address = url.split_once('@').expect("the URL has a user").1;
        address.trim_end_matches('/').to_owned()
    };
    let (good, bad) = (at("RABBITMQ_TLS_URL"), at("RABBITMQ_TLS_WRONG_NAME_URL"));
    let user = "guest:guest";
    // The list is shuffled: by chance the good one is always first once in 256 runs.
    for _ in 0..8 {
        let bench = open(&format!(
            "amqps://{user}@{bad},{user}@{good}/?{}",
            trusting()
        ));
        within("connecting", bench.driver.ready(deadline(10)))
            .await
            .unwrap();
        bench.close().await;
    }
    let error = refused(&format!(
        "amqps://{user}@{bad},{user}@{bad}/?{}",
        trusting()
    ))
    .await;
    says(&error, ErrorKind::Config, &["not for this host"]);
}

#[tokio::test]
async fn certificates_are_read_again_for_each_connection() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.pem", unique("ca")));
    std::fs::copy(certificate("other-ca.pem"), &file).unwrap();
    let query = format!("rabbit_interval_max=1&ssl_ca_file={}", file.display());
    let bench = open(&encrypted(&query));
    let error = bench.driver.ready(deadline(10)).await.unwrap_err();
    says(&error, ErrorKind::Config, &["not trusted"]);
    std::fs::copy(certificate("ca.pem"), &file).unwrap();
    eventually("the renewed authority is trusted", async || {
        bench.driver.ready(deadline(1)).await.is_ok()
    })
    .await;
    bench.close().await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test]
async fn a_certificate_logs_in() {
    let identity = |name: &str| {
        format!(
            "{}&ssl_cert_file={}&ssl_key_file={}",
            trusting(),
            certificate(&format!("{name}.pem")),
            certificate(&format!("{name}.key"))
        )
    };
    let external = |name: &str, version: &str| {
        let query = format!(
            "{}&rabbit_login_method=EXTERNAL&ssl_version={version}",
            identity(name)
        );
        tls_url("RABBITMQ_TLS_URL", "amqps", "", &query)
    };
    for version in ["TLSv1_2", "TLSv1_3"] {
        works(&external("client", version)).await;
        // The broker trusts its authority and knows no such user.
        let error = refused(&external("stranger", version)).await;
        says(&error, ErrorKind::Unauthorized, &["EXTERNAL"]);
        let error = refused(&external("other-client", version)).await;
        says(&error, ErrorKind::Unauthorized, &["ssl_cert_file"]);
    }
    // A certificate does not keep a password from being used.
    works(&encrypted(&identity("client"))).await;
    let error = refused(&encrypted(&identity("other-client"))).await;
    says(&error, ErrorKind::Unauthorized, &["ssl_cert_file"]);
}

#[tokio::test]
async fn a_port_of_the_other_kind_is_named() {
    let plain = broker_address();
    let error = refused(&format!("amqps://guest:guest@{plain}/?{}", trusting())).await;
    says(&error, ErrorKind::Config, &["does not speak TLS", "5671"]);
    for scheme in ["amqp", "rabbit"] {
        let url = tls_url("RABBITMQ_TLS_URL", scheme, "guest:guest", "");
        let error = refused(&url).await;
        says(
            &error,
            ErrorKind::Config,
            &["speaks TLS", "amqps://", "ssl=true"],
        );
    }
}

#[tokio::test]
async fn a_wrong_password_is_as_typed_over_tls() {
    let url = tls_url("RABBITMQ_TLS_URL", "amqps", "guest:hunter2", &trusting());
    let error = refused(&url).await;
    says(&error, ErrorKind::Unauthorized, &["user, password"]);
    assert!(!error.message().contains("hunter2"));
}

/// A key of the tests' own.
fn key(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/keys")
        .join(name)
        .display()
        .to_string()
}

#[test]
fn keys_may_be_pkcs8_pkcs1_or_sec1_and_must_fit() {
    let opened = |certificate: &str, key_query: &str| {
        let url = format!(
            "amqps://h/?ssl_ca_file={}&ssl_cert_file={}{key_query}",
            key("ec.pem"),
            key(certificate)
        );
        try_open(&url).map(drop)
    };
    let with = |name: &str| format!("&ssl_key_file={}", key(name));
    opened("ec.pem", &with("ec-pkcs8.key")).unwrap();
    opened("ec.pem", &with("ec-sec1.key")).unwrap();
    // A PKCS#1 key, in the file of its certificate as Python allows it.
    opened("rsa.pem", "").unwrap();
    for (certificate, key_query, words) in [
        (
            "rsa.pem",
            with("rsa-encrypted.key"),
            &["ssl_key_file", "encrypted"][..],
        ),
        (
            "rsa.pem",
            with("ec-sec1.key"),
            &["ssl_key_file", "ssl_cert_file", "together"],
        ),
        ("ec.pem", String::new(), &["ssl_key_file", "no private key"]),
        (
            "ec-sec1.key",
            with("ec-sec1.key"),
            &["ssl_cert_file", "no certificate"],
        ),
        (
            "missing.pem",
            with("ec-sec1.key"),
            &["ssl_cert_file", "missing.pem", "cannot be read"],
        ),
    ] {
        let error = opened(certificate, &key_query).unwrap_err();
        says(&error, ErrorKind::Config, words);
    }
    let error = try_open(&format!("amqps://h/?ssl_ca_file={}", key("ec-sec1.key")));
    says(
        &error.err().unwrap(),
        ErrorKind::Config,
        &["ssl_ca_file", "no certificate"],
    );
}

/// An authority of one test, and where its certificate is.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.pem", unique("ca")));
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { issuer, file }
    }

    /// A server that shakes hands, says nothing, and shuts down when its peer does.
    async fn peer(&self, params: CertificateParams, ask_for_certificates: bool) -> String {
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if ask_for_certificates {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_single_cert(chain, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let _ = stream.read_to_end(&mut Vec::new()).await;
                    }
                });
            }
        });
        address
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_not_accepted() {
    let authority = Authority::new();
    let ca = authority.file.display().to_string();
    let named = || CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let mut old = named();
    old.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let mut early = named();
    early.not_before = rcgen::date_time_ymd(3000, 1, 1);
    for (params, words) in [(old, "has expired"), (early, "not valid yet")] {
        let address = authority.peer(params, false).await;
        for check in ["", "&ssl_enforce_hostname_verification=false"] {
            let error = refused(&format!("amqps://{address}/?ssl_ca_file={ca}{check}")).await;
            says(&error, ErrorKind::Config, &[words, "clock"]);
        }
    }
}

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_is_understood() {
    let authority = Authority::new();
    let ca = authority.file.display().to_string();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let address = authority.peer(params, true).await;
    for version in ["TLSv1_2", "TLSv1_3"] {
        let url = format!("amqps://{address}/?ssl_ca_file={ca}&ssl_version={version}");
        let error = refused(&url).await;
        says(
            &error,
            ErrorKind::Unauthorized,
            &["ssl_cert_file", "ssl_key_file"],
        );
    }
}

#[tokio::test]
async fn a_peer_that_answers_nothing_hangs_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let bench = open(&format!("amqps://{address}/?ssl_ca_file={}", key("ec.pem")));
    let began = Instant::now();
    let error = bench.driver.ready(deadline(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    bench.close().await;
}
