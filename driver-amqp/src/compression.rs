//! Packed bodies: how they are named, packed and unpacked.

use std::io::{self, Read, Write as _};

use bytes::Bytes;
use messaging_core::{Error, Result};

/// The header that says how a body is packed.
pub(crate) const HEADER: &str = "compression";

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// zlib as Python sends it under the name of gzip; true gzip is read as well.
    Zlib,
    Bzip2,
    Zstd,
}

impl Packing {
    /// What `kombu_compression` asks for; `None`: nothing.
    ///
    /// # Errors
    /// `Unsupported` for what Python can and this driver cannot, `Config` for what nobody knows.
    pub(crate) fn asked(name: &str) -> Result<Option<Self>> {
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(packing) = Self::named(name) {
            return Ok(Some(packing));
        }
        let known = "use gzip (which is zlib on the wire), bzip2 or zstd, or leave it out";
        match name {
            "brotli" | "lzma" | "xz" | "application/x-brotli" | "application/x-lzma" => Err(
                Error::unsupported(format!("kombu_compression={name} is not built: {known}")),
            ),
            other => Err(Error::config(format!(
                "kombu_compression={} is no compression: {known}",
                shown(other)
            ))),
        }
    }

    /// The packing that a name or the header of a message means.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "application/x-gzip" | "application/gzip" | "gzip" | "zlib" => Some(Self::Zlib),
            "application/x-bz2" | "bzip2" | "bzip" | "bz2" => Some(Self::Bzip2),
            "application/zstd" | "zstd" | "zstandard" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Its name in the header of a message, as Python writes it.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Zlib => "application/x-gzip",
            Self::Bzip2 => "application/x-bz2",
            Self::Zstd => "application/zstd",
        }
    }

    /// Packs a body, as hard as Python does. It takes time: a long body not on the I/O thread.
    ///
    /// # Errors
    /// `Codec`; nothing known makes it fail.
    pub(crate) fn pack(self, body: &[u8]) -> Result<Bytes> {
        let packed = match self {
            Self::Zlib => {
                let level = flate2::Compression::new(6);
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Bzip2 => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                encoder.write_all(body).and_then(|()| encoder.finish())
            }
            Self::Zstd => zstd::stream::encode_all(body, 3),
        };
        packed.map(Bytes::from).map_err(|error| {
            Error::not_sent(
                messaging_core::ErrorKind::Codec,
                format!("the body cannot be packed: {error}"),
            )
        })
    }

    /// Unpacks a body of at most `max` bytes. It takes time: not on the I/O thread.
    ///
    /// # Errors
    /// Why it cannot be unpacked, without any of its content.
    pub(crate) fn unpack(self, packed: &[u8], max: usize) -> Result<Bytes, String> {
        let unpacked = match self {
            Self::Zlib if packed.starts_with(&[0x1f, 0x8b]) => {
                limited(flate2::read::MultiGzDecoder::new(packed), max)
            }
            Self::Zlib => limited(flate2::read::ZlibDecoder::new(packed), max),
            Self::Bzip2 => limited(bzip2::read::MultiBzDecoder::new(packed), max),
            Self::Zstd => zstd_decoder(packed).and_then(|decoder| limited(decoder, max)),
        };
        match unpacked {
            Ok(Some(body)) => Ok(Bytes::from(body)),
            Ok(None) => Err(format!(
                "its body unpacks to more than the {max} bytes allowed"
            )),
            Err(_) => Err("its body cannot be unpacked".to_owned()),
        }
    }
}

fn zstd_decoder(packed: &[u8]) -> io::Result<impl Read> {
    let mut decoder = zstd::stream::read::Decoder::new(packed)?;
    // The sender chooses how much memory the window takes: 16 MiB are what level 19 needs twice.
    decoder.window_log_max(24)?;
    Ok(decoder)
}

/// Reads to the end, or gives up (`None`) after `max` bytes.
fn limited(source: impl Read, max: usize) -> io::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    source.take(limit).read_to_end(&mut body)?;
    Ok((body.len() <= max).then_some(body))
}

/// A name that a stranger chose, fit for an error.
pub(crate) fn shown(name: &str) -> String {
    name.chars().take(40).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_unpacks_and_no_further_than_allowed() {
        let body = "{\"value\":\"x\"}".repeat(1_000);
        for packing in [Packing::Zlib, Packing::Bzip2, Packing::Zstd] {
            let packed = packing.pack(body.as_bytes()).unwrap();
            assert!(packed.len() < body.len() / 4, "{packing:?}");
            let unpacked = packing.unpack(&packed, body.len()).unwrap();
            assert_eq!(unpacked, body.as_bytes());
            let error = packing.unpack(&packed, body.len() - 1).unwrap_err();
            assert!(error.contains("more than"), "{error}");
            assert!(
                packing
                    .unpack(&packed[..packed.len() / 2], 1 << 20)
                    .is_err()
            );
            assert_eq!(Packing::named(packing.content_type()), Some(packing));
        }
        // Python takes nothing else under the name of gzip.
        assert_eq!(Packing::Zlib.pack(b"{}").unwrap()[..2], [0x78, 0x9c]);
    }

    #[test]
    fn names_are_kombus() {
        for (name, packing) in [
            ("", None),
            ("gzip", Some(Packing::Zlib)),
            ("zlib", Some(Packing::Zlib)),
            ("bzip2", Some(Packing::Bzip2)),
            ("bzip", Some(Packing::Bzip2)),
            ("bz2", Some(Packing::Bzip2)),
            ("zstd", Some(Packing::Zstd)),
            ("application/x-bz2", Some(Packing::Bzip2)),
        ] {
            assert_eq!(Packing::asked(name).unwrap(), packing, "{name}");
        }
        let kind = |name| Packing::asked(name).unwrap_err().kind();
        assert_eq!(kind("brotli"), messaging_core::ErrorKind::Unsupported);
        assert_eq!(kind("snappy"), messaging_core::ErrorKind::Config);
    }
}
