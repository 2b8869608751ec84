//! What must not work, on purpose: Cargo.toml lists `acme-driver`, and no code names it.

use longshore::Transport;

fn main() {
    match Transport::builder("acme://bob:s3cret@yard/")
        .connect()
        .blocking()
    {
        Ok(_) => println!("acme is linked"),
        Err(error) => println!("{error}"),
    }
}
