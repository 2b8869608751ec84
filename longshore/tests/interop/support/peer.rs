//! Python peers: programs of `interop/` that answer requests, one JSON object a line.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;

use super::{required, unique};

/// How long a peer may take to start, or to answer, beyond what a test asks it to wait.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the Python programs are.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../interop")
}

/// Where oslo.messaging's queue manager keeps its locks; without a place it refuses to count.
pub(crate) fn locks() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("oslo-locks")
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>;

/// A running peer. Dropped, it is killed; and it ends by itself when its stdin does, should this process be killed.
pub(crate) struct Peer {
    name: String,
    log: PathBuf,
    next: AtomicU64,
    waiting: Waiting,
    stdin: tokio::sync::Mutex<ChildStdin>,
    _child: Child,
}

impl Peer {
    /// A client of oslo.messaging.
    pub(crate) async fn client(url: &str) -> Self {
        Self::start("client.py", url).await
    }

    /// A process for servers of oslo.messaging.
    pub(crate) async fn server(url: &str) -> Self {
        Self::start("server.py", url).await
    }

    /// A plain AMQP client.
    pub(crate) async fn raw(url: &str) -> Self {
        Self::start("raw.py", url).await
    }

    async fn start(script: &str, url: &str) -> Self {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", unique(script)));
        let mut child = Command::new(required("LONGSHORE_PYTHON"))
            .args(["-W", "ignore"])
            .arg(folder().join(script))
            .arg(url)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("OSLO_LOCK_PATH", locks())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{script} does not start: {error}"));
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let waiting = Waiting::default();
        let first = tokio::time::timeout(LIMIT, lines.next_line()).await;
        let ready = matches!(&first, Ok(Ok(Some(line))) if line == "ready");
        assert!(ready, "{script} is not ready ({first:?}): {}", tail(&log));
        let answers = waiting.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let answer: Value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("a peer wrote {line:?}: {error}"));
                let id = answer["id"].as_u64().unwrap_or_default();
                let waiting = answers.lock().unwrap().remove(&id);
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer);
                }
            }
            // Whoever still waits is told by the drop of its sender.
            answers.lock().unwrap().clear();
        });
        Self {
            name: script.to_owned(),
            log,
            next: AtomicU64::new(1),
            waiting,
            stdin: tokio::sync::Mutex::new(stdin),
            _child: child,
        }
    }

    /// The answer to a request. Several may be under way at once.
    pub(crate) async fn ask(&self, mut request: Value) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        request["id"] = id.into();
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap().insert(id, sender);
        let line = format!("{request}\n");
        let written = self.stdin.lock().await.write_all(line.as_bytes()).await;
        let shown: String = line.chars().take(300).collect();
        assert!(written.is_ok(), "{}", self.account(&shown, "is gone"));
        let answer = match tokio::time::timeout(LIMIT, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => panic!("{}", self.account(&shown, "ended")),
            Err(_) => panic!("{}", self.account(&shown, "did not answer")),
        };
        let fault = &answer["fault"];
        assert!(
            fault.is_null(),
            "{}",
            self.account(&shown, &fault.to_string())
        );
        answer
    }

    fn account(&self, request: &str, what: &str) -> String {
        format!("{} {what} at {request}: {}", self.name, tail(&self.log))
    }

    /// Starts a server with the standard endpoints in a server process.
    pub(crate) async fn serve_standard(&self, topic: &str, server: &str) {
        self.ask(json!({"op": "serve", "topic": topic, "server": server, "endpoints": "standard"}))
            .await;
    }

    /// What `record` was called with, at a server of a server process.
    pub(crate) async fn recorded(&self, server: &str) -> Vec<Value> {
        let answer = self.ask(json!({"op": "recorded", "server": server})).await;
        answer["recorded"].as_array().unwrap().clone()
    }

    /// The next message of a queue, taken by a raw peer.
    pub(crate) async fn get(&self, queue: &str) -> Option<Value> {
        let request = json!({"op": "get", "queue": queue, "seconds": 10});
        let mut answer = self.ask(request).await;
        Some(answer["message"].take()).filter(|message| !message.is_null())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} wrote: {}", self.name, tail(&self.log));
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}

/// The end of a log, for a failure's text.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n  ")
}

/// The request of a client for a call.
pub(crate) fn call(topic: &str, method: &str, args: Value) -> Value {
    json!({"op": "call", "target": {"topic": topic}, "method": method, "args": args})
}

/// The request of a client for a cast of `record`.
pub(crate) fn cast(target: Value, value: Value) -> Value {
    json!({"op": "cast", "target": target, "method": "record", "args": {"value": value}})
}

/// What a Python caller can tell of a failure: module and class, and what it says.
pub(crate) fn failure(answer: &Value) -> (String, String, String) {
    let error = &answer["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let said = match &error["value"] {
        Value::String(value) => value.clone(),
        _ => text("text").lines().next().unwrap_or_default().to_owned(),
    };
    (
        text("module"),
        text("class"),
        format!("{} {said}", text("exc_type")).trim().to_owned(),
    )
}

/// The bytes of a body in the form in which a raw peer takes them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
