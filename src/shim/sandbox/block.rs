//! Disks: block devices (and images in files) that a pod's containers are given, plugged into its VM.
//!
//! A device is plugged once, however many containers of the pod use it, and unplugged after the last of them: by then the agent
//! has unmounted it. What is written to is claimed on the host (`O_EXCL`) for as long, so that nobody mounts it a second time. A
//! disk that grows on the host grows in the guest: the kernel's events tell of devices, and whoever grows an image asks.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::agent::uevent::Uevents;
use crate::config::{BlockAio, BlockDriver, Config};
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::agent::{self as wire, Storage};
use crate::rpc::wire::oci::{LinuxDevice, LinuxDeviceCgroup, Mount, Spec};
use crate::vm::disk::{Aio, Bus, Cache, Drive, Limits};
use crate::vm::{Address, Device, Vm};

/// Where disks with a file system are mounted in the guest, below the storage's own name.
const GUEST_DISKS: &str = "/run/kata-containers/sandbox/disks";

/// Every disk of a sandbox.
pub struct Disks {
    vm: Arc<dyn Vm>,
    drive: Drive,
    /// `disable_block_device_use`
    roots_are_shared: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    disks: Vec<Disk>,
    /// Numbers the ids: none comes twice.
    next: u32,
    watched: bool,
}

/// What a path stands for, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Device(u64),
    /// File system and inode.
    File(u64, u64),
}

struct Disk {
    id: String,
    identity: Identity,
    path: PathBuf,
    read_only: bool,
    address: Address,
    /// What the guest knows, bytes.
    size: u64,
    users: usize,
    /// Its claim on the host.
    file: File,
}

/// A disk in use by a container. Dropped, it is given back; the last one unplugs it.
pub struct InUse {
    disks: Arc<Disks>,
    id: String,
    address: Address,
}

impl std::fmt::Debug for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InUse({} at {:?})", self.id, self.address)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.disks.give_back(&self.id);
    }
}

impl InUse {
    /// The driver by which the agent finds it, and the name it has there.
    fn words(&self) -> (String, String) {
        match &self.address {
            Address::Pci(path) => ("blk".into(), path.clone()),
            Address::Scsi(address) => ("scsi".into(), address.clone()),
        }
    }

    /// Has its file system mounted at `mount_point`.
    pub fn storage(&self, fstype: &str, options: &[String], mount_point: String) -> Storage {
        let (driver, source) = self.words();
        Storage { driver, source, fstype: fstype.into(), options: options.to_vec(), mount_point, ..Default::default() }
    }

    /// The same at a place of the pod's, which its containers share.
    pub fn volume(&self, fstype: &str, options: &[String]) -> Storage {
        self.storage(fstype, options, guest_volume(&self.id))
    }
}

fn guest_volume(id: &str) -> String {
    format!("{GUEST_DISKS}/{id}")
}

impl Disks {
    pub fn new(vm: Arc<dyn Vm>, config: &Config) -> Arc<Disks> {
        Arc::new(Disks { vm, drive: drive(config), roots_are_shared: config.disable_block_device_use, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|p| p.into_inner())
    }

    /// Plugs what `path` stands for, or counts one more user of it.
    pub fn plug(self: &Arc<Disks>, path: &Path, read_only: bool) -> Result<InUse> {
        if !self.vm.caps().block {
            let cause = format!("disk {}: a pod VM cannot be given disks of this host", path.display());
            return Err(Failure::new(Stage::Request, cause).code(Code::Unimplemented).way_out("use a volume with a file system"));
        }
        let identity = identity(path)?;
        let mut table = self.table();
        if let Some(disk) = table.disks.iter_mut().find(|d| d.identity == identity) {
            if disk.read_only && !read_only {
                let cause = format!("disk {}: the pod has it read-only already", path.display());
                return Err(Failure::new(Stage::Request, cause).code(Code::FailedPrecondition));
            }
            disk.users += 1;
            return Ok(InUse { disks: self.clone(), id: disk.id.clone(), address: disk.address.clone() });
        }
        let (file, read_only) = claim(path, read_only)?;
        let size = size(&file).at(Stage::Request, || format!("disk {}", path.display()))?;
        if size == 0 {
            let cause = format!("disk {}: it has no bytes (nothing is attached to it)", path.display());
            return Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument));
        }
        let id = format!("disk-{}", table.next);
        table.next += 1;
        let device = Device::Block { id: id.clone(), path: path.into(), read_only, serial: id.clone(), drive: self.drive };
        let address = self.vm.plug(device).map_err(|e| Failure { cause: format!("disk {}: {}", path.display(), e.cause), ..e })?;
        let disk = Disk { id: id.clone(), identity, path: path.into(), read_only, address: address.clone(), size, users: 1, file };
        log::info!("disk {} is plugged as {id} ({address:?}, {size} bytes)", disk.path.display());
        table.disks.push(disk);
        if !std::mem::replace(&mut table.watched, true) {
            self.watch();
        }
        Ok(InUse { disks: self.clone(), id, address })
    }

    fn give_back(&self, id: &str) {
        let mut table = self.table();
        let Some(at) = table.disks.iter().position(|d| d.id == id) else { return };
        table.disks[at].users -= 1;
        if table.disks[at].users > 0 {
            return;
        }
        let unplugged = if self.vm.ended().is_some() { Ok(()) } else { self.vm.unplug(id) };
        match unplugged {
            Ok(()) => drop(table.disks.remove(at)),
            Err(e) if self.vm.ended().is_some() => log::debug!("disk {id}: {e}"),
            // A guest that keeps it has it: the next container that wants it finds it there.
            Err(e) => log::warn!("disk {} stays plugged: {e}", table.disks[at].path.display()),
        }
    }

    /// Tells the guest of a disk that has another size by now.
    fn follow(&self, disk: &mut Disk) -> Result<()> {
        let now = size(&disk.file).at(Stage::Request, || format!("disk {}", disk.path.display()))?;
        if now != disk.size {
            self.vm.resize_disk(&disk.id, now)?;
            log::info!("disk {}: {} bytes become {now}", disk.path.display(), disk.size);
            disk.size = now;
        }
        Ok(())
    }

    /// Looks at the disk that `path` stands for; answers where the pod's containers find it mounted, and its size.
    pub fn refresh(&self, path: &Path) -> Result<(String, u64)> {
        let identity = identity(path)?;
        let mut table = self.table();
        let Some(disk) = table.disks.iter_mut().find(|d| d.identity == identity && d.users > 0) else {
            return Err(Failure::new(Stage::Request, format!("disk {}: the pod does not have it", path.display())).code(Code::NotFound));
        };
        self.follow(disk)?;
        Ok((guest_volume(&disk.id), disk.size))
    }

    /// Follows the sizes of devices: the kernel tells of every change.
    fn watch(self: &Arc<Disks>) {
        let weak = Arc::downgrade(self);
        let events = match Uevents::start() {
            Ok(events) => events,
            Err(e) => return log::warn!("disks that grow are not noticed: {e}"),
        };
        crate::thread::start("watch-disks", move || {
            events.until(None, || {
                let disks = weak.upgrade().filter(|d| d.vm.ended().is_none());
                let Some(disks) = disks else { return Some(()) };
                for disk in disks.table().disks.iter_mut().filter(|d| matches!(d.identity, Identity::Device(_))) {
                    disks.follow(disk).unwrap_or_else(|e| log::warn!("{e}"));
                }
                None
            });
        });
    }

    /// The disk in the place of a root file system: the one mount of a block device, or of an image by way of a loop device,
    /// that a snapshotter hands over. None is to be mounted here.
    pub fn root(self: &Arc<Disks>, mounts: &[Mount], mount_point: &str) -> Result<Option<(InUse, Storage)>> {
        let [mount] = mounts else { return Ok(None) };
        let path = Path::new(&mount.source);
        let image = mount.options.iter().any(|o| o == "loop");
        let disk = fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device() || image && m.is_file());
        if !disk || mount.r#type == "bind" || self.roots_are_shared || !self.vm.caps().block {
            return Ok(None);
        }
        let used = self.plug(path, mount.options.iter().any(|o| o == "ro"))?;
        let storage = used.storage(&mount.r#type, &mount.options, mount_point.into());
        Ok(Some((used, storage)))
    }

    /// Plugs the block devices that `spec` names, as nodes or as binds of one; answers what tells the agent of them.
    pub fn devices(self: &Arc<Disks>, spec: &mut Spec) -> Result<(Vec<InUse>, Vec<wire::Device>)> {
        bound_devices(spec)?;
        let Some(linux) = spec.linux.as_mut() else { return Ok(Default::default()) };
        let rules = linux.resources.as_ref().map(|r| r.devices.as_slice()).unwrap_or_default();
        let (mut used, mut told) = (Vec::new(), Vec::new());
        let mut kept = Vec::new();
        for node in std::mem::take(&mut linux.devices) {
            if node.r#type != "b" {
                kept.push(node);
                continue;
            }
            let path = host_node(&node);
            // A privileged container is given everything that the host has, under the host's names: here everything is the guest's.
            if everything(rules) && path.as_deref().is_none_or(|p| p == Path::new(&node.path)) {
                continue;
            }
            let path = path.ok_or_else(|| {
                let cause = format!("device {}: this host has no block device {}:{}", node.path, node.major, node.minor);
                Failure::new(Stage::Request, cause).code(Code::InvalidArgument)
            })?;
            let disk = self.plug(&path, only_read(rules, &node))?;
            let (kind, id) = disk.words();
            told.push(wire::Device { id, r#type: kind, container_path: node.path.clone(), ..Default::default() });
            used.push(disk);
            kept.push(node);
        }
        linux.devices = kept;
        Ok((used, told))
    }
}

/// A bind of a block device's node becomes a node: the bound one would have the host's numbers.
fn bound_devices(spec: &mut Spec) -> Result<()> {
    let number = |m: &Mount| {
        let of = m.is_bind().then(|| fs::metadata(&m.source).ok())?;
        of.filter(|s| s.file_type().is_block_device())
    };
    let found: Vec<(Mount, fs::Metadata)> = spec.mounts.iter().filter_map(|m| Some((m.clone(), number(m)?))).collect();
    if found.is_empty() {
        return Ok(());
    }
    spec.mounts.retain(|m| !found.iter().any(|(f, _)| f.destination == m.destination));
    let linux = spec.linux.get_or_insert_default();
    for (mount, node) in found {
        let (major, minor) = (i64::from(libc::major(node.rdev())), i64::from(libc::minor(node.rdev())));
        let access = if mount.options.iter().any(|o| o == "ro") { "rm" } else { "rwm" };
        let rules = &mut linux.resources.get_or_insert_default().devices;
        rules.push(LinuxDeviceCgroup { allow: true, r#type: "b".into(), major, minor, access: access.into() });
        linux.devices.push(LinuxDevice {
            path: mount.destination,
            r#type: "b".into(),
            major,
            minor,
            file_mode: node.mode() & 0o777,
            uid: node.uid(),
            gid: node.gid(),
        });
    }
    Ok(())
}

/// The node of a device of this host, by its numbers.
fn host_node(device: &LinuxDevice) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/sys/dev/block/{}:{}/uevent", device.major, device.minor)).ok()?;
    let path = Path::new("/dev").join(text.lines().find_map(|l| l.strip_prefix("DEVNAME="))?);
    let number = fs::metadata(&path).ok().filter(|m| m.file_type().is_block_device())?.rdev();
    ((i64::from(libc::major(number)), i64::from(libc::minor(number))) == (device.major, device.minor)).then_some(path)
}

/// True where a container may use every device.
fn everything(rules: &[LinuxDeviceCgroup]) -> bool {
    let last = rules.iter().rev().find(|r| (r.r#type.is_empty() || r.r#type == "a") && r.major <= 0 && r.minor <= 0);
    last.is_some_and(|r| r.allow && r.access.contains('w'))
}

/// True where a rule of its own lets the container read the device and nothing more.
fn only_read(rules: &[LinuxDeviceCgroup], node: &LinuxDevice) -> bool {
    let own = |r: &&LinuxDeviceCgroup| r.allow && r.r#type == "b" && (r.major, r.minor) == (node.major, node.minor);
    rules.iter().rev().find(own).is_some_and(|r| !r.access.contains('w'))
}

fn identity(path: &Path) -> Result<Identity> {
    let refused = |cause: String| Failure::new(Stage::Request, cause).code(Code::InvalidArgument);
    let meta = fs::metadata(path).map_err(|e| refused(format!("disk {}: {e}", path.display())))?;
    if meta.file_type().is_block_device() {
        return Ok(Identity::Device(meta.rdev()));
    }
    if meta.is_file() {
        return Ok(Identity::File(meta.dev(), meta.ino()));
    }
    Err(refused(format!("disk {}: neither a block device nor an image in a file", path.display())))
}

/// Opens a disk so that it is ours alone, if it is to be written to; answers whether it can only be read.
fn claim(path: &Path, read_only: bool) -> Result<(File, bool)> {
    let device = fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
    let exclusive = if device { libc::O_EXCL } else { 0 };
    let opened = match read_only {
        true => File::open(path).map(|f| (f, true)),
        false => match File::options().read(true).write(true).custom_flags(exclusive).open(path) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EROFS | libc::EACCES)) => File::open(path).map(|f| (f, true)),
            other => other.map(|f| (f, false)),
        },
    };
    opened.map_err(|e| {
        let failure = Failure::new(Stage::Request, format!("disk {}: {e}", path.display()));
        match e.raw_os_error() {
            Some(libc::EBUSY) => failure.code(Code::FailedPrecondition).way_out("unmount it on this host, or end the pod that has it"),
            _ => failure.code(Code::InvalidArgument),
        }
    })
}

/// Bytes of a disk, be it a device or a file.
fn size(file: &File) -> io::Result<u64> {
    (&mut &*file).seek(SeekFrom::End(0))
}

/// What a configuration says of disks.
fn drive(config: &Config) -> Drive {
    const BITS: u64 = 8;
    let cache = Cache { direct: config.block_device_cache_direct, no_flush: config.block_device_cache_noflush };
    Drive {
        bus: match config.block_device_driver {
            BlockDriver::VirtioBlk => Bus::Blk,
            BlockDriver::VirtioScsi => Bus::Scsi,
        },
        aio: match config.block_device_aio {
            BlockAio::Threads => Aio::Threads,
            BlockAio::Native => Aio::Native,
            BlockAio::IoUring => Aio::IoUring,
        },
        cache: config.block_device_cache_set.then_some(cache),
        logical_sector: config.block_device_logical_sector_size,
        physical_sector: config.block_device_physical_sector_size,
        queue_size: config.queue_size,
        queues: config.num_queues,
        thread: config.enable_iothreads,
        shared_threads: config.indep_iothreads,
        limits: Limits {
            bytes: config.disk_rate_limiter_bw_max_rate / BITS,
            bytes_burst: config.disk_rate_limiter_bw_one_time_burst / BITS,
            ops: config.disk_rate_limiter_ops_max_rate,
            ops_burst: config.disk_rate_limiter_ops_one_time_burst,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: &str, major: i64, minor: i64, access: &str) -> LinuxDeviceCgroup {
        LinuxDeviceCgroup { allow: true, r#type: kind.into(), major, minor, access: access.into() }
    }

    #[test]
    fn what_a_configuration_says_of_disks() {
        let config = Config {
            block_device_driver: BlockDriver::VirtioBlk,
            block_device_aio: BlockAio::Native,
            block_device_cache_set: true,
            block_device_cache_noflush: true,
            enable_iothreads: true,
            disk_rate_limiter_bw_max_rate: 8000,
            disk_rate_limiter_ops_one_time_burst: 7,
            ..Config::default()
        };
        let d = drive(&config);
        assert_eq!((d.bus, d.aio, d.cache), (Bus::Blk, Aio::Native, Some(Cache { direct: false, no_flush: true })));
        assert_eq!((d.thread, d.limits.bytes, d.limits.ops_burst, d.queue_size), (true, 1000, 7, 128));
        // Without `block_device_cache_set` the other two say nothing.
        assert_eq!(drive(&Config { block_device_cache_set: false, ..config }).cache, None);
    }

    #[test]
    fn rules_tell_who_may_write_and_who_may_everything() {
        let node = LinuxDevice { r#type: "b".into(), major: 7, minor: 1, ..Default::default() };
        assert!(only_read(&[rule("b", 7, 1, "rm")], &node));
        assert!(!only_read(&[rule("b", 7, 1, "rwm")], &node) && !only_read(&[rule("b", 7, 2, "r")], &node) && !only_read(&[], &node));
        assert!(everything(&[rule("a", 0, 0, "rwm")]) && everything(&[rule("", -1, -1, "rwm")]));
        assert!(!everything(&[rule("b", 7, 1, "rwm")]));
        let denied = LinuxDeviceCgroup { allow: false, ..rule("a", 0, 0, "rwm") };
        assert!(!everything(&[denied.clone(), rule("c", 1, 3, "rwm")]) && !everything(&[rule("a", 0, 0, "rwm"), denied]));
    }

    #[test]
    fn what_is_no_disk_is_refused_by_name() {
        for path in ["/no/such/disk", "/dev/null", "/etc"] {
            let e = identity(Path::new(path)).unwrap_err();
            assert!(e.code == Code::InvalidArgument && e.cause.contains(path), "{e}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(identity(file.path()).unwrap(), Identity::File(..)));
        file.as_file().set_len(12345).unwrap();
        assert_eq!(size(file.as_file()).unwrap(), 12345);
        assert_eq!(host_node(&LinuxDevice { major: 4095, minor: 4095, ..Default::default() }), None);
    }
}
