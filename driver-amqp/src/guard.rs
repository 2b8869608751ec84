//! What keeps a stranger's damaged frame from breaking the link.

/// The name of a header that stands for headers that cannot be read. AMQP allows no such name.
pub(crate) const UNREADABLE: &str = "";
