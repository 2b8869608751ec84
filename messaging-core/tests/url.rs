//! The grammar of transport URLs: oslo.messaging's cases one by one, what is refused, and what is never shown.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use messaging_core::url::{Host, MAX_URL_LENGTH};
use messaging_core::{ErrorKind, Outcome, TransportUrl};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

type Row<'a> = (
    Option<&'a str>,
    Option<u16>,
    Option<&'a str>,
    Option<&'a str>,
);

fn parse(text: &str) -> TransportUrl {
    text.parse()
        .unwrap_or_else(|e| panic!("{text} must parse: {e}"))
}

fn refused(text: &str) -> String {
    let error = text
        .parse::<TransportUrl>()
        .expect_err(&format!("{text} must be refused"));
    assert_eq!(error.kind(), ErrorKind::Config, "{text}");
    assert_eq!(error.outcome(), Outcome::NotSent, "{text}");
    error.to_string()
}

fn host((hostname, port, username, password): Row<'_>) -> Host {
    Host {
        hostname: hostname.map(Into::into),
        port,
        username: username.map(Into::into),
        password: password.map(Into::into),
    }
}

fn query(url: &TransportUrl) -> Vec<(&str, &str)> {
    url.query
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[track_caller]
fn assert_round_trip(url: &TransportUrl) {
    let text = url.to_string_with_secrets();
    let again = parse(&text);
    assert_eq!(&again, url, "{text}");
    assert_eq!(again.query, url.query, "{text}");
}

#[test]
fn parses_as_oslo_does() {
    let (h, p, s) = (Some("host"), Some(1234), Some("bar"));
    let v6 = Some("ffff::1");
    #[rustfmt::skip]
    let table: &[(&str, Option<&str>, &[Row<'_>])] = &[
        ("foo:", None, &[]),
        ("foo:////", Some("/"), &[]),
        ("foo:///bar", s, &[]),
        ("foo://host/bar", s, &[(h, None, None, None)]),
        ("foo://[ffff::1]/bar", s, &[(v6, None, None, None)]),
        ("foo://host:1234/bar", s, &[(h, p, None, None)]),
        ("foo://[ffff::1]:1234/bar", s, &[(v6, p, None, None)]),
        ("foo://u@host:1234/bar", s, &[(h, p, Some("u"), None)]),
        ("foo://u:p@host:1234/bar", s, &[(h, p, Some("u"), Some("p"))]),
        ("foo://u:p@/bar", s, &[(None, None, Some("u"), Some("p"))]),
        ("foo://u:p@host1:1234,host2:4321/bar", s,
            &[(Some("host1"), p, Some("u"), Some("p")), (Some("host2"), Some(4321), None, None)]),
        ("foo://u:p@host1,host2/bar", s,
            &[(Some("host1"), None, Some("u"), Some("p")), (Some("host2"), None, None, None)]),
        ("foo://u1:p1@host1:1234,u2:p2@host2:4321/bar", s,
            &[(Some("host1"), p, Some("u1"), Some("p1")), (Some("host2"), Some(4321), Some("u2"), Some("p2"))]),
        ("foo://u1:p1@[ffff::1]:1234,u2:p2@[ffff::2]:4321/bar", s,
            &[(v6, p, Some("u1"), Some("p1")), (Some("ffff::2"), Some(4321), Some("u2"), Some("p2"))]),
        ("foo://u%24:p%26@host:1234/%24", Some("$"), &[(h, p, Some("u$"), Some("p&"))]),
        // The rules of the grammar, beyond oslo.messaging's own tests.
        ("FOO://Host/Bar", Some("Bar"), &[(Some("Host"), None, None, None)]),
        ("foo+x://host", None, &[(h, None, None, None)]),
        ("foo://", None, &[]),
        ("foo:///", Some(""), &[]),
        ("foo://host", None, &[(h, None, None, None)]),
        ("foo://host/", Some(""), &[(h, None, None, None)]),
        ("foo://host//", Some("/"), &[(h, None, None, None)]),
        ("foo:bar", None, &[]),
        ("foo://,host,,/bar", s, &[(h, None, None, None)]),
        ("foo://a@b:p@host/", Some(""), &[(h, None, Some("a@b"), Some("p"))]),
        ("foo://u:p:q@host/", Some(""), &[(h, None, Some("u"), Some("p:q"))]),
        ("foo://u:@host/", Some(""), &[(h, None, Some("u"), Some(""))]),
        ("foo://:p@host/", Some(""), &[(h, None, Some(""), Some("p"))]),
        ("foo://@host/", Some(""), &[(h, None, Some(""), None)]),
        ("foo://:@host/", Some(""), &[(h, None, Some(""), Some(""))]),
        ("foo://u%3Av:p%40%2F%2C@host/", Some(""), &[(h, None, Some("u:v"), Some("p@/,"))]),
        ("foo://u:p+q@host/", Some(""), &[(h, None, Some("u"), Some("p+q"))]),
        ("foo://ffff::1/bar", s, &[(v6, None, None, None)]),
        ("foo://u:p@::1", None, &[(Some("::1"), None, Some("u"), Some("p"))]),
        ("foo://[fe80::1%25eth0]:1234", None, &[(Some("fe80::1%eth0"), p, None, None)]),
        ("foo://[fe80::1%eth0]", None, &[(Some("fe80::1%eth0"), None, None, None)]),
        ("foo://127.0.0.1:1234", None, &[(Some("127.0.0.1"), p, None, None)]),
        ("foo://:1234", None, &[(None, p, None, None)]),
        ("foo://host:0", None, &[(h, Some(0), None, None)]),
        ("foo://host:65535", None, &[(h, Some(65535), None, None)]),
        ("foo://b%C3%BCro/v%20h", Some("v h"), &[(Some("büro"), None, None, None)]),
        ("foo://büro/vhöst", Some("vhöst"), &[(Some("büro"), None, None, None)]),
        ("  foo://host/bar\n", s, &[(h, None, None, None)]),
        // A path that only looks like hosts.
        ("rabbit:/guest:guest@localhost:5672//", Some("guest:guest@localhost:5672//"), &[]),
        ("fake:/vhost1/localhost:5672/?x=1", Some("vhost1/localhost:5672/"), &[]),
    ];
    for (text, virtual_host, hosts) in table {
        let url = parse(text);
        let scheme = text.trim_start().split(':').next().unwrap_or_default();
        assert_eq!(url.scheme, scheme.to_lowercase(), "{text}");
        assert_eq!(url.virtual_host.as_deref(), *virtual_host, "{text}");
        let expected: Vec<Host> = hosts.iter().copied().map(host).collect();
        assert_eq!(url.hosts, expected, "{text}");
        assert_round_trip(&url);
    }
}

#[test]
fn formats_as_oslo_does() {
    let bob = |name: &str, user: &str, password: &str, port| {
        Host::new(name)
            .with_port(port)
            .with_credentials(user, password)
    };
    let none = TransportUrl::new("TestTransport");
    assert_eq!(none.to_string(), "testtransport:///");
    // Here the text must tell no virtual host from an empty one.
    assert_eq!(none.to_string_with_secrets(), "testtransport://");
    let table = [
        (
            none.clone().with_virtual_host("/vhost"),
            "testtransport:////vhost",
        ),
        (
            none.clone()
                .with_host(bob("host", "bob", "secret", 10))
                .with_virtual_host("/"),
            "testtransport://bob:secret@host:10//",
        ),
        (
            none.clone()
                .with_host(bob("h1", "b1", "s1", 1000))
                .with_host(bob("h2", "b2", "s2", 2000))
                .with_virtual_host(""),
            "testtransport://b1:s1@h1:1000,b2:s2@h2:2000/",
        ),
        (
            none.clone()
                .with_host(bob("host", "b$", "s&", 10))
                .with_virtual_host("/$"),
            "testtransport://b%24:s%26@host:10//%24",
        ),
        (
            none.with_host(bob("ffff::1", "b", "s", 10))
                .with_virtual_host("v h"),
            "testtransport://b:s@[ffff::1]:10/v%20h",
        ),
    ];
    for (url, text) in table {
        assert_eq!(url.to_string_with_secrets(), text);
        assert_round_trip(&url);
    }
}

#[test]
fn reads_the_query_as_oslo_does() {
    #[rustfmt::skip]
    let table: &[(&str, &[(&str, &str)])] = &[
        ("fake:/vhost1/localhost:5672/?x=1&y=2&z=3", &[("x", "1"), ("y", "2"), ("z", "3")]),
        ("fake:/vhost1/localhost:5672/?l=1&l=2&l=3", &[("l", "1,2,3")]),
        ("fake:/vhost1/localhost:5672/?d=x:1&d=y:2&d=z:3", &[("d", "x:1,y:2,z:3")]),
        ("fake://noport/?", &[]),
        ("fake://noport?x=1", &[("x", "1")]),
        ("fake:?x=1", &[("x", "1")]),
        ("fake:///?a=&b&c=1&&=", &[("c", "1")]),
        ("fake:///?a=1+2%2B3%20%26", &[("a", "1 2+3 &")]),
        ("fake:///?a=b=c?d/e", &[("a", "b=c?d/e")]),
        ("fake:///?%C3%BC%3D=%C3%A4", &[("ü=", "ä")]),
    ];
    for (text, expected) in table {
        let url = parse(text);
        assert_eq!(query(&url), *expected, "{text}");
        assert!(url.hosts.iter().all(|host| host.port.is_none()), "{text}");
        assert_round_trip(&url);
    }
}

#[test]
fn equality_and_hash_leave_the_query_out() {
    let hash = |url: &TransportUrl| {
        let mut hasher = DefaultHasher::new();
        url.hash(&mut hasher);
        hasher.finish()
    };
    let url = parse("foo://u:p@host/bar?x=1");
    let same = parse("foo://u:p@host/bar?y=2");
    assert_eq!(url, same);
    assert_eq!(hash(&url), hash(&same));
    for other in [
        "fop://u:p@host/bar?x=1",
        "foo://u:q@host/bar?x=1",
        "foo://u:p@host/baz?x=1",
        "foo://u:p@host,host/bar",
    ] {
        assert_ne!(url, parse(other));
    }
    // Absent differs from empty.
    assert_ne!(parse("foo://host"), parse("foo://host/"));
    assert_ne!(parse("foo://u@host"), parse("foo://u:@host"));
}

#[test]
fn refuses_what_is_no_url_and_says_why() {
    let long = format!("foo://host/{}", "x".repeat(MAX_URL_LENGTH));
    #[rustfmt::skip]
    let table: &[(&str, &[&str])] = &[
        ("", &["no scheme specified", "scheme://user:password@host:port"]),
        ("invalid", &["no scheme specified"]),
        ("://host", &["no scheme specified"]),
        ("1foo://host", &["no scheme specified"]),
        ("f_oo://host", &["no scheme specified"]),
        ("[::1]:80", &["no scheme specified"]),
        ("foo://host:port/", &["foo:", "port", "`host`", "0 to 65535"]),
        ("foo://u:p@host:65536/", &["port", "`host`"]),
        ("foo://host:-1/", &["port", "`host`"]),
        ("foo://host:+1/", &["port", "`host`"]),
        ("foo://host:/", &["port", "`host`"]),
        ("foo://host:99999999999999999999/", &["port", "`host`"]),
        ("foo://one:1,two:x,three/", &["port", "host 2 of 3", "`two`"]),
        ("foo://[::1]:x", &["port", "`::1`"]),
        ("foo://[::1", &["the host", "without a `]`"]),
        ("foo://[::1]x", &["the host", "`]`"]),
        ("foo://[host]", &["the host", "IPv6"]),
        ("foo://[]", &["the host", "IPv6"]),
        ("foo://ho[st]", &["the host", "brackets"]),
        ("foo://a:b:c", &["the host", "IPv6"]),
        ("foo://ho%st", &["the host", "%25"]),
        ("foo://u%:p@host", &["the user", "`host`", "%25"]),
        ("foo://u:p%4@host", &["the password", "`host`", "%25"]),
        ("foo://u:p%zz@host", &["the password", "%25"]),
        ("foo://u:%ff@host", &["the password", "UTF-8"]),
        ("foo://%c3@host", &["the user", "UTF-8"]),
        ("foo://host/%c3%28", &["the virtual host", "UTF-8"]),
        ("foo://host/50%", &["the virtual host", "%25"]),
        ("foo://host/a%00b", &["the virtual host", "control"]),
        ("foo://host/a%0Ab", &["the virtual host", "control"]),
        ("foo://ho%7Fst/", &["the host", "control"]),
        ("foo://u%1b:p@host/", &["the user", "control"]),
        ("foo://u:p%00@host/", &["the password", "NUL"]),
        ("foo://host/?x=%", &["option `x`", "%25"]),
        ("foo://host/?x=%e4", &["option `x`", "UTF-8"]),
        ("foo://host/?x=%00", &["option `x`", "NUL"]),
        ("foo://host/?x%0a=1", &["name of an option", "control"]),
        ("foo://host/?=1", &["no name"]),
        ("foo://host/\u{1b}[2J", &["control"]),
        ("foo://ho\nst/", &["control"]),
        ("foo://host/bar#part", &["fragment", "%23"]),
        (&long, &["65536"]),
    ];
    for (text, fragments) in table {
        let error = refused(text);
        for fragment in *fragments {
            assert!(
                error.contains(fragment),
                "{text}: {error:?} lacks {fragment:?}"
            );
        }
        assert!(!error.contains('\n') && error.len() < 400, "{error}");
    }
}

#[test]
fn accepts_a_url_of_the_greatest_length() {
    let text = format!("foo://host/{}", "x".repeat(MAX_URL_LENGTH - 11));
    assert_eq!(text.len(), MAX_URL_LENGTH);
    assert_round_trip(&parse(&text));
}

#[test]
fn shows_no_secret() {
    let url = parse(
        "foo://bob:hunter2@host:10,eve:hunter2@[::1]/v?max=5&ssl_password=hunter2&api-Token=hunter2&\
         secretive=hunter2&SSL_KEY=hunter2&peer=bar://u:hunter2@h/",
    );
    assert_eq!(
        url.to_string(),
        "foo://bob:***@host:10,eve:***@[::1]/v?SSL_KEY=***&api-Token=***&max=5&peer=***&secretive=***&ssl_password=***"
    );
    assert_eq!(url.hosts[0].to_string(), "bob:***@host:10");
    for shown in [
        format!("{url}"),
        format!("{url:?}"),
        format!("{url:#?}"),
        format!("{:?}", url.hosts),
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("bob") && shown.contains("***"), "{shown}");
    }
    assert!(format!("{url:?}").contains("\"5\""));
    assert!(url.to_string_with_secrets().contains("bob:hunter2@host:10"));
    // An empty password is shown as one: its absence is no secret, and its presence may be the mistake.
    assert_eq!(parse("foo://u:@h/").to_string(), "foo://u:***@h/");
    assert_eq!(parse("foo://u@h/").to_string(), "foo://u@h/");
    // Credentials that ended up in the path.
    let url = parse("foo:/guest:hunter2@localhost:5672//");
    assert_eq!(url.to_string(), "foo:///***%40localhost%3A5672//");
    assert!(!format!("{url:?}").contains("hunter2"));
}

#[test]
fn errors_never_quote_a_password() {
    // Each way in which a password that should have been percent-encoded breaks the grammar, and some typing errors.
    for text in [
        "foo://bob:hunter2",
        "foo://bob:hunter2:more",
        "foo://bob:hunter2/x@host/",
        "foo://bob:hunter2?x@host/",
        "foo://bob:hunter2?x=1&y=%zz@host/",
        "foo://bob:1?hunter2=%zz@host/",
        "foo://bob:hunter2#x@host/",
        "foo://bob:x#hunter2@host/",
        "foo://bob:x,hunter2:z@host:bad/",
        "foo://bob:1,hunter2:z,x@host/",
        "foo://bob:1,hunter2:z/x@host/",
        "foo://bob:x,[hunter2@host/",
        "foo://bob:hunter2%@host/",
        "foo://bob:%ffhunter2@host/",
        "foo://bob:hunter2%00@host/",
        "foo://bob:hunter2\u{7}@host/",
        "foo://bob:hunter2@host:bad/",
        "foo://bob:hunter2@[host/",
        "foo://bob:hunter2@host/%",
        "foo://bob:hunter2@host/?x=%",
        "bob:hunter2\u{0}@host",
        "//bob:hunter2@host/",
        "foo//bob:hunter2@host/",
        "bob hunter2:x@host/",
    ] {
        let error = text
            .parse::<TransportUrl>()
            .expect_err(&format!("{text} must be refused"));
        for shown in [format!("{error}"), format!("{error:?}")] {
            assert!(!shown.contains("hunter2"), "{text}: {shown}");
        }
    }
}

/// Names and values drawn from what has a meaning in a URL, in percent-encoding, in logs or in UTF-8.
fn odd_text(rng: &mut StdRng, least: usize) -> String {
    const ODD: &[&str] = &[
        "/", "@", ":", ",", "%", "?", "#", "[", "]", "&", "=", "+", " ", "%41", "ä", "€", "𝄞",
        "\\", "\"", "'", ";", "$", "a", "Z", "0", "-", "_", ".", "~", "*", "|", "::1", "//",
    ];
    let pieces = rng.random_range(least..6);
    (0..pieces)
        .map(|_| ODD[rng.random_range(0..ODD.len())])
        .collect()
}

fn odd_url(rng: &mut StdRng) -> TransportUrl {
    let mut url = TransportUrl::new("foo");
    for _ in 0..rng.random_range(0..4) {
        let mut host = match rng.random_range(0..4) {
            0 => Host::new("fe80::1"),
            1 => Host::new(format!("fe80::1%{}", odd_text(rng, 1))),
            _ => Host::new(odd_text(rng, 1)),
        };
        if rng.random() {
            host.port = Some(rng.random());
        }
        if rng.random() {
            host.username = Some(odd_text(rng, 0));
            host.password = rng.random::<bool>().then(|| odd_text(rng, 0));
        }
        url.hosts.push(host);
    }
    if rng.random() {
        url.virtual_host = Some(odd_text(rng, 0));
    }
    for _ in 0..rng.random_range(0..4) {
        url.query.insert(odd_text(rng, 1), odd_text(rng, 1));
    }
    url
}

#[test]
fn every_url_survives_the_round_trip() {
    let mut rng = StdRng::seed_from_u64(20_260_101);
    for _ in 0..5_000 {
        let url = odd_url(&mut rng);
        assert_round_trip(&url);
        // What is shown is a URL too, for the same place, with other secrets.
        let shown = parse(&url.to_string());
        assert_eq!(shown.hosts.len(), url.hosts.len());
    }
}

#[test]
fn arbitrary_text_never_panics() {
    let mut rng = StdRng::seed_from_u64(20_260_102);
    let mut parsed = 0;
    for _ in 0..20_000 {
        let mut text = String::from(if rng.random() { "foo://" } else { "foo:" });
        for _ in 0..rng.random_range(0..6) {
            text.push_str(&odd_text(&mut rng, 0));
            if rng.random_range(0..8) == 0 {
                text.push(rng.random::<char>());
            }
        }
        if let Ok(url) = text.parse::<TransportUrl>() {
            parsed += 1;
            assert_round_trip(&url);
        }
    }
    assert!(parsed > 1_000, "only {parsed} of the texts were URLs");
}

#[test]
fn no_error_quotes_a_password_that_was_not_encoded() {
    let mut rng = StdRng::seed_from_u64(20_260_103);
    let mut refused = 0;
    for _ in 0..20_000 {
        let (before, after) = (odd_text(&mut rng, 0), odd_text(&mut rng, 0));
        let text = format!("foo://bob:{before}hunter2{after}@host:10/v?x=1");
        if let Err(error) = text.parse::<TransportUrl>() {
            refused += 1;
            assert!(!format!("{error:?}").contains("hunter2"), "{text}: {error}");
        }
    }
    assert!(refused > 1_000, "only {refused} of the texts were refused");
}
