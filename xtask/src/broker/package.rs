//! Installing the system's RabbitMQ package.

use std::{fs, io::Write, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::process;

const PACKAGE: &str = "rabbitmq-server";

/// The server's own start script. The one in `/usr/sbin` insists on the system's user and data.
pub(super) const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// The control program beside it.
pub(super) const CONTROL: &str = "/usr/lib/rabbitmq/bin/rabbitmqctl";

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Makes sure that RabbitMQ is installed, with `apt-get` where that is possible.
pub(super) fn ensure() -> Result<()> {
    if Path::new(SERVER).exists() && process::on_path("erl") && process::on_path("epmd") {
        return Ok(());
    }
    let remedy = format!(
        "install it with `apt-get install {PACKAGE}` (Debian, Ubuntu), \
         or set RABBITMQ_URL to use a broker that runs elsewhere"
    );
    if !process::on_path("apt-get") {
        bail!("RabbitMQ is not installed ({SERVER} is missing): {remedy}");
    }
    let Some(privilege) = Privilege::find() else {
        bail!(
            "RabbitMQ is not installed ({SERVER} is missing), \
             and neither root nor `sudo -n` is available to install it: {remedy}"
        );
    };
    println!("RabbitMQ is not installed: installing the package {PACKAGE}");
    install(privilege).with_context(|| format!("cannot install RabbitMQ: {remedy}"))?;
    if !Path::new(SERVER).exists() {
        bail!("the package {PACKAGE} has no {SERVER}: {remedy}");
    }
    Ok(())
}

fn install(privilege: Privilege) -> Result<()> {
    let _policy = NoServices::enforce(privilege)?;
    let attempt = || {
        process::run(privilege.apt_get().args([
            "install",
            "--yes",
            "--no-install-recommends",
            PACKAGE,
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
