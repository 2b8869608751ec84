//! Installing packages of the system.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process;

/// A package of the system, and what of it is needed.
#[derive(Debug)]
pub(crate) struct Package {
    name: &'static str,
    /// Files, or programs to be found on the PATH.
    provides: &'static [&'static str],
    /// What somebody can do who cannot or will not install it.
    instead: &'static str,
}

/// The server's own start script. The one in `/usr/sbin` insists on the system's user and data.
pub(super) const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// The control program beside it.
pub(super) const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

pub(super) const RABBITMQ: Package = Package {
    name: "rabbitmq-server",
    provides: &[SERVER, "erl", "epmd"],
    instead: "set RABBITMQ_URL to use a broker that runs elsewhere",
};
pub(super) const MMDEBSTRAP: Package = Package {
    name: "mmdebstrap",
    provides: &["mmdebstrap"],
    instead: "set RABBITMQ4_URL to use a RabbitMQ 4 that runs elsewhere",
};
pub(super) const KEYRING: Package = Package {
    name: "debian-archive-keyring",
    provides: &["/usr/share/keyrings/debian-archive-keyring.gpg"],
    instead: "set RABBITMQ4_URL to use a RabbitMQ 4 that runs elsewhere",
};
/// The proxy that deployments have in front of their brokers.
pub(super) const HAPROXY: Package = Package {
    name: "haproxy",
    provides: &["haproxy"],
    instead: "put the program `haproxy` on the PATH",
};

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl Package {
    /// Makes sure that the package is installed, with `apt-get` where that is possible.
    pub(super) fn ensure(&self) -> Result<()> {
        let Some(missing) = self.missing() else {
            return Ok(());
        };
        let Self { name, instead, .. } = self;
        let remedy =
            format!("install it with `apt-get install {name}` (Debian, Ubuntu), or {instead}");
        if !process::on_path("apt-get") {
            bail!("{name} is not installed ({missing} is missing): {remedy}");
        }
        let Some(privilege) = Privilege::find() else {
            bail!(
                "{name} is not installed ({missing} is missing), \
                 and neither root nor `sudo -n` is available to install it: {remedy}"
            );
        };
        println!("installing the package {name}, because {missing} is missing");
        install(name, privilege).with_context(|| format!("cannot install {name}: {remedy}"))?;
        if let Some(missing) = self.missing() {
            bail!("the package {name} has no {missing}: {instead}");
        }
        Ok(())
    }

    /// Where the first of what the package provides is, if it is installed.
    pub(super) fn path(&self) -> Option<PathBuf> {
        self.provides.first().and_then(|provided| find(provided))
    }

    fn missing(&self) -> Option<&'static str> {
        let mut provides = self.provides.iter().copied();
        provides.find(|provided| find(provided).is_none())
    }
}

fn find(provided: &str) -> Option<PathBuf> {
    // Where a program for root is, which other users' PATHs leave out.
    let more = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(provided));
    process::find_on_path(provided).or_else(|| more.into_iter().find(|path| path.is_file()))
}

fn install(name: &str, privilege: Privilege) -> Result<()> {
    let _policy = NoServices::enforce(privilege)?;
    let attempt = || {
        process::run(privilege.apt_get().args([
            "install",
            "--yes",
            "--no-install-recommends",
            name,
        ]))
    };
    // A fresh machine has no package lists, and old ones may name files that have been replaced.
    if have_package_lists() && attempt().is_ok() {
        return Ok(());
    }
    process::run(privilege.apt_get().arg("update"))?;
    attempt()
}

fn have_package_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// How commands that need root are run.
#[derive(Debug, Clone, Copy)]
enum Privilege {
    Root,
    Sudo,
}

impl Privilege {
    fn find() -> Option<Self> {
        let user = process::output(Command::new("id").arg("-u")).ok()?;
        if user.trim() == "0" {
            Some(Self::Root)
        } else if process::succeeds(Command::new("sudo").args(["-n", "true"])) {
            Some(Self::Sudo)
        } else {
            None
        }
    }

    fn command(self, program: &str) -> Command {
        match self {
            Self::Root => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", program]);
                command
            }
        }
    }

    fn apt_get(self) -> Command {
        // Through `env`, because sudo drops what it does not know.
        let mut command = self.command("env");
        command.args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
        ]);
        command
    }
}

/// Keeps the package from starting a node of its own on the default ports.
///
/// Debian asks `policy-rc.d` before it starts a service. An answer that is there already is the
/// machine's own choice and stays; ours is taken away again afterwards.
#[derive(Debug)]
struct NoServices {
    ours: Option<Privilege>,
}

impl NoServices {
    fn enforce(privilege: Privilege) -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: None });
        }
        let staged = std::env::temp_dir().join(format!("policy-rc.d.{}", std::process::id()));
        // 101: "action forbidden by policy".
        fs::File::create_new(&staged)?.write_all(b"#!/bin/sh\nexit 101\n")?;
        let copied = process::run(
            privilege
                .command("install")
                .args(["-m", "755"])
                .arg(&staged)
                .arg(POLICY),
        );
        fs::remove_file(&staged)?;
        copied?;
        Ok(Self {
            ours: Some(privilege),
        })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(privilege) = self.ours
            && let Err(error) = process::run(privilege.command("rm").args(["-f", POLICY]))
        {
            eprintln!("{POLICY} was left behind: {error:#}");
        }
    }
}
