//! OCI's runtime specification as the agent's protocol carries it (package `grpc`).
//!
//! The same structs read config.json: the protocol's names are OCI's, so one type goes from the bundle to the guest. What OCI has
//! and the protocol lacks are fields of our own with numbers from 1000, which a stock agent skips. Go writes `null` for an empty
//! list and leaves out what is zero: both read as the default.

mod linux;
mod resources;
mod spec;

use serde::Deserialize;

pub use linux::*;
pub use resources::*;
pub use spec::*;

/// A major or minor number that a device rule does not name: every device.
pub const ANY_NUMBER: i64 = -1;

fn any_number() -> i64 {
    ANY_NUMBER
}

fn or_any_number<'de, D: serde::Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    Ok(Option::<i64>::deserialize(d)?.unwrap_or(ANY_NUMBER))
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn a_bundle_survives_the_wire() {
        let text = r#"{"ociVersion":"1.0.2","process":{"terminal":true,"user":{"uid":5,"gid":6,"umask":18,"additionalGids":null},
            "args":["sh"],"cwd":"/","rlimits":[{"type":"RLIMIT_NOFILE","hard":9,"soft":8}],"capabilities":{"bounding":["CAP_KILL"]},
            "oomScoreAdj":-998,"unheard":{"of":1}},
            "root":{"path":"rootfs","readonly":true},"hostname":"h","domainname":"d","mounts":null,
            "hooks":{"createRuntime":[{"path":"/h","timeout":3}],"startContainer":null},
            "linux":{"cgroupsPath":"/a","resources":{"pids":{"limit":-1},"memory":{"limit":1,"swap":-1,"disableOOMKiller":true},
            "cpu":{"quota":-1,"period":100000,"cpus":"0-1","idle":1},"blockIO":{"weight":10},"unified":{"memory.high":"1"},
            "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}],
            "hugepageLimits":[{"pageSize":"2MB","limit":7}]},
            "uidMappings":[{"containerID":0,"hostID":1000,"size":10}],"namespaces":[{"type":"pid"}],
            "seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":1,
            "args":[{"index":0,"value":1,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]},
            "timeOffsets":{"boottime":{"secs":5,"nanosecs":6}},"personality":{"domain":"LINUX32"}}}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        let again = Spec::decode(spec.encode_to_vec().as_slice()).unwrap();
        assert_eq!(spec, again);
        let json: Spec = serde_json::from_str(&serde_json::to_string(&again).unwrap()).unwrap();
        assert_eq!(spec, json);
        let process = spec.process.unwrap();
        assert_eq!((process.oom_score_adj, process.user.unwrap().umask), (-998, Some(18)));
        let linux = spec.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!(resources.devices.iter().map(|d| d.major).collect::<Vec<_>>(), [ANY_NUMBER, 1]);
        assert_eq!((resources.pids.unwrap().limit, resources.memory.unwrap().swap), (-1, -1));
        assert_eq!(resources.hugepage_limits[0].page_size, "2MB");
        assert_eq!(linux.uid_mappings[0].host_id, 1000);
        assert_eq!(linux.seccomp.unwrap().syscalls[0].args[0].value_two, 2);
        assert_eq!(linux.time_offsets["boottime"].secs, 5);
    }

    #[test]
    fn numbers_are_the_protocols() {
        // Field 1 of Spec, then field 3 of Root inside it would not be: a wrong number shows as other bytes.
        let spec = Spec { version: "1".into(), root: Some(Root { path: "r".into(), readonly: true }), ..Default::default() };
        assert_eq!(spec.encode_to_vec(), [0x0a, 1, b'1', 0x1a, 5, 0x0a, 1, b'r', 0x10, 1]);
    }
}
