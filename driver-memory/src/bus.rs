//! The in-process broker, and the table of them by name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};

use crate::lock;
use crate::topology::Topology;

/// The buses of this process. Held weakly: a bus ends with the last driver or listener on it.
static BUSES: Mutex<BTreeMap<String, Weak<Bus>>> = Mutex::new(BTreeMap::new());

/// A broker: the places messages go to. Drivers that name the same bus meet there.
#[derive(Debug)]
pub(crate) struct Bus {
    name: String,
    pub(crate) topology: Topology,
}

impl Bus {
    /// The bus of this name; the first to ask makes it. The empty name is the one unnamed bus.
    pub(crate) fn named(name: &str) -> Arc<Self> {
        let mut buses = lock(&BUSES);
        if let Some(bus) = buses.get(name).and_then(Weak::upgrade) {
            return bus;
        }
        let bus = Arc::new(Self {
            name: name.to_owned(),
            topology: Topology::default(),
        });
        buses.insert(name.to_owned(), Arc::downgrade(&bus));
        bus
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let mut buses = lock(&BUSES);
        // Another may have been made under the name since the last holder of this one let go.
        if buses
            .get(&self.name)
            .is_some_and(|known| std::ptr::eq(known.as_ptr(), self))
        {
            buses.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_is_shared_by_name_and_ends_with_its_last_holder() {
        let first = Bus::named("bus-test");
        let again = Bus::named("bus-test");
        assert!(Arc::ptr_eq(&first, &again));
        assert!(!Arc::ptr_eq(&first, &Bus::named("bus-test-other")));
        drop(first);
        assert!(lock(&BUSES).contains_key("bus-test"));
        drop(again);
        let buses = lock(&BUSES);
        assert!(!buses.contains_key("bus-test") && !buses.contains_key("bus-test-other"));
    }
}
