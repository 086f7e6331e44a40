//! The address of a pod VM whose user-data holds none: a DHCP client (RFC 2131, 2132, 3442), no more of one than that.
//!
//! Answers are asked for as broadcasts, so that an ordinary socket receives them before the interface has an address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use crate::error::{At, Failure, Result, Stage};
use crate::net::link::{self, Link, MAC};
use crate::net::netlink::Netlink;
use crate::net::route::{self, ONLINK, Route};
use crate::net::{Prefix, address};

const CLIENT: u16 = 68;
const SERVER: u16 = 67;

/// How long a server may take to give an address.
const LIMIT: Duration = Duration::from_secs(60);

/// Between the first two requests; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Between two tries to keep an address.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// The least that a lease is taken to last, seconds.
const SHORTEST_LEASE: u32 = 60;
const FOR_EVER: u32 = u32::MAX;

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const OPTIONS: usize = 240;

/// Options.
const MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const MTU: u8 = 26;
const REQUESTED: u8 = 50;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER_ID: u8 = 54;
const WANTED: u8 = 55;
const ROUTES: u8 = 121;
const END: u8 = 255;

/// Kinds of messages.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

/// What a server gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    kind: u8,
    pub address: Prefix,
    server: Ipv4Addr,
    seconds: u32,
    /// (destination, gateway); no destination: the default.
    pub routes: Vec<(Option<Prefix>, Option<Ipv4Addr>)>,
    pub nameservers: Vec<Ipv4Addr>,
    pub mtu: Option<u32>,
}

/// Gives `link`, which is up, the address that a server has for it, and keeps it. Answers the name servers.
pub fn configure(link: &Link) -> Result<Vec<Ipv4Addr>> {
    let what = || format!("DHCP on {}", link.name);
    let mac = link.ethernet().ok_or_else(|| Failure::new(Stage::Network, format!("{}: no Ethernet interface", link.name)))?;
    let client = Client::open(link, mac).at(Stage::Network, what)?;
    let lease = client.acquire().at(Stage::Network, what)?;
    log::info!("{}: {} from {}", what(), lease.address, lease.server);
    apply(link, &lease)?;
    if lease.seconds != FOR_EVER {
        let kept = lease.clone();
        crate::thread::start("osc-dhcp", move || client.keep(&kept));
    }
    Ok(lease.nameservers)
}

fn apply(link: &Link, lease: &Lease) -> Result<()> {
    let mut nl = Netlink::open()?;
    if let Some(mtu) = lease.mtu {
        link::set_mtu(&mut nl, link, mtu)?;
    }
    address::add(&mut nl, link, &lease.address)?;
    for (destination, gateway) in &lease.routes {
        let near = gateway.is_none_or(|g| {
            crate::net::network_of(&lease.address) == crate::net::network_of(&Prefix { address: g.into(), ..lease.address })
        });
        let route = Route {
            destination: *destination,
            gateway: gateway.map(IpAddr::V4),
            link: link.index,
            flags: if near { 0 } else { ONLINK },
            ..Default::default()
        };
        route::add(&mut nl, &route)?;
    }
    Ok(())
}

struct Client {
    socket: UdpSocket,
    mac: [u8; MAC],
}

impl Client {
    fn open(link: &Link, mac: [u8; MAC]) -> io::Result<Client> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT))?;
        setsockopt(&socket, BindToDevice, &link.name.clone().into())?;
        socket.set_broadcast(true)?;
        Ok(Client { socket, mac })
    }

    fn acquire(&self) -> io::Result<Lease> {
        let until = Instant::now() + LIMIT;
        loop {
            let offer = self.ask(&[(KIND, &[DISCOVER])], Ipv4Addr::UNSPECIFIED, OFFER, until)?;
            let IpAddr::V4(address) = offer.address.address else { continue };
            let asked: [(u8, &[u8]); 3] = [(KIND, &[REQUEST]), (REQUESTED, &address.octets()), (SERVER_ID, &offer.server.octets())];
            let answer = self.ask(&asked, Ipv4Addr::UNSPECIFIED, ACK, until)?;
            if answer.kind == ACK {
                return Ok(answer);
            }
        }
    }

    /// Sends until an answer of `kind`, or a refusal, comes.
    fn ask(&self, options: &[(u8, &[u8])], own: Ipv4Addr, kind: u8, until: Instant) -> io::Result<Lease> {
        let mut xid = [0; 4];
        rustix::rand::getrandom(&mut xid[..], rustix::rand::GetRandomFlags::empty())?;
        let message = message(xid, self.mac, own, options);
        let mut pause = FIRST_PAUSE;
        let mut buffer = [0; 1500];
        while Instant::now() < until {
            self.socket.send_to(&message, (Ipv4Addr::BROADCAST, SERVER))?;
            let again = Instant::now() + pause;
            while let Some(left) = again.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
                self.socket.set_read_timeout(Some(left))?;
                match self.socket.recv(&mut buffer) {
                    Ok(n) => match read(&buffer[..n], xid, self.mac) {
                        Some(lease) if lease.kind == kind || lease.kind == NAK => return Ok(lease),
                        _ => {}
                    },
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
                    Err(e) => return Err(e),
                }
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "no server gave an address"))
    }

    /// Renews the lease for as long as the VM lives.
    fn keep(&self, lease: &Lease) {
        let IpAddr::V4(own) = lease.address.address else { return };
        let mut seconds = lease.seconds;
        loop {
            std::thread::sleep(Duration::from_secs((seconds.max(SHORTEST_LEASE) / 2).into()));
            loop {
                match self.ask(&[(KIND, &[REQUEST])], own, ACK, Instant::now() + LIMIT) {
                    Ok(new) if new.kind == ACK && new.address.address == lease.address.address => {
                        seconds = new.seconds;
                        break;
                    }
                    Ok(new) => log::error!("DHCP: {}: refused, or another one was given: {}", lease.address, new.address),
                    Err(e) => log::warn!("DHCP: renew {}: {e}", lease.address),
                }
                std::thread::sleep(RENEW_AGAIN);
            }
        }
    }
}

/// A client's message. `own` is the address it has.
fn message(xid: [u8; 4], mac: [u8; MAC], own: Ipv4Addr, options: &[(u8, &[u8])]) -> Vec<u8> {
    const BROADCAST: u8 = 0x80;
    let mut m = vec![1, 1, MAC as u8, 0];
    m.extend(xid);
    m.extend([0, 0, BROADCAST, 0]);
    m.extend(own.octets());
    m.resize(28, 0);
    m.extend(mac);
    m.resize(OPTIONS - COOKIE.len(), 0);
    m.extend(COOKIE);
    let wanted: (u8, &[u8]) = (WANTED, &[MASK, ROUTER, DNS, MTU, LEASE, ROUTES]);
    for (code, value) in options.iter().chain([&wanted]) {
        m.extend([*code, value.len() as u8]);
        m.extend_from_slice(value);
    }
    m.push(END);
    m
}

/// The answer to `xid`; what is not one is none.
fn read(m: &[u8], xid: [u8; 4], mac: [u8; MAC]) -> Option<Lease> {
    let v4 = |b: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(b.get(..4)?).ok()?));
    let ours = m.first() == Some(&2) && m.get(4..8)? == xid && m.get(28..28 + MAC)? == mac && m.get(236..OPTIONS)? == COOKIE;
    if !ours {
        return None;
    }
    let options = options(&m[OPTIONS..]);
    let option = |code: u8| options.iter().find(|o| o.0 == code).map(|o| o.1);
    let mask = option(MASK).and_then(v4).unwrap_or(Ipv4Addr::BROADCAST);
    let length = u32::from(mask).leading_ones() as u8;
    let default = || option(ROUTER).and_then(v4).map(|g| (None, Some(g))).into_iter().collect();
    Some(Lease {
        kind: *option(KIND)?.first()?,
        address: Prefix { address: v4(&m[16..])?.into(), length },
        server: option(SERVER_ID).and_then(v4).unwrap_or(Ipv4Addr::BROADCAST),
        seconds: option(LEASE).and_then(v4).map_or(FOR_EVER, u32::from),
        // A server that gives classless routes means those alone (RFC 3442).
        routes: option(ROUTES).map(routes).filter(|r| !r.is_empty()).unwrap_or_else(default),
        nameservers: option(DNS).unwrap_or_default().chunks_exact(4).filter_map(v4).collect(),
        mtu: option(MTU).and_then(|b| Some(u16::from_be_bytes(b.try_into().ok()?).into())),
    })
}

fn options(mut rest: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    loop {
        match rest {
            [0, more @ ..] => rest = more,
            [code, length, more @ ..] if *code != END && more.len() >= usize::from(*length) => {
                let (value, more) = more.split_at(usize::from(*length));
                found.push((*code, value));
                rest = more;
            }
            _ => return found,
        }
    }
}

/// Length of a prefix, its octets that count, the gateway; those on the link come first, since others go through them.
fn routes(mut rest: &[u8]) -> Vec<(Option<Prefix>, Option<Ipv4Addr>)> {
    let mut found = Vec::new();
    while let Some((&length, more)) = rest.split_first() {
        let octets = usize::from(length.div_ceil(8));
        if length > 32 || more.len() < octets + 4 {
            break;
        }
        let mut bytes = [0; 4];
        bytes[..octets].copy_from_slice(&more[..octets]);
        let gateway = Ipv4Addr::new(more[octets], more[octets + 1], more[octets + 2], more[octets + 3]);
        let destination = (length > 0).then_some(Prefix { address: Ipv4Addr::from(bytes).into(), length });
        found.push((destination, (!gateway.is_unspecified()).then_some(gateway)));
        rest = &more[octets + 4..];
    }
    found.sort_by_key(|(_, gateway)| gateway.is_some());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const XID: [u8; 4] = [1, 2, 3, 4];
    const MAC_: [u8; MAC] = [2, 0, 0, 0, 0, 1];

    fn answer(options: &[(u8, &[u8])]) -> Vec<u8> {
        let mut m = message(XID, MAC_, Ipv4Addr::UNSPECIFIED, options);
        m[0] = 2;
        m[16..20].copy_from_slice(&[192, 168, 122, 7]);
        m
    }

    #[test]
    fn a_servers_answer() {
        let m = answer(&[
            (KIND, &[ACK]),
            (MASK, &[255, 255, 255, 0]),
            (ROUTER, &[192, 168, 122, 1]),
            (DNS, &[8, 8, 8, 8, 9, 9, 9, 9]),
            (LEASE, &[0, 0, 14, 16]),
            (MTU, &[5, 180]),
        ]);
        let lease = read(&m, XID, MAC_).unwrap();
        assert_eq!(lease.address, Prefix::parse("192.168.122.7/24").unwrap());
        assert_eq!((lease.kind, lease.seconds, lease.mtu), (ACK, 3600, Some(1460)));
        assert_eq!(lease.routes, [(None, Some(Ipv4Addr::new(192, 168, 122, 1)))]);
        assert_eq!(lease.nameservers, [Ipv4Addr::new(8, 8, 8, 8), Ipv4Addr::new(9, 9, 9, 9)]);
        for (xid, mac) in [([0; 4], MAC_), (XID, [0; MAC])] {
            assert_eq!(read(&m, xid, mac), None);
        }
        assert_eq!(read(&answer(&[(MASK, &[255, 0, 0, 0])]), XID, MAC_), None);
    }

    #[test]
    fn classless_routes_stand_before_the_router_and_those_on_the_link_first() {
        // Google's: a lone address, its gateway on the link, the default through it.
        let given = [0, 10, 0, 0, 1, 32, 10, 0, 0, 1, 0, 0, 0, 0];
        let m = answer(&[(KIND, &[OFFER]), (MASK, &[255; 4]), (ROUTER, &[1, 1, 1, 1]), (ROUTES, &given)]);
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        let routes = read(&m, XID, MAC_).unwrap().routes;
        assert_eq!(routes, [(Some(Prefix { address: gateway.into(), length: 32 }), None), (None, Some(gateway))]);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(tail: Vec<u8>) {
            let mut m = answer(&[(KIND, &[ACK])]);
            m.truncate(OPTIONS);
            m.extend(&tail);
            let _ = read(&m, XID, MAC_);
            let _ = read(&tail, XID, MAC_);
            let _ = routes(&tail);
        }
    }
}
