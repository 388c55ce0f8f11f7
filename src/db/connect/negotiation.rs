//! The beginning of a connection: whether it is encrypted, and what the server may ask for before it accepts the client.
//!
//! The driver sends a server whatever it asks for. With direct negotiation it hands over the plain socket
//! ([`TlsConnect::connect`]) and takes what it gets back for the encrypted one, so that everything the server sends passes
//! a [`Guard`] first.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::authentication::{Cleartext, Guard};

/// Asks for TLS: the length of the message, and a number in the place of the protocol's version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The server's answer where it goes on with TLS.
const SSL_ACCEPTED: u8 = b'S';

type Rustls = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
type RustlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

/// How connections to a server begin.
#[derive(Clone)]
pub(super) struct Negotiator {
    /// `None` without TLS.
    pub(super) tls: Option<MakeRustlsConnect>,
    /// The connection fails where the server has no TLS.
    pub(super) is_required: bool,
    /// TLS begins at once (`sslnegotiation=direct`).
    pub(super) is_direct: bool,
    pub(super) cleartext: Cleartext,
}

/// The beginning of one connection.
pub(super) struct Negotiation {
    tls: Option<Rustls>,
    is_required: bool,
    is_direct: bool,
    cleartext: Cleartext,
}

impl MakeTlsConnect<Socket> for Negotiator {
    type Stream = GuardedStream;
    type TlsConnect = Negotiation;
    type Error = Box<dyn Error + Send + Sync>;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Negotiation, Self::Error> {
        let tls = self.tls.as_mut().map(|tls| MakeTlsConnect::<Socket>::make_tls_connect(tls, domain));
        Ok(Negotiation {
            tls: tls.transpose()?,
            is_required: self.is_required,
            is_direct: self.is_direct,
            cleartext: self.cleartext.clone(),
        })
    }
}

impl TlsConnect<Socket> for Negotiation {
    type Stream = GuardedStream;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<GuardedStream, Self::Error>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let guard = Guard::new(self.cleartext.clone());
            Ok(GuardedStream { transport: self.negotiate(socket).await?, guard })
        })
    }
}

impl Negotiation {
    async fn negotiate(self, mut socket: Socket) -> Result<Transport, Box<dyn Error + Send + Sync>> {
        let Some(tls) = self.tls else { return Ok(Transport::Plain(socket)) };
        if !self.is_direct {
            socket.write_all(&SSL_REQUEST).await?;
            let mut answer = [0];
            socket.read_exact(&mut answer).await?;
            if answer[0] != SSL_ACCEPTED {
                let refused = "server does not support TLS".into();
                return if self.is_required { Err(refused) } else { Ok(Transport::Plain(socket)) };
            }
        }
        Ok(Transport::Tls(Box::new(tls.connect(socket).await?)))
    }
}

/// A connection whose server may not ask for everything.
pub(super) struct GuardedStream {
    transport: Transport,
    guard: Guard,
}

enum Transport {
    Plain(Socket),
    Tls(Box<RustlsStream>),
}

trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

impl Transport {
    fn as_stream(&mut self) -> Pin<&mut dyn ReadWrite> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Tls(stream) => Pin::new(stream.as_mut()),
        }
    }
}

impl TlsStream for GuardedStream {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.transport {
            Transport::Plain(_) => ChannelBinding::none(),
            Transport::Tls(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(this.transport.as_stream().poll_read(cx, buf))?;
        let observed = this.guard.observe(&buf.filled()[before..]);
        Poll::Ready(observed.map_err(|refused| io::Error::new(io::ErrorKind::PermissionDenied, refused)))
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().transport.as_stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport.as_stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().transport.as_stream().poll_shutdown(cx)
    }
}
