//! Certificates, keys and the TLS handshake, by rustls with ring.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use messaging_core::{Error, ErrorKind, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::any_host::AnyHost;
use crate::error::Cure;
use crate::tls::{Identity, Tls, Versions};

/// More than any bundle of certificates has.
const LONGEST_FILE: u64 = 8 << 20;

/// Reads and checks everything a connection will need.
pub(crate) fn check(tls: &Tls) -> Result<()> {
    client_config(tls).map(drop)
}

/// Shakes hands with a host; on failure says what may cure it.
pub(crate) async fn connect(
    tls: &Tls,
    stream: TcpStream,
    host: &str,
    address: &str,
) -> Result<TlsStream<TcpStream>, (Error, Cure)> {
    let options = tls.clone();
    // Files are read, and those of the system are many.
    let config = tokio::task::spawn_blocking(move || client_config(&options))
        .await
        .unwrap_or_else(|_| {
            Err(Error::not_sent(
                ErrorKind::Internal,
                "reading certificates was interrupted",
            ))
        })
        .map_err(|error| (error, Cure::Change))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        let text = format!("{address} has a host name that no certificate can be for");
        (Error::config(text), Cure::AnotherHost)
    })?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| failed(tls, address, &error))
}

fn client_config(tls: &Tls) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = match tls.versions {
        Versions::All => &[&TLS13, &TLS12][..],
        Versions::Only12 => &[&TLS12],
        Versions::Only13 => &[&TLS13],
    };
    let roots = Arc::new(match &tls.authorities {
        Some(file) => authorities_of(file)?,
        None => authorities_of_the_system()?,
    });
    let unusable = |error: &dyn std::fmt::Display| {
        Error::config(format!("the options for TLS cannot be used: {error}"))
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| unusable(&error))?;
    let builder = if tls.check_host {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(|error| unusable(&error))?;
        builder.with_webpki_verifier(verifier)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyHost::new(roots, &provider)))
    };
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some(identity) => {
            let (chain, key) = read_identity(identity)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                Error::config(format!(
                    "ssl_key_file {} and ssl_cert_file {} cannot be used together: {error}",
                    identity.key.display(),
                    identity.certificate.display()
                ))
            })
        }
    }
}

fn authorities_of(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ssl_ca_file", file)? {
        roots.add(certificate).map_err(|error| {
            Error::config(format!(
                "ssl_ca_file {} has a certificate that cannot be an authority: {error}",
                file.display()
            ))
        })?;
    }
    Ok(roots)
}

fn authorities_of_the_system() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Old systems have some that nobody can read any more.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(Error::config(
            "the system has no certificate authorities to trust: set ssl_ca_file to the broker's",
        ));
    }
    Ok(roots)
}

fn read_identity(
    identity: &Identity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates("ssl_cert_file", &identity.certificate)?;
    let text = contents("ssl_key_file", &identity.key)?;
    let wrong =
        |what: &str| Error::config(format!("ssl_key_file {} {what}", identity.key.display()));
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        if text
            .windows(b"ENCRYPTED".len())
            .any(|word| word == b"ENCRYPTED")
        {
            wrong("is encrypted, and there is no option for its password: store it decrypted, readable by the service alone (openssl pkey)")
        } else {
            wrong("has no private key in PEM (PKCS#8, PKCS#1 or SEC1)")
        }
    })?;
    Ok((chain, key))
}

fn certificates(option: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = contents(option, file)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Error::config(format!(
            "{option} {} has no certificate in PEM, or a damaged one",
            file.display()
        ))),
    }
}

fn contents(option: &str, file: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = File::open(file).and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut text));
    read.map_err(|error| {
        Error::config(format!(
            "{option} {} cannot be read: {error}",
            file.display()
        ))
    })?;
    Ok(text)
}

/// What rustls says is wrong, if this failure of a socket is one of TLS.
pub(crate) fn refusal(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A handshake that did not succeed, and what may cure it.
fn failed(tls: &Tls, address: &str, error: &io::Error) -> (Error, Cure) {
    match refusal(error) {
        Some(error) => explain(tls, address, error),
        None => {
            let text = format!(
                "{address} ended the TLS handshake: {error}; if this port speaks no TLS, use amqp:// or rabbit:// without ssl"
            );
            (Error::not_sent(ErrorKind::Connect, text), Cure::Time)
        }
    }
}

/// A failure of TLS in the words of the options, and what may cure it.
pub(crate) fn explain(tls: &Tls, address: &str, error: &rustls::Error) -> (Error, Cure) {
    let (kind, text) = match error {
        rustls::Error::InvalidCertificate(error) => (ErrorKind::Config, certificate(tls, error)),
        rustls::Error::AlertReceived(alert) => alert_received(tls, *alert),
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::Config,
            "does not speak TLS on this port: use its TLS port (5671 unless it was changed), or amqp:// or rabbit:// without ssl".to_owned(),
        ),
        rustls::Error::PeerIncompatible(error) => (
            ErrorKind::Config,
            format!("and this driver have no TLS in common ({error:?}): allow TLS 1.2 or 1.3 at the broker, and check ssl_version"),
        ),
        other => (
            ErrorKind::Connect,
            format!("did not complete the TLS handshake: {other}"),
        ),
    };
    let cure = match kind {
        ErrorKind::Connect => Cure::Time,
        _ => Cure::AnotherHost,
    };
    (Error::not_sent(kind, format!("{address} {text}")), cure)
}

/// A name of a certificate, which rustls writes as `DnsName("localhost")`. It is a stranger's: shortened, and without
/// control characters.
fn presented_name(written: &str) -> String {
    let inside = written
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let name = inside.unwrap_or(written).trim_matches('"');
    name.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

fn certificate(tls: &Tls, error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => match &tls.authorities {
            Some(file) => format!(
                "is not trusted: its certificate is not signed by an authority in ssl_ca_file {}",
                file.display()
            ),
            None => "is not trusted: its certificate is not signed by an authority the system knows; set ssl_ca_file to the broker's authority".to_owned(),
        },
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = match error {
                CertificateError::NotValidForNameContext { presented, .. } => {
                    let names: Vec<String> = presented
                        .iter()
                        .take(10)
                        .map(|name| presented_name(name))
                        .collect();
                    format!(" but for {}", names.join(", "))
                }
                _ => String::new(),
            };
            format!(
                "has a certificate that is not for this host{names}: use a host of the certificate in the transport URL, or have the certificate issued for this one; ssl_enforce_hostname_verification=false would trust every host of the authority"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "has a certificate that has expired: renew it at the broker, and check this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "has a certificate that is not valid yet: check this machine's clock".to_owned()
        }
        other => format!("has a certificate that cannot be accepted: {other}"),
    }
}

fn alert_received(tls: &Tls, alert: AlertDescription) -> (ErrorKind, String) {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired
        | Alert::NoCertificate
        | Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => {
            let text = if tls.identity.is_some() {
                format!("refused the certificate of ssl_cert_file ({alert:?}): use one that is valid and signed by an authority the broker trusts")
            } else {
                format!("asks for a client's certificate ({alert:?}): set ssl_cert_file and ssl_key_file")
            };
            (ErrorKind::Unauthorized, text)
        }
        Alert::ProtocolVersion | Alert::InsufficientSecurity => (
            ErrorKind::Config,
            format!("and this driver have no TLS in common ({alert:?}): allow TLS 1.2 or 1.3 at the broker, and check ssl_version"),
        ),
        // Erlang answers so to a missing certificate under TLS 1.2, and to a lack of ciphers in common.
        Alert::HandshakeFailure if tls.identity.is_none() => (
            ErrorKind::Unauthorized,
            "refused the TLS handshake (HandshakeFailure): it may ask for a client's certificate, set ssl_cert_file and ssl_key_file".to_owned(),
        ),
        other => (
            ErrorKind::Connect,
            format!("refused the TLS handshake ({other:?})"),
        ),
    }
}
