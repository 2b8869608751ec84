//! What RPC over the driver does, under each executor.

use crate::behaviour::Behaviour;

pub(crate) const BEHAVIOURS: &[Behaviour] = &[];
