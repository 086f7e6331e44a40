//! JSON as managers write it, and both forms of a specification against each other.

use std::path::Path;

use prost::Message;

use super::*;
use crate::process::{Ended, Spawn};

/// Everything a manager may say, with the oddities seen in the field: nulls for empty lists, -1 for "no limit", fields
/// that nobody here knows.
const FULL: &str = r#"{
  "ociVersion": "1.1.0", "hostname": "web", "domainname": "example.org", "someday": {"a": [1]}, "vm": null,
  "process": {
    "terminal": true, "consoleSize": {"height": 24, "width": 80}, "user": {"uid": 1000, "gid": 100, "umask": 23, "additionalGids": [5, 6]},
    "args": ["sh", "-c", "true"], "env": null, "cwd": "/", "noNewPrivileges": true, "oomScoreAdj": -999,
    "capabilities": {"bounding": ["CAP_CHOWN"], "effective": null, "permitted": ["CAP_KILL"]},
    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 18446744073709551615, "soft": 1024}],
    "apparmorProfile": "p", "selinuxLabel": "l",
    "scheduler": {"policy": "SCHED_DEADLINE", "nice": -5, "runtime": 1000, "deadline": 2000, "period": 3000, "flags": ["SCHED_FLAG_RECLAIM"]},
    "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0}
  },
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [{"destination": "/m", "source": "s", "type": "bind", "options": ["rbind", "ro"], "uidMappings": [{"hostID": 7, "containerID": 0, "size": 3}]},
             {"destination": "/n", "options": null}],
  "hooks": {"prestart": [{"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 5}], "createRuntime": [{"path": "/b", "timeout": null}],
            "createContainer": [{"path": "/c"}], "startContainer": [{"path": "/d"}], "poststart": null, "poststop": [{"path": "/e", "timeout": 0}]},
  "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
  "linux": {
    "uidMappings": [{"hostID": 0, "containerID": 1, "size": 2}], "sysctl": {"net.ipv4.ip_forward": "1"}, "cgroupsPath": "a.slice:b:c",
    "namespaces": [{"type": "pid"}, {"type": "network", "path": "/var/run/netns/x"}],
    "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 0}, {"path": "/dev/p", "type": "p"}],
    "rootfsPropagation": "rslave", "maskedPaths": ["/proc/kcore"], "readonlyPaths": null, "mountLabel": "m", "intelRdt": {"l3CacheSchema": "L3:0=f"},
    "personality": {"domain": "LINUX32"}, "timeOffsets": {"monotonic": {"secs": -3, "nanosecs": 4}},
    "resources": {
      "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": -1, "access": "r"}],
      "memory": {"limit": 4294967296, "reservation": 0, "swap": -1, "kernel": -1, "kernelTCP": -1, "swappiness": 0, "disableOOMKiller": false, "checkBeforeUpdate": true},
      "cpu": {"shares": 1024, "quota": -1, "period": 100000, "realtimeRuntime": 0, "realtimePeriod": 1000000, "cpus": "0-3", "mems": "0", "burst": 5, "idle": 1},
      "pids": {"limit": -1},
      "blockIO": {"weight": 10, "leafWeight": 11, "weightDevice": [{"major": 8, "minor": 0, "weight": 5}], "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
                  "throttleWriteBpsDevice": [{"major": 8, "minor": 1, "rate": 601}], "throttleReadIOPSDevice": [{"major": 8, "minor": 2, "rate": 602}],
                  "throttleWriteIOPSDevice": [{"major": 8, "minor": 3, "rate": 603}]},
      "hugepageLimits": [{"pageSize": "2MB", "limit": 0}], "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]},
      "unified": {"memory.high": "max"}, "rdma": {"mlx5_1": {"hcaHandles": 3}}
    },
    "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"], "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                "listenerPath": "/run/l", "listenerMetadata": "x",
                "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "errnoRet": 0, "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}
  }
}"#;

fn parse(json: &str) -> Spec {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_full_specification_keeps_its_meaning_through_both_forms() {
    let spec = parse(FULL);
    let wire = Spec::decode(spec.encode_to_vec().as_slice()).unwrap();
    assert_eq!(spec, wire);
    assert_eq!(parse(&serde_json::to_string(&wire).unwrap()), spec);
}

#[test]
fn every_known_field_of_the_json_comes_back() {
    let before: serde_json::Value = serde_json::from_str(FULL).unwrap();
    let after = serde_json::to_value(parse(FULL)).unwrap();
    let mut lost = Vec::new();
    compare("", &before, &after, &mut lost);
    assert_eq!(lost, ["/someday"]);
}

/// What `before` says and `after` does not. Empty and unset are the same.
fn compare(at: &str, before: &serde_json::Value, after: &serde_json::Value, lost: &mut Vec<String>) {
    use serde_json::Value::*;
    match (before, after) {
        (Null, Null) => {}
        (Object(b), Object(a)) => {
            for (k, v) in b {
                compare(&format!("{at}/{k}"), v, a.get(k).unwrap_or(&Null), lost);
            }
        }
        (Array(b), Array(a)) if b.len() == a.len() => {
            b.iter().zip(a).enumerate().for_each(|(i, (b, a))| compare(&format!("{at}/{i}"), b, a, lost))
        }
        // The wire cannot tell these from unset.
        (Number(n), Null) if n.as_u64() == Some(0) => {}
        (Bool(false), Null) => {}
        (b, a) if b == a => {}
        _ => lost.push(at.to_owned()),
    }
}

#[test]
fn limits_below_zero_and_meaningful_zeros_survive() {
    let spec = parse(FULL);
    let wire = Spec::decode(spec.encode_to_vec().as_slice()).unwrap();
    let linux = wire.linux.unwrap();
    let r = linux.resources.unwrap();
    assert_eq!((r.pids.unwrap().limit, r.memory.unwrap().swap, r.cpu.unwrap().quota), (-1, -1, -1));
    assert_eq!((r.devices[0].major, r.devices[0].minor, r.devices[1].major, r.devices[1].minor), (ANY_NUMBER, ANY_NUMBER, 1, -1));
    assert_eq!(linux.seccomp.unwrap().syscalls[0].errno_ret, Some(0));
    let p = wire.process.unwrap();
    assert_eq!((p.oom_score_adj, p.rlimits[0].hard, p.user.unwrap().umask), (-999, u64::MAX, Some(23)));
}

#[test]
fn what_runc_spec_prints_parses() {
    let Some(runc) = ["/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc"].map(Path::new).into_iter().find(|p| p.exists()) else {
        return eprintln!("skipped: no runc on this machine");
    };
    let dir = tempfile::tempdir().unwrap();
    let spawn = Spawn::new(runc).args(["spec", "--bundle"]).arg(dir.path());
    assert_eq!(spawn.start().unwrap().wait().unwrap(), Ended::Exited(0));
    let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    let spec = parse(&text);
    let mut lost = Vec::new();
    compare("", &serde_json::from_str(&text).unwrap(), &serde_json::to_value(&spec).unwrap(), &mut lost);
    assert_eq!(lost, Vec::<String>::new());
    let process = spec.process.as_ref().unwrap();
    assert_eq!((process.args.as_slice(), process.cwd.as_str()), (["sh".to_owned()].as_slice(), "/"));
    assert!(spec.linux.as_ref().unwrap().namespaces.iter().any(|n| n.r#type == "mount"));
    assert_eq!(Spec::decode(spec.encode_to_vec().as_slice()).unwrap(), spec);
}

/// A stock agent knows none of the numbers from 1000: without them the rest must decode as it was.
#[test]
fn own_fields_do_not_disturb_a_peer_that_lacks_them() {
    let with = User { uid: 1, gid: 2, umask: Some(0o77), ..Default::default() };
    let bytes = with.encode_to_vec();
    // uid, gid, then field 1000 (key 8000 as a varint) with its value.
    assert_eq!(bytes, [8, 1, 16, 2, 0xc0, 0x3e, 0o77]);
}

proptest::proptest! {
    #[test]
    fn odd_json_is_an_error_and_no_panic(text in "[\\[\\]{}\",:a-z0-9.\\-null]{0,200}") {
        let _ = serde_json::from_str::<Spec>(&text);
    }

    /// A well-formed document with one value replaced by one of another kind.
    #[test]
    fn a_value_of_the_wrong_kind_is_an_error_and_no_panic(at in 0usize..200, with in 0usize..6) {
        let values = ["null", "-1", "1e400", "\"x\"", "[{}]", "{\"a\":[]}"];
        let colons: Vec<usize> = FULL.match_indices(": ").map(|(i, _)| i).collect();
        let i = colons[at % colons.len()];
        let end = FULL[i + 2..].find([',', '}', ']']).map_or(FULL.len(), |n| i + 2 + n);
        let text = format!("{}: {}{}", &FULL[..i], values[with], &FULL[end..]);
        let _ = serde_json::from_str::<Spec>(&text);
    }
}
