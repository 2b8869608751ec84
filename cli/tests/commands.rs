//! Everything that needs no broker.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use common::{Finished, Running, command, finish, run};
use serde_json::{Value, json};

const SECRET: &str = "s3cr3t-w0rd";

fn has_no_secret(finished: &Finished) {
    assert!(
        !finished.stdout.contains(SECRET) && !finished.stderr.contains(SECRET),
        "{finished:?}"
    );
}

#[test]
fn help_shows_examples_of_every_verb() {
    for verb in [
        "call",
        "cast",
        "fanout",
        "serve",
        "url",
        "drivers",
        "executors",
    ] {
        let example = format!("\n  longshore {verb} ");
        for flag in ["--help", "-h"] {
            let help = run(&[verb, flag]).exits(0);
            let (_, examples) = help.stdout.split_once("Examples:").expect("examples");
            assert!(
                examples.contains(&example) || examples.contains(example.trim_end()),
                "{help:?}"
            );
            assert_eq!(help.stderr, "");
            assert!(
                !help.stdout.contains('\u{1b}'),
                "colours without a terminal"
            );
        }
    }
    let help = run(&["--help"]).exits(0);
    assert!(help.stdout.contains("Exit codes:"), "{help:?}");
    assert!(
        run(&["--version"])
            .exits(0)
            .line()
            .starts_with("longshore ")
    );
}

#[test]
fn usage_errors_exit_2() {
    let cases: &[&[&str]] = &[
        &[],
        &["nothing"],
        &["call"],
        &["call", "memory://", "topic"],
        &["call", "memory://", "topic", "method", "--nothing"],
        &["serve", "memory://", "topic"],
        &["url"],
        &["drivers", "extra"],
        &[
            "serve",
            "memory://",
            "topic",
            "--server",
            "s",
            "--concurrency",
            "0",
        ],
        &[
            "serve",
            "memory://",
            "topic",
            "--server",
            "s",
            "--concurrency",
            "-1",
        ],
        &["call", "memory://", "topic", "method", "--rpc-version", "1"],
        &["call", "memory://", "topic", "method", "--log", "a=b=c"],
    ];
    for case in cases {
        let finished = run(case).exits(2);
        assert_eq!(finished.stdout, "", "{case:?}");
        assert!(!finished.stderr.is_empty(), "{case:?}");
    }
    for timeout in [
        "",
        "-1",
        "-1s",
        "NaN",
        "inf",
        "1e9",
        "5d",
        "5 s",
        "99999999999999999999999999s",
    ] {
        let finished =
            run(&["call", "memory://", "topic", "method", "--timeout", timeout]).exits(2);
        assert!(finished.stderr.contains("--timeout <TIME>"), "{finished:?}");
    }
    let error = run(&["call", "memory://", "--json"]).exits(2).error();
    assert_eq!(
        (&error["kind"], &error["outcome"]),
        (&json!("config"), &json!("not_sent"))
    );
    assert!(
        error["message"].as_str().unwrap().contains("<METHOD>"),
        "{error}"
    );
}

#[test]
fn long_timeouts_are_taken() {
    for timeout in ["18446744073709551", "1000000h", "1000000000ms"] {
        run(&["call", "memory://", "nobody", "m", "--timeout", timeout]).fails(
            4,
            "no_server",
            "not_sent",
        );
    }
}

#[test]
fn arguments_given_twice_or_without_a_name_are_usage_errors() {
    let cases: &[(&[&str], &str)] = &[
        (&["a=1", "a=2"], "argument a is given twice"),
        (
            &["a=1", "--args", "{\"a\": 1}"],
            "argument a is given twice",
        ),
        (&["--args", "{\"a\": 1, \"a\": 2}"], "a is given twice"),
        (&["--args", "[1]"], "--args is not a JSON object"),
        (&["--args", "{"], "--args is not a JSON object"),
        (&["--context", "1"], "--context is not a JSON object"),
        (&["--context", "{\"a\": 1, \"a\": 2}"], "a is given twice"),
        (&["a"], "KEY=VALUE"),
        (&["=1"], "no name"),
    ];
    for verb in ["call", "cast", "fanout"] {
        for (options, text) in cases {
            let mut args = vec![verb, "memory://", "topic", "method"];
            args.extend(*options);
            let finished = run(&args).fails(2, "config", "not_sent");
            assert!(finished.stderr.contains(text), "{finished:?}");
            args.push("--json");
            let error = run(&args).exits(2).error();
            assert_eq!(
                (&error["kind"], &error["outcome"]),
                (&json!("config"), &json!("not_sent"))
            );
            assert!(error["message"].as_str().unwrap().contains(text), "{error}");
            assert_eq!(error.as_object().unwrap().len(), 3, "{error}");
        }
    }
}

#[test]
fn names_that_cannot_be_addressed_are_usage_errors() {
    let long = "x".repeat(300);
    for address in ["", "/server", "topic/", &long, "a\nb"] {
        for verb in ["call", "cast"] {
            run(&[verb, "memory://", address, "method"]).fails(2, "invalid_target", "not_sent");
        }
    }
    run(&["call", "memory://", "topic", ""]).fails(2, "invalid_target", "not_sent");
    run(&["call", "memory://", "topic", "m", "--exchange", ""]).fails(
        2,
        "invalid_target",
        "not_sent",
    );
    run(&["serve", "memory://", "topic", "--server", ""]).fails(2, "invalid_target", "not_sent");
    for address in ["topic/server", "topic/"] {
        run(&["fanout", "memory://", address, "method"]).fails(2, "config", "not_sent");
    }
}

#[test]
fn nobody_there_is_not_delivered() {
    for verb in ["call", "cast"] {
        for address in ["nobody", "nobody/server", "nobody/server/more"] {
            let finished = run(&[verb, "memory://", address, "method", "a=1"]).fails(
                4,
                "no_server",
                "not_sent",
            );
            assert!(finished.took < Duration::from_secs(10), "{finished:?}");
        }
    }
    let error = run(&["call", "memory://", "nobody", "method", "--json"])
        .exits(4)
        .error();
    assert_eq!(
        (&error["kind"], &error["outcome"]),
        (&json!("no_server"), &json!("not_sent"))
    );
    assert_eq!(error.get("class"), None);
    run(&["fanout", "memory://", "nobody", "method"]).succeeds_silently();
}

#[test]
fn too_large_a_request_is_a_usage_error() {
    let text = format!("value={}", "x".repeat(5_000));
    run(&["call", "memory://?max_body=2048", "nobody", "echo", &text]).fails(
        2,
        "too_large",
        "not_sent",
    );
}

#[test]
fn unknown_schemes_and_options_are_configuration_errors() {
    for verb in [
        &["call"][..],
        &["cast"],
        &["fanout"],
        &["serve", "--server", "s"],
    ] {
        let mut args = verb.to_vec();
        args.extend(["memroy://h/", "topic"]);
        if verb[0] != "serve" {
            args.push("method");
        }
        let finished = run(&args).fails(2, "config", "not_sent");
        for part in [
            "\"memroy\"",
            "did you mean \"memory\"?",
            "messaging-driver-memory 0.1.0",
        ] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
    let finished =
        run(&["call", "memory://?queue_lenght=1", "topic", "m"]).fails(2, "config", "not_sent");
    assert!(finished.stderr.contains("`queue_length`"), "{finished:?}");
    run(&["call", "memory://?queue_length=x", "topic", "m"]).fails(2, "config", "not_sent");
    run(&["call", "no-url", "topic", "m"]).fails(2, "config", "not_sent");
    let unsupported = "amqp://h/?rabbit_login_method=RABBIT-CR-DEMO";
    run(&["call", unsupported, "topic", "m"]).fails(2, "unsupported", "not_sent");
    let serve = ["serve", "memory://", "topic", "--server", "s", "--executor"];
    let finished = run(&[&serve[..], &["asnyc"]].concat()).fails(2, "config", "not_sent");
    assert!(
        finished.stderr.contains("did you mean \"async\"?"),
        "{finished:?}"
    );
    let concurrent = [&serve[..], &["blocking", "--concurrency", "2"]].concat();
    run(&concurrent).fails(2, "config", "not_sent");
}

#[test]
fn the_environment_configures_and_is_checked() {
    let run = |name: &str, value: &str| {
        finish(
            command()
                .args(["call", "memory://", "topic", "m"])
                .env(name, value),
        )
    };
    let finished = run("OS_DEFAULT__CONTROL_EXCHANGE", "heat").exits(4);
    assert!(finished.stderr.contains("exchange heat"), "{finished:?}");
    run("OS_DEFAULT__RPC_RESPONSE_TIMEOUT", "soon").fails(2, "config", "not_sent");
    run("RUST_LOG", "a=b=c").fails(2, "config", "not_sent");
    run("RUST_LOG", "").fails(4, "no_server", "not_sent");
}

#[test]
fn url_prints_the_parts_of_any_scheme() {
    let parts = |url: &str| run(&["url", url, "--json"]).exits(0).json();
    assert_eq!(
        parts("foo+bar://bob:s%2Fcret@one:5672,[::1]:1/v%2Fh?a=1&b=%20"),
        json!({
            "transport": "foo+bar",
            "virtual_host": "v/h",
            "hosts": [
                {"hostname": "one", "port": 5672, "username": "bob", "password": "***"},
                {"hostname": "::1", "port": 1, "username": null, "password": null},
            ],
            "query": {"a": "1", "b": " "},
        })
    );
    let bare = parts("rabbit://");
    assert_eq!(
        bare,
        json!({"transport": "rabbit", "virtual_host": null, "hosts": [], "query": {}})
    );
    assert_eq!(parts("rabbit:///")["virtual_host"], json!(""));
    assert_eq!(parts("rabbit://h")["virtual_host"], Value::Null);
    assert_eq!(parts("rabbit://h?x=1")["virtual_host"], Value::Null);
    let host = |url: &str| parts(url)["hosts"][0].clone();
    assert_eq!(
        host("rabbit://u@h/"),
        json!({"hostname": "h", "port": null, "username": "u", "password": null})
    );
    assert_eq!(host("rabbit://u:@h/")["password"], json!("***"));
    assert_eq!(
        host("rabbit://:p@:0/"),
        json!({"hostname": null, "port": 0, "username": "", "password": "***"})
    );

    let text = run(&["url", "rabbit://bob:secret@one:5672,two/?a=1%0A2"])
        .exits(0)
        .stdout;
    for line in [
        "transport     rabbit",
        "host 1        one, port 5672, user bob, password ***",
        "host 2        two",
        "virtual host  (empty)",
        "option        a = 1\\n2",
    ] {
        assert!(text.lines().any(|known| known == line), "{line}: {text}");
    }
    for bad in [
        "",
        "no-url",
        "rabbit://h:port/",
        "rabbit://h/?a=%zz",
        "rabbit://h/#x",
    ] {
        run(&["url", bad]).fails(2, "config", "not_sent");
        assert_eq!(
            run(&["url", bad, "--json"]).exits(2).error()["kind"],
            json!("config")
        );
    }
}

#[test]
fn secrets_are_shown_by_nothing() {
    let urls = [
        format!("memory://u:{SECRET}@h/v"),
        format!("foo://u:{SECRET}@h/v"),
        format!("rabbit://u:{SECRET}@h:port/"),
        format!("rabbit://u:a@{SECRET}@h/"),
        format!("rabbit://u:a/{SECRET}@h/"),
        format!("rabbit://u:{SECRET}@127.0.0.1:1/"),
        format!("memory://h/?password={SECRET}"),
        format!("rabbit://h/?ssl_key_password={SECRET}"),
        format!("memory://h/?url=x://u:{SECRET}@h"),
        format!("u:{SECRET}@h"),
    ];
    for url in &urls {
        let cases: [&[&str]; 11] = [
            &["url", url],
            &["url", url, "--json"],
            &["call", url, "topic", "m", "--timeout", "300ms"],
            &["cast", url, "topic", "m", "--timeout", "300ms", "--json"],
            &[
                "call",
                url,
                "topic",
                "m",
                "--timeout",
                "300ms",
                "--log",
                "trace",
            ],
            &["drivers", url],
            &["drivers", url, "--json"],
            &[url],
            &["call", "memory://", "topic", "m", "--timeout", url],
            &["call", "memory://", "topic", "m", "--args", url, url],
            &["call", "memory://", "topic", "m", url],
        ];
        for args in cases {
            let finished = run(args);
            assert!(finished.code.is_some(), "{args:?}");
            has_no_secret(&finished);
        }
    }
    let glued = format!("--timeout=rabbit://u:{SECRET}@h");
    has_no_secret(&run(&["call", "memory://", "topic", "m", &glued]).exits(2));
}

#[test]
fn drivers_and_executors_are_listed() {
    let drivers = run(&["drivers", "--json"]).exits(0).json();
    let named = |list: &Value, name: &str| -> Value {
        let list = list.as_array().expect("a list");
        let found = list.iter().find(|entry| entry["name"] == name);
        found
            .unwrap_or_else(|| panic!("{name} is not in {list:?}"))
            .clone()
    };
    let memory = named(&drivers, "memory");
    assert_eq!(memory["aliases"], json!(["fake"]));
    assert_eq!(memory["crate"], json!("messaging-driver-memory"));
    assert_eq!(memory["version"], json!("0.1.0"));
    assert!(!memory["summary"].as_str().unwrap().is_empty());
    let length = named(&memory["options"], "queue_length");
    assert_eq!(
        (&length["type"], &length["min"]),
        (&json!("int"), &json!(1))
    );
    assert!(length["help"].as_str().is_some_and(|help| !help.is_empty()));
    assert_eq!(
        named(&memory["options"], "max_body")["default"],
        json!("67108864")
    );
    let rabbit = named(&drivers, "rabbit");
    assert_eq!(rabbit["crate"], json!("messaging-driver-amqp"));
    assert!(
        rabbit["aliases"]
            .as_array()
            .unwrap()
            .contains(&json!("kombu"))
    );
    for driver in drivers.as_array().unwrap() {
        for option in driver["options"].as_array().unwrap() {
            assert_ne!(option["type"], json!("other"), "{option}");
        }
    }

    let executors = run(&["executors", "--json"]).exits(0).json();
    for (name, aliases, most) in [
        ("async", json!(["eventlet"]), Value::Null),
        ("blocking", json!([]), json!(1)),
        ("threaded", json!(["threading"]), Value::Null),
    ] {
        let executor = named(&executors, name);
        assert_eq!(executor["aliases"], aliases);
        assert_eq!(executor["max_concurrency"], most);
        assert_eq!(executor["crate"], json!("messaging-executors"));
    }

    let table = run(&["drivers"]).exits(0).stdout;
    let row = table
        .lines()
        .find(|line| line.starts_with("memory "))
        .expect("a row");
    assert!(
        row.contains("fake") && row.contains("messaging-driver-memory 0.1.0"),
        "{table}"
    );
    let table = run(&["executors"]).exits(0).stdout;
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("threaded  threading")),
        "{table}"
    );
}

#[cfg(unix)]
#[test]
fn signals_end_an_idle_server() {
    use rustix::process::Signal;

    for (signal, options) in [
        (Signal::TERM, &[][..]),
        (Signal::INT, &[]),
        (
            Signal::TERM,
            &[
                "--executor",
                "threaded",
                "--concurrency",
                "3",
                "--namespace",
                "n",
                "--rpc-version",
                "1.2",
            ],
        ),
        (Signal::INT, &["--executor", "blocking", "--exchange", "e"]),
    ] {
        let server = Running::serve("memory://", "topic", "one", options);
        server.signal(signal);
        let finished = server.finish().succeeds_silently();
        assert!(finished.took < Duration::from_secs(8), "{finished:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_signal_before_the_server_receives_ends_it_too() {
    // Connections are accepted by the kernel and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rabbit://guest:guest@{}/", silent.local_addr().unwrap());
    let server = Running::spawn(command().args(["serve", &url, "topic", "--server", "one"]));
    // It connects once its handlers are set.
    silent.accept().unwrap();
    server.signal(rustix::process::Signal::TERM);
    let finished = server.finish().exits(0);
    assert!(finished.took < Duration::from_secs(8), "{finished:?}");
    assert_eq!(finished.stdout, "");
}

#[cfg(unix)]
#[test]
fn output_that_nobody_takes_is_no_panic() {
    for args in [
        &["drivers"][..],
        &["drivers", "--json"],
        &["executors"],
        &["url", "rabbit://h/"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = command()
            .args(args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!((status.code(), stderr.as_str()), (Some(0), ""), "{args:?}");
    }
    if let Ok(full) = File::options().write(true).open("/dev/full") {
        let mut child = command()
            .args(["drivers"])
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(
            stderr.starts_with("error: internal (executed): "),
            "{stderr}"
        );
    }
    // An error that nobody reads still has its exit code.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command()
        .args(["call", "memory://", "nobody", "m", "--log", "trace"])
        .stderr(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(4));
}
