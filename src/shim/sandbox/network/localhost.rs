//! The pod's localhost: who dials 127.0.0.1 or ::1 in the pod's namespace on the host reaches the guest's.
//!
//! `kubectl port-forward` does, and so does any helper that a node runs in the namespace; the servers are in the VM. A rule in
//! the namespace's output hook redirects such connections to a listener of ours there, which asks the kernel where each was
//! bound for (SO_ORIGINAL_DST) and carries it over a stream of the channel to the guest's loopback.
//!
//! A port where nobody listens in the guest is told by a reset: by then the kernel has accepted the connection.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use crate::net::nft::{self, Chain, Hook, Kind, Match, Rule, TCP, Table, Verdict};
use crate::net::{Namespace, NetError, Prefix, bits};
use crate::rpc::relay;
use crate::vm::{Vm, port};

/// The name of our table in the namespace.
pub const TABLE: &str = "osc_localhost";

/// The priority of destination NAT.
const DSTNAT: i32 = -100;

/// Makes the listeners and the rule in `namespace`, and serves until `stop` is closed.
pub fn start(namespace: &Namespace, vm: Arc<dyn Vm>, stop: File) -> Result<(), NetError> {
    let listeners = namespace.inside(listen)??;
    nft::install(&mut namespace.inside(crate::net::netlink::Netlink::netfilter)??, &table(&listeners)?)?;
    crate::thread::try_start("localhost", move || serve(&listeners, &vm, &stop))?;
    Ok(())
}

/// One for each family that the namespace has. Whatever port is free.
fn listen() -> io::Result<Vec<TcpListener>> {
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(std::iter::once(v4).chain(TcpListener::bind((Ipv6Addr::LOCALHOST, 0))).collect())
}

fn table(listeners: &[TcpListener]) -> io::Result<Table> {
    let rule = |l: &TcpListener| {
        let at = l.local_addr()?;
        let to = Prefix { address: at.ip(), length: bits(&at.ip()) };
        Ok(Rule { matches: vec![Match::Dest(to), Match::Protocol(TCP)], verdict: Verdict::Redirect(at.port()) })
    };
    let rules = listeners.iter().map(rule).collect::<io::Result<_>>()?;
    Ok(Table { name: TABLE.into(), chains: vec![Chain { kind: Kind::Nat, hook: Hook::Output, priority: DSTNAT, rules }] })
}

fn serve(listeners: &[TcpListener], vm: &Arc<dyn Vm>, stop: &File) {
    loop {
        let fds = listeners.iter().map(AsFd::as_fd).chain([stop.as_fd()]);
        let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return log::warn!("localhost of the pod: {e}"),
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        if ready.last() == Some(&true) {
            return;
        }
        for (listener, _) in listeners.iter().zip(ready).filter(|l| l.1) {
            let Ok((tcp, _)) = listener.accept() else { continue };
            let vm = vm.clone();
            let started = crate::thread::try_start("localhost-conn", move || {
                if let Err(e) = carry(&tcp, vm.as_ref()) {
                    log::debug!("localhost of the pod: {e}");
                    relay::reset(&tcp);
                }
            });
            started.map_or_else(|e| log::warn!("localhost of the pod: {e}"), drop);
        }
    }
}

fn carry(tcp: &TcpStream, vm: &dyn Vm) -> io::Result<()> {
    let wanted = original(tcp)?;
    let stream = vm.dial(port::FORWARD).map_err(|e| io::Error::other(e.to_string()))?;
    (&stream).write_all(format!("TCP {} {}\n", wanted.ip(), wanted.port()).as_bytes())?;
    match relay::line(&stream)?.as_str() {
        "OK" => relay::join(tcp, &stream),
        refused => Err(io::Error::other(format!("{wanted}: {refused}"))),
    }
}

/// The address that the client dialled.
fn original(tcp: &TcpStream) -> io::Result<SocketAddr> {
    /// Of linux/netfilter_ipv4.h and linux/netfilter_ipv6/ip6_tables.h.
    const SO_ORIGINAL_DST: libc::c_int = 80;
    /// `struct sockaddr_in6`, of which an IPv4 one fills the first 16 bytes.
    const LENGTH: usize = 28;
    let v4 = tcp.local_addr()?.is_ipv4();
    let level = if v4 { libc::SOL_IP } else { libc::SOL_IPV6 };
    let mut address = [0u8; LENGTH];
    let mut length = if v4 { 16 } else { LENGTH as libc::socklen_t };
    // SAFETY: the kernel writes at most `length` bytes into a buffer that is at least as long.
    if unsafe { libc::getsockopt(tcp.as_raw_fd(), level, SO_ORIGINAL_DST, address.as_mut_ptr().cast(), &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let port = u16::from_be_bytes([address[2], address[3]]);
    let ip: Option<IpAddr> = crate::net::from_octets(if v4 { &address[4..8] } else { &address[8..24] });
    ip.map(|ip| (ip, port).into()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
