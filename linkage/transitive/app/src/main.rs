//! An application that names a library alone; the driver comes with it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("schemes {}", yard_client::schemes().join(" "));
    println!(
        "acme://yard answered {}",
        yard_client::greet("acme://yard", "stranger")?
    );
    Ok(())
}
