//! The server on a real socket, with clients that send raw bytes.

mod pressure;
mod rejections;
mod requests;
mod slowness;
mod support;
mod tls;
