//! Two drivers claim `acme`: that scheme is an error which names both, and every other scheme works.

use longshore::Transport;

// It brings `acme-driver` along, on which it builds.
use rival_driver as _;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for url in ["acme://bob:s3cret@yard/", "rival://yard/", "memory://yard/"] {
        match Transport::connect(url).await {
            Ok(transport) => println!("{} is open", transport.url()),
            Err(error) => println!("{error}"),
        }
    }
}
