//! TLS around a TCP connection, for streams that leave this machine: between an adaptor and its pod VMs.
//!
//! What comes out is an ordinary socket: a thread of the connection's own carries bytes between it and TLS, so that reading
//! and writing stay independent for everybody above. Both sides show a certificate of the same authority; names other than
//! the expected one, and peers of another authority, are refused in the handshake.

mod pem;
mod pump;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

pub use pem::{certificate, certificates, key, private_key};

/// How long a handshake may take: a peer that says nothing holds a thread for no longer.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// After this long without an answer the kernel asks whether the peer still lives.
const IDLE: Duration = Duration::from_secs(30);

/// How long sent bytes may stay unacknowledged: a link that is cut for a minute, and for some more, is the same connection
/// afterwards.
const UNACKNOWLEDGED: Duration = Duration::from_secs(150);

/// A certificate with its key.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// The calling side. Build it once: sessions are resumed through it.
#[derive(Clone)]
pub struct Caller(Arc<ClientConfig>);

/// The answering side.
#[derive(Clone)]
pub struct Answerer(Arc<ServerConfig>);

fn roots(authority: Vec<CertificateDer<'static>>) -> io::Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots.add(certificate).map_err(io::Error::other)?;
    }
    Ok(Arc::new(roots))
}

impl Caller {
    /// Trusts servers of `authority`; shows `identity` to those that ask.
    pub fn new(authority: Vec<CertificateDer<'static>>, identity: Identity) -> io::Result<Caller> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let builder = builder.with_root_certificates(roots(authority)?);
        builder.with_client_auth_cert(identity.chain, identity.key).map(|c| Caller(Arc::new(c))).map_err(io::Error::other)
    }

    /// Shakes hands with the server `name` and gives the stream. Blocks for at most [`HANDSHAKE`].
    pub fn connect(&self, tcp: TcpStream, name: &str) -> io::Result<UnixStream> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.0.clone(), name).map_err(io::Error::other)?;
        shake(tcp, connection.into())
    }
}

impl Answerer {
    /// Trusts callers of `authority` and no others.
    pub fn new(authority: Vec<CertificateDer<'static>>, identity: Identity) -> io::Result<Answerer> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots(authority)?, provider.clone()).build().map_err(io::Error::other)?;
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let builder = builder.with_client_cert_verifier(verifier);
        builder.with_single_cert(identity.chain, identity.key).map(|c| Answerer(Arc::new(c))).map_err(io::Error::other)
    }

    pub fn accept(&self, tcp: TcpStream) -> io::Result<UnixStream> {
        shake(tcp, ServerConnection::new(self.0.clone()).map_err(io::Error::other)?.into())
    }
}

fn shake(mut tcp: TcpStream, mut connection: rustls::Connection) -> io::Result<UnixStream> {
    let until = std::time::Instant::now() + HANDSHAKE;
    lasting(&tcp)?;
    tcp.set_write_timeout(Some(HANDSHAKE))?;
    while connection.is_handshaking() {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake"));
        }
        tcp.set_read_timeout(Some(left))?;
        connection.complete_io(&mut tcp).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake"),
            _ => e,
        })?;
    }
    // What a handshake ends with: tickets, or the reason of a refusal.
    while connection.wants_write() {
        connection.write_tls(&mut tcp)?;
    }
    pump::start(tcp, connection)
}

/// Small messages are sent at once, and a peer that vanished is noticed.
fn lasting(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle, set_tcp_user_timeout};
    tcp.set_nodelay(true)?;
    set_socket_keepalive(tcp, true)?;
    set_tcp_keepidle(tcp, IDLE)?;
    Ok(set_tcp_user_timeout(tcp, UNACKNOWLEDGED.as_millis() as u32)?)
}
