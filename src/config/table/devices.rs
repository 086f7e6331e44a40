//! `[hypervisor.*]`: files, disks, NICs, PCI, and the remote hypervisor's own keys.

use super::vm::{number32, number64};
use crate::config::Hypervisor::{Qemu, Remote};
use crate::config::key::Lit::{Bool, EmptyList, Number as N, Text};
use crate::config::key::Section::Hypervisor as H;
use crate::config::key::{Key, Number, Rule, key};
use crate::config::{BlockAio, BlockDriver, SharedFs};

/// A field of an enum, by names; the first name of a variant is the one that is shown.
macro_rules! choice {
    ($field:ident: $type:ident { $($name:literal => $variant:ident),+ $(,)? }) => {
        Rule::Choice {
            set: |c, given| {
                c.$field = match given {
                    $($name => $type::$variant,)+
                    _ => return false,
                };
                true
            },
            get: |c| {
                $(if c.$field == $type::$variant {
                    return $name;
                })+
                ""
            },
            names: &[$($name),+],
        }
    };
}
pub(super) use choice;

const VFIO: &str = "VFIO passthrough is not done";
const VHOST_USER: &str = "vhost-user-blk is not done";

pub const KEYS: &[Key] = &[
    // Files.
    key(
        H,
        "shared_fs",
        choice!(shared_fs: SharedFs { "virtio-fs" => VirtioFs, "none" => None }),
        "virtio-fs; none: files are copied; 9p and nydus are not done",
    )
    .on(Qemu)
    .noted()
    .later(),
    key(H, "shared_fs", Rule::Only(&[Text("none"), Text("")]), "a peer pod's files are copied").on(Remote).noted(),
    key(
        H,
        "virtio_fs_daemon",
        Rule::Path(|c| &mut c.virtio_fs_daemon),
        "the virtiofsd to run; else the one that the distribution installed",
    )
    .proof("`bad_input` programs_and_kernels_")
    .on(Qemu)
    .noted()
    .within("valid_virtio_fs_daemon_paths", |c| &c.valid_virtio_fs_daemon_paths),
    key(
        H,
        "virtio_fs_cache",
        Rule::OneOf(|c| &mut c.virtio_fs_cache, &["auto", "always", "metadata", "never", "none"]),
        "virtiofsd's cache mode; else what is fastest with it",
    )
    .proof("`fs::virtiofsd::options` what_cannot_be_")
    .on(Qemu)
    .noted(),
    key(H, "virtio_fs_cache_size", Rule::Only(&[N(0)]), "QEMU has no DAX window").noted(),
    key(H, "virtio_fs_is_dax", Rule::Only(&[Bool(false)]), "QEMU has no DAX window"),
    key(H, "virtio_fs_queue_size", number32(|c| &mut c.virtio_fs_queue_size, (2, 1024), ""), "entries of the share's queue")
        .on(Qemu)
        .proof("`vm::qemu::device` a_share_"),
    key(H, "virtio_fs_extra_args", Rule::List(|c| &mut c.virtio_fs_extra_args), "arguments of virtiofsd, in the words of either one")
        .proof("`fs::virtiofsd::options` each_daemon_")
        .on(Qemu)
        .noted()
        .spaced(),
    key(
        H,
        "virtio_fs_inode_file_handles",
        Rule::OneOf(|c| &mut c.virtio_fs_inode_file_handles, &["never", "prefer", "mandatory"]),
        "how virtiofsd keeps files",
    )
    .on(Qemu)
    .proof("`shim::sandbox::boot` what_a_configuration_changes"),
    key(H, "msize_9p", Rule::Moot, "9p is not done"),
    // Disks.
    key(
        H,
        "disable_block_device_use",
        Rule::Bool(|c| &mut c.disable_block_device_use),
        "a root file system on a block device is mounted here and shared",
    )
    .noted()
    .proof("`block` a_root_on_a_device_"),
    key(
        H,
        "block_device_driver",
        choice!(block_device_driver: BlockDriver {
            "virtio-scsi" => VirtioScsi,
            "virtio-blk" => VirtioBlk,
            "virtio-blk-pci" => VirtioBlk,
        }),
        "how disks are plugged; NVDIMM, pmem, mmio and ccw are not done",
    )
    .noted()
    .proof("`block` a_raw_device_"),
    key(
        H,
        "block_device_aio",
        choice!(block_device_aio: BlockAio { "io_uring" => IoUring, "threads" => Threads, "native" => Native }),
        "how QEMU reads and writes disks",
    )
    .proof("`block` every_key_of_a_disk_"),
    key(H, "block_device_cache_set", Rule::Bool(|c| &mut c.block_device_cache_set), "the next two are honoured")
        .noted()
        .proof("`shim::sandbox::block` what_a_configuration_"),
    key(H, "block_device_cache_direct", Rule::Bool(|c| &mut c.block_device_cache_direct), "disks bypass the host's page cache")
        .noted()
        .proof("`block` every_key_of_a_disk_"),
    key(H, "block_device_cache_noflush", Rule::Bool(|c| &mut c.block_device_cache_noflush), "flushes of the guest are ignored")
        .noted()
        .proof("`vm::qemu::disk` each_key_"),
    key(
        H,
        "block_device_logical_sector_size",
        number32(|c| &mut c.block_device_logical_sector_size, (0, 65536), "bytes"),
        "of disks; 0: QEMU's",
    )
    .noted_as("blk_logical_sector_size")
    .proof("`block` every_key_of_a_disk_"),
    key(
        H,
        "block_device_physical_sector_size",
        number32(|c| &mut c.block_device_physical_sector_size, (0, 65536), "bytes"),
        "of disks; 0: QEMU's",
    )
    .noted_as("blk_physical_sector_size")
    .proof("`block` every_key_of_a_disk_"),
    key(H, "enable_iothreads", Rule::Bool(|c| &mut c.enable_iothreads), "disks have a thread of their own")
        .noted()
        .proof("`vm::qemu::disk` each_key_"),
    key(H, "indep_iothreads", number32(|c| &mut c.indep_iothreads, (0, 64), ""), "threads for disks that are plugged later")
        .noted()
        .proof("`block` every_key_of_a_disk_"),
    key(H, "queue_size", number32(|c| &mut c.queue_size, (2, 1024), ""), "entries of a disk's queue")
        .noted_as("block_device_queue_size")
        .proof("`block` every_key_of_a_disk_"),
    key(H, "num_queues", number32(|c| &mut c.num_queues, (1, 240), ""), "queues of a disk")
        .noted_as("block_device_num_queues")
        .proof("`block` every_key_of_a_disk_"),
    key(
        H,
        "disk_rate_limiter_bw_max_rate",
        number64(|c| &mut c.disk_rate_limiter_bw_max_rate, (0, ANY), "bits/s"),
        "of disks; 0: unlimited",
    )
    .proof("`vm::qemu::disk` limits_"),
    key(H, "disk_rate_limiter_bw_one_time_burst", number64(|c| &mut c.disk_rate_limiter_bw_one_time_burst, (0, ANY), "bits"), "of disks")
        .proof("`vm::qemu::disk` limits_"),
    key(
        H,
        "disk_rate_limiter_ops_max_rate",
        number64(|c| &mut c.disk_rate_limiter_ops_max_rate, (0, ANY), "1/s"),
        "of disks; 0: unlimited",
    )
    .proof("`block` every_key_of_a_disk_"),
    key(H, "disk_rate_limiter_ops_one_time_burst", number64(|c| &mut c.disk_rate_limiter_ops_one_time_burst, (0, ANY), ""), "of disks")
        .proof("`vm::qemu::disk` limits_"),
    key(H, "enable_vhost_user_store", Rule::Only(&[Bool(false)]), VHOST_USER).noted(),
    key(H, "vhost_user_store_path", Rule::Moot, VHOST_USER).noted(),
    key(H, "valid_vhost_user_store_paths", Rule::Moot, VHOST_USER),
    key(H, "vhost_user_reconnect_timeout_sec", Rule::Moot, VHOST_USER),
    // NICs.
    key(H, "disable_vhost_net", Rule::Bool(|c| &mut c.disable_vhost_net), "QEMU itself moves packets, not the host's kernel")
        .on(Qemu)
        .noted()
        .proof("`cni` the_configuration_decides_how_a_pod_is_attached"),
    key(H, "network_queues", number32(|c| &mut c.network_queues, (0, 240), ""), "queue pairs of a NIC; 0: one for each vCPU there can be")
        .on(Qemu)
        .noted()
        .proof("`cni` the_configuration_decides_how_a_pod_is_attached"),
    key(H, "rx_rate_limiter_max_rate", number64(|c| &mut c.rx_rate_limiter_max_rate, (0, ANY), "bits/s"), "into the pod; 0: unlimited")
        .noted()
        .proof("`netns` rates_are_limited_each_way"),
    key(H, "tx_rate_limiter_max_rate", number64(|c| &mut c.tx_rate_limiter_max_rate, (0, ANY), "bits/s"), "out of the pod; 0: unlimited")
        .noted()
        .proof("`netns` rates_are_limited_each_way"),
    key(H, "net_rate_limiter_*", Rule::Only(&[N(0)]), "with QEMU it is rx_ and tx_rate_limiter_max_rate"),
    // PCI.
    key(H, "default_bridges", Rule::Only(&[N(0), N(1)]), "one bridge takes 31 devices").noted(),
    key(H, "pcie_root_port", Rule::Only(&[N(0)]), VFIO).noted(),
    key(H, "pcie_switch_port", Rule::Only(&[N(0)]), VFIO).noted(),
    key(H, "cold_plug_vfio", Rule::Only(&[Text("no-port"), Text("")]), VFIO),
    key(H, "hot_plug_vfio", Rule::Only(&[Text("no-port"), Text("")]), VFIO),
    key(H, "hotplug_vfio_on_root_bus", Rule::Only(&[Bool(false)]), VFIO).noted(),
    key(H, "enable_iommu", Rule::Only(&[Bool(false)]), VFIO).noted(),
    key(H, "enable_iommu_platform", Rule::Only(&[Bool(false)]), VFIO).noted(),
    // The rest.
    key(
        H,
        "entropy_source",
        Rule::Path(|c| &mut c.entropy_source),
        "where the guest's randomness comes from; else the host kernel's generator",
    )
    .on(Qemu)
    .noted()
    .within("valid_entropy_sources", |c| &c.valid_entropy_sources)
    .proof("`vm_qemu` a_guest_that_is_configured_"),
    key(H, "guest_hook_path", Rule::Text(|c| &mut c.guest_hook_path), "told to the guest; the image that osc builds has no hooks to run")
        .noted()
        .proof("`shim::sandbox::boot` what_a_configuration_changes"),
    // The remote hypervisor.
    key(H, "remote_hypervisor_socket", Rule::Place(|c| &mut c.remote_hypervisor_socket), "where the adaptor listens")
        .on(Remote)
        .proof("`remote` a_container_in_a_pod_vm_"),
    key(
        H,
        "remote_hypervisor_timeout",
        Rule::Number { at: Number::Seconds(|c| &mut c.remote_hypervisor_timeout), range: (1, 86_400), unit: "s" },
        "how long the adaptor may take to create a VM",
    )
    .on(Remote)
    .proof("`remote` a_container_in_a_pod_vm_"),
    key(H, "default_gpus", number32(|c| &mut c.default_gpus, (0, 255), ""), "GPUs that the provider is asked for")
        .on(Remote)
        .noted()
        .proof("`remote` a_container_in_a_pod_vm_"),
    key(H, "default_gpu_model", Rule::Text(|c| &mut c.default_gpu_model), "their model")
        .on(Remote)
        .noted()
        .proof("`remote` a_container_in_a_pod_vm_"),
    key(H, "default_gpus", Rule::Only(&[N(0)]), "GPU passthrough is not done").on(Qemu).noted(),
    key(H, "default_gpu_model", Rule::Only(&[Text("")]), "GPU passthrough is not done").on(Qemu).noted(),
    key(H, "remote_*", Rule::Moot, "the remote hypervisor's").on(Qemu),
    key(H, "bind_mounts", Rule::Only(&[EmptyList]), "use sandbox_bind_mounts"),
];

const ANY: u64 = u64::MAX;
