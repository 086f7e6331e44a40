//! Network types of the agent protocol (package `types`).

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum IpFamily {
    V4 = 0,
    V6 = 1,
}

/// When to change the group of a volume's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FsGroupChangePolicy {
    Always = 0,
    OnRootMismatch = 1,
}

/// An address with its prefix.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpAddress {
    /// An [`IpFamily`].
    #[prost(enumeration = "IpFamily", tag = "1")]
    pub family: i32,
    #[prost(string, tag = "2")]
    pub address: String,
    /// The prefix's length, in decimal.
    #[prost(string, tag = "3")]
    pub mask: String,
    /// Beyond Kata: IFA_F_* to set; IFA_F_NOPREFIXROUTE is the one that matters.
    #[prost(uint32, tag = "1001")]
    pub flags: u32,
}

/// A network interface of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interface {
    /// The name on the host; only informs.
    #[prost(string, tag = "1")]
    pub device: String,
    /// The name it is to have in the guest.
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub ip_addresses: Vec<IpAddress>,
    /// Bytes.
    #[prost(uint64, tag = "4")]
    pub mtu: u64,
    #[prost(string, tag = "5")]
    pub hw_addr: String,
    /// PCI path where it was hot-plugged; empty: found by its MAC.
    #[prost(string, tag = "6")]
    pub device_path: String,
    #[prost(string, tag = "7")]
    pub r#type: String,
    /// IFF_* bits; IFF_NOARP is the one that matters.
    #[prost(uint32, tag = "8")]
    pub raw_flags: u32,
}

/// A route of the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Route {
    /// CIDR; empty is the default route.
    #[prost(string, tag = "1")]
    pub dest: String,
    #[prost(string, tag = "2")]
    pub gateway: String,
    #[prost(string, tag = "3")]
    pub device: String,
    #[prost(string, tag = "4")]
    pub source: String,
    /// RT_SCOPE_*.
    #[prost(uint32, tag = "5")]
    pub scope: u32,
    /// An [`IpFamily`].
    #[prost(enumeration = "IpFamily", tag = "6")]
    pub family: i32,
    /// RTNH_F_*; ONLINK is the one that matters.
    #[prost(uint32, tag = "7")]
    pub flags: u32,
    #[prost(uint32, tag = "8")]
    pub mtu: u32,
    /// Beyond Kata: the metric; 0 is the kernel's default.
    #[prost(uint32, tag = "1001")]
    pub metric: u32,
    /// Beyond Kata: RTN_*, for a route that leads nowhere (a blackhole); 0 is unicast.
    #[prost(uint32, tag = "1002")]
    pub kind: u32,
}

/// A neighbour that the guest need not ask for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ArpNeighbor {
    #[prost(message, optional, tag = "1")]
    pub to_ip_address: Option<IpAddress>,
    #[prost(string, tag = "2")]
    pub device: String,
    #[prost(string, tag = "3")]
    pub lladdr: String,
    #[prost(int32, tag = "4")]
    pub state: i32,
    #[prost(int32, tag = "5")]
    pub flags: i32,
}
