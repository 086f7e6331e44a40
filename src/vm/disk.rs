//! How a disk of a VM is driven: what the keys `block_device_*`, `queue_size`, `num_queues`, `*iothreads` and
//! `disk_rate_limiter_*` of a configuration come down to.

/// The controller that a guest sees a disk behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bus {
    /// A PCI function for each disk.
    #[default]
    Blk,
    /// One controller for all of them, which comes with the first.
    Scsi,
}

/// How reads and writes reach the host's kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    #[default]
    Threads,
    /// Linux's older interface; only without the host's page cache, which it switches off.
    Native,
    /// Where the host's kernel refuses it, threads do the same work.
    IoUring,
}

/// The host's page cache under a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Goes around it.
    pub direct: bool,
    /// Ignores what the guest wants on stable storage: fast, and lost with the host.
    pub no_flush: bool,
}

/// What a disk may do in a second, each way together; 0 is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    /// Bytes beyond that after a pause.
    pub bytes_burst: u64,
    pub ops: u64,
    /// Operations beyond that after a pause.
    pub ops_burst: u64,
}

/// How a disk is driven. The default is QEMU's own for everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    pub bus: Bus,
    pub aio: Aio,
    /// None leaves it to QEMU.
    pub cache: Option<Cache>,
    /// Bytes; 0 leaves it to QEMU.
    pub logical_sector: u32,
    /// Bytes; 0 leaves it to QEMU.
    pub physical_sector: u32,
    /// Entries of each queue; 0 leaves it to QEMU.
    pub queue_size: u32,
    /// 0 leaves it to QEMU.
    pub queues: u32,
    /// A thread of its own serves it; of the SCSI disks, one serves all.
    pub thread: bool,
    /// So many threads, there from the VM's start, share the disks that have none of their own.
    pub shared_threads: u32,
    pub limits: Limits,
}
