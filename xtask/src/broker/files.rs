//! The files of a node: its configuration, its secret, and the scripts that tests run.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Node, certificates, package, ports::Ports, quoted, text};

impl Node {
    /// Writes all that the node and its control programs read.
    pub(super) fn configure(&self, ports: Ports) -> Result<()> {
        for directory in ["data", "log", "config/conf.d", "home"] {
            fs::create_dir_all(self.directory().join(directory))?;
        }
        let config = self.directory().join("config");
        certificates::ensure()?;
        for file in ["ca.pem", "server.pem", "server.key"] {
            let certificate = certificates::directory().join(file);
            fs::copy(&certificate, config.join(file))
                .with_context(|| format!("cannot copy {}", certificate.display()))?;
        }
        fs::write(
            config.join("rabbitmq.conf"),
            configuration(ports, text(&config)?) + self.release().configuration(),
        )?;
        fs::write(config.join("definitions.json"), definitions().to_string())?;
        fs::write(
            config.join("enabled_plugins"),
            "[rabbitmq_auth_mechanism_ssl].\n",
        )?;
        fs::write(config.join("advanced.config"), "[].\n")?;
        fs::write(config.join("rabbitmq-env.conf"), "")?;
        self.write_cookie()?;

        let mut lines = String::new();
        for (name, value) in self.environment(ports)? {
            writeln!(lines, "{name}={}", quoted(&value))?;
        }
        let environment = self.directory().join("env");
        fs::write(&environment, lines)?;
        let control = self
            .release()
            .command_line(package::CONTROL, self.directory())?;
        let control: Vec<_> = control.iter().map(|word| quoted(word)).collect();
        write_script(
            &self.control_script(),
            &format!(
                "# rabbitmqctl for the node `{name}`.\n\
                 if ! [ -e {environment} ]; then\n    \
                     echo 'node {name} is down: run cargo xtask brokers up' >&2\n    \
                     exit 69\n\
                 fi\n\
                 set -a\n. {environment}\nset +a\nexec {control} \"$@\"\n",
                name = self.name(),
                environment = quoted(text(&environment)?),
                control = control.join(" "),
            ),
        )?;
        write_script(
            &self.node_script(),
            &format!(
                "# Starts, stops, restarts or kills the node `{}`.\nexec {} brokers --node {} \"$@\"\n",
                self.name(),
                quoted(text(&std::env::current_exe()?)?),
                self.name()
            ),
        )?;
        Ok(())
    }

    /// The secret that lets `rabbitmqctl` in. It is made once: it outlives the data.
    fn write_cookie(&self) -> Result<()> {
        let file = self.home().join(".erlang.cookie");
        if file.exists() {
            return Ok(());
        }
        let random = fs::read("/proc/sys/kernel/random/uuid").context("no source of randomness")?;
        fs::write(&file, random.trim_ascii())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
        Ok(())
    }

    /// The whole environment of the node's programs; nothing is inherited from ours.
    pub(super) fn environment(&self, ports: Ports) -> Result<Vec<(&'static str, String)>> {
        let within = |path: &str| text(&self.directory().join(path)).map(str::to_owned);
        // Erlang's distribution listens on every interface unless it is told otherwise.
        let local = "-kernel inet_dist_use_interface {127,0,0,1}";
        Ok(vec![
            (
                "PATH",
                "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".to_owned(),
            ),
            ("LANG", "C.UTF-8".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
            ("HOME", within("home")?),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", ports.mapper.to_string()),
            (
                "RABBITMQ_NODENAME",
                format!("longshore-{}@localhost", self.name()),
            ),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", ports.amqp.to_string()),
            ("RABBITMQ_DIST_PORT", ports.distribution.to_string()),
            ("RABBITMQ_CTL_DIST_PORT_MIN", "35700".to_owned()),
            ("RABBITMQ_CTL_DIST_PORT_MAX", "35799".to_owned()),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", local.to_owned()),
            ("RABBITMQ_CTL_ERL_ARGS", local.to_owned()),
            ("RABBITMQ_MNESIA_BASE", within("data")?),
            ("RABBITMQ_LOG_BASE", within("log")?),
            ("RABBITMQ_CONFIG_FILE", within("config/rabbitmq.conf")?),
            ("RABBITMQ_CONFIG_FILES", within("config/conf.d")?),
            (
                "RABBITMQ_ADVANCED_CONFIG_FILE",
                within("config/advanced.config")?,
            ),
            (
                "RABBITMQ_CONF_ENV_FILE",
                within("config/rabbitmq-env.conf")?,
            ),
            (
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                within("config/enabled_plugins")?,
            ),
            ("RABBITMQ_GENERATED_CONFIG_DIR", within("config/generated")?),
        ])
    }
}

fn configuration(ports: Ports, directory: &str) -> String {
    let (amqp, tls) = (ports.amqp, ports.tls());
    format!(
        "listeners.tcp.1 = 127.0.0.1:{amqp}
listeners.ssl.1 = 127.0.0.1:{tls}
# An address that the certificate does not name.
listeners.ssl.2 = 127.0.0.2:{tls}
ssl_options.cacertfile = {directory}/ca.pem
ssl_options.certfile = {directory}/server.pem
ssl_options.keyfile = {directory}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = AMQPLAIN
auth_mechanisms.3 = EXTERNAL
ssl_cert_login_from = common_name
load_definitions = {directory}/definitions.json
log.file.level = info
# A full disk or a big machine must not change what the tests see.
disk_free_limit.absolute = 64MB
vm_memory_high_watermark.absolute = 2GB
# The quorum queues' log is allocated at once, and is half a gigabyte by default.
raft.wal_max_size_bytes = 67108864
"
    )
}

/// The users. A node that imports any makes no guest by itself.
fn definitions() -> Value {
    let permissions = |user| {
        json!({
            "user": user, "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"
        })
    };
    json!({
        "vhosts": [{"name": "/"}],
        "users": [
            {"name": "guest", "password": "guest", "tags": "administrator"},
            // An empty hash matches no password: this one can only show a certificate.
            {"name": certificates::CLIENT, "password_hash": "", "tags": ""},
        ],
        "permissions": [permissions("guest"), permissions(certificates::CLIENT)],
    })
}

fn write_script(path: &Path, body: &str) -> Result<()> {
    fs::write(path, format!("#!/bin/sh\n{body}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
