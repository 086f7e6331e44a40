//! What a sandbox is told by its operator: Kata's `configuration.toml`, its drop-ins, and the pod's annotations.
//!
//! One table ([`table`]) says for every key of Kata's two runtimes (the Go and the Rust one, whose dialects differ) what it
//! does here, or why it is refused or means nothing. Loading, `osc config show`, `check` and `explain-annotation` and the
//! table in the README all read it, so that none of them knows a key that another does not.

pub mod annotation;
pub mod cmd;
pub mod docs;
pub mod file;
pub mod glob;
pub mod key;
pub mod search;
pub mod table;
pub mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Result;

/// Who runs the VM: which of the file's `[hypervisor.*]` sections counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypervisor {
    /// `qemu`: QEMU on this host.
    Qemu,
    /// `remote`: an adaptor, which asks a cloud or libvirt (peer pods).
    Remote,
}

/// `shared_fs`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedFs {
    /// `virtio-fs`
    VirtioFs,
    /// `none`: files are copied into the guest, as for a peer pod.
    None,
}

/// `internetworking_model`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkModel {
    /// `tcfilter`: packets are redirected between the pod's interface and a tap.
    TcFilter,
    /// `none`: whoever made the network sees to it.
    None,
}

/// `hugepage_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugepageType {
    Hugetlbfs,
    /// Transparent ones.
    Thp,
}

/// `block_device_driver`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockDriver {
    VirtioBlk,
    VirtioScsi,
}

/// `block_device_aio`: how QEMU reads and writes disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAio {
    Threads,
    Native,
    IoUring,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: usize },
    Annotation(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Annotation(name) => write!(f, "annotation {name}"),
        }
    }
}

/// The effective configuration of a sandbox. Fields have their key's name, and their documentation in [`table`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The selected section.
    pub hypervisor: Hypervisor,

    /// `path`: QEMU; else found where distributions put it.
    pub path: Option<PathBuf>,
    /// `kernel`: an uncompressed guest kernel; else that of the image.
    pub kernel: Option<PathBuf>,
    /// `initrd`; else that of the image, which is built when it is missing or stale.
    pub initrd: Option<PathBuf>,
    /// `image`: for `remote` what the provider boots; QEMU boots an initrd.
    pub image: Option<String>,
    /// `machine_type`: for `remote` the size that the provider sells.
    pub machine_type: Option<String>,
    /// `kernel_params`: appended to the guest's command line.
    pub kernel_params: Vec<String>,
    pub machine_accelerators: Option<String>,
    pub cpu_features: Option<String>,
    /// `seccompsandbox`, `seccomp_sandbox`: QEMU's `-sandbox`.
    pub seccomp_sandbox: Option<String>,
    pub entropy_source: Option<PathBuf>,
    pub disable_selinux: bool,
    /// `enable_debug`: a talkative guest kernel and agent.
    pub enable_debug: bool,
    /// Forces an accelerator: `kvm`, `pvm` or `tcg`. Ours, not Kata's.
    pub accelerator: Option<String>,
    /// Release of the guest kernel; else the host's own. Ours, not Kata's.
    pub kernel_release: Option<String>,

    /// `default_vcpus`: what a VM boots with.
    pub default_vcpus: u32,
    /// `default_maxvcpus`: 0 means the larger of 8 and the host's online CPUs.
    pub default_maxvcpus: u32,
    /// `default_memory`, MiB.
    pub default_memory: u64,
    /// `default_maxmemory`, MiB: 0 means the host's.
    pub default_maxmemory: u64,
    /// `overhead_vcpus`: added to a pod's limits with `static_sandbox_resource_mgmt`.
    pub overhead_vcpus: f64,
    /// `overhead_memory`, MiB: likewise.
    pub overhead_memory: u64,
    /// `memory_slots`: how often memory can grow by DIMMs.
    pub memory_slots: u32,
    pub enable_virtio_mem: bool,
    pub enable_mem_prealloc: bool,
    pub enable_hugepages: bool,
    pub hugepage_type: HugepageType,
    pub reclaim_guest_freed_memory: bool,
    pub enable_vcpus_pinning: bool,

    pub shared_fs: SharedFs,
    /// `virtio_fs_daemon`; else found where distributions put it.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// `virtio_fs_cache`; else what is fastest with the daemon found.
    pub virtio_fs_cache: Option<String>,
    pub virtio_fs_extra_args: Vec<String>,
    pub virtio_fs_queue_size: u32,
    pub virtio_fs_inode_file_handles: Option<String>,

    pub disable_block_device_use: bool,
    pub block_device_driver: BlockDriver,
    pub block_device_aio: BlockAio,
    pub block_device_cache_set: bool,
    pub block_device_cache_direct: bool,
    pub block_device_cache_noflush: bool,
    /// Bytes; 0 leaves it to QEMU.
    pub block_device_logical_sector_size: u32,
    /// Bytes; 0 leaves it to QEMU.
    pub block_device_physical_sector_size: u32,
    pub enable_iothreads: bool,
    /// `indep_iothreads`: how many, for disks that are plugged later.
    pub indep_iothreads: u32,
    /// `queue_size`: entries of a disk's queue.
    pub queue_size: u32,
    /// `num_queues` of a disk.
    pub num_queues: u32,
    pub disk_rate_limiter_bw_max_rate: u64,
    pub disk_rate_limiter_bw_one_time_burst: u64,
    pub disk_rate_limiter_ops_max_rate: u64,
    pub disk_rate_limiter_ops_one_time_burst: u64,

    pub disable_vhost_net: bool,
    /// `network_queues`: queue pairs of a NIC; 0 means one for each vCPU there can be.
    pub network_queues: u32,
    /// Bits per second into the pod; 0 is unlimited.
    pub rx_rate_limiter_max_rate: u64,
    /// Bits per second out of the pod; 0 is unlimited.
    pub tx_rate_limiter_max_rate: u64,

    pub guest_hook_path: Option<String>,
    /// `enable_annotations`: exact names, without their prefix or as `runtime.NAME`.
    pub enable_annotations: Vec<String>,
    pub valid_hypervisor_paths: Vec<String>,
    pub valid_virtio_fs_daemon_paths: Vec<String>,
    pub valid_entropy_sources: Vec<String>,
    /// Globs for `kernel` and `initrd` in annotations. Ours: Kata checks none.
    pub valid_guest_paths: Vec<String>,

    pub enable_template: bool,
    pub template_path: Option<PathBuf>,

    pub remote_hypervisor_socket: PathBuf,
    /// How long the adaptor may take to create a VM.
    pub remote_hypervisor_timeout: Duration,
    pub default_gpus: u32,
    pub default_gpu_model: Option<String>,

    /// `[agent.kata] enable_debug`.
    pub agent_debug: bool,
    /// `kernel_modules`: each a name and its parameters, loaded in the guest.
    pub kernel_modules: Vec<String>,
    pub debug_console_enabled: bool,
    /// Bytes; 0 leaves it to the kernel.
    pub container_pipe_size: u32,
    /// From QEMU's start to the agent's first answer. Under TCG a loaded host is slow.
    pub boot_timeout: Duration,
    pub create_container_timeout: Duration,

    /// `[runtime] enable_debug`.
    pub runtime_debug: bool,
    pub internetworking_model: NetworkModel,
    pub disable_new_netns: bool,
    /// `disable_guest_seccomp`: our own default is seccomp on.
    pub disable_guest_seccomp: bool,
    pub sandbox_cgroup_only: bool,
    pub static_sandbox_resource_mgmt: bool,
    /// `sandbox_bind_mounts`: host paths that the guest, but no container, sees.
    pub sandbox_bind_mounts: Vec<String>,
    pub kubelet_root_dir: PathBuf,
    /// `experimental = ["force_guest_pull"]`, `experimental_force_guest_pull`.
    pub force_guest_pull: bool,

    /// The main file; none where there is none.
    pub file: Option<PathBuf>,
    /// By `section.key`, where it is not the built-in default.
    pub origins: BTreeMap<String, Origin>,
    /// What the files say that has no effect, each with file and line.
    pub warnings: Vec<String>,
}

/// What a pod may ask for where no file says: a size. Of a peer pod also the provider's words for one, which the adaptor
/// has a list of its own for.
pub fn default_annotations(hypervisor: Hypervisor) -> Vec<String> {
    const SIZE: [&str; 3] = ["default_vcpus", "default_memory", "default_max_vcpus"];
    const REMOTE: [&str; 4] = ["machine_type", "image", "default_gpus", "default_gpu_model"];
    let more: &[&str] = if hypervisor == Hypervisor::Remote { &REMOTE } else { &[] };
    SIZE.iter().chain(more).map(|n| n.to_string()).collect()
}

impl Default for Config {
    fn default() -> Config {
        Config {
            hypervisor: Hypervisor::Qemu,
            path: None,
            kernel: None,
            initrd: None,
            image: None,
            machine_type: None,
            kernel_params: Vec::new(),
            machine_accelerators: None,
            cpu_features: None,
            seccomp_sandbox: None,
            entropy_source: None,
            disable_selinux: false,
            enable_debug: false,
            accelerator: None,
            kernel_release: None,
            default_vcpus: 1,
            default_maxvcpus: 0,
            default_memory: 2048,
            default_maxmemory: 0,
            overhead_vcpus: 0.2,
            overhead_memory: 32,
            memory_slots: 31,
            enable_virtio_mem: true,
            enable_mem_prealloc: false,
            enable_hugepages: false,
            hugepage_type: HugepageType::Hugetlbfs,
            reclaim_guest_freed_memory: false,
            enable_vcpus_pinning: false,
            shared_fs: SharedFs::VirtioFs,
            virtio_fs_daemon: None,
            virtio_fs_cache: None,
            virtio_fs_extra_args: Vec::new(),
            virtio_fs_queue_size: 1024,
            virtio_fs_inode_file_handles: None,
            disable_block_device_use: false,
            block_device_driver: BlockDriver::VirtioScsi,
            block_device_aio: BlockAio::IoUring,
            block_device_cache_set: false,
            block_device_cache_direct: false,
            block_device_cache_noflush: false,
            block_device_logical_sector_size: 0,
            block_device_physical_sector_size: 0,
            enable_iothreads: false,
            indep_iothreads: 0,
            queue_size: 128,
            num_queues: 1,
            disk_rate_limiter_bw_max_rate: 0,
            disk_rate_limiter_bw_one_time_burst: 0,
            disk_rate_limiter_ops_max_rate: 0,
            disk_rate_limiter_ops_one_time_burst: 0,
            disable_vhost_net: false,
            network_queues: 0,
            rx_rate_limiter_max_rate: 0,
            tx_rate_limiter_max_rate: 0,
            guest_hook_path: None,
            enable_annotations: default_annotations(Hypervisor::Qemu),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
            valid_entropy_sources: Vec::new(),
            valid_guest_paths: Vec::new(),
            enable_template: false,
            template_path: None,
            remote_hypervisor_socket: "/run/peerpod/hypervisor.sock".into(),
            remote_hypervisor_timeout: Duration::from_secs(600),
            default_gpus: 0,
            default_gpu_model: None,
            agent_debug: false,
            kernel_modules: Vec::new(),
            debug_console_enabled: false,
            container_pipe_size: 0,
            boot_timeout: Duration::from_secs(60),
            create_container_timeout: Duration::from_secs(60),
            runtime_debug: false,
            internetworking_model: NetworkModel::TcFilter,
            disable_new_netns: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: false,
            sandbox_bind_mounts: Vec::new(),
            kubelet_root_dir: "/var/lib/kubelet".into(),
            force_guest_pull: false,
            file: None,
            origins: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// The configuration of a shim that was called as `shim_name`. `config_path` is the manager's (task option
    /// ConfigPath); without it `KATA_CONF_FILE`, then the places of [`search`], then the built-in defaults. What has no
    /// effect is logged, and stays in [`Config::warnings`].
    ///
    /// Fails where a named file is missing, and on what a file cannot say; the error names file, line, key and value.
    pub fn load(shim_name: &str, config_path: Option<&Path>) -> Result<Config> {
        let file = search::find(config_path)?;
        let assembled = file::assemble(file.as_deref(), shim_name);
        let config = assembled.into_config()?;
        config.warnings.iter().for_each(|w| log::warn!("{w}"));
        Ok(config)
    }

    /// Applies a pod's `io.katacontainers.config.*` annotations; all others are somebody else's. Fails on the first that is
    /// not allowed or makes no sense: a pod does not start with less than it asked for.
    pub fn annotate<'a, A>(&mut self, annotations: A) -> Result<()>
    where
        A: IntoIterator<Item = (&'a String, &'a String)>,
    {
        let mut wanted: Vec<_> = annotations.into_iter().filter(|(name, _)| annotation::is_ours(name)).collect();
        wanted.sort();
        for (name, value) in wanted {
            annotation::apply(self, name, value)?;
        }
        file::consistent(self).map_err(annotation::refused)
    }
}
