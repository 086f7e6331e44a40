//! What this runtime can do, as the OCI features structure: read by CRI-O (`features`) and containerd 2.x (`-info`).

use prost::Message;
use serde_json::json;

use crate::rpc::wire::containerd::{RuntimeInfo, RuntimeVersion};
use crate::rpc::wire::google::Any;

/// The OCI features document.
pub fn json() -> String {
    let document = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": crate::agent::container::mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": capabilities(),
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD",
                    "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE"],
                "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": true } },
        },
        "annotations": { "org.osc.version": crate::VERSION },
    });
    document.to_string()
}

fn capabilities() -> Vec<String> {
    let mut all: Vec<String> = caps::all().iter().map(|c| c.to_string()).collect();
    all.sort();
    all
}

/// A marshalled `RuntimeInfo`.
pub fn info(name: &str) -> Vec<u8> {
    let info = RuntimeInfo {
        name: name.replace("containerd-shim-", "io.containerd.").replace("-v2", ".v2"),
        version: Some(RuntimeVersion { version: env!("CARGO_PKG_VERSION").into(), revision: env!("OSC_COMMIT").into() }),
        options: None,
        features: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/features/Features".into(),
            value: json().into_bytes(),
        }),
        annotations: Default::default(),
    };
    info.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_o_finds_what_it_looks_for() {
        let v: serde_json::Value = serde_json::from_str(&json()).unwrap();
        assert!(v["ociVersionMin"].is_string() && v["ociVersionMax"].is_string());
        assert!(v["mountOptions"].as_array().unwrap().iter().any(|o| o == "rro"));
        assert_eq!(v["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    }

    #[test]
    fn the_runtime_is_named_as_containerd_names_it() {
        let info = RuntimeInfo::decode(info("containerd-shim-kata-v2").as_slice()).unwrap();
        assert_eq!(info.name, "io.containerd.kata.v2");
    }
}
