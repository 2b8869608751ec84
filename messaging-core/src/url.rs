//! The transport URL: which driver, which hosts, which virtual host, which options.

mod parse;
pub(crate) mod redact;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use std::net::Ipv6Addr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use redact::{MASK, looks_secret};

/// The longest URL that is read, in bytes.
pub const MAX_URL_LENGTH: usize = 64 * 1024;

/// What oslo.messaging leaves unquoted in users, passwords and option values.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What it leaves unquoted in a virtual host.
const VIRTUAL_HOST: &AsciiSet = &UNRESERVED.remove(b'/');

/// A parsed transport URL: `scheme://[user[:password]@]host[:port][,…]/[virtual_host][?option=value&…]`.
///
/// The grammar is oslo.messaging's. The parts between hosts are split before anything is percent-decoded, so `,`,
/// `@`, `:`, `/`, `?` and `#` inside a user, password or host must be percent-encoded. Credentials belong to one
/// host and are never inherited by the next.
///
/// ```
/// use messaging_core::TransportUrl;
///
/// let url: TransportUrl = "memory://bob:s%2Fcret@one:1000,two/test?ttl=5".parse()?;
/// assert_eq!(url.hosts[0].password.as_deref(), Some("s/cret"));
/// assert_eq!(url.hosts[1].username, None);
/// assert_eq!(url.virtual_host.as_deref(), Some("test"));
/// assert_eq!(url.to_string(), "memory://bob:***@one:1000,two/test?ttl=5");
/// # Ok::<(), messaging_core::Error>(())
/// ```
///
/// Equality and hash leave the [`query`](Self::query) out, as in oslo.messaging: two URLs are equal when they lead
/// to the same place.
///
/// `Display` and `Debug` mask passwords, the values of options whose names look secret, and whatever stands before
/// an `@` in a virtual host; [`to_string_with_secrets`](Self::to_string_with_secrets) is the text to parse again.
#[derive(Clone)]
pub struct TransportUrl {
    /// The scheme in lower case.
    pub scheme: String,
    /// The hosts in the order given.
    pub hosts: Vec<Host>,
    /// The virtual host, decoded, without its leading slash; `None` (no path at all) differs from empty.
    pub virtual_host: Option<String>,
    /// The options by name. The values of a repeated name are joined by `,`; a name without a value is dropped.
    pub query: BTreeMap<String, String>,
}

/// One host of a [`TransportUrl`]; `Display` and `Debug` mask the password.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Host {
    /// Name or address, without brackets.
    pub hostname: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The user.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
}

impl TransportUrl {
    /// A URL of this scheme, without hosts, virtual host or options.
    pub fn new(scheme: impl AsRef<str>) -> Self {
        Self {
            scheme: scheme.as_ref().to_ascii_lowercase(),
            hosts: Vec::new(),
            virtual_host: None,
            query: BTreeMap::new(),
        }
    }

    /// The same URL with one more host.
    #[must_use]
    pub fn with_host(mut self, host: Host) -> Self {
        self.hosts.push(host);
        self
    }

    /// The same URL with this virtual host, not percent-encoded.
    #[must_use]
    pub fn with_virtual_host(mut self, virtual_host: impl Into<String>) -> Self {
        self.virtual_host = Some(virtual_host.into());
        self
    }

    /// The same URL with this option, not percent-encoded; it replaces one of the same name.
    #[must_use]
    pub fn with_option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.query.insert(name.into(), value.into());
        self
    }

    /// The URL as text, passwords included: for configuration that is handed on, never for a log.
    ///
    /// Parsing it gives the same URL, query included. (A URL put together by hand can hold what no text expresses:
    /// an option with an empty value, a host of which everything is `None`; both are left out.)
    pub fn to_string_with_secrets(&self) -> String {
        // A path is what tells an empty virtual host from none, so none has to end without the slash.
        let path = match self.virtual_host {
            Some(_) => "/",
            None => "",
        };
        self.render(path, false)
    }

    fn render(&self, path: &str, redacted: bool) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .filter(|host| **host != Host::default())
            .map(|host| host.render(redacted))
            .collect();
        let mut text = format!("{}://{}{path}", self.scheme, hosts.join(","));
        let virtual_host = self.virtual_host.as_deref().unwrap_or_default();
        match virtual_host.rfind('@') {
            Some(at) if redacted => {
                text.push_str(MASK);
                text.extend(utf8_percent_encode(&virtual_host[at..], VIRTUAL_HOST));
            }
            _ => text.extend(utf8_percent_encode(virtual_host, VIRTUAL_HOST)),
        }
        let mut separator = '?';
        for (name, value) in self.query.iter().filter(|(_, value)| !value.is_empty()) {
            text.push(separator);
            separator = '&';
            text.extend(utf8_percent_encode(name, UNRESERVED));
            text.push('=');
            if redacted && hides(name, value) {
                text.push_str(MASK);
            } else {
                text.extend(utf8_percent_encode(value, UNRESERVED));
            }
        }
        text
    }
}

/// Whether an option's value stays out of sight: by its name, or because it may be a URL with credentials.
fn hides(name: &str, value: &str) -> bool {
    looks_secret(name) || value.contains('@')
}

impl PartialEq for TransportUrl {
    fn eq(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.virtual_host == other.virtual_host
            && self.hosts == other.hosts
    }
}

impl Eq for TransportUrl {}

impl Hash for TransportUrl {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.scheme.hash(state);
        self.virtual_host.hash(state);
        self.hosts.hash(state);
    }
}

/// As oslo.messaging writes it, with a slash after the hosts in every case, and with secrets masked.
impl fmt::Display for TransportUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render("/", true))
    }
}

impl fmt::Debug for TransportUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let virtual_host = self.virtual_host.as_deref().map(|text| {
            text.rfind('@')
                .map_or_else(|| text.to_owned(), |at| format!("{MASK}{}", &text[at..]))
        });
        let query: BTreeMap<&str, &str> = self
            .query
            .iter()
            .map(|(name, value)| match hides(name, value) {
                true => (name.as_str(), MASK),
                false => (name.as_str(), value.as_str()),
            })
            .collect();
        f.debug_struct("TransportUrl")
            .field("scheme", &self.scheme)
            .field("hosts", &self.hosts)
            .field("virtual_host", &virtual_host)
            .field("query", &query)
            .finish()
    }
}

impl Host {
    /// A host by name or address (an IPv6 address without brackets), without port or credentials.
    pub fn new(hostname: impl Into<String>) -> Self {
        Self {
            hostname: Some(hostname.into()),
            ..Self::default()
        }
    }

    /// The same host with this port.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The same host with these credentials, not percent-encoded.
    #[must_use]
    pub fn with_credentials(
        mut self,
        username: impl Into<String>,
        password: impl Into<String>,
    ) -> Self {
        self.username = Some(username.into());
        self.password = Some(password.into());
        self
    }

    fn render(&self, redacted: bool) -> String {
        let mut text = String::new();
        if self.username.is_some() || self.password.is_some() {
            let username = self.username.as_deref().unwrap_or_default();
            text.extend(utf8_percent_encode(username, UNRESERVED));
            if let Some(password) = &self.password {
                text.push(':');
                if redacted {
                    text.push_str(MASK);
                } else {
                    text.extend(utf8_percent_encode(password, UNRESERVED));
                }
            }
            text.push('@');
        }
        let hostname = self.hostname.as_deref().unwrap_or_default();
        match split_ipv6(hostname) {
            Some((address, "")) => {
                text.push('[');
                text.push_str(address);
                text.push(']');
            }
            Some((address, zone)) => {
                text.push('[');
                text.push_str(address);
                text.push_str("%25");
                text.extend(utf8_percent_encode(zone, UNRESERVED));
                text.push(']');
            }
            None => text.extend(utf8_percent_encode(hostname, UNRESERVED)),
        }
        if let Some(port) = self.port {
            // Writing to a string cannot fail.
            let _ = write!(text, ":{port}");
        }
        text
    }
}

/// As in the URL, with the password masked.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(true))
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host")
            .field("hostname", &self.hostname)
            .field("port", &self.port)
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| MASK))
            .finish()
    }
}

/// An IPv6 address and its zone (empty: none), or `None` for anything else.
fn split_ipv6(hostname: &str) -> Option<(&str, &str)> {
    let (address, zone) = match hostname.split_once('%') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (hostname, ""),
    };
    address.parse::<Ipv6Addr>().ok().map(|_| (address, zone))
}
