//! The pod VM's end of a peer pod (agent-protocol-forwarder): TLS from the adaptor to the agent, and the pod's network.
//!
//! In the guest it is part of the agent's own process: what arrives on port 15150 is handed to the agent as any other channel is
//! (DESIGN, "Channel"), with no second socket in between. The VM's own network stays in the root namespace; the pod's is
//! `/run/netns/podns`, which every container is given.

mod beside;
mod dhcp;
pub mod disk;
mod intercept;
mod network;
mod seed;

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::channel::{self, Channel};
use super::guest::Guest;
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::hybrid::{self, Wanted};
use crate::rpc::tls::{self, Answerer, Identity};
use crate::rpc::wire::apf::{self, Apf};
pub use beside::main;
pub use intercept::PodService;
pub use seed::Seed;

/// Numbers of streams begin here: 0 is none.
static NUMBERS: AtomicU32 = AtomicU32::new(1);

/// After an error of `accept`, which may be a shortage that passes.
const AGAIN: Duration = Duration::from_millis(100);

/// Prepares the pod's network and serves the adaptor on threads of its own. Returns once it listens.
pub fn start(guest: Arc<Guest>, seed: Seed) -> Result<()> {
    let apf = seed.apf()?;
    network::own(&guest, &seed.network)?;
    network::pod(&apf, Path::new(apf::POD_NETNS), &|| guest.modules.need("vxlan").at(Stage::Network, || "tunnels"))?;
    seed.write_files()?;
    let answerer = answerer(&apf)?;
    drop(seed);
    let channel = Channel::with(guest.clone(), Arc::new(PodService::new(guest)));
    let at = SocketAddr::from((Ipv6Addr::UNSPECIFIED, apf::PORT));
    let listener = TcpListener::bind(at).or_else(|_| TcpListener::bind(("0.0.0.0", apf::PORT)));
    let listener = listener.at(Stage::Agent, || format!("listen on port {}", apf::PORT))?;
    log::info!("forwarder {} listens on port {} {} ms after the kernel", crate::VERSION, apf::PORT, super::uptime_ms());
    crate::thread::start("osc-forward", move || {
        let hand = move |socket| hand_over(socket, &channel);
        serve(&listener, answerer.as_ref(), &hand)
    });
    Ok(())
}

/// `None` where the adaptor sent no certificate: it was told to do without TLS.
fn answerer(apf: &Apf) -> Result<Option<Answerer>> {
    if apf.tls_server_key.is_empty() && apf.tls_server_cert.is_empty() {
        log::warn!("forwarder: no certificate in apf.json: everybody who reaches port {} is served", apf::PORT);
        return Ok(None);
    }
    let what = |part: &str| format!("apf.json: {part}");
    let chain = tls::certificates(&apf.tls_server_cert).at(Stage::Agent, || what("tls-server-cert"))?;
    let key = tls::key(&apf.tls_server_key).at(Stage::Agent, || what("tls-server-key"))?;
    let ca = tls::certificates(&apf.tls_client_ca).at(Stage::Agent, || what("tls-client-ca"))?;
    Answerer::new(ca, Identity { chain, key }).map(Some).at(Stage::Agent, || what("TLS"))
}

/// Gives each caller that may come to `to`, on a thread of its own.
fn serve<F>(listener: &TcpListener, answerer: Option<&Answerer>, to: &F) -> !
where
    F: Fn(UnixStream) -> std::io::Result<()> + Clone + Send + 'static,
{
    loop {
        match listener.accept() {
            Ok((tcp, from)) => {
                let (to, answerer) = (to.clone(), answerer.cloned());
                let taken = crate::thread::try_start("osc-peer", move || {
                    if let Err(e) = take(tcp, answerer.as_ref()).and_then(to) {
                        log::warn!("forwarder: connection from {from}: {e}");
                    }
                });
                if let Err(e) = taken {
                    log::warn!("forwarder: {e}");
                }
            }
            Err(e) => {
                log::warn!("forwarder: accept: {e}");
                std::thread::sleep(AGAIN);
            }
        }
    }
}

fn take(tcp: TcpStream, answerer: Option<&Answerer>) -> std::io::Result<UnixStream> {
    match answerer {
        Some(answerer) => answerer.accept(tcp),
        None => Ok(UnixStream::from(std::os::fd::OwnedFd::from(tcp))),
    }
}

/// Gives the agent a connection: a stream to a port, or ttrpc.
pub fn hand_over(mut socket: UnixStream, channel: &Channel) -> std::io::Result<()> {
    let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
    let port = match hybrid::wanted(&mut socket) {
        // A caller that only looked whether somebody is there.
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
        other => other?,
    };
    match port {
        Wanted::Agent => channel.take(channel::AGENT, number, socket.into()),
        Wanted::Port(port) => {
            hybrid::granted(&mut socket, number)?;
            channel.take(port, number, socket.into());
        }
    }
    Ok(())
}

fn malformed(e: impl std::fmt::Display) -> Failure {
    Failure::new(Stage::Agent, format!("apf.json: {e}")).way_out("the adaptor that made this VM wrote it; see its log")
}
