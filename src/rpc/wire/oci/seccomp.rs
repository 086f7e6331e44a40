//! The seccomp profile.

use serde::{Deserialize, Serialize};

use super::json::{is_default, or_default};

/// Which system calls a container may make.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSeccomp {
    /// `SCMP_ACT_ERRNO` and its kin.
    #[prost(string, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub default_action: String,
    /// `SCMP_ARCH_X86_64` and its kin.
    #[prost(string, repeated, tag = "2")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_LOG` and its kin.
    #[prost(string, repeated, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub flags: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub syscalls: Vec<LinuxSyscall>,
    /// A socket that gets the notification descriptor. osc's own field: a stock agent ignores it.
    #[prost(string, tag = "1001")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub listener_path: String,
    /// osc's own field: a stock agent ignores it.
    #[prost(string, tag = "1002")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub listener_metadata: String,
    /// For `default_action`; unset means EPERM. osc's own field: a stock agent ignores it.
    #[prost(uint32, optional, tag = "1000")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
}

/// One rule.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSyscall {
    #[prost(string, repeated, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub names: Vec<String>,
    #[prost(string, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub action: String,
    /// Unset means EPERM.
    #[prost(uint32, optional, tag = "3")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// All of them must match.
    #[prost(message, repeated, tag = "4")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub args: Vec<LinuxSeccompArg>,
}

/// A comparison of one argument.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LinuxSeccompArg {
    /// 0 to 5.
    #[prost(uint64, tag = "1")]
    #[serde(deserialize_with = "or_default")]
    pub index: u64,
    #[prost(uint64, tag = "2")]
    #[serde(deserialize_with = "or_default")]
    pub value: u64,
    /// The mask's result in `SCMP_CMP_MASKED_EQ`.
    #[prost(uint64, tag = "3")]
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_default")]
    pub value_two: u64,
    /// `SCMP_CMP_EQ` and its kin.
    #[prost(string, tag = "4")]
    #[serde(deserialize_with = "or_default")]
    pub op: String,
}
