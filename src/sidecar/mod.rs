//! What runs beside the connector.

pub mod sink;
