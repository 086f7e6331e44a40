//! `[hypervisor.*]`: what is booted, CPUs and memory, who may annotate what.

use crate::config::HugepageType;
use crate::config::Hypervisor::{Qemu, Remote};
use crate::config::key::Lit::{Bool, EmptyList, Text};
use crate::config::key::Section::{Factory, Hypervisor as H};
use crate::config::key::{Key, Lit, Number, Rule, key};

use super::devices::choice;

const MIB: &str = "MiB";

/// A VM with less does not boot.
const LEAST_MIB: u64 = 128;

/// Far above any host: 64 TiB.
const MOST_MIB: u64 = 64 << 20;

const CONFIDENTIAL: &str = "confidential guests are not done";
const HASHES: &str = "osc builds its guest itself and checks it by its own hashes";

pub const KEYS: &[Key] = &[
    // What is booted.
    key(H, "path", Rule::Path(|c| &mut c.path), "the QEMU to run; else the one that the distribution installed")
        .proof("`bad_input` programs_and_kernels_")
        .on(Qemu)
        .noted()
        .within("valid_hypervisor_paths", |c| &c.valid_hypervisor_paths),
    key(H, "kernel", Rule::Path(|c| &mut c.kernel), "the guest's kernel; else the host's own")
        .proof("`bad_input` programs_and_kernels_")
        .on(Qemu)
        .noted()
        .within("valid_guest_paths", |c| &c.valid_guest_paths),
    key(H, "initrd", Rule::Path(|c| &mut c.initrd), "the guest's initrd; else osc builds one that fits the kernel")
        .proof("`bad_input` programs_and_kernels_")
        .on(Qemu)
        .noted()
        .within("valid_guest_paths", |c| &c.valid_guest_paths),
    key(H, "image", Rule::Replaced(|c| &mut c.image), "osc boots an initrd that it builds itself, not a disk image").on(Qemu).noted(),
    key(H, "image", Rule::Text(|c| &mut c.image), "the image that the provider boots")
        .on(Remote)
        .noted()
        .proof("`remote` a_container_in_a_pod_vm_"),
    key(H, "rootfs_type", Rule::Moot, "of a disk image; osc boots an initrd").on(Qemu),
    key(H, "vm_rootfs_driver", Rule::Moot, "of a disk image; osc boots an initrd").on(Qemu),
    key(H, "disable_image_nvdimm", Rule::Moot, "of a disk image; osc boots an initrd").on(Qemu).noted(),
    key(H, "kernel_verity_params", Rule::Only(&[Text("")]), "of a disk image; osc boots an initrd").on(Qemu).noted(),
    key(H, "kernel_params", Rule::Words(|c| &mut c.kernel_params), "appended to the guest kernel's command line")
        .proof("`config` a_file_and_annotations_")
        .noted(),
    key(H, "machine_type", Rule::Only(&[Text("q35"), Text("")]), "osc knows one machine").on(Qemu).noted(),
    key(H, "machine_type", Rule::Text(|c| &mut c.machine_type), "the size that the provider sells")
        .on(Remote)
        .noted()
        .proof("`remote` a_container_in_a_pod_vm_"),
    key(H, "machine_accelerators", Rule::Text(|c| &mut c.machine_accelerators), "more properties of QEMU's -machine")
        .on(Qemu)
        .noted()
        .proof("`vm::qemu::args` what_a_configuration_changes"),
    key(H, "cpu_features", Rule::Text(|c| &mut c.cpu_features), "more properties of QEMU's -cpu")
        .on(Qemu)
        .noted()
        .proof("`vm::qemu::args` what_a_configuration_changes"),
    key(H, "firmware", Rule::Only(&[Text("")]), "the kernel is started directly, without firmware").noted(),
    key(H, "firmware_volume", Rule::Only(&[Text("")]), "the kernel is started directly, without firmware"),
    key(H, "pflashes", Rule::Only(&[EmptyList]), "the kernel is started directly, without firmware"),
    key(H, "seccompsandbox", Rule::Text(|c| &mut c.seccomp_sandbox), "QEMU's -sandbox; else on, with all that QEMU can deny")
        .on(Qemu)
        .proof("`vm::qemu::args` what_a_configuration_changes"),
    key(H, "seccomp_sandbox", Rule::Text(|c| &mut c.seccomp_sandbox), "the same, as the Rust runtime calls it")
        .alias_of("hypervisor.seccompsandbox")
        .on(Qemu)
        .proof("`vm::qemu::args` what_a_configuration_changes"),
    key(H, "disable_seccomp", Rule::Only(&[Bool(false)]), "QEMU's sandbox stays on").on(Qemu),
    key(H, "rootless", Rule::Only(&[Bool(false)]), "rootless QEMU is not done").noted(),
    key(H, "rootless_user", Rule::Moot, "rootless QEMU is not done"),
    key(H, "disable_selinux", Rule::Bool(|c| &mut c.disable_selinux), "no SELinux label for QEMU and virtiofsd")
        .proof("`shim::sandbox::selinux` a_label_is_set_"),
    key(H, "disable_guest_selinux", Rule::Only(&[Bool(true)]), "osc's guest has no SELinux policy"),
    key(H, "selinux_label", Rule::Only(&[Text("")]), "osc's guest has no SELinux policy"),
    key(H, "disable_nesting_checks", Rule::Moot, "osc does the same on every host"),
    key(H, "confidential_guest", Rule::Only(&[Bool(false)]), CONFIDENTIAL),
    key(H, "sev_snp_guest", Rule::Only(&[Bool(false)]), CONFIDENTIAL),
    key(H, "snp_*", Rule::Moot, CONFIDENTIAL),
    key(H, "tdx_*", Rule::Moot, CONFIDENTIAL),
    key(H, "measurement_algo", Rule::Only(&[Text("")]), CONFIDENTIAL),
    key(H, "initdata", Rule::Only(&[Text("")]), CONFIDENTIAL).noted_as("cc_init_data"),
    key(H, "asset_hash_type", Rule::Moot, HASHES).noted(),
    key(H, "kernel_hash", Rule::Only(&[Text("")]), HASHES).noted(),
    key(H, "initrd_hash", Rule::Only(&[Text("")]), HASHES).noted(),
    key(H, "image_hash", Rule::Only(&[Text("")]), HASHES).noted(),
    key(H, "firmware_hash", Rule::Only(&[Text("")]), HASHES).noted(),
    key(H, "path_hash", Rule::Only(&[Text("")]), HASHES).noted(),
    key(H, "jailer_path", Rule::Only(&[Text("")]), "QEMU has no jailer").noted(),
    key(H, "jailer_hash", Rule::Only(&[Text("")]), "QEMU has no jailer").noted(),
    key(H, "valid_jailer_paths", Rule::Moot, "QEMU has no jailer"),
    key(H, "ctlpath", Rule::Only(&[Text("")]), "QEMU has no such program"),
    key(H, "valid_ctlpaths", Rule::Moot, "QEMU has no such program"),
    key(H, "prefetch_list_path", Rule::Only(&[Text("")]), "nydus is not done").noted_as("prefetch_files.list"),
    // CPUs and memory.
    key(H, "default_vcpus", Rule::Vcpus(|c| &mut c.default_vcpus), "vCPUs that a VM boots with; containers' limits come on top")
        .proof("`config` a_file_and_annotations_")
        .noted(),
    key(H, "default_maxvcpus", number32(|c| &mut c.default_maxvcpus, (0, 240), ""), "most vCPUs; 0: the larger of 8 and the host's")
        .proof("`vm_qemu` a_guest_grows_")
        .noted_as("default_max_vcpus"),
    key(
        H,
        "default_memory",
        number64(|c| &mut c.default_memory, (LEAST_MIB, MOST_MIB), MIB),
        "memory that a VM boots with; containers' limits come on top",
    )
    .proof("`config` a_file_and_annotations_")
    .noted(),
    key(H, "default_maxmemory", number64(|c| &mut c.default_maxmemory, (0, MOST_MIB), MIB), "most memory; 0: the host's")
        .proof("`vm_qemu` a_guest_grows_"),
    key(H, "overhead_vcpus", Rule::Real(|c| &mut c.overhead_vcpus, 240.0), "added to a pod's limits with static_sandbox_resource_mgmt")
        .later(),
    key(
        H,
        "overhead_memory",
        number64(|c| &mut c.overhead_memory, (0, MOST_MIB), MIB),
        "added to a pod's limits with static_sandbox_resource_mgmt",
    )
    .later(),
    key(H, "memory_slots", number32(|c| &mut c.memory_slots, (0, 255), ""), "how often memory grows by DIMMs, 31 times at most")
        .noted()
        .proof("`vm_qemu` a_guest_that_is_configured_"),
    key(H, "memory_offset", Rule::Only(&[Lit::Number(0)]), "room for NVDIMMs, which osc does not use").noted(),
    key(H, "enable_virtio_mem", Rule::Bool(|c| &mut c.enable_virtio_mem), "memory grows by virtio-mem, and shrinks; false: by DIMMs")
        .on(Qemu)
        .noted()
        .proof("`vm_qemu` a_guest_grows_by_dimms"),
    key(H, "enable_mem_prealloc", Rule::Bool(|c| &mut c.enable_mem_prealloc), "the VM's memory is there before it boots")
        .on(Qemu)
        .noted()
        .proof("`vm_qemu` a_guest_that_is_configured_"),
    key(H, "enable_hugepages", Rule::Bool(|c| &mut c.enable_hugepages), "the VM's memory is made of huge pages")
        .on(Qemu)
        .noted()
        .proof("`vm_qemu` memory_of_huge_pages"),
    key(H, "hugepage_type", choice!(hugepage_type: HugepageType { "hugetlbfs" => Hugetlbfs, "thp" => Thp }), "which huge pages")
        .on(Qemu)
        .noted()
        .proof("`vm_qemu` memory_of_huge_pages"),
    key(H, "reclaim_guest_freed_memory", Rule::Bool(|c| &mut c.reclaim_guest_freed_memory), "free pages of the guest go back to the host")
        .on(Qemu)
        .proof("`vm_qemu` a_guest_that_is_configured_"),
    key(H, "file_mem_backend", Rule::Only(&[Text(""), Text("/dev/shm")]), "a VM's memory is a memfd, which virtiofsd can map").on(Qemu),
    key(H, "valid_file_mem_backends", Rule::Moot, "a VM's memory is a memfd"),
    key(H, "enable_guest_swap", Rule::Only(&[Bool(false)]), "swap in the guest is not done, as in Kata's Rust runtime").noted(),
    key(H, "guest_swap_*", Rule::Moot, "swap in the guest is not done"),
    key(H, "guest_memory_dump_path", Rule::Only(&[Text("")]), "a guest that panics leaves its console, not its memory"),
    key(H, "guest_memory_dump_paging", Rule::Moot, "a guest that panics leaves its console, not its memory"),
    key(H, "enable_numa", Rule::Only(&[Bool(false)]), "a VM has one NUMA node"),
    key(H, "numa_mapping", Rule::Only(&[EmptyList]), "a VM has one NUMA node"),
    // What is told, and who may change it.
    key(H, "enable_debug", Rule::Bool(|c| &mut c.enable_debug), "a talkative guest kernel and agent")
        .proof("`vm::qemu::cmdline` debug_talks_"),
    key(H, "hypervisor_loglevel", Rule::Moot, "enable_debug alone decides"),
    key(H, "log_level", Rule::Moot, "enable_debug alone decides"),
    key(H, "extra_monitor_socket", Rule::Only(&[Text("")]), "whoever has QEMU's monitor has the VM: osc holds the only one"),
    key(H, "use_legacy_serial", Rule::Moot, "the console always is a serial port"),
    key(
        H,
        "enable_annotations",
        Rule::List(|c| &mut c.enable_annotations),
        "annotations that a pod may use: exact names, no patterns; without a file default_vcpus, default_memory, default_max_vcpus",
    )
    .proof("`config::tests::annotations` a_name_allows_"),
    key(H, "valid_hypervisor_paths", Rule::List(|c| &mut c.valid_hypervisor_paths), "globs for an annotated path")
        .proof("`config::tests::annotations` a_path_is_resolved_"),
    key(H, "valid_virtio_fs_daemon_paths", Rule::List(|c| &mut c.valid_virtio_fs_daemon_paths), "globs for an annotated virtio_fs_daemon")
        .proof("`config::tests::annotations` a_path_is_resolved_"),
    key(H, "valid_entropy_sources", Rule::List(|c| &mut c.valid_entropy_sources), "globs for an annotated entropy_source")
        .proof("`config::tests::annotations` a_path_is_resolved_"),
    key(
        H,
        "valid_guest_paths",
        Rule::List(|c| &mut c.valid_guest_paths),
        "globs for an annotated kernel or initrd; ours, Kata checks none",
    )
    .proof("`config::tests::annotations` a_path_is_resolved_"),
    // Ours.
    key(H, "accelerator", Rule::OneOf(|c| &mut c.accelerator, &["kvm", "pvm", "tcg"]), "forces one; else what the host has. Ours")
        .proof("`vm::qemu::accel` the_configuration_is_obeyed")
        .on(Qemu),
    key(H, "kernel_release", Rule::Text(|c| &mut c.kernel_release), "release of the guest's kernel; else the host's own. Ours")
        .proof("`fs::image::kernel` errors_say_")
        .on(Qemu),
    // Templates.
    key(Factory, "enable_template", Rule::Bool(|c| &mut c.enable_template), "VMs are restored from a template").later(),
    key(Factory, "template_path", Rule::Path(|c| &mut c.template_path), "where templates are kept").later(),
    key(Factory, "vm_cache_number", Rule::Only(&[Lit::Number(0)]), "VMCache is not done: use enable_template"),
    key(Factory, "vm_cache_endpoint", Rule::Moot, "VMCache is not done"),
    key(H, "boot_to_be_template", Rule::Moot, "osc makes and uses templates by itself: enable_template"),
    key(H, "boot_from_template", Rule::Moot, "osc makes and uses templates by itself: enable_template"),
    key(H, "memory_path", Rule::Moot, "osc makes and uses templates by itself: enable_template"),
    key(H, "device_state_path", Rule::Moot, "osc makes and uses templates by itself: enable_template"),
];

pub(super) const fn number32(at: fn(&mut crate::config::Config) -> &mut u32, range: (u64, u64), unit: &'static str) -> Rule {
    Rule::Number { at: Number::U32(at), range, unit }
}

pub(super) const fn number64(at: fn(&mut crate::config::Config) -> &mut u64, range: (u64, u64), unit: &'static str) -> Rule {
    Rule::Number { at: Number::U64(at), range, unit }
}
