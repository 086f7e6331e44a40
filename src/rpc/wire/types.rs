//! Interfaces, routes and neighbours of a guest (package `types`).

/// `types.IPFamily`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum IpFamily {
    V4 = 0,
    V6 = 1,
}

/// `types.FSGroupChangePolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FsGroupChangePolicy {
    Always = 0,
    OnRootMismatch = 1,
}

/// `types.IPAddress`
#[derive(Clone, PartialEq, prost::Message)]
pub struct IpAddress {
    #[prost(enumeration = "IpFamily", tag = "1")]
    pub family: i32,
    #[prost(string, tag = "2")]
    pub address: String,
    #[prost(string, tag = "3")]
    pub mask: String,
}

/// `types.Interface`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Interface {
    #[prost(string, tag = "1")]
    pub device: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "3")]
    pub ip_addresses: Vec<IpAddress>,
    #[prost(uint64, tag = "4")]
    pub mtu: u64,
    #[prost(string, tag = "5")]
    pub hw_addr: String,
    #[prost(string, tag = "6")]
    pub device_path: String,
    #[prost(string, tag = "7")]
    pub r#type: String,
    #[prost(uint32, tag = "8")]
    pub raw_flags: u32,
}

/// `types.Route`
#[derive(Clone, PartialEq, prost::Message)]
pub struct Route {
    #[prost(string, tag = "1")]
    pub dest: String,
    #[prost(string, tag = "2")]
    pub gateway: String,
    #[prost(string, tag = "3")]
    pub device: String,
    #[prost(string, tag = "4")]
    pub source: String,
    #[prost(uint32, tag = "5")]
    pub scope: u32,
    #[prost(enumeration = "IpFamily", tag = "6")]
    pub family: i32,
    #[prost(uint32, tag = "7")]
    pub flags: u32,
    #[prost(uint32, tag = "8")]
    pub mtu: u32,
}

/// `types.ARPNeighbor`
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
