//! The broker of the test run, as `rabbitmqctl` sees it.

use std::process::Stdio;

use tokio::process::Command;

use super::{required, unique};

/// The URL of the broker's default virtual host.
pub(crate) fn url() -> String {
    required("RABBITMQ_URL")
}

/// The output of `rabbitmqctl --quiet` with these arguments; panics if it fails.
pub(crate) async fn control(arguments: &[&str]) -> String {
    run(&required("LONGSHORE_RABBITMQCTL"), arguments).await
}

/// As [`control`], for the control script of another node.
pub(crate) async fn run(script: &str, arguments: &[&str]) -> String {
    let output = Command::new(script)
        .arg("--quiet")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap_or_else(|error| panic!("{script} does not run: {error}"));
    assert!(
        output.status.success(),
        "rabbitmqctl {arguments:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A virtual host of a test's own. It is deleted by [`delete`](Self::delete), or goes with the node.
pub(crate) struct VirtualHost {
    pub(crate) name: String,
    pub(crate) url: String,
}

impl VirtualHost {
    pub(crate) async fn new() -> Self {
        let name = unique("interop");
        let base = url();
        let (authority, _) = base
            .rsplit_once('/')
            .filter(|(rest, _)| rest.contains('@'))
            .unwrap_or_else(|| {
                panic!("RABBITMQ_URL is not of the form rabbit://user:password@host:port/")
            });
        let user = authority
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once(':'))
            .map(|(user, _)| user)
            .unwrap();
        control(&["add_vhost", &name]).await;
        control(&["set_permissions", "-p", &name, user, ".*", ".*", ".*"]).await;
        let url = format!("{authority}/{name}");
        Self { name, url }
    }

    /// The lines of a listing of this virtual host, sorted, each with its columns separated by tabs.
    pub(crate) async fn list(&self, what: &str, columns: &[&str]) -> Vec<String> {
        let mut arguments = vec![what, "-p", &self.name, "--no-table-headers"];
        arguments.extend(columns);
        let mut lines: Vec<_> = control(&arguments).await.lines().map(normal).collect();
        lines.sort();
        lines
    }

    pub(crate) async fn delete(self) {
        control(&["delete_vhost", &self.name]).await;
    }
}

/// A line in which each run of 32 hex digits, the random part of a private queue's name, is `<uuid>`.
fn normal(line: &str) -> String {
    let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    let mut out = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_hex) {
        let run = rest[start..]
            .find(|c| !is_hex(c))
            .unwrap_or(rest.len() - start);
        out.push_str(&rest[..start]);
        let found = &rest[start..start + run];
        out.push_str(if run == 32 { "<uuid>" } else { found });
        rest = &rest[start + run..];
    }
    out + rest
}
