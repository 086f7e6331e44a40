//! The container as a whole, its processes, mounts and hooks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::json::{is_default, or_default};
use super::{Linux, LinuxIdMapping};

/// A container's `config.json`.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    #[prost(string, tag = "1")]
    #[serde(rename = "ociVersion", deserialize_with = "or_default")]
    pub version: String,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub hostname: String,
    /// Mounted in this order.
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub mounts: Vec<Mount>,
    #[prost(message, optional, tag = "6")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    #[prost(btree_map = "string, string", tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub annotations: BTreeMap<String, String>,
    #[prost(message, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub linux: Option<Linux>,
    #[prost(message, optional, tag = "9")]
    #[serde(skip)]
    pub solaris: Option<Solaris>,
    #[prost(message, optional, tag = "10")]
    #[serde(skip)]
    pub windows: Option<Windows>,
    /// The NIS domain name. osc's own field: a stock agent ignores it.
    #[prost(string, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub domainname: String,
}

/// A process: the first of a container, or an exec.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    #[prost(bool, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub terminal: bool,
    #[prost(message, optional, tag = "2")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<Box>,
    /// Unset reads as root.
    #[prost(message, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<User>,
    #[prost(string, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    /// `NAME=value`.
    #[prost(string, repeated, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub env: Vec<String>,
    /// Absolute.
    #[prost(string, tag = "6")]
    #[serde(deserialize_with = "or_default")]
    pub cwd: String,
    /// Unset means: as the runtime has them.
    #[prost(message, optional, tag = "7")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<LinuxCapabilities>,
    #[prost(message, repeated, tag = "8")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub rlimits: Vec<PosixRlimit>,
    #[prost(bool, tag = "9")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub no_new_privileges: bool,
    #[prost(string, tag = "10")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub apparmor_profile: String,
    /// -1000 to 1000.
    #[prost(int64, tag = "11")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub oom_score_adj: i64,
    #[prost(string, tag = "12")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub selinux_label: String,
    /// osc's own field: a stock agent ignores it.
    #[prost(message, optional, tag = "1000")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// osc's own field: a stock agent ignores it.
    #[prost(message, optional, tag = "1001")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
}

/// A terminal's size, characters.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Box {
    #[prost(uint32, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub height: u32,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub width: u32,
}

/// Who a process runs as.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    #[prost(uint32, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub uid: u32,
    #[prost(uint32, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub gid: u32,
    #[prost(uint32, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub additional_gids: Vec<u32>,
    /// Windows only in OCI; Kata's shims never set it.
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub username: String,
    /// Unset means 0022. osc's own field: a stock agent ignores it.
    #[prost(uint32, optional, tag = "1000")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}

/// Capability sets, by name: `CAP_CHOWN`.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxCapabilities {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub bounding: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub effective: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub inheritable: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub permitted: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PosixRlimit {
    /// `RLIMIT_NOFILE`.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub r#type: String,
    /// RLIM_INFINITY is `u64::MAX`.
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub hard: u64,
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default")]
    pub soft: u64,
}

/// sched_setattr(2).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Scheduler {
    /// `SCHED_OTHER` and its kin.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub policy: String,
    #[prost(int32, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub nice: i32,
    #[prost(int32, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub priority: i32,
    /// `SCHED_FLAG_RESET_ON_FORK` and its kin.
    #[prost(string, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub flags: Vec<String>,
    /// Nanoseconds. Likewise the next two.
    #[prost(uint64, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub runtime: u64,
    #[prost(uint64, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub deadline: u64,
    #[prost(uint64, tag = "7")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub period: u64,
}

/// ioprio_set(2).
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IoPriority {
    /// `IOPRIO_CLASS_BE` and its kin.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub class: String,
    /// 0 (first) to 7.
    #[prost(int32, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub priority: i32,
}

/// The container's root file system.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Root {
    /// Absolute, or below the bundle.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    #[prost(bool, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub readonly: bool,
}

/// A mount in the container.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    /// In the container.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub destination: String,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub source: String,
    #[prost(string, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub r#type: String,
    /// As in fstab, one word each.
    #[prost(string, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub options: Vec<String>,
    /// An id-mapped mount. Likewise the next. osc's own field: a stock agent ignores it.
    #[prost(message, repeated, tag = "1000")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub uid_mappings: Vec<LinuxIdMapping>,
    /// osc's own field: a stock agent ignores it.
    #[prost(message, repeated, tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub gid_mappings: Vec<LinuxIdMapping>,
}

impl Mount {
    /// Whether it shows what is there already: by its type or by an option.
    pub fn is_bind(&self) -> bool {
        self.r#type == "bind" || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }
}

/// Programs to run at points of a container's life.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hooks {
    #[prost(message, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub prestart: Vec<Hook>,
    #[prost(message, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub poststart: Vec<Hook>,
    #[prost(message, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub poststop: Vec<Hook>,
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub create_runtime: Vec<Hook>,
    #[prost(message, repeated, tag = "5")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub create_container: Vec<Hook>,
    #[prost(message, repeated, tag = "6")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub start_container: Vec<Hook>,
}

/// A program that gets the container's state on stdin.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Hook {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub path: String,
    /// argv, `argv[0]` included.
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub args: Vec<String>,
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub env: Vec<String>,
    /// Seconds.
    #[prost(int64, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub timeout: i64,
}

/// Not for us.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Windows {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub dummy: String,
}

/// Not for us.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Solaris {
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub dummy: String,
}
