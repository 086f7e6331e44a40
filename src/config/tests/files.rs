use super::*;
use crate::config::{BlockDriver, Config, Hypervisor, NetworkModel, Origin, SharedFs};
use std::time::Duration;

/// What a Go file of a distribution says.
const GO: &str = r#"
[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
kernel = "/usr/share/kata-containers/vmlinux.container"
image = "/usr/share/kata-containers/kata-containers.img"
machine_type = "q35"
rootfs_type = "ext4"
enable_annotations = ["enable_iommu", "virtio_fs_extra_args", "kernel_params", "default_vcpus"]
valid_hypervisor_paths = ["/usr/bin/qemu-system-x86_64"]
kernel_params = "console=ttyS1  agent.hotplug_timeout=5"
firmware = ""
machine_accelerators = ""
cpu_features = "pmu=off"
default_vcpus = 2
default_maxvcpus = 0
default_bridges = 1
default_memory = 1024
disable_block_device_use = false
shared_fs = "virtio-fs"
virtio_fs_daemon = "/usr/libexec/virtiofsd"
virtio_fs_cache_size = 0
virtio_fs_queue_size = 1024
virtio_fs_extra_args = ["--thread-pool-size=1", "--announce-submounts"]
virtio_fs_cache = "auto"
block_device_driver = "virtio-scsi"
block_device_aio = "io_uring"
enable_iothreads = false
enable_vhost_user_store = false
vhost_user_store_path = "/var/run/kata-containers/vhost-user"
vhost_user_reconnect_timeout_sec = 0
pflashes = []
disable_image_nvdimm = false
disable_selinux = false
disable_guest_selinux = true

[factory]
#enable_template = true

[agent.kata]
kernel_modules = []
dial_timeout = 90

[runtime]
internetworking_model = "tcfilter"
disable_guest_seccomp = true
sandbox_cgroup_only = false
static_sandbox_resource_mgmt = false
sandbox_bind_mounts = []
vfio_mode = "guest-kernel"
disable_guest_empty_dir = false
experimental = []
create_container_timeout = 30
dan_conf = "/run/kata-containers/dans"
"#;

/// The same in the Rust runtime's words, where they differ.
const RUST: &str = r#"
[hypervisor.qemu]
path = "/usr/bin/qemu-system-x86_64"
vm_rootfs_driver = "virtio-pmem"
default_vcpus = 1.5
overhead_vcpus = 0.25
overhead_memory = 64
block_device_driver = "virtio-blk-pci"
seccomp_sandbox = "on,obsolete=deny"
network_queues = 1
queue_size = 128
num_queues = 1
log_level = "info"

[hypervisor.qemu.factory]
enable_template = false

[agent.kata]
dial_timeout_ms = 10
reconnect_timeout_ms = 90000
create_container_timeout = 30

[agent.kata.mem_agent]
mem_agent_enable = false
memcg_swappiness_max = 50

[runtime]
name = "virt_container"
hypervisor_name = "qemu"
agent_name = "kata"
emptydir_mode = "shared-fs"
kubelet_root_dir = "/var/lib/k0s/kubelet"
"#;

#[test]
fn a_go_file_is_understood() {
    let files = Files::new(GO);
    let got = files.read();
    assert_eq!(got.errors, Vec::<String>::new());
    let c = &got.config;
    assert_eq!(c.path.as_deref(), Some("/usr/bin/qemu-system-x86_64".as_ref()));
    assert_eq!(c.kernel_params, ["console=ttyS1", "agent.hotplug_timeout=5"]);
    assert_eq!((c.default_vcpus, c.default_memory, c.virtio_fs_queue_size), (2, 1024, 1024));
    assert_eq!((c.boot_timeout, c.create_container_timeout), (Duration::from_secs(90), Duration::from_secs(30)));
    assert!(c.disable_guest_seccomp && !c.disable_selinux);
    assert_eq!(
        (c.shared_fs, c.block_device_driver, c.internetworking_model),
        (SharedFs::VirtioFs, BlockDriver::VirtioScsi, NetworkModel::TcFilter)
    );
    assert_eq!(c.origins["hypervisor.default_memory"], Origin::File { path: files.main(), line: 17 });
    // The kernel goes with the disk image, and neither silently.
    assert_eq!(c.kernel, None);
    let told = |part: &str| c.warnings.iter().filter(|w| w.contains(part)).count();
    assert_eq!((told("configuration.toml:5: image"), told("configuration.toml:4: kernel")), (1, 1), "{:#?}", c.warnings);
    assert!(got.notes.iter().any(|n| n.contains("rootfs_type = \"ext4\": no effect: of a disk image")), "{:#?}", got.notes);
}

#[test]
fn a_rust_file_is_understood() {
    let got = of(RUST);
    assert_eq!(got.errors, Vec::<String>::new());
    let c = &got.config;
    assert_eq!((c.default_vcpus, c.overhead_vcpus, c.overhead_memory), (2, 0.25, 64));
    assert_eq!(c.block_device_driver, BlockDriver::VirtioBlk);
    assert_eq!(c.seccomp_sandbox.as_deref(), Some("on,obsolete=deny"));
    assert_eq!((c.boot_timeout, c.create_container_timeout), (Duration::from_secs(90), Duration::from_secs(30)));
    assert_eq!(c.kubelet_root_dir, Path::new("/var/lib/k0s/kubelet"));
}

#[test]
fn a_boot_takes_the_time_that_it_takes() {
    let floor = Config::default().boot_timeout;
    assert_eq!(of("[agent.kata]\nreconnect_timeout_ms = 3000").config.boot_timeout, floor);
    assert_eq!(of("[agent.kata]\ndial_timeout = 45").config.boot_timeout, floor);
}

#[test]
fn drop_ins_win_in_the_order_of_their_names() {
    let files = Files::new("[hypervisor.qemu]\ndefault_memory = 512\ndefault_vcpus = 2\n[runtime]\nenable_debug = true\n")
        .drop_in("20-b.toml", "[hypervisor.qemu]\n\ndefault_memory = 768\n")
        .drop_in("10-a.toml", "[hypervisor.qemu]\ndefault_memory = 640\n")
        .drop_in("30-c.conf", "[hypervisor.qemu]\ndefault_memory = 1\n");
    let got = files.read();
    assert_eq!((got.config.default_memory, got.config.default_vcpus), (768, 2));
    assert!(got.config.runtime_debug);
    assert_eq!(got.files.iter().map(|f| name(f)).collect::<Vec<_>>(), ["configuration.toml", "10-a.toml", "20-b.toml"]);
    let origin = got.config.origins["hypervisor.default_memory"].to_string();
    assert!(origin.ends_with("config.d/20-b.toml:3"), "{origin}");
}

#[test]
fn a_link_to_the_file_has_the_files_drop_ins() {
    let files = Files::new("").drop_in("1.toml", "[hypervisor.qemu]\ndefault_vcpus = 3");
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("configuration.toml");
    std::os::unix::fs::symlink(files.main(), &link).unwrap();
    assert_eq!(assemble(Some(&link), "x").config.default_vcpus, 3);
}

#[test]
fn what_nobody_knows_is_a_warning_with_its_line() {
    let got = of(
        "surprise = 1\n[hypervisor.qemu]\ndefault_vcpu = 1\nsandbox_cgroup_only = true\n[hypervisor.clh]\npath = \"/x\"\n[agent.other]\nx = 1\n[nonsense]\nx = 1\n[hypervisor.qemu.x]\ny = 1\n",
    );
    assert_eq!(got.errors, Vec::<String>::new());
    for part in [
        ":1: surprise: unknown key",
        ":3: default_vcpu: unknown key",
        ":4: sandbox_cgroup_only: unknown key in this section: it belongs into runtime",
        ":5: [hypervisor.clh]: not read: osc runs VMs by qemu or remote",
        ":7: [agent.other]: not read",
        ":9: [nonsense]: unknown section",
        ":11: x: unknown key",
    ] {
        assert!(got.config.warnings.iter().any(|w| w.contains(part)), "{part} in {:#?}", got.config.warnings);
    }
    assert_eq!(got.config.warnings.len(), 7, "{:#?}", got.config.warnings);
}

#[test]
fn what_makes_no_sense_is_an_error_with_file_line_key_and_value() {
    for (text, want) in [
        ("[hypervisor.qemu]\ndefault_memory = \"lots\"", ":2: default_memory = \"lots\": want 128 to 67108864 (MiB)"),
        ("[hypervisor.qemu]\ndefault_memory = 64", ":2: default_memory = 64: want 128 to"),
        ("[hypervisor.qemu]\ndefault_memory = -1", ":2: default_memory = -1: want 128 to"),
        ("[hypervisor.qemu]\ndefault_vcpus = 241", ":2: default_vcpus = 241: want a number of vCPUs up to 240"),
        ("[hypervisor.qemu]\ndefault_vcpus = \"2\"", ":2: default_vcpus = \"2\": want a number of vCPUs"),
        ("[hypervisor.qemu]\ndefault_maxvcpus = 1000", ":2: default_maxvcpus = 1000: want 0 to 240"),
        ("[hypervisor.qemu]\nenable_debug = 1", ":2: enable_debug = 1: want true or false"),
        ("[hypervisor.qemu]\npath = []", ":2: path = []: want a text in quotes"),
        ("[hypervisor.qemu]\npath = 1979-05-27", ":2: path = a datetime: want a text in quotes"),
        ("[hypervisor.qemu]\nvirtio_fs_extra_args = [1]", "want a list of texts"),
        ("[hypervisor.qemu]\nrootless = true", ":2: rootless = true: want false: rootless QEMU is not done"),
        ("[hypervisor.qemu]\nshared_fs = \"virtio-9p\"", "want \"virtio-fs\", \"none\": virtio-fs; none"),
        ("[hypervisor.qemu]\nmachine_type = \"pc\"", "want \"q35\""),
        ("[hypervisor.qemu]\nconfidential_guest = true", "confidential guests are not done"),
        ("[hypervisor.qemu]\nvirtio_fs_cache = \"sometimes\"", "want \"auto\", \"always\""),
        ("[runtime]\ncreate_container_timeout = 0", "want 1 to 86400 (s)"),
        ("[runtime]\nkubelet_root_dir = \"kubelet\"", "want a path from the root"),
        ("[runtime]\nhypervisor_name = \"clh\"", ":2: hypervisor_name = \"clh\": osc runs VMs by \"qemu\" or \"remote\""),
        ("[runtime]\ninternetworking_model = \"macvtap\"", "macvtap and l3forwarding are not done"),
        ("[runtime]\n\ndisable_new_netns = true", ":3: disable_new_netns = true: goes with internetworking_model = \"none\" only"),
        ("[hypervisor.qemu]\ndefault_maxmemory = 1024", "default_memory = 2048: more than default_maxmemory = 1024 (MiB)"),
        ("[hypervisor.qemu\n", ":1: "),
        ("[runtime]\na = 1\na = 2\n", ":3: duplicate key"),
    ] {
        let errors = of(text).errors;
        assert!(errors.len() == 1 && errors[0].contains(want) && errors[0].contains("configuration.toml"), "{want} in {errors:?}");
    }
}

#[test]
fn the_first_error_is_told_with_how_many_there_are() {
    let files = Files::new("[hypervisor.qemu]\nrootless = true\nfirmware = \"/x\"\n");
    let e = Config::load("containerd-shim-kata-v2", Some(&files.main())).unwrap_err();
    assert_eq!(e.code, crate::rpc::Code::InvalidArgument);
    assert!(e.cause.ends_with("rootless QEMU is not done (1 more)") && e.way_out.starts_with("osc config check /"), "{e}");
    let e = Config::load("x", Some(Path::new("/nonexistent/c.toml"))).unwrap_err();
    assert!(e.cause.contains("/nonexistent/c.toml") && e.way_out.contains("ConfigPath"), "{e}");
}

#[test]
fn which_section_counts() {
    let both = "[hypervisor.qemu]\ndefault_vcpus = 2\n[hypervisor.remote]\ndefault_vcpus = 4\n";
    let by = |text: &str, shim: &str| {
        let files = Files::new(text);
        let c = assemble(Some(&files.main()), shim).config;
        (c.hypervisor, c.default_vcpus)
    };
    assert_eq!(by(both, "containerd-shim-kata-v2"), (Hypervisor::Qemu, 2));
    assert_eq!(by(both, "containerd-shim-kata-remote-v2"), (Hypervisor::Remote, 4));
    assert_eq!(by(&format!("{both}[runtime]\nhypervisor_name = \"remote\""), "containerd-shim-kata-v2"), (Hypervisor::Remote, 4));
    assert_eq!(by(&format!("{both}[runtime]\nhypervisor_name = \"\""), "containerd-shim-kata-v2"), (Hypervisor::Qemu, 2));
    assert_eq!(by("[hypervisor.remote]\ndefault_vcpus = 4", "containerd-shim-kata-v2"), (Hypervisor::Remote, 4));
    assert_eq!(by("", "containerd-shim-kata-remote-v2"), (Hypervisor::Remote, 1));
    let files = Files::new("[hypervisor.qemu]\n");
    let told = assemble(Some(&files.main()), "containerd-shim-kata-remote-v2").config.warnings;
    assert!(told.len() == 1 && told[0].contains("the file selects qemu"), "{told:?}");
}

#[test]
fn the_remote_hypervisors_keys() {
    let got = of(r#"
[hypervisor.remote]
remote_hypervisor_socket = "/run/peerpod/other.sock"
remote_hypervisor_timeout = 300
enable_annotations = ["machine_type", "default_memory", "default_vcpus", "image", "default_gpus", "gpu_model", "cc_init_data"]
machine_type = "t3.large"
default_bridges = 1
guest_hook_path = ""
[runtime]
internetworking_model = "none"
disable_new_netns = true
static_sandbox_resource_mgmt = true
experimental = ["force_guest_pull"]
"#);
    assert_eq!(got.errors, Vec::<String>::new());
    let c = got.config;
    assert_eq!(c.remote_hypervisor_socket, Path::new("/run/peerpod/other.sock"));
    assert_eq!((c.remote_hypervisor_timeout.as_secs(), c.machine_type.as_deref()), (300, Some("t3.large")));
    assert!(c.disable_new_netns && c.force_guest_pull && c.static_sandbox_resource_mgmt);
    assert!(c.warnings.iter().any(|w| w.contains("\"gpu_model\" is no annotation's name")), "{:#?}", c.warnings);
    assert!(of("[runtime]\nexperimental = [\"force_guest_pull\"]").errors[0].contains("peer pods"));
}

#[test]
fn no_file_is_the_built_in_defaults() {
    let c = assemble(None, "containerd-shim-kata-v2").config;
    assert_eq!(c.enable_annotations, ["default_vcpus", "default_memory", "default_max_vcpus"]);
    assert!(c.origins.is_empty() && c.warnings.is_empty() && c.file.is_none());
    // A file that allows nothing allows nothing.
    assert_eq!(of("").config.enable_annotations, Vec::<String>::new());
}

#[test]
fn a_password_is_not_told() {
    let got = of("[runtime]\njaeger_password = \"secret\"\n");
    assert!(!got.notes.concat().contains("secret") && got.notes.len() == 1, "{:?}", got.notes);
}
