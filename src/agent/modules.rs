//! Kernel modules of the guest image: the core set at boot, the others by name when something needs them.
//!
//! The image's layout (`fs/image`): `/lib/modules/core`, one name per line in load order, with `NAME.ko` beside it, raw;
//! `/lib/modules/demand`, lines `NAME: DEPENDENCY...` (the whole closure, in load order), with `NAME.ko.lz4` beside it (an LZ4
//! block after its size, u32 little-endian); in a pod VM's disk `/lib/modules/alias`, lines `PATTERN NAME`, the kernel's own list of which
//! module drives which device.
//!
//! No lock around a load: the kernel itself loads a module once (EEXIST for the second, which waits for the first), and a set of names
//! here only saves it the question.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};

use rustix::io::Errno;

/// Where the image keeps its modules.
pub const DIR: &str = "/lib/modules";

/// A module that could not be loaded; the text names it.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Neither in the image nor built into the kernel: add it to the image's module list.
    #[error("module {0}: not in this guest's image and not built into its kernel")]
    Missing(String),
    /// The image is damaged, or memory is short.
    #[error("module {0}: read: {1}")]
    Read(String, io::Error),
    /// The kernel refused it: `dmesg` in the console log says more.
    #[error("module {0}: load: {1}")]
    Load(String, io::Error),
}

/// The guest's modules.
pub struct Modules {
    dir: PathBuf,
    loaded: Mutex<HashSet<String>>,
    /// Core modules that are still to be loaded, in order; None once all are.
    rest: Mutex<Option<Vec<String>>>,
    complete: Condvar,
}

/// The module after which the host can reach us: what comes later in the core set is loaded behind its back.
const CHANNEL: &str = "virtio_console";

/// (vendor and device of a PCI function, its driver).
const PCI_DRIVERS: &[(&str, &str)] = &[
    // Tells the host of a panic at once.
    ("0x1b36:0x0011", "pvpanic_pci"),
    // Tells the host which pages are free, and keeps what the host takes back.
    ("0x1af4:0x1045", "virtio_balloon"),
];

/// Where devices are that an image's list names.
const BUSES: &[&str] = &["pci", "acpi", "virtio", "vmbus", "scsi"];

impl Modules {
    /// Reads the core set's list; loads nothing yet.
    pub fn new(dir: impl Into<PathBuf>) -> Modules {
        let dir = dir.into();
        // No list: a kernel with everything built in.
        let list = fs::read_to_string(dir.join("core")).unwrap_or_default();
        let core = list.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| l.strip_suffix(".ko").unwrap_or(l).to_owned()).collect();
        Modules { dir, loaded: Mutex::default(), rest: Mutex::new(Some(core)), complete: Condvar::new() }
    }

    /// Loads the core set up to the channel's driver. One that fails does not stop the others.
    pub fn load_channel(&self) -> Vec<ModuleError> {
        let first = match &mut *lock(&self.rest) {
            Some(rest) => {
                let end = rest.iter().position(|m| plain(m) == CHANNEL).map_or(rest.len(), |at| at + 1);
                rest.drain(..end).collect()
            }
            None => Vec::new(),
        };
        self.load(first)
    }

    /// Loads the others of the core set. Until this is done, [`Modules::need`] waits for it.
    pub fn load_rest(&self) -> Vec<ModuleError> {
        let rest = lock(&self.rest).clone().unwrap_or_default();
        let failed = self.load(rest);
        *lock(&self.rest) = None;
        self.complete.notify_all();
        failed
    }

    /// Loads drivers that no call asks for, where the VM has their devices.
    pub fn load_drivers(&self) -> Vec<ModuleError> {
        let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
        let id = |path: &Path, name| fs::read_to_string(path.join(name)).map(|s| s.trim().to_owned()).unwrap_or_default();
        let present: HashSet<String> = devices.map(|d| format!("{}:{}", id(&d.path(), "vendor"), id(&d.path(), "device"))).collect();
        PCI_DRIVERS.iter().filter(|(id, _)| present.contains(*id)).filter_map(|(_, module)| self.need(module).err()).collect()
    }

    /// Loads the drivers of the devices there are by now, where the image says which those are. To be called again when more appear.
    pub fn load_matching(&self) -> Vec<ModuleError> {
        let Ok(list) = fs::read_to_string(self.dir.join("alias")) else { return Vec::new() };
        let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let devices = BUSES.iter().flat_map(|bus| entries(&format!("/sys/bus/{bus}/devices")));
        let present: HashSet<String> = devices.filter_map(|d| fs::read_to_string(d.join("modalias")).ok()).collect();
        let wanted =
            list.lines().filter_map(|l| l.rsplit_once(' ')).filter(|(pattern, _)| present.iter().any(|d| matches(pattern, d.trim())));
        let wanted: HashSet<&str> = wanted.map(|(_, name)| name).collect();
        wanted.into_iter().filter_map(|module| self.need(module).err()).collect()
    }

    /// Loads core modules and frees their files.
    fn load(&self, names: Vec<String>) -> Vec<ModuleError> {
        let mut failed = Vec::new();
        for name in names {
            let path = self.dir.join(format!("{name}.ko"));
            match File::open(&path).map_err(|e| ModuleError::Read(name.clone(), e)).and_then(|file| load_file(&name, &file)) {
                Ok(()) => self.note(&name),
                Err(e) => failed.push(e),
            }
            let _ = fs::remove_file(path);
        }
        failed
    }

    /// Loads module `name` and what it depends on. A name that the kernel has built in is fine.
    pub fn need(&self, name: &str) -> Result<(), ModuleError> {
        self.need_with(name, &[])
    }

    /// The same, with parameters (`KEY=VALUE`) for the module itself.
    pub fn need_with(&self, name: &str, parameters: &[String]) -> Result<(), ModuleError> {
        if self.knows(name) {
            return Ok(());
        }
        drop(self.complete.wait_while(lock(&self.rest), |rest| rest.is_some()));
        if self.knows(name) {
            return Ok(());
        }
        let Some(closure) = self.closure(name)? else {
            return if Path::new("/sys/module").join(plain(name)).exists() { Ok(()) } else { Err(ModuleError::Missing(name.into())) };
        };
        for module in &closure {
            if !self.knows(module) {
                let parameters = if plain(module) == plain(name) { parameters.join(" ") } else { String::new() };
                self.load_packed(module, &parameters)?;
                self.note(module);
            }
        }
        Ok(())
    }

    /// Makes sure that the kernel knows file system `kind`: built in, which /sys/module need not show, or by its module.
    pub fn file_system(&self, kind: &str) -> Result<(), ModuleError> {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if known.split_whitespace().any(|k| k == kind) { Ok(()) } else { self.need(kind) }
    }

    /// The modules that `name` needs and itself, in load order, as the image's files are called. None: not in the image.
    fn closure(&self, name: &str) -> Result<Option<Vec<String>>, ModuleError> {
        let list = match fs::read_to_string(self.dir.join("demand")) {
            Ok(list) => list,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ModuleError::Read(name.into(), e)),
        };
        Ok(list.lines().filter_map(|l| l.split_once(':')).find(|(n, _)| plain(n.trim()) == plain(name)).map(|(n, needs)| {
            let own = n.trim();
            let needs = needs.split_whitespace().filter(|m| *m != own);
            needs.chain([own]).map(str::to_owned).collect()
        }))
    }

    fn load_packed(&self, name: &str, parameters: &str) -> Result<(), ModuleError> {
        let unreadable = |e| ModuleError::Read(name.into(), e);
        // A core module in someone's closure: loaded at boot, its file is gone.
        let packed = match fs::read(self.dir.join(format!("{name}.ko.lz4"))) {
            Err(_) if Path::new("/sys/module").join(plain(name)).exists() => return Ok(()),
            other => other.map_err(unreadable)?,
        };
        let image = lz4_flex::block::decompress_size_prepended(&packed).map_err(|e| unreadable(io::Error::other(e)))?;
        let parameters = CString::new(parameters).map_err(|e| unreadable(e.into()))?;
        outcome(name, rustix::system::init_module(&image, &parameters))
    }

    fn knows(&self, name: &str) -> bool {
        lock(&self.loaded).contains(&plain(name))
    }

    fn note(&self, name: &str) {
        lock(&self.loaded).insert(plain(name));
    }
}

fn load_file(name: &str, file: &File) -> Result<(), ModuleError> {
    outcome(name, rustix::system::finit_module(file, c"", 0))
}

fn outcome(name: &str, result: rustix::io::Result<()>) -> Result<(), ModuleError> {
    match result {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(ModuleError::Load(name.into(), e.into())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|p| p.into_inner())
}

/// Whether `pattern`, in which `*` stands for anything, is `text`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match text.find(piece) {
            Some(at) => text = &text[at + piece.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

/// The kernel writes `_` where a file's name may have `-`.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[(&str, &str)]) -> (tempfile::TempDir, Modules) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let modules = Modules::new(dir.path());
        (dir, modules)
    }

    #[test]
    fn a_closure_is_found_by_either_spelling_and_ends_with_the_module() {
        let (_dir, modules) = image(&[("demand", "udp_tunnel:\nvxlan: ip6_udp_tunnel udp_tunnel\nvirtio-rng: rng-core virtio-rng\n")]);
        assert_eq!(modules.closure("vxlan").unwrap().unwrap(), ["ip6_udp_tunnel", "udp_tunnel", "vxlan"]);
        assert_eq!(modules.closure("virtio_rng").unwrap().unwrap(), ["rng-core", "virtio-rng"]);
        assert_eq!(modules.closure("udp-tunnel").unwrap().unwrap(), ["udp_tunnel"]);
        assert_eq!(modules.closure("xlan").unwrap(), None);
    }

    #[test]
    fn errors_name_the_module() {
        let (_dir, modules) = image(&[("demand", "broken:\n"), ("broken.ko.lz4", "xx"), ("core", "absent\n")]);
        assert!(modules.load_channel()[0].to_string().starts_with("module absent: read"));
        assert!(modules.load_rest().is_empty());
        assert!(modules.need("nosuch").unwrap_err().to_string().starts_with("module nosuch: not in this guest's image"));
        assert!(modules.need("broken").unwrap_err().to_string().starts_with("module broken: read"));
    }

    #[test]
    fn devices_are_matched_as_depmod_writes_it() {
        for (pattern, text, is) in [
            ("pci:v00001D0Fd0000EC20sv*sd*bc*sc*i*", "pci:v00001D0Fd0000EC20sv00001D0Fsd0000EC20bc02sc00i00", true),
            ("pci:v00001D0Fd0000EC20sv*sd*bc*sc*i*", "pci:v00001D0Fd0000EC21sv00001D0Fsd0000EC20bc02sc00i00", false),
            ("acpi*:VMBUS:*", "acpi:VMBUS:", true),
            ("vmbus:4acc9b2f", "vmbus:4acc9b2f", true),
            ("vmbus:4acc9b2f", "vmbus:4acc9b2f6", false),
            ("a*b", "ab", true),
            ("a*b*b", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn an_image_without_modules_is_no_error() {
        let (_dir, modules) = image(&[]);
        assert!(modules.load_channel().is_empty() && modules.load_rest().is_empty());
    }

    #[test]
    fn the_channel_comes_first_and_needs_wait_for_the_rest() {
        let (_dir, modules) = image(&[("core", "virtio_ring\nvirtio-console\nfuse.ko\nvirtiofs\n")]);
        let names = |failed: Vec<ModuleError>| {
            failed.iter().map(|e| e.to_string().split([' ', ':']).nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(modules.load_channel()), ["virtio_ring", "virtio-console"]);
        let waiter = {
            let modules = std::sync::Arc::new(modules);
            let asker = modules.clone();
            let asker = std::thread::spawn(move || asker.need("virtiofs").is_err());
            assert_eq!(names(modules.load_rest()), ["fuse", "virtiofs"]);
            asker
        };
        assert!(waiter.join().unwrap());
    }
}
