//! The certificates of the nodes' TLS listeners and of their clients, under `target/certs/`.
//!
//! They are made once and serve every node, so that one set of files answers a test whatever node
//! it talks to. Nothing else in the world trusts them.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use crate::workspace;

/// The common name in `client.pem`, which every node knows as a user without a password.
pub(super) const CLIENT: &str = "longshore-client";
/// The common name in `stranger.pem`, which no node knows.
const STRANGER: &str = "longshore-stranger";

/// What the certificate of the nodes is for. A node also listens on 127.0.0.2, which is not among
/// them: that is where a client must refuse.
const SERVER_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// Says what the others are. A directory with another text was made by another version of this
/// program and is made anew.
const CONTENTS: &str = "README";
const DESCRIPTION: &str = "\
Certificates of the tests' brokers, made by `cargo xtask brokers up`. Delete the directory to have
them made anew; nodes that are up keep the old ones until the next `brokers up`.

ca.pem                       the authority of all that follows but other-*
server.pem, server.key       every node's: localhost and 127.0.0.1
client.pem, client.key       a client's, with the common name longshore-client, a user without password
stranger.pem, stranger.key   a client's, with a common name that no node knows
other-ca.pem                 an authority that no node trusts, and that has signed no node's certificate
other-client.pem, .key       a client's from that authority, with the common name longshore-client
";

/// Where the certificates are.
pub(crate) fn directory() -> PathBuf {
    workspace::target().join("certs")
}

/// Makes the certificates unless they are there.
pub(super) fn ensure() -> Result<()> {
    let directory = directory();
    if is_made(&directory) {
        return Ok(());
    }
    // Several nodes may come up at once: the first complete set is the one that all of them use.
    let staged = directory.with_extension(std::process::id().to_string());
    fs::create_dir_all(&staged)?;
    make(&staged).context("cannot make the certificates of the TLS listeners")?;
    if directory.exists() && !is_made(&directory) {
        fs::remove_dir_all(&directory)?;
    }
    let moved = fs::rename(&staged, &directory);
    if moved.is_err() {
        fs::remove_dir_all(&staged)?;
    }
    if !is_made(&directory) {
        moved.with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(())
}

fn is_made(directory: &Path) -> bool {
    fs::read_to_string(directory.join(CONTENTS)).is_ok_and(|text| text == DESCRIPTION)
}

fn make(directory: &Path) -> Result<()> {
    let ours = Authority::new("Longshore test authority")?;
    let other = Authority::new("Another test authority")?;
    fs::write(directory.join("ca.pem"), ours.pem())?;
    fs::write(directory.join("other-ca.pem"), other.pem())?;

    let server = ExtendedKeyUsagePurpose::ServerAuth;
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let names = SERVER_NAMES.map(str::to_owned);
    ours.issue("localhost", names.into(), server)?
        .write(directory, "server")?;
    for (authority, common_name, file) in [
        (&ours, CLIENT, "client"),
        (&ours, STRANGER, "stranger"),
        (&other, CLIENT, "other-client"),
    ] {
        authority
            .issue(common_name, Vec::new(), client.clone())?
            .write(directory, file)?;
    }
    fs::write(directory.join(CONTENTS), DESCRIPTION)?;
    Ok(())
}

/// A certificate and its key, both in PEM; the key in PKCS#8.
struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    fn write(&self, directory: &Path, name: &str) -> Result<()> {
        fs::write(
            directory.join(name).with_extension("pem"),
            &self.certificate,
        )?;
        let key = directory.join(name).with_extension("key");
        fs::write(&key, &self.key)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        Ok(())
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = parameters(name, Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self(issuer))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn issue(
        &self,
        common_name: &str,
        names: Vec<String>,
        purpose: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let mut params = parameters(common_name, names)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        Ok(Identity {
            certificate: params.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// Valid for ever, as rcgen has it by default: these live as long as the target directory.
fn parameters(common_name: &str, names: Vec<String>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    Ok(params)
}
