//! Servers that upstream's tests ask for over a Unix socket: a connection each, as `interop/upstream.py` describes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use longshore::{RpcServer, Target, Transport};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::endpoint::{Endpoint, router};
use crate::support::unique;

/// As long as upstream's fixture waits for a server to stop.
const STOP: Duration = Duration::from_secs(30);

/// What a test asks its server to be.
#[derive(Deserialize)]
struct Wanted {
    url: String,
    exchange: Option<String>,
    topic: String,
    server: String,
    executor: String,
    methods: Vec<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    version: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Request {
    State,
    Synced { seconds: f64 },
    Stop,
}

/// Where servers can be asked for, for as long as this lives.
pub(crate) struct Control {
    path: PathBuf,
    accepting: tokio::task::JoinHandle<()>,
}

impl Control {
    pub(crate) fn open() -> Self {
        // Not under `target/`: the path of a Unix socket has to be short.
        let path = std::env::temp_dir().join(unique("longshore-upstream"));
        let listener = UnixListener::bind(&path).unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection));
            }
        });
        Self { path, accepting }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Serves as the first line asks, and answers the others until the connection ends; the server ends with it.
async fn serve(connection: UnixStream) {
    let (reader, mut writer) = connection.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut running: Option<Running> = None;
    while let Ok(Some(line)) = lines.next_line().await {
        let outcome = match &running {
            None => match Running::start(&line).await {
                Ok(started) => {
                    running = Some(started);
                    Ok(json!({}))
                }
                Err(fault) => Err(fault),
            },
            Some(running) => running.answer(&line).await,
        };
        let answer = outcome.unwrap_or_else(|fault| json!({"fault": fault}));
        let line = format!("{answer}\n");
        if writer.write_all(line.as_bytes()).await.is_err() {
            break;
        }
    }
}

/// A server of Longshore, on a transport of its own as upstream's is.
struct Running {
    transport: Transport,
    server: RpcServer,
    endpoint: Arc<Endpoint>,
}

impl Running {
    async fn start(line: &str) -> Result<Self, String> {
        let wanted: Wanted = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let endpoint = Arc::new(Endpoint::default());
        let router = router(&endpoint, &wanted.methods, wanted.namespace, wanted.version)?;
        let mut target = Target::topic(wanted.topic).server(wanted.server);
        if let Some(exchange) = wanted.exchange {
            target = target.exchange(exchange);
        }
        let transport = Transport::connect(&wanted.url)
            .await
            .map_err(|error| error.to_string())?;
        let server = RpcServer::builder(&transport, target, router)
            .executor(wanted.executor)
            .start()
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self {
            transport,
            server,
            endpoint,
        })
    }

    async fn answer(&self, line: &str) -> Result<Value, String> {
        let request = serde_json::from_str(line).map_err(|error| error.to_string())?;
        match request {
            // By the names of upstream's attributes.
            Request::State => {
                Ok(json!({"ival": self.endpoint.number(), "sval": self.endpoint.text()}))
            }
            Request::Synced { seconds } => {
                let limit = Duration::from_secs_f64(seconds);
                let called = self.endpoint.synced.0.acquire();
                match tokio::time::timeout(limit, called).await {
                    Ok(permit) => permit.unwrap().forget(),
                    Err(_) => return Err(format!("sync was not called within {limit:?}")),
                }
                Ok(json!({}))
            }
            Request::Stop => {
                let drained = self.server.stop(STOP).await;
                let drained = drained.map_err(|error| error.to_string())?;
                if drained.still_running > 0 || drained.error.is_some() {
                    return Err(format!("the server does not stop clean: {drained:?}"));
                }
                let closed = self.transport.close(STOP).await;
                closed.map_err(|error| error.to_string())?;
                Ok(json!({}))
            }
        }
    }
}
