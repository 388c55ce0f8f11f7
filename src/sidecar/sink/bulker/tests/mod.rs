//! The destination against a server at the other end of a socket.

mod modes;
mod support;
mod tls;
mod troubles;
