//! What a program has that depends on this crate and names nothing of the drivers and executors.

use longshore::registry;

fn crates(found: impl Iterator<Item = (&'static str, &'static str)>) -> Vec<String> {
    found
        .map(|(name, krate)| format!("{name} of {krate}"))
        .collect()
}

#[test]
fn each_feature_brings_its_driver() {
    let linked = crates(
        registry::drivers()
            .iter()
            .map(|driver| (driver.schemes[0], driver.crate_name)),
    );
    let mut wanted = Vec::new();
    if cfg!(feature = "memory") {
        wanted.push("memory of messaging-driver-memory");
    }
    if cfg!(feature = "amqp") {
        wanted.push("rabbit of messaging-driver-amqp");
    }
    assert_eq!(linked, wanted);
}

#[test]
fn all_executors_are_there() {
    let linked = crates(
        registry::executors()
            .iter()
            .map(|executor| (executor.names[0], executor.crate_name)),
    );
    assert_eq!(
        linked,
        ["async", "blocking", "threaded"].map(|name| format!("{name} of messaging-executors"))
    );
}

/// As a static library does: what is linked as well counts once.
#[test]
fn registering_by_hand_does_no_harm() {
    registry::register_executor(&longshore::executors::ASYNC);
    #[cfg(feature = "memory")]
    registry::register_driver(&longshore::drivers::memory::DRIVER);
    registry::find_executor("async").expect("one claim");
    #[cfg(feature = "memory")]
    registry::find_driver("memory").expect("one claim");
}
