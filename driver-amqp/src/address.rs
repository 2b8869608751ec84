//! Which nodes and which virtual host a transport URL means.

use std::fmt;

use messaging_core::{Error, Result, TransportUrl};

/// Text that no `Debug` shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One broker node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: Secret,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host: String = self.host.chars().flat_map(char::escape_debug).collect();
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

pub(crate) fn virtual_host(url: &TransportUrl) -> Result<String> {
    let vhost = match url.virtual_host.as_deref() {
        None | Some("") => "/",
        Some(vhost) => vhost,
    };
    if vhost.len() > 255 {
        return Err(Error::config(
            "the virtual host of the transport URL is longer than 255 bytes",
        ));
    }
    Ok(vhost.to_owned())
}

/// The nodes a URL means, at this port where it gives none.
///
/// Without any host it is `guest:guest@localhost:5672`. A host without credentials sends an empty user on the schemes
/// of oslo.messaging, as oslo.messaging does, and `guest` on `amqp`, as every other AMQP client does.
pub(crate) fn nodes(url: &TransportUrl, guest: bool, port: u16) -> Vec<Node> {
    if url.hosts.is_empty() {
        return vec![Node {
            host: "localhost".to_owned(),
            port,
            user: "guest".to_owned(),
            password: Secret("guest".to_owned()),
        }];
    }
    url.hosts
        .iter()
        .map(|host| {
            let (user, password) = match (&host.username, &host.password) {
                (None, None) if guest => ("guest", "guest"),
                (user, password) => (
                    user.as_deref().unwrap_or_default(),
                    password.as_deref().unwrap_or_default(),
                ),
            };
            Node {
                host: host
                    .hostname
                    .clone()
                    .filter(|name| !name.is_empty())
                    .unwrap_or_else(|| "localhost".to_owned()),
                port: host.port.unwrap_or(port),
                user: user.to_owned(),
                password: Secret(password.to_owned()),
            }
        })
        .collect()
}
