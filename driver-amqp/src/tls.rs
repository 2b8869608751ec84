//! What the options say of TLS.

use std::path::PathBuf;

use messaging_core::options::Options;
use messaging_core::{Error, Result, TransportUrl};

/// Which versions of the protocol may be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nobody shakes hands"))]
pub(crate) enum Versions {
    All,
    Only12,
    Only13,
}

/// A certificate and its key, for those who ask for one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nobody shakes hands"))]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// How the link is encrypted. The files are read again for each connection, so that renewed ones need no restart.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "nobody shakes hands"))]
pub(crate) struct Tls {
    /// Whom to trust; without it the system's authorities.
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) identity: Option<Identity>,
    pub(crate) versions: Versions,
    /// Whether the certificate must be for the host of the URL. It must be signed by an authority either way.
    pub(crate) check_host: bool,
}

impl Tls {
    /// As the scheme and the options have it; `None`: not encrypted. Certificates and keys are read once, so that
    /// wrong ones are found at once.
    ///
    /// # Errors
    /// `Config` for options that contradict each other and files that cannot be used, `Unsupported` for what rustls
    /// does not do, and for a build without TLS.
    pub(crate) fn resolve(url: &TransportUrl, options: &Options) -> Result<Option<Self>> {
        let given = |name: &str| options.text(name).filter(|text| !text.is_empty());
        let by_scheme = url.scheme == "amqps";
        if by_scheme && options.is_set("ssl") && !options.bool("ssl") {
            return Err(Error::config(
                "ssl=false contradicts amqps://: leave it out, or use amqp://",
            ));
        }
        if !by_scheme && !options.bool("ssl") {
            return match [
                "ssl_ca_file",
                "ssl_cert_file",
                "ssl_key_file",
                "ssl_version",
            ]
            .into_iter()
            .find(|name| given(name).is_some())
            {
                // Whoever names certificates does not expect a plain connection.
                Some(name) if !options.is_set("ssl") => Err(Error::config(format!(
                    "{name} is set and TLS is off: set ssl=true or use amqps://, or ssl=false if the connection is to be plain"
                ))),
                _ => Ok(None),
            };
        }
        if options.bool("ssl_enforce_fips_mode") {
            return Err(Error::unsupported(
                "ssl_enforce_fips_mode=true asks for validated cryptography, which this driver does not have: leave it out (oslo.messaging ignores it)",
            ));
        }
        let authorities = given("ssl_ca_file").map(PathBuf::from);
        let check_host = options.bool("ssl_enforce_hostname_verification");
        if !check_host && authorities.is_none() {
            return Err(Error::config(
                "ssl_enforce_hostname_verification=false needs ssl_ca_file: otherwise anybody with any certificate is the broker",
            ));
        }
        let identity = match (given("ssl_cert_file"), given("ssl_key_file")) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(Error::config(
                    "ssl_key_file is set without ssl_cert_file: set the certificate that belongs to the key",
                ));
            }
            // As Python does it, the file of the certificate may hold the key as well.
            (Some(certificate), key) => Some(Identity {
                certificate: certificate.into(),
                key: key.unwrap_or(certificate).into(),
            }),
        };
        let tls = Self {
            authorities,
            identity,
            versions: versions(given("ssl_version").unwrap_or_default())?,
            check_host,
        };
        #[cfg(feature = "tls")]
        {
            crate::handshake::check(&tls)?;
            Ok(Some(tls))
        }
        #[cfg(not(feature = "tls"))]
        {
            drop(tls);
            Err(Error::unsupported(
                "TLS is not compiled in: enable the feature `tls` of longshore, or of messaging-driver-amqp",
            ))
        }
    }
}

fn versions(name: &str) -> Result<Versions> {
    match name.to_ascii_lowercase().as_str() {
        // Python's name for "whatever both sides have".
        "" | "sslv23" => Ok(Versions::All),
        "tlsv1_2" => Ok(Versions::Only12),
        "tlsv1_3" => Ok(Versions::Only13),
        "sslv2" | "sslv3" | "tlsv1" | "tlsv1_1" => Err(Error::unsupported(format!(
            "ssl_version={name} is broken, this driver has TLS 1.2 and 1.3: leave it out, or use TLSv1_2 or TLSv1_3"
        ))),
        _ => Err(Error::config(
            "ssl_version is none of TLSv1_2, TLSv1_3 and SSLv23, which means both",
        )),
    }
}

#[cfg(test)]
mod tests {
    use messaging_core::ErrorKind;
    use messaging_core::config::Config;

    use super::*;
    use crate::options::OPTIONS;

    fn resolve(url: &str) -> Result<Option<Tls>> {
        let url: TransportUrl = url.parse()?;
        let options = Options::resolve(&OPTIONS, &url, &Config::default())?;
        Tls::resolve(&url, &options)
    }

    #[test]
    fn plain_unless_it_is_asked_for() {
        for url in [
            "rabbit://h/",
            "amqp://h/",
            "rabbit://h/?ssl=false&ssl_ca_file=/x",
        ] {
            assert_eq!(resolve(url).unwrap(), None, "{url}");
        }
    }

    #[test]
    fn what_would_silently_be_less_than_asked_for_is_refused() {
        for (url, kind, named) in [
            ("amqps://h/?ssl=false", ErrorKind::Config, "amqps"),
            ("rabbit://h/?ssl_ca_file=/x", ErrorKind::Config, "ssl=true"),
            ("amqp://h/?ssl_cert_file=/x", ErrorKind::Config, "ssl=true"),
            (
                "amqps://h/?ssl_enforce_hostname_verification=false",
                ErrorKind::Config,
                "ssl_ca_file",
            ),
            (
                "amqps://h/?ssl_key_file=/x",
                ErrorKind::Config,
                "ssl_cert_file",
            ),
            (
                "amqps://h/?ssl_version=TLSv1",
                ErrorKind::Unsupported,
                "TLSv1_2",
            ),
            (
                "amqps://h/?ssl_version=SSLv3",
                ErrorKind::Unsupported,
                "TLSv1_2",
            ),
            ("amqps://h/?ssl_version=quic", ErrorKind::Config, "TLSv1_2"),
            (
                "amqps://h/?ssl_enforce_fips_mode=true",
                ErrorKind::Unsupported,
                "fips",
            ),
        ] {
            let error = resolve(url).unwrap_err();
            assert_eq!(error.kind(), kind, "{url}: {error}");
            assert!(error.message().contains(named), "{url}: {error}");
        }
    }

    #[test]
    #[cfg(feature = "tls")]
    fn a_file_says_it_as_well_as_the_url() {
        let text = "[oslo_messaging_rabbit]\nssl = true\nssl_ca_file = /nowhere/ca.pem\n";
        let config = Config::from_parts(text, [("", "")]).unwrap();
        let url: TransportUrl = "rabbit://h/".parse().unwrap();
        let options = Options::resolve(&OPTIONS, &url, &config).unwrap();
        let error = Tls::resolve(&url, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.message().contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    #[cfg(not(feature = "tls"))]
    fn a_build_without_tls_says_so() {
        let error = resolve("amqps://h/").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("feature `tls`"), "{error}");
    }
}
