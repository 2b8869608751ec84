//! An application's own objects and context on the wire.

use serde_json::{Map, Value};

use crate::error::Result;

/// Turns an application's values into JSON and back, beside serde: as oslo.messaging's serializers do, it is
/// applied to each argument, to the result, and to the context, on both sides.
///
/// Errors are of kind [`Codec`](crate::ErrorKind::Codec); on a client they end the call as not sent, on a server
/// they answer it.
pub trait Serializer: Send + Sync + std::fmt::Debug + 'static {
    /// An argument or result on its way out.
    fn serialize_entity(&self, context: &Map<String, Value>, entity: Value) -> Result<Value> {
        let _ = context;
        Ok(entity)
    }

    /// An argument or result on its way in.
    fn deserialize_entity(&self, context: &Map<String, Value>, entity: Value) -> Result<Value> {
        let _ = context;
        Ok(entity)
    }

    /// The caller's context on its way out.
    fn serialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
        Ok(context)
    }

    /// The caller's context on its way in.
    fn deserialize_context(&self, context: Map<String, Value>) -> Result<Map<String, Value>> {
        Ok(context)
    }
}
