//! The bytes of a link: plain, or encrypted.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The first byte of a TLS record that says why the peer gives up.
const TLS_ALERT: u8 = 0x15;

/// A connected socket.
#[derive(Debug)]
pub(crate) enum Socket {
    /// Until something came, with a place for its first byte.
    Plain(TcpStream, Option<FirstByte>),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// The first byte that came from the peer, if any did.
#[derive(Debug, Clone, Default)]
pub(crate) struct FirstByte(Arc<OnceLock<u8>>);

impl FirstByte {
    /// Whether the peer answered in TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.get() == Some(&TLS_ALERT)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, None) => Pin::new(stream).poll_read(cx, out),
            Self::Plain(stream, first) => {
                let before = out.filled().len();
                ready!(Pin::new(stream).poll_read(cx, out))?;
                if let (Some(byte), Some(place)) = (out.filled().get(before), first.take()) {
                    // It is taken once, so that it is set once.
                    let _ = place.0.set(*byte);
                }
                Poll::Ready(Ok(()))
            }
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write(cx, bytes),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => {
                let written = ready!(Pin::new(&mut *stream).poll_write(cx, bytes));
                Poll::Ready(written.map_err(|error| say_why(stream, cx, error)))
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_write_vectored(cx, slices),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => {
                let written = ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices));
                Poll::Ready(written.map_err(|error| say_why(stream, cx, error)))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream, _) => stream.is_write_vectored(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_flush(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => {
                let flushed = ready!(Pin::new(&mut *stream).poll_flush(cx));
                Poll::Ready(flushed.map_err(|error| say_why(stream, cx, error)))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream, _) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Why a write failed, if the peer said so before it closed.
///
/// Under TLS 1.3 a broker judges a client's certificate after the client has begun to write. Its alert has arrived
/// when the write fails, and whoever looks at the failed write alone sees a connection that was reset.
#[cfg(feature = "tls")]
fn say_why(
    stream: &mut tokio_rustls::client::TlsStream<TcpStream>,
    cx: &mut Context<'_>,
    error: io::Error,
) -> io::Error {
    let mut lost = [0; 512];
    match Pin::new(stream).poll_read(cx, &mut ReadBuf::new(&mut lost)) {
        Poll::Ready(Err(why)) if crate::handshake::refusal(&why).is_some() => why,
        _ => error,
    }
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{AlertDescription, ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    /// What a client and a server that wants certificates are configured with.
    #[allow(clippy::unwrap_used, reason = "failing is what a test is for")]
    fn configured() -> (ClientConfig, ServerConfig) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let roots = Arc::new(roots);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let chain = vec![params.signed_by(&key, &authority).unwrap().der().clone()];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (client, server)
    }

    #[tokio::test]
    async fn a_failed_write_says_what_the_peer_said_before_it_closed() {
        let (client, server) = configured();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refusing = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let accepted = TlsAcceptor::from(Arc::new(server)).accept(stream).await;
            accepted.map(drop).unwrap_err();
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        // Under TLS 1.3 the client is through before the server has looked for its certificate.
        let stream = TlsConnector::from(Arc::new(client))
            .connect(name, stream)
            .await
            .unwrap();
        refusing.await.unwrap();
        let mut socket = Socket::Tls(Box::new(stream));
        // The first writes may find room before the reset arrives.
        let error = loop {
            if let Err(error) = socket.write_all(&[0; 1024]).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        let refusal = crate::handshake::refusal(&error);
        let expected = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        assert_eq!(refusal, Some(&expected), "{error}");
    }
}
