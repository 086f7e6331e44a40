//! The kernel modules a guest needs, their dependencies, and the form in which the image carries them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ImageError;

/// Loaded before the agent is ready, in this order with their dependencies before them: how the host reaches the guest,
/// where its files come from, and what every pod has.
const CORE: [&str; 8] = ["virtio_pci", "virtio_console", "fuse", "virtiofs", "virtio_net", "overlay", "virtio_rng", "virtio_mem"];

/// Of the core set, what no guest can do without.
const ESSENTIAL: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];

/// Loaded when something asks for them; a kernel that lacks one does without.
const DEMAND: [&str; 7] = ["virtio_blk", "virtio_scsi", "sd_mod", "loop", "vmw_vsock_virtio_transport", "pvpanic_pci", "erofs"];

/// A module as the image holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    /// Uncompressed, without its signature.
    pub data: Vec<u8>,
}

/// All modules of an image.
#[derive(Debug, Default)]
pub struct Set {
    /// In load order.
    pub core: Vec<Module>,
    /// Dependencies of each, in load order; those that are core already are left out.
    pub demand: BTreeMap<String, Vec<String>>,
    pub demand_modules: Vec<Module>,
}

/// `modules.dep` and `modules.builtin` of one kernel.
struct Index {
    dir: PathBuf,
    /// Name -> (path below `dir`, paths of its dependencies: those to be loaded first stand last).
    modules: HashMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl Index {
    fn read(dir: &Path) -> Result<Index, ImageError> {
        let path = dir.join("modules.dep");
        let dep = fs::read_to_string(&path).map_err(ImageError::io(format!("read {}", path.display())))?;
        // A kernel without loadable parts of its own kind has no such list; then nothing is known to be built in.
        let builtin = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
        let modules = dep
            .lines()
            .filter_map(|l| l.split_once(':'))
            .map(|(path, needs)| (name_of(path), (path.to_owned(), needs.split_ascii_whitespace().map(str::to_owned).collect())));
        Ok(Index { dir: dir.into(), modules: modules.collect(), builtin: builtin.lines().map(name_of).collect() })
    }

    /// `name` and what it needs, in load order; `None` if the kernel has no such module.
    fn closure(&self, name: &str) -> Option<Vec<String>> {
        let (_, needs) = self.modules.get(name)?;
        Some(needs.iter().rev().map(|p| name_of(p)).chain([name.to_owned()]).collect())
    }

    fn load(&self, name: &str) -> Result<Module, ImageError> {
        let Some((path, _)) = self.modules.get(name) else {
            return Err(ImageError::Io { what: format!("module {name}"), source: io::ErrorKind::NotFound.into() });
        };
        let path = self.dir.join(path);
        let raw = fs::read(&path).map_err(ImageError::io(format!("read {}", path.display())))?;
        let data = unpack(&path, raw).map_err(ImageError::io(format!("unpack {}", path.display())))?;
        Ok(Module { name: name.into(), data: without_signature(data) })
    }
}

/// Collects the modules of the kernel whose `modules.dep` is in `dir`.
pub fn collect(release: &str, dir: &Path) -> Result<Set, ImageError> {
    let index = Index::read(dir)?;
    let mut core: Vec<String> = Vec::new();
    for wanted in CORE {
        match index.closure(wanted) {
            Some(closure) => closure.into_iter().for_each(|m| push_once(&mut core, m)),
            None if index.builtin.contains(wanted) || !ESSENTIAL.contains(&wanted) => {}
            None => return Err(ImageError::Module { release: release.into(), module: wanted.into(), dir: dir.into() }),
        }
    }
    let mut demand = BTreeMap::new();
    let mut later: Vec<String> = Vec::new();
    for wanted in DEMAND {
        let Some(mut closure) = index.closure(wanted) else { continue };
        closure.retain(|m| !core.contains(m));
        closure.iter().for_each(|m| push_once(&mut later, m.clone()));
        closure.pop();
        demand.insert(wanted.to_owned(), closure);
    }
    // What is only a dependency can be asked for by its own name, too.
    for name in &later {
        let closure = index.closure(name).unwrap_or_default();
        demand.entry(name.clone()).or_insert_with(|| closure.into_iter().filter(|m| m != name && !core.contains(m)).collect());
    }
    Ok(Set {
        core: core.iter().map(|m| index.load(m)).collect::<Result<_, _>>()?,
        demand,
        demand_modules: later.iter().map(|m| index.load(m)).collect::<Result<_, _>>()?,
    })
}

fn push_once(list: &mut Vec<String>, name: String) {
    if !list.contains(&name) {
        list.push(name);
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` -> `virtio_rng`: the kernel's own name has no dashes.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// A module larger than this is none.
const LARGEST: u64 = 256 << 20;

fn unpack(path: &Path, raw: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(raw.as_slice(), false).take(LARGEST).read_to_end(&mut out)?,
        Some("gz") => flate2::read::GzDecoder::new(raw.as_slice()).take(LARGEST).read_to_end(&mut out)?,
        Some("zst") => {
            ruzstd::decoding::StreamingDecoder::new(raw.as_slice()).map_err(io::Error::other)?.take(LARGEST).read_to_end(&mut out)?
        }
        _ => return Ok(raw),
    };
    Ok(out)
}

/// Half of a module's load time is the check of its signature, which a kernel that does not force it is content without.
/// Layout: `scripts/sign-file.c`; the 12 bytes before the mark end in the signature's length, big endian.
fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MARK: &[u8] = b"~Module signature appended~\n";
    const INFO: usize = 12;
    if !module.ends_with(MARK) {
        return module;
    }
    let end = module.len() - MARK.len();
    let length = end.checked_sub(4).and_then(|at| module[at..end].try_into().ok()).map(u32::from_be_bytes).unwrap_or(0) as usize;
    if let Some(cut) = end.checked_sub(INFO + length) {
        module.truncate(cut);
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(dep: &str, builtin: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), dep).unwrap();
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        for line in dep.lines() {
            let path = dir.path().join(line.split(':').next().unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, line).unwrap();
        }
        dir
    }

    const DEP: &str = "k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko:\nk/virtio_pci.ko: k/virtio.ko k/virtio_ring.ko\n\
        k/virtio_console.ko: k/virtio.ko k/virtio_ring.ko\nk/virtiofs.ko: k/fuse.ko k/virtio.ko k/virtio_ring.ko\nk/fuse.ko:\n\
        k/char/virtio-rng.ko: k/virtio.ko k/virtio_ring.ko\nk/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\nk/sd_mod.ko: k/scsi_mod.ko\nk/scsi_mod.ko:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let dir = kernel(DEP, "kernel/fs/overlayfs/overlay.ko\n");
        let set = collect("1.0", dir.path()).unwrap();
        let names: Vec<&str> = set.core.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["virtio_ring", "virtio", "virtio_pci", "virtio_console", "fuse", "virtiofs", "virtio_rng"]);
        assert_eq!(set.demand["virtio_blk"], Vec::<String>::new());
        assert_eq!(set.demand["sd_mod"], ["scsi_mod"]);
        assert_eq!(set.demand["scsi_mod"], Vec::<String>::new());
        assert_eq!(set.demand_modules.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["virtio_blk", "scsi_mod", "sd_mod"]);
    }

    #[test]
    fn a_kernel_without_an_essential_module_is_refused_by_its_name() {
        let dir = kernel(DEP, "");
        match collect("1.0", dir.path()) {
            Err(ImageError::Module { module, .. }) => assert_eq!(module, "overlay"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_signature_is_cut_and_nothing_else() {
        let mut signed = b"module".to_vec();
        signed.extend(b"SIGNATURE");
        signed.extend([0; 8]);
        signed.extend(9u32.to_be_bytes());
        signed.extend(b"~Module signature appended~\n");
        assert_eq!(without_signature(signed), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        // A length that cannot be is left alone.
        let absurd = [&[0xff; 12][..], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(absurd.clone()), absurd);
    }

    #[test]
    fn compressed_modules_come_out() {
        use std::io::Write;
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(b"module").unwrap();
        assert_eq!(unpack(Path::new("a.ko.gz"), gz.finish().unwrap()).unwrap(), b"module");
        assert!(unpack(Path::new("a.ko.xz"), b"nonsense".to_vec()).is_err());
        assert!(unpack(Path::new("a.ko.zst"), b"nonsense".to_vec()).is_err());
    }
}
