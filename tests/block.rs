//! Disks of the host in containers, under a real containerd: raw devices, root file systems on a device, direct-assigned volumes.

mod common;
#[path = "common/pod.rs"]
mod pod;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::containerd::{Containerd, can_run_containerd};
use common::player::{self, Player, dial, hold, spec, task, until_gone, wait};
use common::{Rootfs, leftovers, name, until};
use osc::rpc::wire::containerd;
use osc::rpc::wire::google::{Any, Empty};
use osc::rpc::wire::options::Options;
use osc::rpc::wire::task as wire;
use pod::Pod;
use prost::Message;
use serde_json::json;

/// A file of zeros behind a loop device.
struct Loop {
    device: String,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

fn tool(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

impl Loop {
    fn new(mib: u64) -> Loop {
        let dir = tempfile::Builder::new().prefix("osc-block-").tempdir().unwrap();
        let file = dir.path().join("disk");
        fs::File::create(&file).unwrap().set_len(mib << 20).unwrap();
        let device = tool("losetup", &["--find", "--show", file.to_str().unwrap()]);
        Loop { device, file, _dir: dir }
    }

    fn ext4(mib: u64) -> Loop {
        let disk = Loop::new(mib);
        tool("mkfs.ext4", &["-q", &disk.device]);
        disk
    }

    /// Grows it under whoever has it.
    fn grow(&self, mib: u64) {
        fs::File::options().write(true).open(&self.file).unwrap().set_len(mib << 20).unwrap();
        tool("losetup", &["--set-capacity", &self.device]);
    }

    /// Runs `look` on its file system, mounted on the host.
    fn mounted<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let at = self._dir.path().join("mnt");
        fs::create_dir_all(&at).unwrap();
        tool("mount", &[&self.device, at.to_str().unwrap()]);
        let answer = look(&at);
        tool("umount", &[at.to_str().unwrap()]);
        answer
    }

    /// The journal is empty and every structure in order: it was unmounted.
    fn assert_clean(&self) {
        tool("e2fsck", &["-fn", &self.device]);
        let state = tool("dumpe2fs", &["-h", &self.device]);
        assert!(state.lines().any(|l| l.starts_with("Filesystem state:") && l.ends_with("clean")), "{state}");
        assert!(!state.contains("needs_recovery"), "{state}");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// A configuration of the hypervisor with these lines.
fn config(cd: &Containerd, lines: &str) -> String {
    let path = cd.path("kata.toml");
    fs::write(&path, format!("[hypervisor.qemu]\n{lines}\n")).unwrap();
    path.display().to_string()
}

#[test]
fn a_raw_device_is_written_to_grows_and_goes() {
    if !can_run_containerd("block: raw device") {
        return;
    }
    for driver in ["virtio-blk", "virtio-scsi"] {
        let cd = Containerd::start();
        let disk = Loop::new(32);
        let config = config(&cd, &format!("block_device_driver = \"{driver}\""));
        let pod = Pod::start(&cd, "raw", &["--runtime-config-path", &config]);
        let (a, b) = (format!("{}-a", pod.id), format!("{}-b", pod.id));
        let disks = "ls /sys/block | grep -c '^[vs]d'; true";
        assert_eq!(pod.exec(&pod.id, disks), "0", "{driver}");
        for id in [&a, &b] {
            let out = pod.add(id, &["--device", &disk.device, "--detach"], &["sleep", "3600"]);
            assert_eq!(out.status, 0, "{driver}: {out:?}\n{}", cd.log());
        }
        // One device in the VM, a node in both containers.
        assert_eq!(pod.exec(&pod.id, disks), "1", "{driver}");
        let device = &disk.device;
        pod.exec(&a, &format!("echo -n 'from the guest' | dd of={device} bs=512 seek=2048 conv=fsync"));
        assert_eq!(pod.exec(&b, &format!("dd if={device} bs=1 skip=1048576 count=14 2>/dev/null")), "from the guest", "{driver}");
        let bytes = fs::read(&disk.file).unwrap();
        assert_eq!(&bytes[1 << 20..][..14], b"from the guest", "{driver}");

        // It grows on the host and is seen to, without anybody asking.
        disk.grow(48);
        let blocks = "cat /sys/block/[vs]d?/size";
        until("the new size", || (pod.exec(&a, blocks) == "98304").then_some(()));
        pod.exec(&a, &format!("echo -n end | dd of={device} bs=1M seek=47 conv=fsync"));

        // Another pod may not write to it meanwhile, nor the host mount it.
        let other = name("raw-other");
        let out = cd.run(&["--device", &disk.device], &other, &["true"]);
        assert!(out.status != 0 && out.stderr.contains("busy") && out.stderr.contains(device.as_str()), "{out:?}");
        cd.ctr(["container", "rm", &other]);
        cd.assert_gone(&other);

        pod.delete(&a);
        assert_eq!(pod.exec(&pod.id, disks), "1", "{driver}: the other one still has it");
        pod.delete(&b);
        // A SCSI disk goes in the guest a moment after it has gone.
        until("no disk", || (pod.exec(&pod.id, disks) == "0").then_some(()));
        // Free again, and what was written last is there.
        assert_eq!(&fs::read(device).unwrap()[47 << 20..][..3], b"end", "{driver}");
        drop(fs::File::options().read(true).write(true).open(device).unwrap());
        pod.end();
    }
}

#[test]
fn a_device_that_cannot_be_had_is_refused_and_leaves_nothing() {
    if !can_run_containerd("block: bad devices") {
        return;
    }
    let cd = Containerd::start();
    let disk = Loop::ext4(16);
    let pod = Pod::start(&cd, "bad", &[]);
    let id = format!("{}-a", pod.id);
    let refused = |options: &[&str], what: &[&str]| {
        let out = pod.add(&id, options, &["true"]);
        assert!(out.status != 0 && what.iter().all(|w| out.stderr.contains(w)), "{options:?}: {out:?}");
        cd.ctr(["container", "rm", &id]);
    };
    // Mounted on the host.
    disk.mounted(|_| refused(&["--device", &disk.device], &["busy", &disk.device, "unmount it"]));
    // A node with nothing behind it.
    let nodes = tempfile::tempdir().unwrap();
    let empty = nodes.path().join("disk").display().to_string();
    tool("mknod", &[&empty, "b", "7", "65535"]);
    refused(&["--device", &empty], &[&empty, "7:65535"]);
    // A direct volume whose description is broken, whose device is not there, whose file system nobody knows.
    let dir = tempfile::tempdir().unwrap();
    let description = osc::shim::sandbox::direct::dir(dir.path());
    fs::create_dir_all(&description).unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", dir.path().display());
    for (text, told) in [
        ("{\"volume-type\":".to_owned(), "mountInfo.json"),
        (json!({"volume-type": "block", "device": "/dev/no-such-disk", "fstype": "ext4"}).to_string(), "/dev/no-such-disk"),
        (json!({"volume-type": "block", "device": disk.device, "fstype": "nosuchfs"}).to_string(), "nosuchfs"),
    ] {
        fs::write(description.join("mountInfo.json"), text).unwrap();
        refused(&["--mount", &mount], &[told]);
    }
    fs::remove_dir_all(&description).unwrap();
    until("no disk", || (pod.exec(&pod.id, "ls /sys/block | grep -c '^[vs]d'; true") == "0").then_some(()));
    // Nobody holds the device any more.
    disk.mounted(|_| ());
    pod.end();
}

/// A root file system of busybox on a device.
fn root_disk() -> Loop {
    let (disk, root) = (Loop::ext4(64), Rootfs::new());
    disk.mounted(|at| {
        tool("cp", &["-a", &format!("{}/.", root.path().display()), at.to_str().unwrap()]);
        fs::write(at.join("owned"), "x").unwrap();
        chown(at.join("owned"), Some(1000), Some(29)).unwrap();
        fs::set_permissions(at.join("owned"), fs::Permissions::from_mode(0o4751)).unwrap();
        rustix::fs::setxattr(at.join("owned"), "user.who", b"host", rustix::fs::XattrFlags::empty()).unwrap();
    });
    disk
}

/// A shim whose container has `mount` for its root; runs `script` in it to its end.
fn run_on(mount: containerd::Mount, options: Options, script: &str) -> u32 {
    let (player, id) = (Player::new(), name("root"));
    let mut config = spec(Path::new("rootfs"), &["/bin/sh", "-c", script], None, json!({}));
    let owner = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"];
    config["process"]["capabilities"] = json!({"bounding": owner, "effective": owner, "permitted": owner});
    let bundle = player.bundle(&id, &config);
    fs::create_dir(bundle.path.join("rootfs")).unwrap();
    let _log = hold(&bundle.path.join("log"));
    let address = player.start_as_crio(&bundle).stdout;
    let client = dial(&address);
    let request = wire::CreateTaskRequest {
        id: id.clone(),
        bundle: bundle.path.display().to_string(),
        rootfs: vec![mount],
        options: Some(Any { type_url: "runtimeoptions.v1.Options".into(), value: options.encode_to_vec() }),
        ..Default::default()
    };
    let pid = task::<_, wire::CreateTaskResponse>(&client, "Create", request).unwrap_or_else(|e| panic!("{e}")).pid;
    let waited = wait(&address, &id);
    let _: wire::StartResponse = task(&client, "Start", wire::StartRequest { id: id.clone(), exec_id: String::new() }).unwrap();
    let status = waited.join().unwrap().unwrap().exit_status;
    until("deleted", || player::delete(&client, &id).ok());
    let _: Empty = task(&client, "Shutdown", wire::ShutdownRequest { id: id.clone(), now: true }).unwrap();
    until_gone(pid);
    until("nothing left", || leftovers(&id).is_empty().then_some(()));
    status
}

fn root_mount(source: &str, options: &[&str]) -> containerd::Mount {
    let options = options.iter().map(|o| o.to_string()).collect();
    containerd::Mount { r#type: "ext4".into(), source: source.into(), options, ..Default::default() }
}

#[test]
fn a_root_on_a_device_is_mounted_in_the_guest() {
    if !can_run_containerd("block: root") {
        return;
    }
    let disk = root_disk();
    let script = |kind: &str| {
        format!(
            "exec >/said 2>&1; set -ex; grep ' / ' /proc/mounts; grep -q '^{kind} / ' /proc/mounts; test $(stat -c %u:%g:%a /owned) = 1000:29:4751
            busybox mkdir /made; busybox dd if=/dev/zero of=/made/large bs=1M count=8; busybox chown 7:8 /made/large; busybox chmod 640 /made/large"
        )
    };
    // By its device; by the image itself, as the blockfile snapshotter has it; and through the share, where that is configured.
    let image = disk.file.to_str().unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    fs::write(config.path(), "[hypervisor.qemu]\ndisable_block_device_use = true\n").unwrap();
    let shared = Options { config_path: config.path().display().to_string(), ..Default::default() };
    for (source, options, configured, kind) in [
        (disk.device.as_str(), &["rw"][..], Options::default(), "/dev/[vs]d[a-z]*"),
        (image, &["loop", "rw"], Options::default(), "/dev/[vs]d[a-z]*"),
        (&disk.device, &["rw"], shared, "none"),
    ] {
        let status = run_on(root_mount(source, options), configured, &script(kind));
        let said = disk.mounted(|at| fs::read_to_string(at.join("said")).unwrap());
        assert_eq!(status, 0, "{source} {options:?}: {said}");
        disk.assert_clean();
        disk.mounted(|at| {
            let made = fs::metadata(at.join("made/large")).unwrap();
            assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777, made.len()), (7, 8, 0o640, 8 << 20), "{source}");
            let mut value = [0; 16];
            let n = rustix::fs::getxattr(at.join("owned"), "user.who", &mut value).unwrap();
            assert_eq!(&value[..n], b"host");
            fs::remove_dir_all(at.join("made")).unwrap();
        });
    }
}

#[test]
fn a_direct_volume_from_its_description_to_its_end() {
    if !can_run_containerd("block: direct volume") {
        return;
    }
    let (cd, disk) = (Containerd::start(), Loop::ext4(32));
    let dir = tempfile::Builder::new().prefix("osc-volume ").tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let direct = |args: &[&str]| common::run([&["direct-volume"], args, &["--volume-path", path]].concat());
    let info =
        json!({"volume-type": "block", "device": disk.device, "fstype": "ext4", "options": ["noatime"], "metadata": {"fsGroup": "4321"}});
    assert_eq!(direct(&["add", "--mount-info", &info.to_string()]).status, 0);
    let unused = direct(&["stats"]);
    assert!(unused.status != 0 && unused.stderr.contains("no sandbox has it"), "{unused:?}");

    let pod = Pod::start(&cd, "direct", &[]);
    let (a, b) = (format!("{}-a", pod.id), format!("{}-b", pod.id));
    let mount = format!("type=bind,src={path},dst=/data,options=rbind:rw");
    for id in [&a, &b] {
        let out = pod.add(id, &["--mount", &mount, "--detach"], &["sleep", "3600"]);
        assert_eq!(out.status, 0, "{out:?}\n{}", cd.log());
    }
    let mounted = pod.exec(&a, "grep ' /data ' /proc/mounts");
    assert!(mounted.starts_with("/dev/") && mounted.contains(" ext4 rw,noatime"), "{mounted}");
    assert_eq!(pod.exec(&a, "stat -c %g /data"), "4321");
    pod.exec(&a, "dd if=/dev/zero of=/data/file bs=1M count=8; busybox chown 7:8 /data/file");
    assert_eq!(pod.exec(&b, "stat -c %u:%g:%s /data/file"), "7:8:8388608");
    // The host's own directory has none of it.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    let bytes = || -> (u64, u64) {
        let out = direct(&["stats"]);
        assert_eq!(out.status, 0, "{out:?}");
        let stats: serde_json::Value = serde_json::from_str(&out.stdout).unwrap();
        assert_eq!((&stats["usage"][0]["unit"], &stats["usage"][1]["unit"]), (&json!(1), &json!(2)));
        (stats["usage"][0]["total"].as_u64().unwrap(), stats["usage"][0]["used"].as_u64().unwrap())
    };
    let (total, used) = bytes();
    assert!((20 << 20..32 << 20).contains(&total) && used >= 8 << 20, "{total} {used}");
    // More than the device has on the host cannot be had.
    let refused = direct(&["resize", "--size", &(64u64 << 20).to_string()]);
    assert!(refused.status != 0 && refused.stderr.contains("grow it on the host first"), "{refused:?}");
    disk.grow(64);
    let resized = direct(&["resize", "--size", &(64u64 << 20).to_string()]);
    assert_eq!(resized.status, 0, "{resized:?}");
    assert!(bytes().0 > 50 << 20, "{:?}", bytes());
    // The same by Kata's socket, as its own command and CSI drivers ask.
    let ask = |text: String| -> String {
        let mut socket = UnixStream::connect(format!("/run/kata/{}/shim-monitor.sock", pod.id)).unwrap();
        socket.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    let stats = ask(format!("GET /direct-volume/stats?path={} HTTP/1.1\r\nHost: shim\r\n\r\n", disk.device.replace('/', "%2F")));
    assert!(stats.starts_with("HTTP/1.1 200") && stats.contains(r#""unit":1"#), "{stats}");
    let grown = 65u64 << 20;
    let resize = json!({"VolumePath": disk.device, "Size": grown}).to_string();
    let post = |body: &str| ask(format!("POST /direct-volume/resize HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let refused = post(&resize);
    assert!(refused.starts_with("HTTP/1.1 500") && refused.contains("grow it on the host first"), "{refused}");
    disk.grow(65);
    assert!(post(&resize).starts_with("HTTP/1.1 200"), "{}", post(&resize));
    pod.exec(&a, "dd if=/dev/zero of=/data/more bs=1M count=30");

    pod.delete(&a);
    assert_eq!(pod.exec(&b, "stat -c %s /data/more"), "31457280");
    pod.delete(&b);
    pod.end();
    disk.assert_clean();
    disk.mounted(|at| assert_eq!(fs::metadata(at.join("more")).unwrap().len(), 30 << 20));
    assert_eq!(direct(&["remove"]).status, 0);
    assert!(direct(&["remove"]).status != 0);
    assert!(!osc::shim::sandbox::direct::dir(dir.path()).exists());
}

#[test]
fn every_key_of_a_disk_reaches_the_guest() {
    if !can_run_containerd("block: keys") {
        return;
    }
    let sectors = "block_device_logical_sector_size = 4096\nblock_device_physical_sector_size = 4096\n";
    let queues = "queue_size = 64\nnum_queues = 2\nblock_device_cache_set = true\nblock_device_cache_direct = true\n";
    let cases = [
        ("virtio-blk", "block_device_aio = \"native\"\nenable_iothreads = true"),
        ("virtio-blk", "block_device_aio = \"threads\"\nindep_iothreads = 1\ndisk_rate_limiter_ops_max_rate = 5"),
        ("virtio-scsi", "block_device_aio = \"io_uring\"\nenable_iothreads = true"),
    ];
    for (driver, more) in cases {
        let (cd, disk) = (Containerd::start(), Loop::new(32));
        let config = config(&cd, &format!("block_device_driver = \"{driver}\"\n{sectors}{queues}{more}"));
        let device = &disk.device;
        let pod = Pod { cd: &cd, id: name("keys") };
        cd.background_with(&["--runtime-config-path", &config, "--device", device], &pod.id, &["sleep", "3600"]);
        let seen = pod.exec(&pod.id, "cd /sys/block/[vs]d?; cat queue/logical_block_size queue/physical_block_size; ls mq | wc -l");
        assert_eq!(seen.lines().collect::<Vec<_>>(), ["4096", "4096", "2"], "{driver} {more}");
        if driver == "virtio-blk" {
            assert_eq!(pod.exec(&pod.id, "cat /sys/block/vd?/mq/0/nr_tags"), "64");
        }
        let qemu = common::pids(&pod.id, "qemu")[0];
        let line = String::from_utf8_lossy(&fs::read(format!("/proc/{qemu}/cmdline")).unwrap()).into_owned();
        assert_eq!(line.contains("iothread,id=disks0"), more.contains("indep"), "{line}");
        // QEMU's descriptor of the device goes around the page cache.
        let fds = fs::read_dir(format!("/proc/{qemu}/fd")).unwrap().flatten();
        let ours = fds.filter(|f| fs::read_link(f.path()).is_ok_and(|l| l == Path::new(device))).map(|f| f.file_name());
        let flags: Vec<String> = ours
            .map(|n| fs::read_to_string(format!("/proc/{qemu}/fdinfo/{}", n.to_string_lossy())).unwrap())
            .filter_map(|t| t.lines().find_map(|l| l.strip_prefix("flags:").map(|f| f.trim().to_owned())))
            .collect();
        let direct = |f: &String| u32::from_str_radix(f, 8).unwrap() & libc::O_DIRECT as u32 != 0;
        assert!(!flags.is_empty() && flags.iter().all(direct), "{driver} {more}: {flags:?}");
        if more.contains("ops_max_rate") {
            let begin = Instant::now();
            pod.exec(
                &pod.id,
                &format!("for i in $(seq 40); do dd if={device} of=/dev/null bs=4k count=1 skip=$((i * 100)) 2>/dev/null; done"),
            );
            assert!(begin.elapsed() > Duration::from_secs(5), "40 reads at 5 a second took {:?}", begin.elapsed());
        }
        pod.end();
    }
}

#[test]
fn what_is_written_at_random_is_read_back() {
    if !common::only_with_all("block: fio") || !Path::new("/usr/bin/fio").exists() || !can_run_containerd("block: fio") {
        return;
    }
    let (disk, id) = (Loop::new(64), name("fio"));
    let volume = format!("{}:/dev/xvda", disk.device);
    let fio = "fio --name=v --filename=/dev/xvda --rw=randrw --bs=4k --size=32m --verify=crc32c --direct=1 --ioengine=psync --minimal";
    let out = common::run(["run", "--name", &id, "-v", &volume, "--", "/bin/sh", "-c", fio]);
    assert_eq!(out.status, 0, "{out:?}");
    common::assert_clean(&id);
}
