//! `url`: the parts of a transport URL, secrets masked.

use longshore::{Error, ErrorKind, TransportUrl};
use serde_json::{Value, json};

use crate::exit::Failed;
use crate::output::{self, escape, escape_json};

/// Prints the parts of the URL, whatever its scheme.
pub(crate) fn run(text: &str, as_json: bool) -> Result<(), Failed> {
    let url: TransportUrl = text.parse()?;
    let masked = masked(&url)?;
    let text = if as_json {
        escape_json(&to_json(&masked).to_string())
    } else {
        to_text(&masked)
    };
    output::line(&text)
}

/// The URL that its `Display` shows: so nothing is shown here that logs would hide.
fn masked(url: &TransportUrl) -> Result<TransportUrl, Error> {
    let shown: TransportUrl = url.to_string().parse().map_err(|error| {
        let text = "the transport URL does not survive masking; please report its form";
        Error::not_sent(ErrorKind::Internal, text).with_source(error)
    })?;
    Ok(TransportUrl {
        // `Display` writes a slash in every case; whether there was one is not secret.
        virtual_host: url.virtual_host.as_ref().and(shown.virtual_host),
        ..shown
    })
}

fn to_json(url: &TransportUrl) -> Value {
    let hosts: Vec<Value> = url
        .hosts
        .iter()
        .map(|host| {
            json!({
                "hostname": host.hostname,
                "port": host.port,
                "username": host.username,
                "password": host.password,
            })
        })
        .collect();
    json!({
        "transport": url.scheme,
        "virtual_host": url.virtual_host,
        "hosts": hosts,
        "query": url.query,
    })
}

fn to_text(url: &TransportUrl) -> String {
    let mut lines = vec![row("transport", &url.scheme)];
    for (index, host) in url.hosts.iter().enumerate() {
        let mut parts = vec![match &host.hostname {
            Some(hostname) => escape(hostname),
            None => "(no host name)".to_owned(),
        }];
        parts.extend(host.port.map(|port| format!("port {port}")));
        let username = host.username.as_deref();
        parts.extend(username.map(|name| format!("user {}", or_empty(name))));
        let password = host.password.as_deref();
        parts.extend(password.map(|mask| format!("password {mask}")));
        lines.push(row(&format!("host {}", index + 1), &parts.join(", ")));
    }
    if url.hosts.is_empty() {
        lines.push(row("hosts", "(none)"));
    }
    let virtual_host = url.virtual_host.as_deref();
    let virtual_host = virtual_host.map_or_else(|| "(none)".to_owned(), or_empty);
    lines.push(row("virtual host", &virtual_host));
    for (name, value) in &url.query {
        lines.push(row(
            "option",
            &format!("{} = {}", escape(name), escape(value)),
        ));
    }
    lines.join("\n")
}

fn row(name: &str, value: &str) -> String {
    format!("{name:<14}{value}")
}

fn or_empty(text: &str) -> String {
    if text.is_empty() {
        "(empty)".to_owned()
    } else {
        escape(text)
    }
}
