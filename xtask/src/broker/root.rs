//! RabbitMQ 4 in a directory of its own: a small Debian testing under `target/rabbitmq-4/`, made
//! once and shared by all nodes that run it.
//!
//! Nothing is ever mounted where others see it. Each program of a node enters the directory in a
//! mount namespace that ends with it, so that no crash and no `kill -9` leaves a mount behind in
//! which a later deletion could reach the machine's own files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{lock, package, text};
use crate::{process, workspace};

/// A name and not `testing`: it stays what it is when Debian releases it.
const SUITE: &str = "forky";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// 240 MB from a slow mirror.
const MAKE_LIMIT: Duration = Duration::from_secs(15 * 60);

const INSTEAD: &str = "or set RABBITMQ4_URL to use a RabbitMQ 4 that runs elsewhere, \
                       or do without it: `cargo xtask brokers --node rabbit up`, \
                       `cargo xtask test --skip rabbitmq-4`";

/// Makes the node's directory part of the root, under the same path, and changes into the root.
const ENTER: &str = r#"set -e
root=$1 node=$2
shift 2
mkdir -p "$root$node"
mount --bind "$node" "$root$node"
mount -t proc proc "$root/proc"
exec chroot "$root" "$@""#;

pub(super) fn directory() -> PathBuf {
    workspace::target().join("rabbitmq-4")
}

/// Makes the directory unless it is there; an error if nothing could be run in it.
pub(super) fn ensure() -> Result<()> {
    check_privileges()?;
    let root = directory();
    if is_made(&root) {
        return Ok(());
    }
    let _lock = lock::hold(
        &root.with_extension("lock"),
        MAKE_LIMIT,
        "making the root of RabbitMQ 4",
    )?;
    if is_made(&root) {
        return Ok(());
    }
    package::MMDEBSTRAP.ensure()?;
    package::KEYRING.ensure()?;
    println!(
        "making {} with RabbitMQ 4, which takes a minute or two",
        root.display()
    );
    let staged = root.with_extension("new");
    remove(&staged)?;
    remove(&root)?;
    make(&staged)?;
    fs::rename(&staged, &root)?;
    Ok(())
}

/// The words in front of a command line that is to run in the root, for the node whose directory is `node`.
pub(super) fn enter(node: &str) -> Result<Vec<String>> {
    let root = directory();
    let words = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        ENTER,
        "sh",
        text(&root)?,
        node,
    ];
    Ok(words.map(str::to_owned).to_vec())
}

fn is_made(root: &Path) -> bool {
    root.join(package::SERVER.trim_start_matches('/')).exists()
}

fn check_privileges() -> Result<()> {
    let user = process::output(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!(
            "RabbitMQ 4 runs from a directory that it is locked into with chroot, for which root is missing: \
             run this as root (`sudo -E env \"PATH=$PATH\" cargo xtask ...`), {INSTEAD}"
        );
    }
    let mut probe = Command::new("unshare");
    probe.args(["--mount", "--propagation", "private", "true"]);
    if !process::succeeds(&mut probe) {
        bail!(
            "RabbitMQ 4 runs in a mount namespace of its own, and `{}` fails: install util-linux if the \
             program is missing, and in a container allow CAP_SYS_ADMIN (`docker run --cap-add SYS_ADMIN`), \
             {INSTEAD}",
            process::shown(&probe)
        );
    }
    Ok(())
}

fn make(staged: &Path) -> Result<()> {
    let mirror = mirror()?;
    let mut command = Command::new("setpriv");
    command
        // Whatever mmdebstrap mounts and starts ends with it, and it with us, however we end.
        .args(["--pdeathsig", "KILL"])
        .args(["unshare", "--mount", "--propagation", "private"])
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["mmdebstrap", "--variant=apt", "--include=rabbitmq-server"])
        // A mirror may be a snapshot, whose lists are past their date.
        .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
        .arg(SUITE)
        .arg(staged)
        .arg(format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main"));
    println!("$ {}", process::shown(&command));
    process::run_within(&mut command, MAKE_LIMIT)
        .with_context(|| format!("cannot make the root of RabbitMQ 4 from {mirror}"))?;
    if !is_made(staged) {
        bail!("the rabbitmq-server of {SUITE} has no {}", package::SERVER);
    }
    // Erlang looks the node's own name up.
    fs::write(
        staged.join("etc/hosts"),
        "127.0.0.1 localhost\n::1 localhost\n",
    )?;
    Ok(())
}

/// The mirror that this machine's own packages come from.
fn mirror() -> Result<String> {
    const SOURCES: &[&str] = &["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"];
    let known = || -> Result<Option<String>> {
        let listed = process::output(Command::new("apt-get").args(SOURCES))?;
        let mut mirrors = listed
            .lines()
            .filter_map(|line| line.strip_prefix("Debian|Debian|"));
        Ok(mirrors.next().map(str::to_owned))
    };
    if let Some(mirror) = known()? {
        return Ok(mirror);
    }
    // What a source is, is known from its lists.
    process::run(Command::new("apt-get").arg("update"))?;
    known()?.with_context(|| {
        format!(
            "RabbitMQ 4 comes from Debian's suite {SUITE}, and apt on this machine knows no mirror of \
             Debian: add one to its sources, {INSTEAD}"
        )
    })
}

/// Deletes a directory that a program may have been mounting things in.
fn remove(directory: &Path) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot list the mounts")?;
    if let Some(mount) = mount_below(&mounts, text(directory)?) {
        bail!(
            "{} cannot be deleted, because {mount} is mounted: unmount it",
            directory.display()
        );
    }
    // Should the list be wrong, other file systems are left alone.
    process::run(
        Command::new("rm")
            .args(["-r", "--one-file-system", "--"])
            .arg(directory),
    )
}

/// The first mount point of `mounts` that is `directory` or in it.
fn mount_below<'a>(mounts: &'a str, directory: &str) -> Option<&'a str> {
    let escaped = directory.replace('\\', r"\134").replace(' ', r"\040");
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .find(|point| {
            point
                .strip_prefix(&escaped)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use super::mount_below;

    #[test]
    fn a_live_mount_is_seen_before_anything_is_deleted() {
        let mounts = "proc /proc proc rw 0 0\n\
                      dev /x/target/root/dev devtmpfs rw 0 0\n\
                      disk /my\\040disk/target ext4 rw 0 0\n";
        assert_eq!(
            mount_below(mounts, "/x/target/root"),
            Some("/x/target/root/dev")
        );
        assert_eq!(
            mount_below(mounts, "/x/target/root/dev"),
            Some("/x/target/root/dev")
        );
        assert_eq!(mount_below(mounts, "/x/target/ro"), None);
        assert_eq!(
            mount_below(mounts, "/my disk/target"),
            Some("/my\\040disk/target")
        );
    }
}
