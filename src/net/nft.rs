//! Packet rules: a table of nftables that is ours, made and removed as a whole (linux/netfilter/nf_tables.h).
//!
//! The few matches and verdicts that we need, in the two forms in which people know them: what the kernel is told, and nft's
//! own language, which `--dry-run` prints. No `nft` has to be installed.

use std::fmt::{self, Write};
use std::net::IpAddr;

use super::message::Message;
use super::netlink::{ACK, CREATE, Netlink, REQUEST};
use super::{NetError, Prefix, octets};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;

/// Tables for both families (NFPROTO_INET).
const INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// NFT_REG_1, where a match is put, and NFT_REG_VERDICT.
const REG: u32 = 1;
const VERDICT: u32 = 0;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: String,
    pub chains: Vec<Chain>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub kind: Kind,
    pub hook: Hook,
    pub priority: i32,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Filter,
    Nat,
}

/// NF_INET_*
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// All matches must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// [`TCP`] or [`UDP`].
    Protocol(u8),
    /// After a protocol.
    DestPort(u16),
    Dest(Prefix),
    Source(Prefix),
    NotSource(IpAddr),
    In(String),
    Out(String),
    /// Packets of connections that are known already.
    Established,
    /// A VXLAN packet's network, after UDP.
    Vni(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    /// Dropped, and the sender is told.
    Reject,
    /// To this port of this host.
    Redirect(u16),
    /// From the address of the interface it leaves by.
    Masquerade,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        }
    }
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// Makes the table; one of the same name is replaced, and nobody sees a moment without either.
pub fn install(nl: &mut Netlink, table: &Table) -> Result<(), NetError> {
    let what = format!("make nftables table {}", table.name);
    let mut all = vec![new_table(table), header(DEL_TABLE, 0).text(1, &table.name), new_table(table)];
    for chain in &table.chains {
        all.push(new_chain(table, chain));
        all.extend(chain.rules.iter().map(|r| new_rule(table, chain, r)));
    }
    nl.batch(&what, SUBSYSTEM >> 8, all)
}

/// Removes the table; that there is none is no error.
pub fn remove(nl: &mut Netlink, name: &str) -> Result<(), NetError> {
    match nl.batch(&format!("remove nftables table {name}"), SUBSYSTEM >> 8, vec![header(DEL_TABLE, 0).text(1, name)]) {
        Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// `struct nfgenmsg`.
fn header(kind: u16, flags: u16) -> Message {
    Message::new(kind, REQUEST | ACK | flags, &[INET, 0, 0, 0])
}

fn new_table(table: &Table) -> Message {
    header(NEW_TABLE, CREATE).text(1, &table.name)
}

fn be(m: Message, kind: u16, value: u32) -> Message {
    m.attribute(kind, &value.to_be_bytes())
}

fn new_chain(table: &Table, chain: &Chain) -> Message {
    const TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const TYPE: u16 = 7;
    let m = header(NEW_CHAIN, CREATE).text(TABLE, &table.name).text(NAME, chain.hook.name());
    let m = m.nest(HOOK, |m| be(be(m, 1, chain.hook as u32), 2, chain.priority as u32));
    m.text(TYPE, chain.kind.name())
}

fn new_rule(table: &Table, chain: &Chain, rule: &Rule) -> Message {
    const EXPRESSIONS: u16 = 4;
    const APPEND: u16 = libc::NLM_F_APPEND as u16;
    let m = header(NEW_RULE, CREATE | APPEND).text(1, &table.name).text(2, chain.hook.name());
    m.nest(EXPRESSIONS, |m| {
        let m = rule.matches.iter().fold(m, match_expressions);
        verdict_expressions(m, rule.verdict)
    })
}

/// One element of a rule's list.
fn expression(m: Message, name: &str, data: impl FnOnce(Message) -> Message) -> Message {
    m.nest(1, |m| m.text(1, name).nest(2, data))
}

/// `NFTA_DATA_VALUE` in the attribute `kind`.
fn value(m: Message, kind: u16, bytes: &[u8]) -> Message {
    m.nest(kind, |m| m.attribute(1, bytes))
}

/// A property of the packet (NFT_META_*) into the register.
fn meta(m: Message, key: u32) -> Message {
    expression(m, "meta", |m| be(be(m, 1, REG), 2, key))
}

/// Bytes of a header into the register.
fn payload(m: Message, base: u32, offset: u32, length: usize) -> Message {
    expression(m, "payload", |m| be(be(be(be(m, 1, REG), 2, base), 3, offset), 4, length as u32))
}

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

fn compare(m: Message, operator: u32, bytes: &[u8]) -> Message {
    expression(m, "cmp", |m| value(be(be(m, 1, REG), 2, operator), 3, bytes))
}

fn mask(m: Message, bytes: &[u8]) -> Message {
    expression(m, "bitwise", |m| {
        let m = be(be(be(m, 1, REG), 2, REG), 3, bytes.len() as u32);
        value(value(m, 4, bytes), 5, &vec![0; bytes.len()])
    })
}

const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// Where an address is in an IPv4 and in an IPv6 header.
const SOURCE: (u32, u32) = (12, 8);
const DESTINATION: (u32, u32) = (16, 24);

/// Where the VNI is, behind the UDP header and VXLAN's flags.
const VNI: u32 = 12;

fn match_expressions(m: Message, wanted: &Match) -> Message {
    match wanted {
        Match::Protocol(p) => compare(meta(m, META_L4PROTO), EQUAL, &[*p]),
        Match::DestPort(port) => compare(payload(m, TRANSPORT, 2, 2), EQUAL, &port.to_be_bytes()),
        Match::Dest(prefix) => address(m, DESTINATION, prefix, EQUAL),
        Match::Source(prefix) => address(m, SOURCE, prefix, EQUAL),
        Match::NotSource(a) => address(m, SOURCE, &Prefix { address: *a, length: super::bits(a) }, NOT_EQUAL),
        Match::In(name) => compare(meta(m, META_IIFNAME), EQUAL, &device(name)),
        Match::Out(name) => compare(meta(m, META_OIFNAME), EQUAL, &device(name)),
        Match::Established => {
            // NFT_CT_STATE; the bits of established and related.
            let m = expression(m, "ct", |m| be(be(m, 1, REG), 2, 0));
            compare(mask(m, &6u32.to_ne_bytes()), NOT_EQUAL, &[0; 4])
        }
        Match::Vni(vni) => compare(payload(m, TRANSPORT, VNI, 3), EQUAL, &vni.to_be_bytes()[1..]),
    }
}

fn device(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    let length = name.len().min(libc::IFNAMSIZ - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

fn address(m: Message, place: (u32, u32), prefix: &Prefix, operator: u32) -> Message {
    let v4 = prefix.address.is_ipv4();
    let m = compare(meta(m, META_NFPROTO), EQUAL, &[if v4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }]);
    let network = octets(&super::network_of(prefix).address);
    if prefix.length == 0 {
        // Any address of the family.
        return m;
    }
    let m = payload(m, NETWORK, if v4 { place.0 } else { place.1 }, network.len());
    let ones = |n: usize| !(0xffu16 >> usize::from(prefix.length).saturating_sub(n * 8).min(8)) as u8;
    let bits: Vec<u8> = (0..network.len()).map(ones).collect();
    let m = if prefix.length < super::bits(&prefix.address) { mask(m, &bits) } else { m };
    compare(m, operator, &network)
}

fn verdict_expressions(m: Message, verdict: Verdict) -> Message {
    let code = |m, code: u32| expression(m, "immediate", |m| be(m, 1, VERDICT).nest(2, |m| m.nest(2, |m| be(m, 1, code))));
    match verdict {
        Verdict::Drop => code(m, 0),
        Verdict::Accept => code(m, 1),
        // NFT_REJECT_ICMPX_UNREACH, administratively prohibited.
        Verdict::Reject => expression(m, "reject", |m| be(m, 1, 2).attribute(2, &[3])),
        Verdict::Redirect(port) => {
            let m = expression(m, "immediate", |m| value(be(m, 1, REG), 2, &port.to_be_bytes()));
            expression(m, "redir", |m| be(m, 1, REG))
        }
        Verdict::Masquerade => expression(m, "masq", |m| m),
    }
}

// nft's own language.

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.name)?;
        for c in &self.chains {
            writeln!(f, "  chain {} {{", c.hook.name())?;
            writeln!(f, "    type {} hook {} priority {};", c.kind.name(), c.hook.name(), c.priority)?;
            c.rules.iter().try_for_each(|r| writeln!(f, "    {r}"))?;
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.matches.iter().try_for_each(|m| write!(f, "{} ", m.text()))?;
        match self.verdict {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Reject => f.write_str("reject with icmpx admin-prohibited"),
            Verdict::Redirect(port) => write!(f, "redirect to :{port}"),
            Verdict::Masquerade => f.write_str("masquerade"),
        }
    }
}

impl Match {
    fn text(&self) -> String {
        let family = |a: &IpAddr| if a.is_ipv4() { "ip" } else { "ip6" };
        let mut text = String::new();
        let written = match self {
            Match::Protocol(TCP) => write!(text, "meta l4proto tcp"),
            Match::Protocol(UDP) => write!(text, "meta l4proto udp"),
            Match::Protocol(p) => write!(text, "meta l4proto {p}"),
            Match::DestPort(p) => write!(text, "th dport {p}"),
            Match::Dest(p) | Match::Source(p) if p.length == 0 => {
                write!(text, "meta nfproto {}", if p.address.is_ipv4() { "ipv4" } else { "ipv6" })
            }
            Match::Dest(p) => write!(text, "{} daddr {p}", family(&p.address)),
            Match::Source(p) => write!(text, "{} saddr {p}", family(&p.address)),
            Match::NotSource(a) => write!(text, "{} saddr != {a}", family(a)),
            Match::In(name) => write!(text, "iifname \"{name}\""),
            Match::Out(name) => write!(text, "oifname \"{name}\""),
            Match::Established => write!(text, "ct state established,related"),
            Match::Vni(vni) => write!(text, "@th,96,24 {vni}"),
        };
        // Writing to a string cannot fail.
        let _ = written;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_in_nfts_language() {
        let rule = |matches, verdict| Rule { matches, verdict };
        let to = |text: &str| Match::Dest(Prefix::parse(text).unwrap());
        let rules = vec![rule(vec![to("127.0.0.1/32"), Match::Protocol(TCP)], Verdict::Redirect(7)), rule(vec![], Verdict::Drop)];
        let table = Table { name: "osc".into(), chains: vec![Chain { kind: Kind::Nat, hook: Hook::Output, priority: -100, rules }] };
        let text = table.to_string();
        assert!(text.contains("type nat hook output priority -100;"), "{text}");
        assert!(text.contains("ip daddr 127.0.0.1/32 meta l4proto tcp redirect to :7\n    drop\n"), "{text}");
        assert_eq!(Match::NotSource("fd00::1".parse().unwrap()).text(), "ip6 saddr != fd00::1");
    }
}
