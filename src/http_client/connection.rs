//! A connection, plain or with TLS, that receives while it sends.
//!
//! The socket never blocks: waiting is for both directions, and has a deadline.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Endpoint;
use super::response::{self, MAX_BODY};
use crate::host_rules::{self, HostRules};

/// How long to try each address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// When TCP probes an idle connection: a server may be silent while it works.
const KEEPALIVE: Duration = Duration::from_mins(1);
/// Maximum size of a response.
const MAX_RECEIVED: usize = MAX_BODY + (256 << 10);

/// The result of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// Everything was sent.
    All,
    /// The server has responded or closed the connection before it received everything.
    Interrupted,
}

/// A connection.
pub struct Connection {
    transport: Transport,
    /// What the server has sent, without interim responses.
    pub received: Vec<u8>,
    /// The server will not send more.
    pub ended: bool,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Trusts the compiled-in roots, because an image may hold none, and those of the system.
pub fn tls_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Connection {
    /// Connects to an address that the rules allow. With TLS the handshake takes place when bytes are sent.
    pub fn open(endpoint: &Endpoint, tls: Option<&Arc<ClientConfig>>, rules: Option<&HostRules>) -> io::Result<Self> {
        let socket = connect(endpoint, rules)?;
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
        socket.set_nonblocking(true)?;
        let transport = match tls {
            None => Transport::Plain(socket),
            Some(config) => {
                let name = ServerName::try_from(endpoint.host.clone()).map_err(invalid_data)?;
                let connection = ClientConnection::new(Arc::clone(config), name).map_err(invalid_data)?;
                Transport::Tls(Box::new(StreamOwned::new(connection, socket)))
            }
        };
        Ok(Self { transport, received: Vec::new(), ended: false })
    }

    /// Sends bytes. Fails if the server accepts none for `stall_timeout`.
    pub fn send(&mut self, mut bytes: &[u8], stall_timeout: Duration) -> io::Result<Sent> {
        let mut deadline = Instant::now() + stall_timeout;
        loop {
            self.receive()?;
            if self.has_response() {
                return Ok(Sent::Interrupted);
            }
            match self.transport.as_stream().write(bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    if bytes.is_empty() && self.transport.is_flushed() {
                        return Ok(Sent::All);
                    }
                    if written > 0 {
                        deadline = Instant::now() + stall_timeout;
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    // A server that closes the connection has often sent the reason.
                    self.receive()?;
                    return if self.received.is_empty() { Err(error) } else { Ok(Sent::Interrupted) };
                }
            }
            if !self.wait(true, deadline)? {
                let text = format!("it accepted no data for {} s", stall_timeout.as_secs_f64());
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        }
    }

    /// Waits until more is received.
    pub fn wait_for_more(&mut self, deadline: Instant) -> io::Result<()> {
        let before = self.received.len();
        loop {
            self.receive()?;
            if self.ended || self.received.len() > before {
                return Ok(());
            }
            if !self.wait(false, deadline)? {
                return Err(io::Error::new(ErrorKind::TimedOut, "it did not respond in time"));
            }
        }
    }

    /// Whether the server has sent anything or closed the connection.
    fn has_response(&self) -> bool {
        self.ended || !self.received.is_empty()
    }

    /// Receives what is available.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        while !self.ended && self.received.len() < MAX_RECEIVED {
            match self.transport.as_stream().read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => {}
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => self.ended = true,
                    _ => return Err(error),
                },
            }
        }
        self.ended |= self.received.len() >= MAX_RECEIVED;
        response::skip_interim(&mut self.received);
        Ok(())
    }

    /// Waits until the socket is readable, or writable if there is something to send. Returns false after the deadline.
    fn wait(&self, sending: bool, deadline: Instant) -> io::Result<bool> {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, self.transport.wants_write(sending));
        let timeout = Timespec::try_from(remaining).ok();
        match poll(&mut [PollFd::new(self.transport.socket(), flags)], timeout.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(Instant::now() < deadline),
            Err(error) => Err(error.into()),
        }
    }
}

impl Transport {
    fn as_stream(&mut self) -> &mut dyn ReadWrite {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.as_mut(),
        }
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }

    fn wants_write(&self, sending: bool) -> bool {
        match self {
            Self::Plain(_) => sending,
            Self::Tls(stream) => stream.conn.wants_write(),
        }
    }

    fn is_flushed(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => !stream.conn.wants_write() && !stream.conn.is_handshaking(),
        }
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}

fn connect(endpoint: &Endpoint, rules: Option<&HostRules>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
    for address in host_rules::resolve(rules, &endpoint.host, endpoint.port)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn invalid_data(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
