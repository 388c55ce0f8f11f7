//! One connection, plain or with TLS, that hears what the other side says while it speaks itself.
//!
//! The socket never blocks: whoever waits waits for both directions, and not for ever.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::config::Place;
use super::http;

/// How long each address of a host may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that says nothing for so long is asked whether it is still there: loading may take long.
const KEEPALIVE: Duration = Duration::from_mins(1);
/// What is kept of an answer at most.
const MOST_RECEIVED: usize = http::LONGEST_BODY + (256 << 10);

/// How far a message got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it is on its way.
    All,
    /// The other side said something, or hung up, before it had heard everything.
    Interrupted,
}

/// A connection.
pub struct Wire {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// What the other side said.
    pub received: Vec<u8>,
    /// It will not say more.
    pub ended: bool,
}

/// What TLS trusts: the roots that are compiled in, because an image may hold nothing else, and those of the system.
pub fn tls() -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Wire {
    /// Connects; with a TLS configuration the handshake takes place with the first bytes that are sent.
    pub fn connect(place: &Place, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
        let mut found = None;
        for address in (place.host.as_str(), place.port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(socket) => {
                    found = Some(socket);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let socket = found.ok_or(last)?;
        socket.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE)?;
        socket.set_nonblocking(true)?;
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(place.host.clone())
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                let connection = ClientConnection::new(Arc::clone(config), name)
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                Some(Box::new(connection))
            }
        };
        Ok(Self { socket, tls, received: Vec::new(), ended: false })
    }

    /// Sends, and waits for as long as the other side takes something now and then: without that for `stall` it fails.
    pub fn send(&mut self, mut bytes: &[u8], stall: Duration) -> io::Result<Sent> {
        let mut deadline = Instant::now() + stall;
        loop {
            self.listen()?;
            if self.was_heard() {
                return Ok(Sent::Interrupted);
            }
            match self.write(bytes) {
                Ok(taken) => {
                    bytes = &bytes[taken..];
                    if taken > 0 {
                        deadline = Instant::now() + stall;
                    }
                    if bytes.is_empty() && self.is_flushed() {
                        return Ok(Sent::All);
                    }
                    if taken > 0 {
                        continue;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Who hangs up in the middle has often said why.
                    self.listen()?;
                    return if self.received.is_empty() { Err(error) } else { Ok(Sent::Interrupted) };
                }
            }
            if !self.wait(true, deadline)? {
                let text = format!("it took no data for {} s", stall.as_secs_f64());
                return Err(io::Error::new(ErrorKind::TimedOut, text));
            }
        }
    }

    /// Waits until there is something to hear that was not heard before.
    pub fn wait_for_more(&mut self, deadline: Instant) -> io::Result<()> {
        let before = self.received.len();
        loop {
            self.listen()?;
            if self.ended || self.received.len() > before {
                return Ok(());
            }
            if !self.wait(false, deadline)? {
                return Err(io::Error::new(ErrorKind::TimedOut, "it did not answer in time"));
            }
        }
    }

    /// Whether the other side said or did anything so far.
    pub fn was_heard(&self) -> bool {
        self.ended || !self.received.is_empty()
    }

    /// Takes what is there to be heard; does not wait.
    pub fn listen(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        while !self.ended && self.received.len() < MOST_RECEIVED {
            match self.read(&mut buffer) {
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
        // Whoever says so much more than an answer is not listened to any longer.
        self.ended |= self.received.len() >= MOST_RECEIVED;
        http::skip_interim(&mut self.received);
        Ok(())
    }

    /// Waits until something can be read, or written if there is something to be written; `false` when it is too late.
    fn wait(&self, sending: bool, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let out = self.tls.as_ref().map_or(sending, |tls| tls.wants_write());
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, out);
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(Instant::now() < deadline),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        match tls.read_tls(&mut self.socket) {
            Ok(_) => {
                if let Err(error) = tls.process_new_packets() {
                    // The other side should hear why.
                    let _ = tls.write_tls(&mut self.socket);
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        tls.reader().read(buffer)
    }

    /// Writes what is taken without waiting.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let taken = tls.writer().write(bytes)?;
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }

    fn is_flushed(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.wants_write() && !tls.is_handshaking())
    }
}
