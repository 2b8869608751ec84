//! The diagnostic endpoint: what `serve` answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use longshore::{CallerContext, Context, Failure, Router, Version};
use serde::Deserialize;
use serde_json::Number;
use serde_json::value::RawValue;

/// The longest sleep a stranger may ask for.
const LONGEST_SLEEP: Duration = Duration::from_secs(86_400);

/// The state of the endpoint.
pub(crate) struct Diagnostics {
    server: String,
    completed: AtomicU64,
}

impl Diagnostics {
    /// Counts a request that has ended, well or not.
    fn done<T>(&self, result: Result<T, Failure>) -> Result<T, Failure> {
        self.completed.fetch_add(1, Ordering::Relaxed);
        result
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Echo {
    value: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    a: Number,
    b: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sleep {
    seconds: Number,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fail {
    class: String,
    message: String,
}

/// The endpoint of a server of this name.
pub(crate) fn router(
    server: &str,
    namespace: Option<&str>,
    version: Option<Version>,
) -> Router<Diagnostics> {
    let mut router = Router::with_state(Diagnostics {
        server: server.to_owned(),
        completed: AtomicU64::new(0),
    });
    if let Some(namespace) = namespace {
        router = router.namespace(namespace);
    }
    if let Some(version) = version {
        router = router.version(&version.to_string());
    }
    router
        .method("echo", echo)
        .method("add", add)
        .plain_method("sleep", sleep)
        .method("fail", fail)
        .method("whoami", whoami)
        .method("count", count)
        .method("context", context)
}

async fn echo(state: Arc<Diagnostics>, _: Context, args: Echo) -> Result<Box<RawValue>, Failure> {
    state.done(Ok(args.value))
}

async fn add(state: Arc<Diagnostics>, _: Context, args: Add) -> Result<Number, Failure> {
    state.done(sum(&args.a, &args.b))
}

/// Integers stay integers as long as JSON's 64 bits hold them.
fn sum(a: &Number, b: &Number) -> Result<Number, Failure> {
    let integer = a
        .as_i128()
        .zip(b.as_i128())
        .and_then(|(a, b)| Number::from_i128(a.checked_add(b)?));
    let float = || Number::from_f64(a.as_f64()? + b.as_f64()?);
    integer
        .or_else(float)
        .ok_or_else(|| Failure::new("OverflowError", "the sum is too large").expected())
}

fn sleep(state: Arc<Diagnostics>, _: Context, args: Sleep) -> Result<Number, Failure> {
    let time = args
        .seconds
        .as_f64()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= LONGEST_SLEEP);
    state.done(match time {
        Some(time) => {
            tracing::debug!(?time, "a request sleeps");
            std::thread::sleep(time);
            Ok(args.seconds)
        }
        None => {
            let text = format!("seconds must be from 0 to {}", LONGEST_SLEEP.as_secs());
            Err(Failure::new("ValueError", text).expected())
        }
    })
}

async fn fail(state: Arc<Diagnostics>, _: Context, args: Fail) -> Result<(), Failure> {
    state.done(Err(Failure::new(args.class, args.message).expected()))
}

async fn whoami(state: Arc<Diagnostics>, _: Context) -> Result<String, Failure> {
    state.done(Ok(state.server.clone()))
}

async fn count(state: Arc<Diagnostics>, _: Context) -> Result<u64, Failure> {
    Ok(state.completed.load(Ordering::Relaxed))
}

async fn context(state: Arc<Diagnostics>, context: Context) -> Result<CallerContext, Failure> {
    state.done(Ok(context.caller().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Number {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn sums_keep_integers_and_never_overflow() {
        for (a, b, expected) in [
            ("40", "2", "42"),
            ("-1", "1", "0"),
            ("0.5", "1", "1.5"),
            ("9223372036854775807", "1", "9223372036854775808"),
            ("18446744073709551615", "1", "1.8446744073709552e+19"),
        ] {
            assert_eq!(sum(&number(a), &number(b)).unwrap().to_string(), expected);
        }
        let huge = number("1.7e308");
        assert!(
            sum(&huge, &huge)
                .unwrap_err()
                .to_string()
                .starts_with("OverflowError")
        );
    }
}
