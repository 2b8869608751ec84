//! What the driver says of itself, and what it must not say.

use std::error::Error as _;
use std::fmt::Debug;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use messaging_core::driver::{Capabilities, Driver, SendOptions};
use messaging_core::{Error, ErrorKind, Outcome, TransportUrl};

use super::peer::{Link, message};
use crate::events::Events;
use crate::failure::{Failure, describe, ensure, fail};
use crate::logs::Watch;
use crate::session::{SLACK, Session, open};

pub(crate) async fn secrets_not_printed(session: &Session) -> Result<(), Failure> {
    // The tail holds what a URL must escape: a driver that prints it raw, escaped or decoded prints the head.
    let head = format!("hush-{}", session.prefix);
    let secret = format!("{head}/@:%ů");
    let watch = Watch::start(&head)?;
    let found = |what: &str, text: &str| match text.contains(&head) {
        true => Err(Failure::new(format!(
            "{what} shows the password: {}",
            text.replace(&head, "<the secret>")
        ))),
        false => Ok(()),
    };

    session.step("a working URL");
    let url = session.parsed_url()?;
    let own: Vec<&str> = url
        .hosts
        .iter()
        .filter(|host| host.password != host.username)
        .filter_map(|host| host.password.as_deref())
        .filter(|password| password.len() >= 6)
        .collect();
    let link = session.link().await?;
    for text in shown(&url, &*link.driver) {
        ensure!(
            !own.iter().any(|password| text.contains(password)),
            "Debug, Display or health shows the password of the URL under test"
        );
    }

    session.step("a refused password");
    let refused = with_password(&url, &secret);
    attempt(session, &refused, &found).await?;

    session.step("a refused connection");
    let mut unreachable = refused;
    for host in &mut unreachable.hosts {
        host.hostname = Some(Ipv4Addr::LOCALHOST.to_string());
        host.port = Some(closed_port()?);
    }
    attempt(session, &unreachable, &found).await?;

    session.step("an unknown option with a secret value");
    let mut wrong = url.clone();
    wrong
        .query
        .insert("no_such_option".to_owned(), secret.clone());
    match open(
        session.registration,
        &wrong,
        Arc::new(Events::default()),
        session.max_body,
    ) {
        Ok(_) => fail!("an unknown option was taken in silence"),
        Err(error) => {
            ensure!(
                error.kind() == ErrorKind::Config,
                "an unknown option fails as {}",
                describe(&error)
            );
            for text in all_of(&error) {
                found("the error for an unknown option", &text)?;
            }
        }
    }

    session.step("the log");
    let lines = watch.lines();
    ensure!(
        lines.is_empty(),
        "the log shows the password: {}",
        lines.join(" | ")
    );
    Ok(())
}

/// Opens a driver with this URL, lets it try for a moment, and reads all it says meanwhile.
async fn attempt(
    session: &Session,
    url: &TransportUrl,
    found: &impl Fn(&str, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let events = Arc::new(Events::default());
    let driver = match open(session.registration, url, events, session.max_body) {
        Ok(driver) => driver,
        Err(error) => {
            for text in all_of(&error) {
                found("the error of opening", &text)?;
            }
            return Ok(());
        }
    };
    session.close_at_the_end(driver.clone());
    let patience = session.patience.min(Duration::from_secs(2));
    let ready = driver.ready(Instant::now() + patience);
    let Ok(ready) = tokio::time::timeout(patience + SLACK, ready).await else {
        fail!("ready() did not return by its deadline of {patience:?}");
    };
    if let Err(error) = ready {
        ensure!(
            error.outcome() == Outcome::NotSent,
            "a link that did not come up says {}",
            describe(&error)
        );
        for text in all_of(&error) {
            found("the error of a refused connection", &text)?;
        }
    }
    for text in shown(url, &*driver) {
        found("Debug, Display or health", &text)?;
    }
    Ok(())
}

/// All that a driver and its URL print of themselves.
fn shown(url: &TransportUrl, driver: &dyn Driver) -> Vec<String> {
    let health = driver.health().borrow().clone();
    let mut texts = vec![
        debug(url),
        url.to_string(),
        debug(driver),
        debug(&health),
        debug(&driver.capabilities()),
    ];
    texts.extend(url.hosts.iter().map(debug));
    texts
}

fn debug<T: Debug + ?Sized>(value: &T) -> String {
    // Both forms: hand-written implementations differ between them.
    format!("{value:?} {value:#?}")
}

/// All that an error and its causes print.
fn all_of(error: &Error) -> Vec<String> {
    let mut texts = vec![error.to_string(), debug(error)];
    let mut cause = error.source();
    while let Some(source) = cause {
        texts.push(source.to_string());
        texts.push(debug(source));
        cause = source.source();
    }
    texts
}

fn with_password(url: &TransportUrl, secret: &str) -> TransportUrl {
    let mut url = url.clone();
    if url.hosts.is_empty() {
        url.hosts.push(messaging_core::url::Host::default());
    }
    for host in &mut url.hosts {
        host.username.get_or_insert_with(|| "user".to_owned());
        host.password = Some(secret.to_owned());
    }
    url
}

/// A port that refuses connections: it was free a moment ago.
fn closed_port() -> Result<u16, Failure> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| Failure::new(format!("no free port: {e}")))
}

pub(crate) async fn unsupported_is_typed(session: &Session) -> Result<(), Failure> {
    let link = session.link().await?;
    let at = session.place("topic");
    let mut consumer = link.serve(&at, "one").await?;
    let Capabilities {
        ttl,
        priority,
        inspect,
        ..
    } = *session.capabilities();

    let brief = SendOptions {
        ttl: Some(link.patience * 2),
        ..link.options()
    };
    let urgent = SendOptions {
        priority: 5,
        ..link.options()
    };
    for (what, options, claimed) in [("ttl", brief, ttl), ("priority", urgent, priority)] {
        session.step(format!("sending with {what}"));
        let fate = link.send(&at.topic(), message(what), &options).await?;
        judge(what, claimed, fate.err())?;
        if claimed {
            consumer.expect_body(what).await?;
        }
    }

    session.step("inspecting");
    for (what, to) in [("a topic", at.topic()), ("a server", at.server("one"))] {
        judge(
            &format!("inspecting {what}"),
            inspect,
            inspected(&link, &to).await?,
        )?;
    }

    session.step("what was refused was sent to nobody");
    link.deliver(&at.topic(), message("sentinel")).await?;
    consumer.expect_body("sentinel").await?;
    consumer.expect_nothing().await?;
    consumer.close().await
}

async fn inspected(
    link: &Link,
    to: &messaging_core::driver::Address,
) -> Result<Option<Error>, Failure> {
    let inspect = link.driver.inspect(to, Instant::now() + link.patience);
    match tokio::time::timeout(link.patience + SLACK, inspect).await {
        Ok(Ok(presence)) => {
            ensure!(
                presence.exists != Some(false) && presence.servers != Some(0),
                "inspect() says of {to}, which is served: {presence}"
            );
            Ok(None)
        }
        Ok(Err(error)) => Ok(Some(error)),
        Err(_) => fail!("inspect() overran its deadline of {:?}", link.patience),
    }
}

fn judge(what: &str, claimed: bool, error: Option<Error>) -> Result<(), Failure> {
    match (claimed, error) {
        (true, None) => Ok(()),
        (true, Some(error)) => fail!("{what} is claimed, and fails: {}", describe(&error)),
        (false, None) => fail!("{what} is not claimed, and was taken in silence"),
        (false, Some(error)) => {
            ensure!(
                error.kind() == ErrorKind::Unsupported && error.outcome() == Outcome::NotSent,
                "{what} is not claimed, and fails otherwise: {}",
                describe(&error)
            );
            Ok(())
        }
    }
}
