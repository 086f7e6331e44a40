//! A virtual machine, whoever runs it: start it, dial it, resize it, plug into it, lose it.
//!
//! A sandbox holds a `Box<dyn Vm>` and asks its [`Caps`], never which kind it has.

pub mod disk;
pub mod qemu;
pub mod remote;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Failure, Result};
use crate::rpc::Stream;

/// Ports of the guest, as Kata numbers them.
pub mod port {
    /// The agent's ttrpc.
    pub const AGENT: u32 = 1024;
    /// The agent's log lines.
    pub const LOG: u32 = 1025;
    /// A shell in the guest, where the configuration allows it.
    pub const DEBUG_CONSOLE: u32 = 1026;
    /// One stream for each of a process's stdin, stdout and stderr.
    pub const STDIO: u32 = 1027;
    /// TCP to the guest's loopback (not Kata's).
    pub const FORWARD: u32 = 1028;
    /// Whole directories, for a guest without a share.
    pub const TREES: u32 = 1029;
}

/// QEMU's user-mode network as the guest has to be configured for it (QEMU's documented defaults).
pub mod user_net {
    /// The MAC of its interface.
    pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
    /// The guest's address, with its prefix length.
    pub const ADDRESS: (&str, u8) = ("10.0.2.15", 24);
    pub const GATEWAY: &str = "10.0.2.2";
    pub const DNS: &str = "10.0.2.3";
}

/// What this VM can do. What it cannot, the sandbox does another way or refuses by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// A host directory can be shown to the guest (virtio-fs).
    pub share: bool,
    pub hotplug_cpu: bool,
    pub hotplug_memory: bool,
    pub block: bool,
    pub nic: bool,
}

/// vCPUs and memory of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    pub vcpus: u32,
    pub mib: u64,
}

/// A pod-specific part of a VM: given at boot, or plugged into one that runs (or was restored from a template).
#[derive(Debug)]
pub enum Device {
    /// virtio-fs: `socket` is where its daemon listens, `tag` what the guest mounts,
    /// `queue` how many requests wait for it at most.
    Share { id: String, socket: PathBuf, tag: String, queue: u32 },
    /// virtio-net over the queues of a tap, with the MAC and MTU of the interface it stands for. `vhost` are descriptors of
    /// /dev/vhost-net, one for each queue, or none: then QEMU moves the packets itself.
    Nic { id: String, queues: Vec<OwnedFd>, vhost: Vec<OwnedFd>, mac: [u8; 6], mtu: u32 },
    /// A disk: a raw file or a block device. `serial` (at most 20 bytes) is one way for the guest to find it.
    Block { id: String, path: PathBuf, read_only: bool, serial: String, drive: disk::Drive },
    /// QEMU's user-mode network, for `osc run --network user`: (host address, host port, guest port) are forwarded (TCP).
    /// The guest is set up as [`user_net`] says. It reaches the host's loopback at the gateway's address.
    UserNet { id: String, forwards: Vec<(String, u16, u16)> },
}

impl Device {
    /// What `unplug` knows it by.
    pub fn id(&self) -> &str {
        match self {
            Device::Share { id, .. } | Device::Nic { id, .. } | Device::Block { id, .. } | Device::UserNet { id, .. } => id,
        }
    }
}

/// Where the guest finds a device that was plugged, in the words of the agent protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Slots from the root bus on, hexadecimal: `1e/03`.
    Pci(String),
    /// `TARGET:LUN`.
    Scsi(String),
}

/// How a VM ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// The guest powered itself off, or we asked for it.
    pub orderly: bool,
    /// For a reader: `the guest kernel panicked`, `QEMU was killed by SIGKILL`.
    pub reason: String,
}

/// A running VM.
///
/// Every method may be called from any thread, and none holds up another for longer than its own work: a `resize` that
/// takes seconds does not delay a `dial`.
pub trait Vm: Send + Sync {
    fn caps(&self) -> Caps;

    /// A new byte stream to `port` of the guest. Does not wait for the guest: what is written before it listens waits in
    /// the channel.
    fn dial(&self, port: u32) -> Result<Stream>;

    /// Where other processes may dial the agent, as Kata writes it: `vsock://3:1024`; `None` where only this one can.
    fn agent_url(&self) -> Option<String>;

    /// Plugs (or takes away) vCPUs and memory until the VM has `want`, or as near as it can; answers what it has.
    /// What was plugged still has to be brought online by the guest.
    fn resize(&self, want: Size) -> Result<Size>;

    /// Plugs a device; answers where it is. Undone whole if it fails half-way.
    fn plug(&self, device: Device) -> Result<Address>;

    /// Takes a device away; returns when the guest has let go of it.
    fn unplug(&self, id: &str) -> Result<()>;

    /// Tells the guest that disk `id` has `bytes` by now; what it stands for on the host has grown before.
    fn resize_disk(&self, id: &str, bytes: u64) -> Result<()>;

    /// Blocks until the VM is gone, however it goes. Any number of callers.
    fn wait(&self) -> Exit;

    /// How it ended, if it has.
    fn ended(&self) -> Option<Exit>;

    /// Ends the VM: asks, waits up to `grace`, kills. Returns when its processes are reaped. Idempotent.
    fn stop(&self, grace: Duration);

    /// Why the guest did not come up, judged from how far it came: the VM's death, the console's last lines, else the
    /// agent's silence. `cause` is what the caller saw (`no answer on port 1024 within 60 s`).
    fn boot_failure(&self, cause: &str) -> Failure;

    /// The last lines of the guest's console.
    fn console_tail(&self, lines: usize) -> Vec<String>;
}
