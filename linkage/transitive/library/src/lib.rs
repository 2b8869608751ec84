//! A library that talks over `acme://` and names its driver, so that its users need not.

use std::collections::BTreeMap;
use std::time::Duration;

use longshore::{Context, Router, RpcClient, RpcServer, Target, Transport};

use acme_driver as _;

/// Makes one call over the URL, to a server that it starts there, and returns the answer.
pub fn greet(url: &str, name: &str) -> Result<String, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let transport = Transport::connect(url).await?;
        let target = Target::topic("yard");
        let router = Router::new().method(
            "greet",
            |_: Context, args: BTreeMap<String, String>| async move {
                Ok(format!("good morning, {}", args["name"]))
            },
        );
        let server = RpcServer::builder(&transport, target.clone().server("one"), router)
            .start()
            .await?;
        let client = RpcClient::new(&transport, target).timeout(Duration::from_secs(10));
        let greeting = client.call("greet").arg("name", name).await?;
        server.stop(Duration::from_secs(10)).await?;
        Ok(greeting)
    })
}

/// The canonical schemes of this program.
pub fn schemes() -> Vec<&'static str> {
    longshore::registry::drivers()
        .iter()
        .filter_map(|driver| driver.schemes.first().copied())
        .collect()
}
