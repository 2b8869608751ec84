//! Nothing secret is logged, at any level. A program of its own, since it owns the log.

// Failing is what a test is for.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::*;
use messaging_core::driver::{Address, InboxAddress, Message};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_password_and_no_body_is_logged_at_trace_level() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    // The password as it stands in the URL; the user's name is no secret, and is the same here.
    let address = broker_address();
    let wrong = open(&format!("rabbit://guest:hunter2@{address}/"));
    wrong.driver.ready(deadline(10)).await.unwrap_err();
    wrong.driver.close(deadline(5)).await.unwrap();

    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&url("rabbit", ""));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "secret-body-1").await.unwrap();
    receive(&mut listener).await;
    // Returned messages are what lapin logs with their bodies.
    let nobody = topic(&exchange, "nobody");
    bench.accepted(&nobody, "secret-body-2").await.unwrap_err();
    let _ = bench
        .driver
        .send(&nobody, Message::json("secret-body-3"), &reporting())
        .await
        .unwrap();
    let gone = Address::Inbox(InboxAddress::new("reply_of_nobody"));
    let _ = bench
        .driver
        .send(&gone, Message::json("secret-body-4"), &reporting())
        .await
        .unwrap();
    bench.sink.wait_for(2).await;
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;

    #[cfg(feature = "tls")]
    over_tls().await;

    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("connected"), "the log works: {log}");
    for secret in ["hunter2", "guest\0guest", "\\0guest", "secret-body"] {
        let found = log.lines().find(|line| line.contains(secret));
        assert_eq!(found, None, "{secret:?} was logged");
    }
    // Bodies also show as lists of numbers.
    let numbers = format!("{:?}", b"secret-body");
    let numbers = numbers.trim_start_matches('[').trim_end_matches(']');
    assert!(!log.contains(numbers));
    let password = format!("{:?}", b"hunter2");
    assert!(!log.contains(password.trim_start_matches('[').trim_end_matches(']')));
    #[cfg(feature = "tls")]
    for part in key_parts() {
        let found = log.lines().find(|line| line.contains(&part));
        assert_eq!(found, None, "a part of the private key was logged");
    }
    clean_up_server(&exchange, &topic_name, "one").await;
}

#[cfg(feature = "tls")]
fn certificate(name: &str) -> String {
    let folder = std::env::var("LONGSHORE_CERTS").unwrap_or_else(|_| {
        panic!("LONGSHORE_CERTS is not set: this test needs a RabbitMQ with TLS; run `cargo xtask brokers up` and set what it prints")
    });
    format!("{folder}/{name}")
}

/// The lines of the key in PEM, and its bytes as a list of numbers shows them.
#[cfg(feature = "tls")]
fn key_parts() -> Vec<String> {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject as _;
    let text = std::fs::read_to_string(certificate("client.key")).unwrap();
    let lines = text.lines().filter(|line| !line.contains("-----"));
    let mut parts: Vec<_> = lines.map(str::to_owned).collect();
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap();
    // Its head is the same in every key.
    let bytes = &key.secret_der()[60..80];
    let numbers = format!("{bytes:?}");
    parts.push(numbers.trim_matches(['[', ']']).to_owned());
    assert!(parts.len() > 2);
    parts
}

/// The same secrets and a client's key over TLS: a wrong password, a login by certificate, and a body.
#[cfg(feature = "tls")]
async fn over_tls() {
    let url = std::env::var("RABBITMQ_TLS_URL").unwrap_or_else(|_| {
        panic!("RABBITMQ_TLS_URL is not set: this test needs a RabbitMQ with TLS; run `cargo xtask brokers up` and set what it prints")
    });
    let (_, address) = url.split_once('@').expect("RABBITMQ_TLS_URL has a user");
    let address = address.trim_end_matches('/');
    let query = format!(
        "ssl_ca_file={}&ssl_cert_file={}&ssl_key_file={}",
        certificate("ca.pem"),
        certificate("client.pem"),
        certificate("client.key")
    );
    let wrong = open(&format!("amqps://guest:hunter2@{address}/?{query}"));
    wrong.driver.ready(deadline(10)).await.unwrap_err();
    wrong.driver.close(deadline(5)).await.unwrap();

    let (exchange, topic_name) = (unique("x"), unique("t"));
    let bench = open(&format!(
        "amqps://{address}/?{query}&rabbit_login_method=EXTERNAL&kombu_compression=gzip"
    ));
    assert!(!format!("{:?}", bench.driver).contains("client.key"));
    let mut listener = bench.server(&exchange, &topic_name, "one").await;
    let to = server(&exchange, &topic_name, "one");
    bench.accepted(&to, "secret-body-5").await.unwrap();
    receive(&mut listener).await;
    let nobody = topic(&exchange, "nobody");
    bench.accepted(&nobody, "secret-body-6").await.unwrap_err();
    listener.close(deadline(5)).await.unwrap();
    bench.close().await;
    clean_up_server(&exchange, &topic_name, "one").await;
}
