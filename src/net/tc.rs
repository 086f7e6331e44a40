//! Verbs on traffic control: ingress qdiscs, and filters that hand every packet to another device
//! (linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h).
//!
//! A filter is `matchall` where the kernel has that classifier, else `u32` with one key that every packet matches.

use std::time::{Duration, Instant};

use super::NetError;
use super::link::Link;
use super::message::{Message, attributes, find, text};
use super::netlink::{ACK, CREATE, DUMP, EXCL, Netlink, REQUEST};

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_MATCHALL_ACT: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_ACT_STATS: u16 = 4;
const TCA_STATS_BASIC: u16 = 1;
const TCA_MIRRED_PARMS: u16 = 2;

/// `ffff:`, the handle of an ingress qdisc and the parent of its filters.
const INGRESS: u32 = 0xffff_0000;
/// Where it hangs.
const TC_H_INGRESS: u32 = 0xffff_fff1;
const TC_H_ROOT: u32 = 0xffff_ffff;

/// The preference that the kernel gives the first filter without one.
pub const PREFERENCE: u32 = 0xc000;

/// Every packet, whatever its protocol (ETH_P_ALL), in network order.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

const TC_ACT_STOLEN: i32 = 4;
const TCA_EGRESS_REDIR: i32 = 1;
const TC_U32_TERMINAL: u8 = 1;

/// A qdisc that is just being destroyed answers EBUSY for a moment.
const BUSY_FOR: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// `struct tcmsg`.
fn fixed(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut bytes = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for n in [index, handle, parent, info] {
        bytes.extend(n.to_ne_bytes());
    }
    bytes
}

/// A queueing discipline of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qdisc {
    /// Index of the device.
    pub link: u32,
    pub kind: String,
    pub handle: u32,
    pub parent: u32,
}

/// A filter on a device's ingress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    pub kind: String,
    pub preference: u32,
    /// Index of the device it redirects to; 0 when that device is gone.
    pub redirect: Option<u32>,
    /// Packets that took it.
    pub packets: u32,
}

/// Repeats `attempt` while it is refused with EBUSY.
pub fn while_busy<T>(mut attempt: impl FnMut() -> Result<T, NetError>) -> Result<T, NetError> {
    let until = Instant::now() + BUSY_FOR;
    loop {
        match attempt() {
            Err(e) if e.errno() == Some(libc::EBUSY) && Instant::now() < until => std::thread::sleep(BUSY_PAUSE),
            other => return other,
        }
    }
}

/// Gives `link` an ingress qdisc; EEXIST if it has one (or a clsact).
pub fn add_ingress(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    while_busy(|| {
        let message = Message::new(libc::RTM_NEWQDISC, REQUEST | ACK | CREATE | EXCL, &fixed(link.index, INGRESS, TC_H_INGRESS, 0))
            .text(TCA_KIND, "ingress");
        nl.tell(&format!("add ingress qdisc to {}", link.name), message)
    })
}

/// Takes the ingress qdisc of `link` with all its filters; that there is none is no error.
pub fn remove_ingress(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    let removed = while_busy(|| {
        let message = Message::new(libc::RTM_DELQDISC, REQUEST | ACK, &fixed(link.index, INGRESS, TC_H_INGRESS, 0));
        nl.tell(&format!("remove ingress qdisc of {}", link.name), message)
    });
    match removed {
        // "Cannot find specified qdisc on specified device", "Invalid handle": there is none; and the device itself is gone.
        Err(e) if matches!(e.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

/// Major number, hexadecimal as `tc` writes it, of the root qdisc by which we limit a device: so it is told from others.
pub const LIMIT_MAJOR: &str = "5c0";
const LIMIT: u32 = 0x05c0_0000;

/// A token bucket for a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may go at once.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

impl Bucket {
    /// For bits per second: 10 ms at once, at least a large segment; 100 ms may wait.
    pub fn of(bits: u64) -> Bucket {
        const LEAST: u64 = 64 * 1024;
        const MOST: u64 = 1 << 30;
        let rate = bits / 8;
        let burst = (rate / 100).clamp(LEAST, MOST);
        Bucket { rate, burst: burst as u32, limit: (burst + (rate / 10).clamp(LEAST, MOST)) as u32 }
    }
}

/// Lets no more than `bits` per second leave through `link`, which must have no root qdisc of somebody's.
pub fn add_limit(nl: &mut Netlink, link: &Link, bits: u64) -> Result<(), NetError> {
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    /// Lengths of frames are what they are: no tables of rounded ones.
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    let bucket = Bucket::of(bits);
    // struct tc_tbf_qopt: two struct tc_ratespec (cell_log, linklayer, overhead, cell_align, mpu, rate), limit, buffer, mtu.
    let mut parms = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parms.extend(u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    parms.extend([0; 12]);
    for n in [bucket.limit, 0, 0] {
        parms.extend(n.to_ne_bytes());
    }
    let options = |m: Message| {
        let m = m.attribute(TCA_TBF_PARMS, &parms).number(TCA_TBF_BURST, bucket.burst);
        if u32::try_from(bucket.rate).is_err() { m.attribute(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes()) } else { m }
    };
    while_busy(|| {
        let base = Message::new(libc::RTM_NEWQDISC, REQUEST | ACK | CREATE | EXCL, &fixed(link.index, LIMIT, TC_H_ROOT, 0));
        nl.tell(&format!("limit {} to {bits} bit/s", link.name), base.text(TCA_KIND, "tbf").nest(TCA_OPTIONS, options))
    })
}

/// Takes the limit of `link` away, where it has one of ours.
pub fn remove_limit(nl: &mut Netlink, link: &Link) -> Result<(), NetError> {
    if !qdiscs(nl)?.iter().any(|q| q.link == link.index && q.handle == LIMIT) {
        return Ok(());
    }
    let message = Message::new(libc::RTM_DELQDISC, REQUEST | ACK, &fixed(link.index, LIMIT, TC_H_ROOT, 0));
    match nl.tell(&format!("remove limit of {}", link.name), message) {
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Every qdisc of the namespace but the kernel's defaults without a handle.
pub fn qdiscs(nl: &mut Netlink) -> Result<Vec<Qdisc>, NetError> {
    let answers = nl.dump("list qdiscs", Message::new(libc::RTM_GETQDISC, REQUEST | DUMP, &fixed(0, 0, 0, 0)))?;
    Ok(answers.iter().filter_map(|a| parse_qdisc(a)).collect())
}

/// The ingress or clsact qdisc of `link`.
pub fn ingress_of(nl: &mut Netlink, link: &Link) -> Result<Option<Qdisc>, NetError> {
    Ok(qdiscs(nl)?.into_iter().find(|q| q.link == link.index && q.parent == TC_H_INGRESS))
}

fn parse_qdisc(body: &[u8]) -> Option<Qdisc> {
    let (link, handle, parent) = (word(body, 4)?, word(body, 8)?, word(body, 12)?);
    let kind = find(&attributes(body.get(FIXED..)?), TCA_KIND).map(text)?;
    Some(Qdisc { link, kind, handle, parent })
}

/// Length of `struct tcmsg`.
const FIXED: usize = 20;

fn word(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(body.get(at..at + 4)?.try_into().ok()?))
}

/// Everything that arrives at `from` leaves through `to`, and nobody else sees it. Answers the classifier that was taken.
pub fn redirect(nl: &mut Netlink, from: &Link, to: &Link) -> Result<&'static str, NetError> {
    let what = format!("redirect {} to {}", from.name, to.name);
    let base = || {
        let info = PREFERENCE << 16 | ALL_PROTOCOLS;
        Message::new(libc::RTM_NEWTFILTER, REQUEST | ACK | CREATE | EXCL, &fixed(from.index, 0, INGRESS, info))
    };
    let act = |m: Message, kind: u16| m.nest(kind, |m| m.nest(1, |m| mirred(m, to.index)));
    let matchall = while_busy(|| nl.tell(&what, base().text(TCA_KIND, "matchall").nest(TCA_OPTIONS, |m| act(m, TCA_MATCHALL_ACT))));
    match matchall {
        // The one number that says that the kernel has no such classifier.
        Err(e) if e.errno() == Some(libc::ENOENT) => {
            let options = |m: Message| act(m.attribute(TCA_U32_SEL, &every_packet()), TCA_U32_ACT);
            while_busy(|| nl.tell(&what, base().text(TCA_KIND, "u32").nest(TCA_OPTIONS, options)))?;
            Ok("u32")
        }
        other => other.map(|()| "matchall"),
    }
}

fn mirred(message: Message, to: u32) -> Message {
    // struct tc_mirred: tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex
    let mut parms = Vec::new();
    for n in [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to as i32] {
        parms.extend(n.to_ne_bytes());
    }
    message.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |m| m.attribute(TCA_MIRRED_PARMS, &parms))
}

/// `struct tc_u32_sel` with one `struct tc_u32_key` whose mask leaves nothing to compare.
fn every_packet() -> Vec<u8> {
    const SEL: usize = 16;
    const KEY: usize = 16;
    let mut bytes = vec![0; SEL + KEY];
    bytes[0] = TC_U32_TERMINAL;
    bytes[2] = 1;
    bytes
}

/// Filters on the ingress of `link`. The tables that `u32` makes for itself are left out.
pub fn filters(nl: &mut Netlink, link: &Link) -> Result<Vec<Filter>, NetError> {
    let message = Message::new(libc::RTM_GETTFILTER, REQUEST | DUMP, &fixed(link.index, 0, INGRESS, 0));
    let answers = match nl.dump(&format!("list filters of {}", link.name), message) {
        // No such qdisc: no filters.
        Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(Vec::new()),
        other => other?,
    };
    Ok(answers.iter().filter_map(|a| parse_filter(a)).collect())
}

fn parse_filter(body: &[u8]) -> Option<Filter> {
    let preference = word(body, 16)? >> 16;
    let all = attributes(body.get(FIXED..)?);
    let kind = find(&all, TCA_KIND).map(text)?;
    let options = attributes(find(&all, TCA_OPTIONS)?);
    let actions = match kind.as_str() {
        "matchall" => find(&options, TCA_MATCHALL_ACT),
        "u32" => {
            find(&options, TCA_U32_SEL)?;
            find(&options, TCA_U32_ACT)
        }
        _ => None,
    };
    let (redirect, packets) = actions.and_then(redirection).unzip();
    Some(Filter { kind, preference, redirect, packets: packets.unwrap_or(0) })
}

/// The target of the one redirection among `actions`, and how many packets it has had.
fn redirection(actions: &[u8]) -> Option<(u32, u32)> {
    /// Places in `struct tc_mirred` and in `struct gnet_stats_basic`.
    const IFINDEX: usize = 24;
    const PACKETS: usize = 8;
    attributes(actions).iter().find_map(|(_, action)| {
        let action = attributes(action);
        let kind = find(&action, TCA_ACT_KIND).map(text)?;
        let parms = find(&attributes(find(&action, TCA_ACT_OPTIONS)?), TCA_MIRRED_PARMS)?;
        let basic = find(&action, TCA_ACT_STATS).and_then(|s| find(&attributes(s), TCA_STATS_BASIC).and_then(|b| word(b, PACKETS)));
        let target = (kind == "mirred").then(|| word(parms, IFINDEX)).flatten()?;
        Some((target, basic.unwrap_or(0)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_busy_qdisc_is_tried_again_and_no_other_error_is() {
        let refused = |n| NetError::Refused { what: "x".into(), error: io::Error::from_raw_os_error(n), text: String::new() };
        let mut left = 3;
        let answer = while_busy(|| {
            left -= 1;
            if left > 0 { Err(refused(libc::EBUSY)) } else { Ok(left) }
        });
        assert_eq!(answer.unwrap(), 0);
        let mut tries = 0;
        let answer: Result<(), _> = while_busy(|| {
            tries += 1;
            Err(refused(libc::EPERM))
        });
        assert_eq!((answer.unwrap_err().errno(), tries), (Some(libc::EPERM), 1));
    }

    #[test]
    fn what_a_filter_says_is_read_back() {
        let act = |m: Message, kind| m.nest(kind, |m| m.nest(1, |m| mirred(m, 7)));
        let info = PREFERENCE << 16;
        let message = Message::new(0, 0, &fixed(3, 0, INGRESS, info))
            .text(TCA_KIND, "u32")
            .nest(TCA_OPTIONS, |m| act(m.attribute(TCA_U32_SEL, &every_packet()), TCA_U32_ACT));
        let filter = parse_filter(&message.finish(1)[16..]).unwrap();
        assert_eq!(filter, Filter { kind: "u32".into(), preference: PREFERENCE, redirect: Some(7), packets: 0 });
        assert_eq!(parse_filter(&[0; 12]), None);
    }
}
