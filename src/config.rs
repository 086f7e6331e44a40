//! What a sandbox is told by its operator: the built-in defaults, under the names of Kata's `configuration.toml`.

use std::path::PathBuf;
use std::time::Duration;

/// The effective configuration of a sandbox.
#[derive(Clone, Debug)]
pub struct Config {
    /// `path`: QEMU; else found where distributions put it.
    pub path: Option<PathBuf>,
    /// `virtio_fs_daemon`; else found where distributions put it.
    pub virtio_fs_daemon: Option<PathBuf>,
    /// `virtio_fs_cache`; else what is fastest with the daemon found.
    pub virtio_fs_cache: Option<String>,
    /// `virtio_fs_extra_args`.
    pub virtio_fs_extra_args: Vec<String>,
    /// `kernel_params`: appended to the guest's command line.
    pub kernel_params: Vec<String>,
    /// `default_vcpus`: what a VM boots with.
    pub default_vcpus: u32,
    /// `default_maxvcpus`: 0 means the larger of 8 and the host's online CPUs.
    pub default_maxvcpus: u32,
    /// `default_memory`, MiB.
    pub default_memory: u64,
    /// `default_maxmemory`, MiB: 0 means the host's.
    pub default_maxmemory: u64,
    /// `disable_guest_seccomp`: our own default is seccomp on.
    pub disable_guest_seccomp: bool,
    /// `enable_debug`: a talkative guest kernel and agent.
    pub enable_debug: bool,
    /// Forces an accelerator: `kvm`, `pvm` or `tcg`.
    pub accelerator: Option<String>,
    /// Release of the guest kernel; else the host's own.
    pub kernel_release: Option<String>,
    /// `kernel`: an uncompressed guest kernel; else that of the image.
    pub kernel: Option<PathBuf>,
    /// `initrd`; else that of the image, which is built when it is missing or stale.
    pub initrd: Option<PathBuf>,
    /// From QEMU's start to the agent's first answer. Under TCG a loaded host is slow.
    pub boot_timeout: Duration,
    /// `create_container_timeout`.
    pub create_container_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            path: None,
            virtio_fs_daemon: None,
            virtio_fs_cache: None,
            virtio_fs_extra_args: Vec::new(),
            kernel_params: Vec::new(),
            default_vcpus: 1,
            default_maxvcpus: 0,
            default_memory: 2048,
            default_maxmemory: 0,
            disable_guest_seccomp: false,
            enable_debug: false,
            accelerator: None,
            kernel_release: None,
            kernel: None,
            initrd: None,
            boot_timeout: Duration::from_secs(60),
            create_container_timeout: Duration::from_secs(60),
        }
    }
}
