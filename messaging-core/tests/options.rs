//! The typed options that drivers read from the URL, the environment and the file.

use std::time::Duration;

use messaging_core::config::Config;
use messaging_core::options::{
    CORE_OPTIONS, CoreOptions, OptionGroup, OptionKind, OptionSpec, Options,
};
use messaging_core::{Error, ErrorKind, TransportUrl};

const fn option(name: &'static str, kind: OptionKind, default: Option<&'static str>) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default,
        help: "For the tests.",
    }
}

static GROUP: OptionGroup = OptionGroup {
    name: "acme_driver",
    options: &[
        option("durable", OptionKind::Bool, Some("false")),
        option("prefetch", OptionKind::Int { min: 0, max: 100 }, Some("10")),
        option(
            "limit",
            OptionKind::Int {
                min: i64::MIN,
                max: i64::MAX,
            },
            None,
        ),
        option(
            "delay",
            OptionKind::Seconds { min: 0.5, max: 4.5 },
            Some("1.0"),
        ),
        option(
            "patience",
            OptionKind::Seconds {
                min: -1.0,
                max: f64::INFINITY,
            },
            None,
        ),
        option("label", OptionKind::Text, None),
        option("login", OptionKind::Secret, None),
        option(
            "strategy",
            OptionKind::Choice(&["round-robin", "shuffle"]),
            Some("round-robin"),
        ),
        option("topics", OptionKind::List, Some("a,b")),
        option("pin_code", OptionKind::Choice(&["0000"]), None),
        option("api_key", OptionKind::Int { min: 0, max: 9 }, None),
    ],
};

fn url(query: &str) -> TransportUrl {
    format!("acme://host/?{query}")
        .parse()
        .expect("a valid URL")
}

fn config(file: &str, environment: &[(&str, &str)]) -> Config {
    Config::from_parts(file, environment.iter().copied()).expect("a valid file")
}

fn resolve(query: &str) -> Result<Options, Error> {
    Options::resolve(&GROUP, &url(query), &Config::default())
}

fn refused(query: &str) -> String {
    let error = resolve(query).expect_err(&format!("{query} must be refused"));
    assert_eq!(error.kind(), ErrorKind::Config);
    error.to_string()
}

#[test]
fn what_nobody_sets_has_its_default() {
    let options = resolve("").expect("defaults are valid");
    assert!(!options.bool("durable"));
    assert_eq!(options.int("prefetch"), Some(10));
    assert_eq!(options.int("limit"), None);
    assert_eq!(options.seconds("delay"), Some(Duration::from_secs(1)));
    assert_eq!(options.seconds("patience"), None);
    assert_eq!(options.text("label"), None);
    assert_eq!(options.text("strategy"), Some("round-robin"));
    assert_eq!(options.list("topics"), ["a", "b"]);
    assert!(
        GROUP
            .options
            .iter()
            .all(|option| !options.is_set(option.name))
    );
}

#[test]
fn url_goes_before_environment_before_file() {
    let file = "[DEFAULT]\nprefetch = 4\n[acme_driver]\nprefetch = 1\n";
    let environment = [("OS_ACME_DRIVER__PREFETCH", "2")];
    let prefetch = |query: &str, file: &str, environment: &[(&str, &str)]| {
        let options = Options::resolve(&GROUP, &url(query), &config(file, environment))
            .expect("valid options");
        (options.int("prefetch"), options.is_set("prefetch"))
    };
    assert_eq!(prefetch("prefetch=3", file, &environment), (Some(3), true));
    assert_eq!(prefetch("", file, &environment), (Some(2), true));
    assert_eq!(prefetch("", file, &[]), (Some(1), true));
    assert_eq!(
        prefetch("", "[DEFAULT]\nprefetch = 4\n", &[]),
        (Some(10), false)
    );
    // An empty number takes the default back, whatever a source of lower rank says.
    assert_eq!(
        prefetch("", file, &[("OS_ACME_DRIVER__PREFETCH", " ")]),
        (Some(10), false)
    );
}

#[test]
fn reads_each_type() {
    let options = resolve(
        "durable=YES&prefetch=+100&limit=-9223372036854775808&delay=4.5&patience=1e2&label=a+b%2C&\
         login=hunter2&strategy=shuffle&topics=x,+y,,z&topics=%20w",
    )
    .expect("valid options");
    assert!(options.bool("durable"));
    // A plus sign is a space in a query.
    assert_eq!(options.int("prefetch"), Some(100));
    assert_eq!(options.int("limit"), Some(i64::MIN));
    assert_eq!(options.seconds("delay"), Some(Duration::from_millis(4500)));
    assert_eq!(options.seconds("patience"), Some(Duration::from_secs(100)));
    assert_eq!(options.text("label"), Some("a b,"));
    assert_eq!(options.text("login"), Some("hunter2"));
    assert_eq!(options.text("strategy"), Some("shuffle"));
    assert_eq!(options.list("topics"), ["x", "y", "z", "w"]);
    assert_eq!(options.text("durable"), Some("YES"));
    for option in [
        "durable", "prefetch", "limit", "delay", "patience", "label", "login", "strategy", "topics",
    ] {
        assert!(options.is_set(option), "{option}");
    }
    // An empty list or text is set, and empty.
    let config = config("[acme_driver]\ntopics =\nlabel =\n", &[]);
    let options = Options::resolve(&GROUP, &url(""), &config).expect("valid options");
    assert!(options.list("topics").is_empty() && options.is_set("topics"));
    assert_eq!(options.text("label"), Some(""));
}

#[test]
fn a_bad_value_is_named_with_its_option_its_bounds_and_its_source() {
    #[rustfmt::skip]
    let table = [
        ("durable", "maybe", "a boolean (true, 1, on, yes, false, 0, off, no)"),
        ("prefetch", "101", "an integer from 0 to 100"),
        ("prefetch", "-1", "an integer from 0 to 100"),
        ("prefetch", "1.0", "an integer from 0 to 100"),
        ("prefetch", "99999999999999999999", "an integer from 0 to 100"),
        ("delay", "0.4", "a number of seconds from 0.5 to 4.5"),
        ("delay", "NaN", "a number of seconds from 0.5 to 4.5"),
        ("delay", "5", "a number of seconds from 0.5 to 4.5"),
        ("patience", "-0.5", "a number of seconds from 0 to 1000000000"),
        ("patience", "inf", "a number of seconds from 0 to 1000000000"),
        ("patience", "1e300", "a number of seconds from 0 to 1000000000"),
        ("strategy", "Shuffle", "one of: round-robin, shuffle"),
    ];
    for (option, value, expected) in table {
        let error = refused(&format!("{option}={value}"));
        assert_eq!(
            error,
            format!("option {option} from the transport URL: `{value}` is not {expected}")
        );
        let variable = format!("OS_ACME_DRIVER__{}", option.to_uppercase());
        let environment = config("", &[(&variable, value)]);
        let error = Options::resolve(&GROUP, &url(""), &environment)
            .expect_err(value)
            .to_string();
        assert_eq!(
            error,
            format!(
                "option {option} from environment variable {variable}: `{value}` is not {expected}"
            )
        );
        let file = config(&format!("[acme_driver]\n\n{option}: {value}"), &[]);
        let error = Options::resolve(&GROUP, &url(""), &file)
            .expect_err(value)
            .to_string();
        assert_eq!(
            error,
            format!("option {option} from (text), line 3: `{value}` is not {expected}")
        );
    }
    // What is quoted is bounded and cannot forge a log line.
    let error = refused(&format!("prefetch=%0A{}", "x".repeat(10_000)));
    assert!(error.len() < 250 && !error.contains('\n'), "{error}");
}

#[test]
fn an_unknown_option_of_the_url_is_an_error() {
    let all = "api_key, delay, durable, label, limit, login, max_body, patience, pin_code, prefetch, strategy, topics";
    assert_eq!(
        refused("prefech=1"),
        format!(
            "unknown option `prefech` in the transport URL; did you mean `prefetch`? (options of `acme`: {all})"
        )
    );
    assert!(refused("Durable=1").contains("did you mean `durable`?"));
    let error = refused("zzz=1");
    assert!(
        error.contains("`zzz`") && error.contains(all) && !error.contains("did you mean"),
        "{error}"
    );
    // Neither the value nor a name that may be half of an URL with a password is quoted.
    let error = refused("nonsense=hunter2&durable=1");
    assert!(!error.contains("hunter2"), "{error}");
    assert!(!refused("hunter2@host=1").contains("hunter2"));
    assert!(!refused("hunter2=x@host").contains("hunter2"));
    assert!(!refused("hunter2=x&y=z@host").contains("hunter2"));
    assert!(refused(&format!("{}=1", "x".repeat(10_000))).len() < 400);
}

#[test]
fn dashes_stand_for_underscores() {
    assert_eq!(
        resolve("pin-code=0000").expect("known").text("pin_code"),
        Some("0000")
    );
    let file = config("[acme_driver]\npin-code = 0000\n", &[]);
    let options = Options::resolve(&GROUP, &url(""), &file).expect("known");
    assert_eq!(options.text("pin_code"), Some("0000"));
    assert!(refused("pin-code=0000&pin_code=0000").contains("pin_code"));
}

#[test]
fn secrets_are_neither_quoted_nor_shown() {
    let options = resolve("login=hunter2&label=seen").expect("valid options");
    for shown in [format!("{options:?}"), format!("{options:#?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("***") && shown.contains("seen"), "{shown}");
    }
    let error = refused("api_key=77777");
    assert!(
        error.contains("api_key") && !error.contains("77777"),
        "{error}"
    );
}

#[test]
fn core_reads_its_own_options_from_any_query() {
    let read = |query: &str, file: &str, environment: &[(&str, &str)]| {
        CoreOptions::resolve(&url(query), &config(file, environment))
            .map(|options| options.max_body)
    };
    assert_eq!(read("", "", &[]).expect("a default"), 64 * 1024 * 1024);
    assert_eq!(
        read("prefetch=1&no_such=2", "", &[]).expect("not core's business"),
        64 * 1024 * 1024
    );
    assert_eq!(read("max_body=1024", "", &[]).expect("the least"), 1024);
    assert_eq!(
        read("max-body=2147483648", "", &[]).expect("the most"),
        1 << 31
    );
    let file = "[DEFAULT]\nmax_body = 2048\n";
    assert_eq!(read("", file, &[]).expect("from the file"), 2048);
    let environment = [("OS_DEFAULT__MAX_BODY", "4096")];
    assert_eq!(
        read("", file, &environment).expect("from the environment"),
        4096
    );
    for value in ["1023", "2147483649", "-1", "64M"] {
        let error = read(&format!("max_body={value}"), "", &[])
            .expect_err(value)
            .to_string();
        assert!(
            error.contains("max_body") && error.contains("1024 to 2147483648"),
            "{error}"
        );
    }
    // A driver takes core's options in the query and leaves them alone.
    assert!(resolve("max_body=1024&prefetch=1").is_ok());
    assert!(
        CORE_OPTIONS
            .options
            .iter()
            .all(|option| !option.help.is_empty())
    );
}

#[test]
#[cfg(debug_assertions)]
fn a_driver_that_asks_for_what_it_has_not_declared_learns_it_in_debug_builds() {
    let options = resolve("").expect("defaults are valid");
    for mistake in [
        (|options| options.bool("no_such")) as fn(&Options) -> bool,
        |options| options.is_set("no_such"),
        |options| options.int("durable").is_some(),
        |options| options.seconds("prefetch").is_some(),
        |options| options.bool("prefetch"),
        |options| options.list("strategy").is_empty(),
    ] {
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mistake(&options)));
        assert!(asked.is_err());
    }
}

#[test]
#[cfg(not(debug_assertions))]
fn a_driver_that_asks_for_what_it_has_not_declared_gets_nothing_in_release_builds() {
    let options = resolve("").expect("defaults are valid");
    assert!(!options.is_set("no_such") && !options.bool("no_such") && !options.bool("prefetch"));
    assert_eq!(options.int("durable"), None);
    assert_eq!(options.seconds("prefetch"), None);
    assert_eq!(options.text("no_such"), None);
    assert!(options.list("strategy").is_empty());
}
