//! The pod VM's disk image, and the provider `libvirt` against a real libvirtd: in mount and network namespaces of its own, its VMs
//! emulated (`<domain type='qemu'>`).

#[path = "common/adaptor.rs"]
mod adaptor;
mod common;
#[path = "common/netns.rs"]
mod netns;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use adaptor::{Adaptor, How, PeerPod};
use common::Rootfs;
use common::player::{Player, spec};
use osc::vm::Vm;
use osc::vm::remote::Remote;
use serde_json::json;

/// What the disk image is made with, and what a libvirt needs besides.
const TOOLS: [&str; 5] = ["mkfs.fat", "mcopy", "syslinux", "qemu-img", "mke2fs"];
const LIBVIRT: [&str; 3] = ["libvirtd", "virsh", "dnsmasq"];

/// A libvirtd is not started for every run: `scripts/test --all` has these.
fn can_run_libvirt(test: &str) -> bool {
    common::only_with_all(test) && can_run(test, &LIBVIRT)
}

fn can_run(test: &str, more: &[&str]) -> bool {
    let there = |tool: &&str| netns::try_sh(&format!("PATH=$PATH:/usr/sbin:/sbin command -v {tool}")).0;
    let missing: Vec<&str> = TOOLS.iter().chain(more).copied().filter(|t| !there(t)).collect();
    if !missing.is_empty() {
        println!("SKIP {test}: needs {}", missing.join(", "));
    }
    missing.is_empty() && common::can_run_vms(test) && netns::can_make_namespaces(test)
}

/// A disk image, whatever is around it.
fn disk(format: &str, at: &Path) {
    let out = common::run(["image", "build", "--disk", format, "--output", &at.to_string_lossy()]);
    assert_eq!(out.status, 0, "{}", out.stderr);
}

#[test]
fn a_disk_is_the_same_whoever_makes_it_and_boots_by_bios_and_by_uefi() {
    if !can_run("a_disk_is_the_same", &[]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs, seed) = (dir.path().join("ours"), dir.path().join("sub/theirs"), dir.path().join("seed"));
    fs::create_dir(dir.path().join("sub")).unwrap();
    disk("qcow2", &ours);
    netns::sh(&format!(
        "chmod 755 {0} && chown nobody {0}/sub && setpriv --reuid nobody --clear-groups {1} image build --disk qcow2 --output {2}",
        dir.path().display(),
        common::osc().display(),
        theirs.display()
    ));
    assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "the images differ");
    assert!(fs::metadata(&ours).unwrap().len() < 40 << 20);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    // Larger than it was made: its storage grows. User-data without what matters: the agent says so and powers off.
    netns::sh(&format!("qemu-img resize -q {} 2G", ours.display()));
    fs::write(&seed, osc::fs::image::disk::iso::volume("cidata", &[("user-data", b"#cloud-config\n{}\n")])).unwrap();
    for uefi in [false, true] {
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-machine",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-snapshot",
            "-serial",
            "stdio",
        ]);
        qemu.args(["-drive", &format!("file={},if=virtio,format=qcow2", ours.display())]);
        qemu.args(["-drive", &format!("file={},if=virtio,format=raw", seed.display())]);
        qemu.args(["-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n"]);
        if uefi {
            qemu.args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"]);
        }
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let out = common::finish(qemu.spawn().unwrap());
        assert!(out.stdout.contains("storage: 20"), "UEFI {uefi}: {}", out.stdout);
        assert!(out.stdout.contains("apf.json: user-data does not hold it"), "UEFI {uefi}: {}", out.stdout);
    }
}

#[test]
fn what_is_missing_for_a_disk_is_told_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = common::run(["image", "build", "--disk", "vdi"]);
    assert!(out.status != 0 && out.stderr.contains("qcow2, raw or vhd"), "{}", out.stderr);
    if !can_run("what_is_missing_for_a_disk", &[]) {
        return;
    }
    let out = common::run(["image", "build", "--disk", "raw", "--output", &dir.path().join("no/such").to_string_lossy()]);
    assert!(out.status != 0 && out.stderr.contains("no/"), "{}", out.stderr);
    osc::fs::mount::mount("tmpfs", dir.path(), "tmpfs", rustix::mount::MountFlags::empty(), "size=20m").unwrap();
    let out = common::run(["image", "build", "--disk", "raw", "--output", &dir.path().join("disk").to_string_lossy()]);
    let left = fs::read_dir(dir.path()).unwrap().count();
    osc::fs::mount::detach(dir.path()).unwrap();
    assert!(out.status != 0 && out.stderr.contains("o space left"), "{}", out.stderr);
    assert_eq!(left, 0);
    for (format, size) in [("raw", 0), ("vhd", 512)] {
        disk(format, &dir.path().join(format));
        assert_eq!(fs::metadata(dir.path().join(format)).unwrap().len() % (1 << 20), size);
    }
}

const SETUP: &str = r#"set -e
cd "$1"
ip link set lo up
mount -t tmpfs t /run/libvirt
for d in lib cache log; do mkdir -p /var/$d/libvirt; mount -t tmpfs t /var/$d/libvirt; done
cp -a /etc/libvirt etc; mount --bind etc /etc/libvirt
cat > /etc/libvirt/qemu.conf <<E
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
remember_owner = 0
stdio_handler = "file"
namespaces = []
E
printf 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n' > /etc/libvirt/libvirtd.conf
libvirtd -f /etc/libvirt/libvirtd.conf -p /run/libvirt/osc.pid 2>libvirtd.log &
until virsh -c qemu:///system version >/dev/null 2>&1; do sleep 0.1; kill -0 $!; done
cat > net.xml <<E
<network><name>osc</name><bridge name='oscbr0'/><ip address='192.168.122.1' netmask='255.255.255.0'>
<dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp></ip></network>
E
v() { virsh -q -c qemu:///system "$@" >/dev/null; }
v net-define net.xml; v net-start osc
v pool-define-as osc dir --target "$1/pool"; v pool-start osc
touch ready
exec sleep infinity
"#;

/// A libvirtd with a network and a pool `osc`, and everything of it gone when dropped.
struct Libvirtd {
    dir: tempfile::TempDir,
    holder: Child,
}

impl Libvirtd {
    /// With the pod VM's image in its pool, which has `size` where one is given.
    fn start(size: Option<&str>) -> Libvirtd {
        let dir = tempfile::Builder::new().prefix("osc-libvirt-").tempdir().unwrap();
        let pool = dir.path().join("pool");
        fs::create_dir(&pool).unwrap();
        fs::create_dir_all("/run/libvirt").unwrap();
        let image = dir.path().join("image");
        disk("qcow2", &image);
        if let Some(size) = size {
            osc::fs::mount::mount("tmpfs", &pool, "tmpfs", rustix::mount::MountFlags::empty(), size).unwrap();
        }
        fs::copy(image, pool.join("podvm-base.qcow2")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "--uts", "--ipc", "--propagation", "slave", "sh", "-c", SETUP, "sh"]).arg(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let holder = command.stderr(fs::File::create(dir.path().join("setup.log")).unwrap()).spawn().unwrap();
        let made = Libvirtd { dir, holder };
        common::until("libvirtd", || made.dir.path().join("ready").exists().then_some(()));
        made
    }

    fn inside(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "-t", &pid, "-m", "-n", "-u", "-i", "--"].map(str::to_owned).to_vec()
    }

    fn sh(&self, line: &str) -> String {
        netns::sh(&format!("{} sh -c '{line}'", self.inside().join(" ")))
    }

    fn virsh(&self, line: &str) -> String {
        self.sh(&format!("virsh -q -c qemu:///system {line}"))
    }

    fn adaptor(&self, extra: &[&str]) -> Adaptor {
        Adaptor::with(self.how(extra))
    }

    fn how(&self, extra: &[&str]) -> How {
        let ours = [
            "--provider",
            "libvirt",
            "--uri",
            "qemu:///system",
            "--pool-name",
            "osc",
            "--network-name",
            "osc",
            "--virt-type",
            "qemu",
            "--efi-firmware",
            "none",
            "--libvirt-memory",
            "512",
            "--libvirt-cpu",
            "1",
            "--root-disk-size",
            "2",
            "--host-interface",
            "oscbr0",
        ];
        How { inside: self.inside(), extra: ours.iter().chain(extra).map(|e| e.to_string()).collect(), ..How::default() }
    }

    /// Domains, and volumes but the base image.
    fn left(&self) -> String {
        let volumes = self.virsh("vol-list osc");
        let volumes: Vec<&str> = volumes.lines().filter(|l| !l.trim().is_empty() && !l.contains("podvm-base")).collect();
        self.virsh("list --all --name").trim().to_owned() + &volumes.join("\n")
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let inside = self.inside().join(" ");
        let end = "for d in $(virsh -q -c qemu:///system list --name); do virsh -q -c qemu:///system destroy $d; done; \
                   virsh -q -c qemu:///system net-destroy osc; kill $(cat /run/libvirt/network/osc.pid) $(cat /run/libvirt/osc.pid)";
        let _ = netns::try_sh(&format!("timeout 30 {inside} sh -c '{end}'"));
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        let _ = osc::fs::mount::detach(&self.dir.path().join("pool"));
        let _ = fs::remove_dir("/run/libvirt");
    }
}

#[test]
fn a_pod_on_libvirt_lives_survives_its_adaptor_and_leaves_nothing() {
    if !can_run_libvirt("a_pod_on_libvirt") {
        return;
    }
    let libvirt = Libvirtd::start(None);
    let mut adaptor = libvirt.adaptor(&[]);
    let (player, root, net) = (Player::new(), Rootfs::new(), netns::Pod::new());
    let spec = spec(root.path(), &["sleep", "3600"], Some(&net.pod.path()), json!({}));
    let size = [("io.katacontainers.config.hypervisor.default_vcpus", "2"), ("io.katacontainers.config.hypervisor.default_memory", "640")];
    let pod = PeerPod::start(&adaptor.socket(), &player, spec, &size);
    let domain = libvirt.virsh("list --name").trim().to_owned();
    assert!(domain.ends_with(&pod.id), "{domain}");
    let info = libvirt.virsh(&format!("dominfo {domain}"));
    assert!(info.contains("655360 KiB") && info.lines().any(|l| l.starts_with("CPU(s)") && l.ends_with(" 2")), "{info}");
    net.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));

    // The root is on the disk, which has grown to what was asked for.
    let size: u64 = pod.exec("df -k / | tail -n 1 | awk \"{ print \\$2 }\"").trim().parse().unwrap();
    assert!(size > 1_800_000, "{size}");

    adaptor.kill();
    adaptor.restart("");
    assert_eq!(pod.exec("echo again"), "again\n");
    net.peer.run(&format!("busybox ping -c 1 -W 5 {}", netns::POD_V4));

    let log = pod.end();
    assert!(!log.contains("level=error"), "{log}");
    common::until("nothing is left", || libvirt.left().is_empty().then_some(()));
    adaptor.kill();
}

#[test]
fn an_adaptor_that_dies_loses_no_libvirt_vm_and_one_that_dies_is_told() {
    if !can_run_libvirt("an_adaptor_that_dies") {
        return;
    }
    let libvirt = Libvirtd::start(None);
    for point in ["requested", "made"] {
        // By a BIOS and by UEFI.
        let firmware = if point == "made" { "/usr/share/OVMF/OVMF_CODE_4M.fd" } else { "none" };
        let mut adaptor = Adaptor::with(How { fault: point.into(), ..libvirt.how(&["--efi-firmware", firmware]) });
        let (vm, _client) = adaptor.start_vm_through_death(point);
        assert_eq!(libvirt.virsh("list --all --name").split_whitespace().count(), 1, "{point}");
        if point == "made" {
            libvirt.virsh(&format!("destroy {}", libvirt.virsh("list --name").trim()));
            common::until("the VM's loss", || vm.ended());
        }
        vm.stop(Duration::ZERO);
        common::until("nothing is left", || libvirt.left().is_empty().then_some(()));
        adaptor.kill();
    }
}

#[test]
fn what_libvirt_cannot_do_is_told_and_leaves_nothing() {
    if !can_run_libvirt("what_libvirt_cannot_do") {
        return;
    }
    let libvirt = Libvirtd::start(Some("size=100m"));
    let start = |adaptor: &Adaptor, annotation: (&str, &str)| {
        let mut plan = adaptor.plan(&common::name("bad"), Default::default());
        plan.annotations.insert(format!("io.katacontainers.config.hypervisor.{}", annotation.0), annotation.1.into());
        Remote::start(plan).map(drop).unwrap_err().to_string()
    };
    let says = |text: String, parts: &[&str]| assert!(parts.iter().all(|p| text.contains(p)), "{text}");
    // At the start of an adaptor.
    for (extra, parts) in [
        (["--vol-name", "no-such.qcow2"], ["no-such.qcow2", "LIBVIRT_VOL_NAME"]),
        (["--pool-name", "no-such"], ["no-such", "LIBVIRT_POOL"]),
        (["--network-name", "no-such"], ["no-such", "LIBVIRT_NET"]),
        (["--uri", "qemu+unix:///system?socket=/none"], ["/none", "LIBVIRT_URI"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let how = libvirt.how(&extra);
        let mut command = Command::new(&how.inside[0]);
        command.args(&how.inside[1..]).arg(common::osc()).arg("adaptor").args(&how.extra);
        command.arg("--socket").arg(dir.path().join("h.sock")).arg("--pods-dir").arg(dir.path().join("pods"));
        let out = common::finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        assert!(out.status != 0 && parts.iter().all(|p| out.stderr.contains(p)), "{extra:?}: {}", out.stderr);
    }
    // Of one pod.
    let mut adaptor = libvirt.adaptor(&[]);
    says(start(&adaptor, ("image", "no-such.qcow2")), &["no-such.qcow2", "osc image build"]);
    says(start(&adaptor, ("machine_type", "m5.large")), &["m5.large", "libvirt has none", "default_vcpus"]);
    libvirt.sh(&format!("head -c 256M /dev/zero >{}/pool/full || true", libvirt.dir.path().display()));
    says(start(&adaptor, ("default_vcpus", "1")), &["ull"]);
    fs::remove_file(libvirt.dir.path().join("pool/full")).unwrap();
    common::until("nothing is left", || (libvirt.left().is_empty() && adaptor.is_empty()).then_some(()));
    // libvirt goes down under an adaptor.
    libvirt.sh("kill $(cat /run/libvirt/osc.pid); while [ -S /run/libvirt/libvirt-sock ]; do sleep 0.1; done");
    says(start(&adaptor, ("default_vcpus", "1")), &["connect", "LIBVIRT_URI"]);
    adaptor.kill();
}
