//! Text to [`TransportUrl`].
//!
//! Errors name the part that is wrong by what it is, and quote next to nothing: where a password holds an
//! unescaped separator, any piece of the URL before the last `@` may be a piece of that password.

use std::collections::BTreeMap;
use std::str::FromStr;

use percent_encoding::percent_decode_str;

use super::redact::quote;
use super::{Host, MAX_URL_LENGTH, TransportUrl, split_ipv6};
use crate::error::{Error, Result};

/// The remedy for most of what can be wrong with the part that holds the hosts.
const ESCAPE: &str =
    "inside a user or password write `@`, `:`, `,`, `/` and `?` as %40, %3A, %2C, %2F and %3F";

const LONGEST_SCHEME_SHOWN: usize = 40;

/// Fails with [`Config`](crate::ErrorKind::Config), naming the part that is wrong, never quoting a user or password.
impl FromStr for TransportUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() > MAX_URL_LENGTH {
            return Err(Error::config(format!(
                "the transport URL has {} bytes, and {MAX_URL_LENGTH} is the most that is read; \
                 move options into the configuration file",
                text.len()
            )));
        }
        let text = text.trim_matches(|c: char| c.is_ascii_whitespace());
        let Some((scheme, rest)) = split_scheme(text) else {
            return Err(Error::config(
                "no scheme specified: a transport URL begins with the name of its transport, \
                 as in `scheme://user:password@host:port/virtual_host`",
            ));
        };
        // A scheme is plain ASCII, so any length of it is a whole number of characters.
        let shown = scheme.get(..LONGEST_SCHEME_SHOWN).unwrap_or(scheme);
        let fail = |problem: String| Error::config(format!("transport URL {shown}:…: {problem}"));
        if rest.contains(char::is_control) {
            return Err(fail("it contains a control character; remove it".into()));
        }
        if rest.contains('#') {
            return Err(fail(
                "a fragment means nothing here; write `#` as %23".into(),
            ));
        }
        let (netloc, tail) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len())),
            None => ("", rest),
        };
        let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
        let virtual_host = match path.strip_prefix('/') {
            Some(path) => {
                Some(name(path).map_err(|problem| fail(format!("the virtual host {problem}")))?)
            }
            None if path.is_empty() => None,
            None => {
                tracing::warn!(
                    scheme = shown,
                    "a transport URL without `//` after its scheme names no host; the rest of it is ignored"
                );
                None
            }
        };
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            hosts: parse_hosts(netloc, tail.contains('@')).map_err(fail)?,
            virtual_host,
            query: parse_query(query).map_err(fail)?,
        })
    }
}

/// The scheme and what follows its colon, if the text begins with a valid one (RFC 3986, 3.1).
fn split_scheme(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once(':')?;
    let valid = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    valid.then_some((scheme, rest))
}

/// `at_follows`: an `@` stands behind the hosts, so even the last of them may be a piece of a password.
fn parse_hosts(netloc: &str, at_follows: bool) -> Result<Vec<Host>, String> {
    let items: Vec<&str> = netloc.split(',').filter(|item| !item.is_empty()).collect();
    let last_at = items.iter().rposition(|item| item.contains('@'));
    let mut hosts = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let quotable = !at_follows && last_at.is_none_or(|last| index >= last);
        let position = || match items.len() {
            1 => "the host".to_owned(),
            count => format!("host {} of {count}", index + 1),
        };
        hosts.push(parse_host(item, quotable, &position)?);
    }
    let with_credentials = hosts.iter().filter(|host| host.password.is_some()).count();
    if with_credentials > 0 && with_credentials < hosts.len() {
        tracing::warn!(
            hosts = hosts.len(),
            with_credentials,
            "some hosts of the transport URL have a user and password and some have not; they are not inherited"
        );
    }
    Ok(hosts)
}

fn parse_host(item: &str, quotable: bool, position: &dyn Fn() -> String) -> Result<Host, String> {
    let (credentials, address) = match item.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, item),
    };
    let (hostname, port) =
        parse_address(address).map_err(|problem| format!("{} {problem}; {ESCAPE}", position()))?;
    let mut host = Host {
        hostname,
        ..Host::default()
    };
    let called = match &host.hostname {
        Some(hostname) if quotable => format!("{} ({})", position(), quote(hostname)),
        _ => position(),
    };
    if let Some(port) = port {
        host.port = Some(parse_port(port).ok_or_else(|| {
            format!("the port of {called} is not a number from 0 to 65535; {ESCAPE}")
        })?);
    }
    if let Some(credentials) = credentials {
        let (username, password) = match credentials.split_once(':') {
            Some((username, password)) => (username, Some(password)),
            None => (credentials, None),
        };
        let username =
            name(username).map_err(|problem| format!("the user of {called} {problem}"))?;
        host.username = Some(username);
        host.password = password
            .map(value)
            .transpose()
            .map_err(|problem| format!("the password of {called} {problem}"))?;
    }
    Ok(host)
}

/// The host name and the text of the port. Text with several colons is an IPv6 address without a port.
fn parse_address(address: &str) -> Result<(Option<String>, Option<&str>), &'static str> {
    const NOT_IPV6: &str =
        "is not a valid IPv6 address; an IPv6 address with a port needs brackets";
    if let Some(rest) = address.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("has a `[` without a `]`")?;
        let port = match after.strip_prefix(':') {
            None if !after.is_empty() => return Err("has text between `]` and its port"),
            port => port,
        };
        return Ok((Some(parse_ipv6(inside).ok_or(NOT_IPV6)?), port));
    }
    if address.contains(['[', ']']) {
        return Err("has brackets, which may only stand around an IPv6 address");
    }
    match address.split_once(':') {
        Some((_, rest)) if rest.contains(':') => {
            Ok((Some(parse_ipv6(address).ok_or(NOT_IPV6)?), None))
        }
        Some((hostname, port)) => Ok((named(hostname)?, Some(port))),
        None => Ok((named(address)?, None)),
    }
}

fn named(hostname: &str) -> Result<Option<String>, &'static str> {
    let hostname = name(hostname)?;
    Ok((!hostname.is_empty()).then_some(hostname))
}

/// An IPv6 address, its zone written as `%eth0` or, as RFC 6874 asks, `%25eth0`.
fn parse_ipv6(text: &str) -> Option<String> {
    let (address, zone) = split_ipv6(text)?;
    if zone.is_empty() {
        return Some(address.to_owned());
    }
    let zone = match zone.strip_prefix("25") {
        Some(zone) if !zone.is_empty() => name(zone).ok()?,
        _ => zone.to_owned(),
    };
    Some(format!("{address}%{zone}"))
}

fn parse_port(text: &str) -> Option<u16> {
    // The parser of the standard library alone would take a sign.
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        None
    }
}

fn parse_query(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut query = BTreeMap::<String, String>::new();
    for pair in text.split('&') {
        let Some((raw_name, raw_value)) = pair.split_once('=') else {
            continue;
        };
        if raw_value.is_empty() {
            continue;
        }
        let option = name(&raw_name.replace('+', " "))
            .map_err(|problem| format!("the name of an option {problem}"))?;
        if option.is_empty() {
            return Err("an option has a value and no name; write `?name=value`".into());
        }
        // An `@` further on would make this a piece of a password with a raw `?` in it.
        let value =
            value(&raw_value.replace('+', " ")).map_err(|problem| match text.contains('@') {
                true => format!("the value of an option {problem}"),
                false => format!("the value of option {} {problem}", quote(&option)),
            })?;
        query
            .entry(option)
            .and_modify(|values| {
                values.push(',');
                values.push_str(&value);
            })
            .or_insert(value);
    }
    Ok(query)
}

/// A percent-decoded name: of a host, user, virtual host or option.
fn name(text: &str) -> Result<String, &'static str> {
    let text = decode(text)?;
    if text.contains(char::is_control) {
        return Err("contains a control character after percent-decoding");
    }
    Ok(text)
}

/// A percent-decoded password or value. NUL alone is refused: no login or option can carry it.
fn value(text: &str) -> Result<String, &'static str> {
    let text = decode(text)?;
    if text.contains('\0') {
        return Err("contains a NUL after percent-decoding");
    }
    Ok(text)
}

fn decode(text: &str) -> Result<String, &'static str> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        let digits = rest.get(at + 1..at + 3).unwrap_or_default();
        if digits.len() != 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(
                "has a `%` without two hexadecimal digits after it; write `%` itself as %25",
            );
        }
        rest = &rest[at + 3..];
    }
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| "is not UTF-8 after percent-decoding")
}
