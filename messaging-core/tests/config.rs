//! Configuration files and the environment, and the typed options drivers read from them and from the URL.

use std::time::Duration;

use messaging_core::config::Config;
use messaging_core::{Error, ErrorKind};

const NONE: [(&str, &str); 0] = [];

fn file(text: &str) -> Config {
    Config::from_parts(text, NONE).expect("the text is a valid file")
}

fn refused(text: &str) -> String {
    let error = Config::from_parts(text, NONE).expect_err(&format!("{text:?} must be refused"));
    config_error(error)
}

fn config_error(error: Error) -> String {
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert_eq!(text, error.message());
    text
}

#[test]
fn reads_a_file_as_oslo_config_does() {
    let config = file(
        "\u{feff}# a comment\n\
         ; another\n\
         \n\
         [DEFAULT]\n\
         transport_url = rabbit://u:p%40$x;y#z\\n@h:1/v?a=b&c=%20 # d\r\n\
         control_exchange=heat\n\
         colon: value = x\n\
         equals = value : x\n\
         double = \"a b \"\n\
         single='a \"b\"'\n\
         half = \"a b\n\
         mixed = 'a b\"\n\
         lone = '\n\
         empty =\n\
         twice = 1\n\
         with-dash = 2\n\
         twice = 3\n\
         long = one\n\
         \x20 two  \n\
         \t# three\n\
         \n\
         dollars = $name ${name} $$\n\
         [Oslo_Messaging_Rabbit]\n\
         ssl = true\n\
         [other group]\n\
         ssl = false\n\
         [oslo_messaging_rabbit]\n\
         heartbeat_rate = 3\n\
         [default]\n\
         control_exchange = not this one\n\
         [DEFAULT]\n\
         # A group may be opened again.\n\
         late = yes",
    );
    let table = [
        (
            "DEFAULT",
            "transport_url",
            Some("rabbit://u:p%40$x;y#z\\n@h:1/v?a=b&c=%20 # d"),
        ),
        ("DEFAULT", "control_exchange", Some("heat")),
        ("DEFAULT", "colon", Some("value = x")),
        ("DEFAULT", "equals", Some("value : x")),
        ("DEFAULT", "double", Some("a b ")),
        ("DEFAULT", "single", Some("a \"b\"")),
        ("DEFAULT", "half", Some("\"a b")),
        ("DEFAULT", "mixed", Some("'a b\"")),
        ("DEFAULT", "lone", Some("")),
        ("DEFAULT", "empty", Some("")),
        ("DEFAULT", "twice", Some("3")),
        ("DEFAULT", "with_dash", Some("2")),
        ("DEFAULT", "with-dash", Some("2")),
        ("DEFAULT", "long", Some("one\ntwo\n# three")),
        ("DEFAULT", "dollars", Some("$name ${name} $$")),
        ("DEFAULT", "late", Some("yes")),
        ("DEFAULT", "absent", None),
        ("DEFAULT", "Control_Exchange", None),
        ("absent", "ssl", None),
        ("oslo_messaging_rabbit", "ssl", Some("true")),
        ("oslo_messaging_rabbit", "heartbeat_rate", Some("3")),
        ("other group", "ssl", Some("false")),
        ("default", "control_exchange", Some("not this one")),
    ];
    for (group, option, expected) in table {
        assert_eq!(config.get(group, option), expected, "[{group}] {option}");
    }
    assert_eq!(config.control_exchange(), Some("heat"));
    assert_eq!(
        config.transport_url(),
        config.get("DEFAULT", "transport_url")
    );
}

#[test]
fn a_syntax_error_names_file_and_line_and_quotes_nothing() {
    let table = [
        ("[DEFAULT]\nhunter2", 2, "name = value"),
        ("transport_url = rabbit://u:hunter2@h/", 1, "[DEFAULT]"),
        ("[DEFAULT]\n\n[hunter2\n", 3, "`]`"),
        ("[DEFAULT] # hunter2\n", 1, "`]`"),
        ("[]\n", 1, "name"),
        ("[DEFAULT]\n= hunter2", 2, "name"),
        ("[DEFAULT]\n  : hunter2", 2, "indent"),
        ("[DEFAULT]\na = 1\n\n  hunter2", 4, "indent"),
        ("[DEFAULT]\na = 1\n# x\n  hunter2", 4, "indent"),
    ];
    for (text, line, remedy) in table {
        let error = refused(text);
        assert!(
            error.contains(&format!("line {line}:")),
            "{text:?}: {error}"
        );
        assert!(error.contains(remedy), "{text:?}: {error}");
        assert!(!error.contains("hunter2"), "{text:?}: {error}");
    }
}

#[test]
fn reads_files_from_disk() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(format!("{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("the target folder is writable");
        path
    };
    let path = write(
        "good.conf",
        b"[DEFAULT]\nrpc_response_timeout = x\ntransport_url = a:\n",
    );
    let config = Config::from_file(&path).expect("a valid file");
    // The process's environment goes before the file; nothing sets this name there.
    assert_eq!(config.get("DEFAULT", "rpc_response_timeout"), Some("x"));
    let error = config_error(config.rpc_response_timeout().expect_err("x is no number"));
    assert!(
        error.contains("rpc_response_timeout") && error.contains("`x`"),
        "{error}"
    );
    assert!(
        error.contains(&format!("{}, line 2", path.display())),
        "{error}"
    );
    std::fs::remove_file(path).expect("the file is ours");

    let path = write("bad.conf", b"[DEFAULT\n");
    let error = config_error(Config::from_file(&path).expect_err("a syntax error"));
    assert!(
        error.contains(&format!("{}, line 1", path.display())),
        "{error}"
    );
    std::fs::remove_file(path).expect("the file is ours");

    let path = write("latin1.conf", b"[DEFAULT]\ncontrol_exchange = b\xfcro\n");
    let error = config_error(Config::from_file(&path).expect_err("not UTF-8"));
    assert!(
        error.contains("latin1.conf") && error.contains("UTF-8"),
        "{error}"
    );
    std::fs::remove_file(path).expect("the file is ours");

    let path = write("long.conf", &vec![b'\n'; 16 * 1024 * 1024 + 1]);
    let error = config_error(Config::from_file(&path).expect_err("too long"));
    assert!(error.contains("longer than 16777216 bytes"), "{error}");
    std::fs::remove_file(path).expect("the file is ours");

    let error = Config::from_file(folder.join("absent.conf")).expect_err("no such file");
    assert!(std::error::Error::source(&error).is_some());
    assert!(config_error(error).contains("absent.conf"));
    assert!(config_error(Config::from_file(folder).expect_err("a folder")).contains("cannot read"));
}

#[test]
fn the_environment_goes_before_the_file() {
    let config = Config::from_parts(
        "[DEFAULT]\ncontrol_exchange = file\nrpc_ping_enabled = yes\n[oslo_messaging_rabbit]\nssl = false\n",
        [
            ("OS_DEFAULT__CONTROL_EXCHANGE", "environment"),
            ("OS_DEFAULT__TRANSPORT_URL", "rabbit://u:hunter2@h/"),
            ("OS_OSLO_MESSAGING_RABBIT__SSL", "true"),
            ("OS_OSLO_MESSAGING_RABBIT__KOMBU_COMPRESSION", ""),
            ("os_default__executor_thread_pool_size", "1"),
            ("OS_AUTH_URL", "x"),
            ("PATH", "/bin"),
        ],
    )
    .expect("a valid file");
    assert_eq!(config.control_exchange(), Some("environment"));
    assert_eq!(config.transport_url(), Some("rabbit://u:hunter2@h/"));
    assert_eq!(config.get("oslo_messaging_rabbit", "ssl"), Some("true"));
    assert_eq!(
        config.get("oslo_messaging_rabbit", "kombu-compression"),
        Some("")
    );
    assert_eq!(
        config.rpc_ping_enabled().expect("yes is a boolean"),
        Some(true)
    );
    // Variables are case-sensitive where the system is.
    assert_eq!(config.executor_thread_pool_size().expect("unset"), None);
    for shown in [format!("{config:?}"), format!("{config:#?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("OS_DEFAULT__TRANSPORT_URL"), "{shown}");
        assert!(shown.contains("control_exchange"), "{shown}");
    }
    assert_eq!(Config::default().control_exchange(), None);
}

#[test]
fn reads_the_options_of_default() {
    let timeout = |value: &str| {
        file(&format!("[DEFAULT]\nrpc_response_timeout = {value}")).rpc_response_timeout()
    };
    for (value, seconds) in [
        ("60", 60.0),
        ("0", 0.0),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        ("+7", 7.0),
        ("'9'", 9.0),
    ] {
        let expected = Some(Duration::from_secs_f64(seconds));
        assert_eq!(timeout(value).expect(value), expected, "{value}");
    }
    assert_eq!(timeout("").expect("empty is unset"), None);
    for value in [
        "-1",
        "-0.1",
        "NaN",
        "inf",
        "-inf",
        "1e300",
        "1000000001",
        "5s",
        "ten",
        "0x10",
    ] {
        let error = config_error(timeout(value).expect_err(value));
        assert!(
            error.contains("option rpc_response_timeout from (text), line 2"),
            "{error}"
        );
        assert!(
            error.contains(value) && error.contains("seconds"),
            "{error}"
        );
    }

    let pool = |text: &str| file(&format!("[DEFAULT]\n{text}")).executor_thread_pool_size();
    let size = |text: &str| pool(text).expect(text).map(std::num::NonZeroU32::get);
    assert_eq!(size(""), None);
    assert_eq!(size("executor_thread_pool_size = 64"), Some(64));
    assert_eq!(size("rpc_thread_pool_size = 32"), Some(32));
    assert_eq!(
        size("executor_thread_pool_size = 64\nrpc_thread_pool_size = 32"),
        Some(64)
    );
    assert_eq!(
        size("executor-thread-pool-size = 4294967295"),
        Some(u32::MAX)
    );
    for value in ["0", "-1", "4294967296", "1.5", "many"] {
        let error =
            config_error(pool(&format!("rpc_thread_pool_size = {value}")).expect_err(value));
        assert!(
            error.contains("option rpc_thread_pool_size from"),
            "{error}"
        );
        assert!(
            error.contains(value) && error.contains("1 to 4294967295"),
            "{error}"
        );
    }

    let ping = |value: &str| {
        Config::from_parts("", [("OS_DEFAULT__RPC_PING_ENABLED", value)])
            .expect("an empty file")
            .rpc_ping_enabled()
    };
    for value in ["true", "True", "1", "ON", "yes", " yes "] {
        assert_eq!(ping(value).expect(value), Some(true));
    }
    for value in ["false", "FALSE", "0", "Off", "no"] {
        assert_eq!(ping(value).expect(value), Some(false));
    }
    for value in ["", "2", "y", "enabled"] {
        let error = config_error(ping(value).expect_err(value));
        assert!(
            error.contains("environment variable OS_DEFAULT__RPC_PING_ENABLED"),
            "{error}"
        );
    }
}
