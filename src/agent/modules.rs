//! Kernel modules of the guest image: the core set at boot, the others by name when something needs them.
//!
//! The image's layout (`fs/image`): `/lib/modules/core`, one name per line in load order, with `NAME.ko` beside it, raw;
//! `/lib/modules/demand`, lines `NAME: DEPENDENCY...` (the whole closure, in load order), with `NAME.ko.lz4` beside it (an LZ4
//! block after its size, u32 little-endian).
//!
//! No lock: the kernel itself loads a module once (EEXIST for the second, which waits for the first), and a set of names
//! here only saves it the question.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

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
}

impl Modules {
    pub fn new(dir: impl Into<PathBuf>) -> Modules {
        Modules { dir: dir.into(), loaded: Mutex::default() }
    }

    /// Loads the core set in its order and frees the files. One that fails does not stop the others.
    pub fn load_core(&self) -> Vec<ModuleError> {
        let list = match fs::read_to_string(self.dir.join("core")) {
            Ok(list) => list,
            // A kernel with everything built in.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(e) => return vec![ModuleError::Read("core".into(), e)],
        };
        let mut failed = Vec::new();
        for line in list.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let name = line.strip_suffix(".ko").unwrap_or(line);
            let path = self.dir.join(format!("{name}.ko"));
            match File::open(&path).map_err(|e| ModuleError::Read(name.into(), e)).and_then(|file| load_file(name, &file)) {
                Ok(()) => self.note(name),
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
        self.loaded.lock().unwrap_or_else(|p| p.into_inner()).contains(&plain(name))
    }

    fn note(&self, name: &str) {
        self.loaded.lock().unwrap_or_else(|p| p.into_inner()).insert(plain(name));
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
        assert!(modules.need("nosuch").unwrap_err().to_string().starts_with("module nosuch: not in this guest's image"));
        assert!(modules.need("broken").unwrap_err().to_string().starts_with("module broken: read"));
        assert!(modules.load_core()[0].to_string().starts_with("module absent: read"));
    }

    #[test]
    fn an_image_without_modules_is_no_error() {
        let (_dir, modules) = image(&[]);
        assert!(modules.load_core().is_empty());
    }
}
