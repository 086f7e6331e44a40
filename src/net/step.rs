//! A step of a set-up in the two forms in which people know it: what the kernel is told, and the `ip` or `tc` command that
//! would tell it the same. One description, two renderers: `--dry-run` cannot say anything but what is done.

use std::fmt;
use std::os::fd::OwnedFd;

use super::netlink::Netlink;
use super::{NetError, link, tap, tc};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A tap with so many queues.
    Tap {
        tap: String,
        queues: usize,
    },
    /// No link-local address, and so no packets of the host's own into the guest.
    NoLinkLocal {
        link: String,
    },
    Mtu {
        link: String,
        mtu: u32,
    },
    Up {
        link: String,
    },
    /// An ingress qdisc.
    Ingress {
        link: String,
    },
    /// All that arrives at `from` leaves through `to`.
    Redirect {
        from: String,
        to: String,
    },
    /// So many bits per second leave through it.
    Limit {
        link: String,
        bits: u64,
    },
}

impl Step {
    /// Does it in the namespace of the calling thread, which `nl` is of. The queues of a tap are added to `open`.
    pub fn run(&self, nl: &mut Netlink, open: &mut Vec<OwnedFd>) -> Result<(), NetError> {
        match self {
            Step::Tap { tap, queues } => open.extend(tap::open(tap, *queues)?),
            Step::NoLinkLocal { link } => {
                let link = link::by_name(nl, link)?;
                link::no_link_local(nl, &link)?;
            }
            Step::Mtu { link, mtu } => {
                let link = link::by_name(nl, link)?;
                link::set_mtu(nl, &link, *mtu)?;
            }
            Step::Up { link } => {
                let link = link::by_name(nl, link)?;
                link::up(nl, &link, true)?;
            }
            Step::Ingress { link } => {
                let link = link::by_name(nl, link)?;
                tc::add_ingress(nl, &link)?;
            }
            Step::Redirect { from, to } => {
                let (from, to) = (link::by_name(nl, from)?, link::by_name(nl, to)?);
                let classifier = tc::redirect(nl, &from, &to)?;
                log::debug!("{} -> {} by {classifier}", from.name, to.name);
            }
            Step::Limit { link, bits } => {
                let link = link::by_name(nl, link)?;
                tc::add_limit(nl, &link, *bits)?;
            }
        }
        Ok(())
    }
}

/// The command, for a shell in the namespace.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Tap { tap, queues } => {
                write!(f, "ip tuntap add dev {tap} mode tap vnet_hdr{}", if *queues > 1 { " multi_queue" } else { "" })
            }
            Step::NoLinkLocal { link } => write!(f, "ip link set dev {link} addrgenmode none"),
            Step::Mtu { link, mtu } => write!(f, "ip link set dev {link} mtu {mtu}"),
            Step::Up { link } => write!(f, "ip link set dev {link} up"),
            Step::Limit { link, bits } => {
                let tc::Bucket { burst, limit, .. } = tc::Bucket::of(*bits);
                write!(f, "tc qdisc add dev {link} root handle {}: tbf rate {bits}bit burst {burst} limit {limit}", tc::LIMIT_MAJOR)
            }
            Step::Ingress { link } => write!(f, "tc qdisc add dev {link} ingress"),
            Step::Redirect { from, to } => {
                let filter = format!("tc filter add dev {from} parent ffff: protocol all pref {}", tc::PREFERENCE);
                let action = format!("action mirred egress redirect dev {to}");
                write!(f, "{filter} matchall {action} 2>/dev/null || {filter} u32 match u8 0 0 {action}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let tap = |queues| Step::Tap { tap: "tap0_kata".into(), queues }.to_string();
        assert_eq!(tap(1), "ip tuntap add dev tap0_kata mode tap vnet_hdr");
        assert_eq!(tap(8), "ip tuntap add dev tap0_kata mode tap vnet_hdr multi_queue");
        let redirect = Step::Redirect { from: "a".into(), to: "b".into() }.to_string();
        assert!(redirect.ends_with("u32 match u8 0 0 action mirred egress redirect dev b"), "{redirect}");
    }
}
