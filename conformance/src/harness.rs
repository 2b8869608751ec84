//! What the suite needs to know of a driver crate.

use std::time::Duration;

/// How a driver crate hooks into the suite. Only the first two methods are required.
pub trait Harness: Send + Sync + 'static {
    /// The driver's name, as `CONFORMANCE_REQUIRE` lists it.
    fn name(&self) -> &str;

    /// The URL the suite opens; its scheme selects the driver from those linked into the test program.
    ///
    /// # Errors
    /// [`Skip`] when there is no broker to test against, with the reason and the remedy.
    fn url(&self) -> Result<String, Skip>;

    /// Other URLs of the same driver, such as one that switches capabilities off. The link behaviours run on
    /// each, and the RPC behaviours under the first executor.
    fn variants(&self, url: &str) -> Vec<Variant> {
        let _ = url;
        Vec::new()
    }

    /// The executors that the RPC behaviours run under.
    fn executors(&self) -> Vec<&'static str> {
        vec!["async", "threaded", "blocking"]
    }

    /// The largest body in bytes during the tests. A MiB shows the same as 64 MiB do, in less time.
    fn max_body(&self) -> usize {
        1 << 20
    }

    /// How long the suite waits for something that must happen before it calls it missing.
    fn patience(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Takes away what the driver leaves on the broker by design, such as the queues of topics. Called once, after
    /// the last test, with every server that ran.
    fn clean(&self, served: &[Served]) {
        let _ = served;
    }
}

/// A server that a test ran; its names are those of this run alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Served {
    /// The exchange.
    pub exchange: String,
    /// The topic.
    pub topic: String,
    /// The server.
    pub server: String,
}

/// Why the driver cannot be tested here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

/// Another configuration of the driver under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variant {
    /// What stands behind the `#` in the names of its tests.
    pub name: String,
    /// Its URL.
    pub url: String,
}

impl Variant {
    /// A variant of this name and URL.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
        }
    }

    /// A variant that adds one option, written `option=value`, to the URL.
    pub fn with_option(name: impl Into<String>, url: &str, option: &str) -> Self {
        let separator = match url.contains('?') {
            true => '&',
            false => '?',
        };
        Self::new(name, format!("{url}{separator}{option}"))
    }
}

/// The URL in an environment variable.
///
/// # Errors
/// [`Skip`] when the variable is unset or empty, or its scheme does not begin with `scheme`.
pub fn env_url(variable: &str, scheme: &str) -> Result<String, Skip> {
    let url = std::env::var(variable).unwrap_or_default();
    if url.is_empty() {
        return Err(Skip(format!(
            "no broker: set {variable} to a {scheme}:// URL"
        )));
    }
    match url.starts_with(scheme) {
        true => Ok(url),
        // The URL itself may hold a password, so it is not shown.
        false => Err(Skip(format!("{variable} holds no {scheme}:// URL"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_appended() {
        assert_eq!(Variant::with_option("v", "m://b", "a=1").url, "m://b?a=1");
        assert_eq!(
            Variant::with_option("v", "m://b?c=2", "a=1").url,
            "m://b?c=2&a=1"
        );
    }

    #[test]
    fn a_missing_broker_is_named_with_its_remedy() {
        let skip = env_url("CONFORMANCE_TEST_OF_A_MISSING_URL", "acme").unwrap_err();
        assert_eq!(
            skip.0,
            "no broker: set CONFORMANCE_TEST_OF_A_MISSING_URL to a acme:// URL"
        );
    }
}
