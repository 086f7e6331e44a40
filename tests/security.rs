//! Security contexts that only show with the host's side: user namespaces over shared files, privileged containers. What a
//! container sees of the rest is compared field by field with runc (`scripts/diff-runc`).

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use common::containerd::{Containerd, can_run_containerd};
use common::{Rootfs, bundle, can_run_vms, name, run};
use serde_json::json;

const FIRST: u32 = 100_000;

#[test]
fn a_user_namespace_owns_its_volumes() {
    if !can_run_vms("security: user namespace") {
        return;
    }
    let root = Rootfs::new();
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("roots"), "roots").unwrap();
    fs::write(volume.path().join("apps"), "apps").unwrap();
    chown(volume.path().join("apps"), Some(1000), Some(1000)).unwrap();
    // A manager hands over a root that belongs to the namespace.
    assert!(std::process::Command::new("chown").args(["-hR", &format!("{FIRST}:{FIRST}")]).arg(root.path()).status().unwrap().success());
    let maps = json!([{"containerID": 0, "hostID": FIRST, "size": 65536}]);
    let script = "id -u; cut -c1-40 /proc/self/uid_map | tr -s ' '; stat -c %u /v/roots /v/apps; echo new >/v/new; cat /v/roots /v/new;
        chown 1000:1000 /v/new; stat -c %u /v/new /bin/busybox; touch /made";
    let name = name("userns");
    let dir = bundle(&root, &["sh", "-c", script], |c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        let caps = json!(["CAP_CHOWN"]);
        c["process"]["capabilities"] = json!({"bounding": caps, "effective": caps, "permitted": caps});
        c["linux"]["uidMappings"] = maps.clone();
        c["linux"]["gidMappings"] = maps.clone();
        c["mounts"].as_array_mut().unwrap().push(json!({"destination": "/v", "type": "bind", "source": volume.path(),
            "options": ["rbind", "rw"], "uidMappings": maps, "gidMappings": maps}));
    });
    let out = run(["run", "--network", "none", "--name", &name, "--bundle", &dir.path().to_string_lossy()]);
    if out.stderr.contains("owners cannot be mapped") {
        return println!("SKIP security: user namespace: the file system of the temporary directory has no id-mapped mounts");
    }
    assert_eq!(out.status, 0, "{out:?}");
    let lines: Vec<&str> = out.stdout.lines().map(str::trim).collect();
    assert_eq!(lines, ["0", &format!("0 {FIRST} 65536"), "0", "1000", "rootsnew", "1000", "0"]);
    let owner = |file: &std::path::Path| fs::metadata(file).unwrap().uid();
    assert_eq!((owner(&volume.path().join("new")), owner(&root.path().join("made"))), (1000, FIRST));
    common::assert_clean(&name);
}

#[test]
fn a_privileged_container_is_privileged_in_its_guest() {
    if !can_run_containerd("security: privileged") {
        return;
    }
    let cd = Containerd::start();
    let script = "grep CapEff /proc/self/status | cut -f2; test -w /proc/sys/kernel/printk && echo writable;
        mount -t tmpfs x /tmp && echo mounted; ls /dev | grep -c '^tap\\|^loop[0-9]'; echo rest";
    let (plain, whole) = (name("plain"), name("privileged"));
    let out = cd.run(&["--rm"], &plain, &["sh", "-c", script]);
    assert!(!out.stdout.contains("mounted") && out.stdout.ends_with("rest\n"), "{out:?}");
    // All that the manager has: this machine's root may lack some.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|l| l.strip_prefix("CapEff:\t")).unwrap().to_owned();
    let out = cd.run(&["--rm", "--privileged"], &whole, &["sh", "-c", script]);
    assert!(out.stdout.contains("mounted") && out.stdout.starts_with(&own) && out.stdout.ends_with("rest\n"), "{out:?}");
    cd.assert_gone(&plain);
    cd.assert_gone(&whole);
}
