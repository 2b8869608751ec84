//! An application with a stranger's driver: one line in Cargo.toml, one line here, and `acme://` is a transport.

use std::time::Duration;

use longshore::{Context, Result, Router, RpcClient, RpcServer, Target, Transport, registry};
use serde::Deserialize;

// The one line of code. Without it rustc does not link the crate, and its driver is not there.
use acme_driver as _;

#[derive(Deserialize)]
struct Add {
    a: i64,
    b: i64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    for driver in registry::drivers() {
        println!(
            "driver {} of {} {}",
            driver.schemes.join(" "),
            driver.crate_name,
            driver.crate_version
        );
    }
    for executor in registry::executors() {
        println!(
            "executor {} of {} {}",
            executor.names.join(" "),
            executor.crate_name,
            executor.crate_version
        );
    }

    let engine = Target::topic("engine");
    for url in ["acme://yard", "memory://yard"] {
        let (near, far) = (
            Transport::connect(url).await?,
            Transport::connect(url).await?,
        );
        let router = Router::new().method("add", |_: Context, q: Add| async move { Ok(q.a + q.b) });
        let server = RpcServer::builder(&near, engine.clone().server("engine-1"), router)
            .start()
            .await?;
        let client = RpcClient::new(&far, engine.clone()).timeout(Duration::from_secs(10));
        let sum: i64 = client.call("add").arg("a", 40).arg("b", 2).await?;
        println!("{url} answered {sum}");
        server.stop(Duration::from_secs(10)).await?;
    }
    Ok(())
}
