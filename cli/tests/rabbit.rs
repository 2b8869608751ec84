//! The verbs over RabbitMQ: a server in one process, its callers in others.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Finished, Running, command, eventually, finish, run};
use rustix::process::Signal;
use serde_json::{Value, json};

const SECRET: &str = "s3cr3t-w0rd";

fn url() -> String {
    std::env::var("RABBITMQ_URL")
        .ok()
        .filter(|url| !url.is_empty())
        .unwrap_or_else(|| {
            panic!(
                "RABBITMQ_URL is not set: `cargo xtask test` brings up a broker and sets it; \
             or run `cargo xtask brokers up` and set it to the URL that prints"
            )
        })
}

/// The URL with the user, the password and the first address of `RABBITMQ_URL` replaced where given.
fn url_with(password: Option<&str>, address: Option<&str>) -> String {
    let url = url();
    let (scheme, rest) = url.split_once("://").expect("a scheme");
    let (hosts, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let host = hosts.split(',').next().expect("a host");
    let (login, known) = host.rsplit_once('@').unwrap_or(("guest:guest", host));
    let (user, known_password) = login.split_once(':').unwrap_or((login, ""));
    let password = password.unwrap_or(known_password);
    format!(
        "{scheme}://{user}:{password}@{}{path}",
        address.unwrap_or(known)
    )
}

/// Where the broker listens.
fn broker() -> String {
    let url = url_with(None, None);
    let (_, rest) = url.split_once('@').expect("made with credentials");
    let (host, _) = rest.split_once('/').expect("made with a path");
    if host.contains(':') {
        host.to_owned()
    } else {
        format!("{host}:5672")
    }
}

/// A topic of this test and this run alone.
fn topic(test: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("cli-{test}-{}-{now}", std::process::id())
}

#[track_caller]
fn call(address: &str, rest: &[&str]) -> Finished {
    run(&[&["call", &url(), address][..], rest].concat())
}

#[track_caller]
fn result(address: &str, rest: &[&str]) -> Value {
    let finished = call(address, rest).exits(0);
    assert_eq!(finished.stderr, "");
    finished.json()
}

/// A call that is not waited for.
fn start_call(address: &str, rest: &[&str]) -> Running {
    Running::spawn(command().args(["call", &url(), address]).args(rest))
}

/// A server that says when a request sleeps.
fn serve_logged(topic: &str, options: &[&str]) -> Running {
    let options = [&["--log", "longshore::diagnostics=debug"][..], options].concat();
    Running::serve(&url(), topic, "one", &options)
}

fn stop(server: Running) {
    server.signal(Signal::TERM);
    server.finish().succeeds_silently();
}

#[test]
fn calls_are_answered_under_each_executor() {
    for executor in ["async", "threaded", "blocking", "eventlet", "threading"] {
        let topic = topic("answered");
        let server = Running::serve(&url(), &topic, "one", &["--executor", executor]);
        assert_eq!(
            result(&topic, &["add", "a=40", "b=2"]),
            json!(42),
            "{executor}"
        );
        assert_eq!(
            result(&topic, &["add", "--args", "{\"a\": 0.5}", "b=2"]),
            json!(2.5)
        );
        assert_eq!(result(&topic, &["whoami"]), json!("one"));
        assert_eq!(result(&topic, &["sleep", "seconds=0.25"]), json!(0.25));
        assert_eq!(result(&topic, &["count"]), json!(4), "{executor}");
        stop(server);
    }
}

#[test]
fn values_and_contexts_come_back_as_they_were_sent() {
    let topic = topic("values");
    let server = Running::serve(&url(), &topic, "one", &[]);
    for value in [
        "null",
        "\"\"",
        "[]",
        "{\"b\":1,\"a\":[true,null]}",
        "12345678901234567890123456789.50",
        "\"é \\\" \\\\ 😀\"",
    ] {
        let finished = call(&topic, &["echo", &format!("value={value}")]).exits(0);
        assert_eq!(finished.line(), value);
    }
    assert_eq!(
        result(&topic, &["echo", "value=plain text"]),
        json!("plain text")
    );
    assert_eq!(result(&topic, &["echo", "value="]), json!(""));
    let finished = call(
        &topic,
        &[
            "echo",
            "--args",
            "{\"value\": [1,\n 2, \"\u{2028}\u{85}\"]}",
        ],
    );
    assert_eq!(finished.exits(0).json(), json!([1, 2, "\u{2028}\u{85}"]));

    let context = json!({"request_id": "r-1", "roles": ["a", "b"], "n": null, "_x": 1.5});
    assert_eq!(
        result(&topic, &["context", "--context", &context.to_string()]),
        context
    );
    assert_eq!(result(&topic, &["context"]), json!({}));
    stop(server);
}

#[test]
fn one_server_is_asked_by_name_and_all_by_fanout() {
    let topic = topic("named");
    let servers = ["one", "two"].map(|name| (name, Running::serve(&url(), &topic, name, &[])));
    let at = |name: &str| format!("{topic}/{name}");
    for name in ["one", "two", "one", "two"] {
        assert_eq!(result(&at(name), &["whoami"]), json!(name));
    }
    run(&["cast", &url(), &at("one"), "echo", "value=1"]).succeeds_silently();
    eventually("the cast is run", || {
        result(&at("one"), &["count"]) == json!(3)
    });
    run(&[
        "fanout",
        &url(),
        &topic,
        "fail",
        "class=ValueError",
        "message=counts too",
    ])
    .succeeds_silently();
    for (name, count) in [("one", 4), ("two", 3)] {
        eventually("the fanout is run", || {
            result(&at(name), &["count"]) == json!(count)
        });
    }
    call(&at("three"), &["whoami"]).fails(4, "no_server", "not_sent");
    for (_, server) in servers {
        stop(server);
    }
}

#[test]
fn remote_errors_exit_1_and_name_their_class() {
    let topic = topic("errors");
    let mut server = serve_logged(&topic, &["--concurrency", "2"]);
    let boom = ["fail", "class=ValueError", "message=line 1\nline 2"];
    let finished = call(&topic, &boom).fails(1, "remote", "executed");
    assert!(
        finished.stderr.contains("ValueError: line 1\\nline 2"),
        "{finished:?}"
    );
    let error = call(&topic, &[&boom[..], &["--json"]].concat())
        .exits(1)
        .error();
    assert_eq!(
        error,
        json!({
            "kind": "remote", "outcome": "executed", "message": "line 1\nline 2",
            "class": "ValueError", "module": "builtins",
        })
    );
    for (rest, kind, class) in [
        (&["nothing"][..], "no_such_method", "NoSuchMethod"),
        (
            &["whoami", "--rpc-version", "2.0"],
            "unsupported_version",
            "UnsupportedVersion",
        ),
        (
            &["whoami", "--namespace", "other"],
            "unsupported_version",
            "UnsupportedVersion",
        ),
        (&["echo"], "bad_arguments", "TypeError"),
        (&["echo", "value=1", "more=1"], "bad_arguments", "TypeError"),
        (&["add", "a=x", "b=1"], "bad_arguments", "TypeError"),
        (&["whoami", "more=1"], "bad_arguments", "TypeError"),
    ] {
        call(&topic, rest).fails(1, kind, "not_executed");
        let error = call(&topic, &[rest, &["--json"]].concat()).exits(1).error();
        assert_eq!(
            (&error["kind"], &error["outcome"], &error["class"]),
            (&json!(kind), &json!("not_executed"), &json!(class))
        );
    }
    for seconds in ["seconds=-1", "seconds=1e300", "seconds=86401"] {
        let finished = call(&topic, &["sleep", seconds]).fails(1, "remote", "executed");
        assert!(finished.stderr.contains("ValueError"), "{finished:?}");
    }
    // The requests that were refused before a method ran are not among these.
    assert_eq!(result(&topic, &["count"]), json!(5));
    assert!(server.is_running());
    server.signal(Signal::TERM);
    server.finish().exits(0);
}

#[test]
fn exchange_namespace_and_version_are_part_of_the_address() {
    let topic = topic("interface");
    let exchange = format!("{topic}-exchange");
    let interface = [
        "--exchange",
        &exchange,
        "--namespace",
        "n",
        "--rpc-version",
        "1.5",
    ];
    let server = Running::serve(&url(), &topic, "one", &interface);
    assert_eq!(
        result(&topic, &[&["whoami"], &interface[..]].concat()),
        json!("one")
    );
    let whoami = |rest: &[&str]| call(&topic, &[&["whoami"], rest].concat());
    whoami(&["--exchange", &exchange, "--namespace", "n"]).exits(0);
    whoami(&[
        "--exchange",
        &exchange,
        "--namespace",
        "n",
        "--rpc-version",
        "1.6",
    ])
    .fails(1, "unsupported_version", "not_executed");
    whoami(&["--exchange", &exchange]).fails(1, "unsupported_version", "not_executed");
    whoami(&["--namespace", "n"]).fails(4, "no_server", "not_sent");
    server.signal(Signal::TERM);
    server.finish().exits(0);
}

#[test]
fn what_is_unanswered_by_the_deadline_exits_3() {
    let topic = topic("unanswered");
    let mut server = serve_logged(&topic, &["--executor", "blocking"]);
    let finished =
        call(&topic, &["sleep", "seconds=4", "--timeout", "1s"]).fails(3, "timeout", "unknown");
    let took = finished.took;
    assert!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(2),
        "{finished:?}"
    );
    // The one thread still sleeps. This request expires in the queue, and is not run when the thread is free again.
    server.logs("a request sleeps");
    let error = call(&topic, &["echo", "value=1", "--timeout", "500ms", "--json"])
        .exits(3)
        .error();
    assert_eq!(
        (&error["kind"], &error["outcome"]),
        (&json!("timeout"), &json!("unknown"))
    );
    assert_eq!(result(&topic, &["count"]), json!(1));
    server.signal(Signal::TERM);
    server.finish().exits(0);
}

#[test]
fn a_signal_lets_what_runs_finish() {
    for signal in [Signal::TERM, Signal::INT] {
        for executor in ["async", "threaded", "blocking"] {
            let topic = topic("drained");
            let mut server = serve_logged(&topic, &["--executor", executor]);
            let sleeper = start_call(&topic, &["sleep", "seconds=1.5", "--timeout", "30s"]);
            server.logs("a request sleeps");
            server.signal(signal);
            let sleeper = sleeper.finish().exits(0);
            assert_eq!(sleeper.json(), json!(1.5));
            let server = server.finish().exits(0);
            assert!(server.took < Duration::from_secs(9), "{server:?}");
        }
    }
}

#[test]
fn a_signal_that_comes_twice_at_once_counts_once() {
    let topic = topic("echoed");
    let mut server = serve_logged(&topic, &[]);
    let sleeper = start_call(&topic, &["sleep", "seconds=1.5", "--timeout", "30s"]);
    server.logs("a request sleeps");
    server.signal(Signal::TERM);
    server.signal(Signal::INT);
    assert_eq!(sleeper.finish().exits(0).json(), json!(1.5));
    server.finish().exits(0);
}

#[test]
fn what_does_not_finish_in_ten_seconds_exits_1() {
    let topic = topic("unfinished");
    let mut server = serve_logged(&topic, &[]);
    let sleeper = start_call(&topic, &["sleep", "seconds=300"]);
    server.logs("a request sleeps");
    let signalled = Instant::now();
    server.signal(Signal::TERM);
    let server = server.finish().exits(1);
    let took = signalled.elapsed();
    assert!(
        took >= Duration::from_secs(10) && took < Duration::from_secs(14),
        "{took:?}"
    );
    let last = server.stderr.lines().last().expect("a line");
    assert!(
        last.starts_with("error: cancelled (unknown): 1 of the requests"),
        "{server:?}"
    );
    drop(sleeper);
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let topic = topic("twice");
    let mut server = serve_logged(&topic, &["--executor", "threaded"]);
    let sleeper = start_call(&topic, &["sleep", "seconds=300"]);
    server.logs("a request sleeps");
    let signalled = Instant::now();
    eventually("a signal ends the server", || {
        if server.is_running() {
            server.signal(Signal::INT);
        }
        // Further apart than one signal and its echo.
        thread::sleep(Duration::from_millis(100));
        !server.is_running()
    });
    assert!(signalled.elapsed() < Duration::from_secs(5));
    let server = server.finish().exits(1);
    assert!(
        server
            .stderr
            .contains("error: cancelled (unknown): a second signal"),
        "{server:?}"
    );
    drop(sleeper);
}

#[test]
fn a_killed_server_leaves_its_calls_unanswered() {
    let topic = topic("killed");
    let mut server = serve_logged(&topic, &[]);
    let sleeper = start_call(&topic, &["sleep", "seconds=300", "--timeout", "5s"]);
    server.logs("a request sleeps");
    server.signal(Signal::KILL);
    let finished = sleeper.finish().fails(3, "timeout", "unknown");
    assert!(finished.took < Duration::from_secs(6), "{finished:?}");
    drop(server);
    // Its queues outlive it, as oslo.messaging's do; the next server finds them and answers.
    call(&topic, &["whoami", "--timeout", "1s"]).fails(3, "timeout", "unknown");
    let server = Running::serve(&url(), &topic, "two", &[]);
    assert_eq!(result(&topic, &["whoami"]), json!("two"));
    stop(server);
}

#[test]
fn a_wrong_password_is_refused_at_once_and_shown_by_nothing() {
    let url = url_with(Some(SECRET), None);
    let topic = topic("password");
    for verb in ["call", "cast", "fanout", "serve"] {
        let last = if verb == "serve" {
            &["--server", "one"][..]
        } else {
            &["whoami"]
        };
        for log in ["off", "trace"] {
            let args = [&[verb, &url, &topic, "--log", log, "--json"], last].concat();
            let finished = run(&args).exits(2);
            assert!(finished.took < Duration::from_secs(5), "{finished:?}");
            let error = finished.stderr.lines().last().expect("a line");
            let error: Value = serde_json::from_str(error).unwrap();
            assert_eq!(error["kind"], json!("unauthorized"), "{finished:?}");
            assert_eq!(error["outcome"], json!("not_sent"));
            assert!(!finished.stderr.contains(SECRET), "{finished:?}");
        }
    }
}

#[test]
fn a_right_password_is_shown_by_nothing() {
    let broker = url_with(None, None);
    let (_, rest) = broker.split_once("://").expect("a scheme");
    let (login, _) = rest.split_once('@').expect("made with credentials");
    let (_, password) = login.split_once(':').expect("made with a password");
    let topic = topic("right");
    let server = Running::serve(&broker, &topic, "one", &["--log", "trace"]);
    let caller = call(&topic, &["whoami", "--log", "trace"]).exits(0);
    server.signal(Signal::TERM);
    let server = server.finish().exits(0);
    for log in [server.stderr, caller.stderr] {
        assert!(!log.is_empty());
        // The user is called `guest` too where nothing else was set up, so what is looked for is how a login is sent
        // and written.
        for shown in [
            format!(":{password}@"),
            format!("\\0{password}"),
            format!("\\u{{0}}{password}"),
            format!("PASSWORDS{password}"),
            format!("password: \"{password}\""),
        ] {
            assert!(!log.contains(&shown), "{shown:?} is in {log}");
        }
    }
}

#[test]
fn a_broker_that_is_not_there_exits_5_in_time() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [free, silent.local_addr().unwrap().to_string()] {
        let url = url_with(Some(SECRET), Some(&address));
        for verb in ["call", "cast", "fanout"] {
            let finished = run(&[verb, &url, "topic", "m", "--timeout", "1.5s"])
                .fails(5, "connect", "not_sent");
            assert!(finished.took < Duration::from_millis(2_500), "{finished:?}");
            assert!(!finished.stderr.contains(SECRET), "{finished:?}");
        }
    }
    let url = url_with(None, Some(&silent.local_addr().unwrap().to_string()));
    let server = run(&["serve", &url, "topic", "--server", "one", "--log", "off"]);
    let server = server.fails(5, "connect", "not_sent");
    assert!(server.took < Duration::from_secs(12), "{server:?}");
}

#[test]
fn a_link_that_is_lost_for_good_ends_the_call_in_time() {
    let topic = topic("lost");
    let mut server = serve_logged(&topic, &[]);
    let proxy = Proxy::start(&broker());
    let url = url_with(None, Some(&proxy.address));
    let caller = Running::spawn(command().args([
        "call",
        &url,
        &topic,
        "sleep",
        "seconds=300",
        "--timeout",
        "4s",
    ]));
    server.logs("a request sleeps");
    proxy.sever();
    // A new link might still bring the reply, so the call waits to the end. The request ran: no error may deny it.
    let finished = caller.finish().fails(3, "timeout", "unknown");
    assert!(finished.took < Duration::from_secs(5), "{finished:?}");
    server.signal(Signal::KILL);
}

#[test]
fn a_server_whose_stdout_is_closed_serves_on() {
    let topic = topic("closed");
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command = command();
    command.args(["serve", &url(), &topic, "--server", "one"]);
    let server = Deaf(
        command
            .stdout(writer)
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    eventually("the server answers", || {
        call(&topic, &["whoami", "--timeout", "1s"]).code == Some(0)
    });
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    let mut server = server;
    eventually("the server ends", || server.0.try_wait().unwrap().is_some());
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
}

#[test]
fn the_result_survives_a_log_at_its_loudest() {
    let topic = topic("loud");
    let server = Running::serve(&url(), &topic, "one", &[]);
    let loud = finish(
        command()
            .args(["call", &url(), &topic, "whoami"])
            .env("RUST_LOG", "trace"),
    )
    .exits(0);
    assert_eq!(loud.line(), "\"one\"");
    assert!(
        !loud.stderr.contains('\u{1b}'),
        "colours without a terminal"
    );
    stop(server);
}

/// A server without a stdout, which dies with its guard.
struct Deaf(std::process::Child);

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Passes connections on until it is severed, and accepts none after.
struct Proxy {
    address: String,
    open: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Proxy {
    fn start(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let open = Arc::new(Mutex::new(Some(Vec::new())));
        let (to, streams) = (to.to_owned(), Arc::clone(&open));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let mut streams = streams.lock().unwrap();
                let Some(streams) = &mut *streams else {
                    continue;
                };
                let server = TcpStream::connect(&to).unwrap();
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut into) =
                        (from.try_clone().unwrap(), into.try_clone().unwrap());
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut into);
                        let _ = into.shutdown(Shutdown::Both);
                    });
                }
                streams.extend([client, server]);
            }
        });
        Self { address, open }
    }

    fn sever(&self) {
        for stream in self.open.lock().unwrap().take().unwrap_or_default() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
