//! The server on a real socket, spoken to in raw bytes.

mod pressure;
mod refusals;
mod requests;
mod slowness;
mod support;
