//! The kernel modules a guest needs, their dependencies, and the form in which the image carries them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::kernel::Kernel;
use super::unpack::Packing;

/// Loaded before the agent is ready, in this order with their dependencies before them: how the host reaches the guest,
/// where its files come from, and what every pod has. Raw in the image.
const CORE: [&str; 8] = ["virtio_pci", "virtio_console", "fuse", "virtiofs", "virtio_net", "overlay", "virtio_rng", "virtio_mem"];

/// Of the core set, what no guest can do without. A kernel that lacks another one does without.
const ESSENTIAL: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];

/// Loaded when something asks for them by name. Packed in the image.
const DEMAND: [&str; 9] =
    ["virtio_blk", "virtio_scsi", "sd_mod", "loop", "vmw_vsock_virtio_transport", "pvpanic_pci", "virtio_balloon", "ext4", "vxlan"];

/// What a pod VM may have besides, wherever it was made: the disk it boots from and the one with its user-data (virtio, NVMe, Hyper-V,
/// VMware), and its network (virtio, ENA, gVNIC, Hyper-V and Azure, VMware). Loaded where the VM has such a device.
pub const POD_VM: [&str; 16] = [
    "sr_mod",
    "isofs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "nls_utf8",
    "ena",
    "gve",
    "hv_vmbus",
    "hv_storvsc",
    "hv_netvsc",
    "hv_utils",
    "pci_hyperv",
    "mana",
    "vmxnet3",
    "vmw_pvscsi",
];

/// Buses whose devices are matched with modules by the kernel's own list.
const BUSES: [&str; 5] = ["pci:", "virtio:", "vmbus:", "scsi:", "acpi"];

/// A module larger than this is none.
const LARGEST: u64 = 256 << 20;

/// A module as the image holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub name: String,
    /// Uncompressed.
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
    /// Wanted, and part of the kernel itself.
    pub builtin: Vec<String>,
    /// Wanted, and not there.
    pub missing: Vec<String>,
    /// (pattern of a device's `modalias`, its module): in images that know only at boot what machine they are on.
    pub aliases: Vec<(String, String)>,
    /// Signatures were kept, because this kernel loads no module without.
    pub signed: bool,
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
        // Without such a list nothing is known to be built in.
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

    fn load(&self, name: &str, signed: bool) -> Result<Module, ImageError> {
        let Some((path, _)) = self.modules.get(name) else {
            let path = self.dir.join("modules.dep");
            return Err(ImageError::Format { path, what: format!("it names {name} as a dependency, and has no line for it") });
        };
        let path = self.dir.join(path);
        let raw = fs::read(&path).map_err(ImageError::io(format!("read {}", path.display())))?;
        let data = unpack(&path, raw).map_err(|what| ImageError::Format { path, what })?;
        Ok(Module { name: name.into(), data: if signed { data } else { without_signature(data) } })
    }
}

/// Collects the modules of `kernel`, and of `more` those that it has.
pub fn collect(kernel: &Kernel, more: &[&str]) -> Result<Set, ImageError> {
    let index = Index::read(&kernel.modules)?;
    let mut set = Set { signed: kernel.has_config("CONFIG_MODULE_SIG_FORCE"), ..Set::default() };
    let core = core(&index, kernel, &mut set)?;
    let demand = demand(&index, &core, more, &mut set);
    if !more.is_empty() {
        set.aliases = aliases(&index.dir, &demand);
    }
    let load = |names: &[String]| names.iter().map(|m| index.load(m, set.signed)).collect::<Result<Vec<_>, _>>();
    (set.core, set.demand_modules) = (load(&core)?, load(&demand)?);
    match set.core.iter().find_map(|m| release_of(&m.data)).filter(|r| *r != kernel.release) {
        Some(other) => Err(ImageError::Kernel {
            release: kernel.release.clone(),
            what: format!("the modules in {} are of {other}", kernel.modules.display()),
        }),
        None => Ok(set),
    }
}

/// Names of the core set in load order.
fn core(index: &Index, kernel: &Kernel, set: &mut Set) -> Result<Vec<String>, ImageError> {
    let mut core = Vec::new();
    for wanted in CORE {
        match index.closure(wanted) {
            Some(closure) => closure.into_iter().for_each(|m| push_once(&mut core, m)),
            None if index.builtin.contains(wanted) => set.builtin.push(wanted.into()),
            None if !ESSENTIAL.contains(&wanted) => set.missing.push(wanted.into()),
            None => {
                return Err(ImageError::Module { release: kernel.release.clone(), module: wanted.into(), dir: kernel.modules.clone() });
            }
        }
    }
    Ok(core)
}

/// Names of what is loaded on demand; `set.demand` says what each needs.
fn demand(index: &Index, core: &[String], more: &[&str], set: &mut Set) -> Vec<String> {
    let mut names = Vec::new();
    for &wanted in DEMAND.iter().chain(more) {
        match index.closure(wanted) {
            Some(closure) => closure.into_iter().filter(|m| !core.contains(m)).for_each(|m| push_once(&mut names, m)),
            None if index.builtin.contains(wanted) => set.builtin.push(wanted.into()),
            None => set.missing.push(wanted.into()),
        }
    }
    // What is only a dependency can be asked for by its own name, too.
    for name in &names {
        let needs = index.closure(name).unwrap_or_default().into_iter().filter(|m| m != name && !core.contains(m));
        set.demand.insert(name.clone(), needs.collect());
    }
    names
}

/// Which devices these modules drive, as `depmod` wrote it down.
fn aliases(dir: &Path, names: &[String]) -> Vec<(String, String)> {
    let text = fs::read_to_string(dir.join("modules.alias")).unwrap_or_default();
    let lines = text.lines().filter_map(|l| l.strip_prefix("alias ")?.rsplit_once(' '));
    let ours = lines.filter(|(pattern, name)| BUSES.iter().any(|b| pattern.starts_with(b)) && names.contains(&name_of(name)));
    let mut found: Vec<_> = ours.map(|(pattern, name)| (pattern.to_owned(), name_of(name))).collect();
    found.sort();
    found
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

fn unpack(path: &Path, raw: Vec<u8>) -> Result<Vec<u8>, String> {
    let data = match path.extension().and_then(|e| e.to_str()).and_then(Packing::of_suffix) {
        Some(packing) => packing.unpack(&raw, LARGEST)?,
        None => raw,
    };
    if data.starts_with(b"\x7fELF") { Ok(data) } else { Err("no kernel module: it is no ELF file".into()) }
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

/// The kernel's release that a module was built for: the first word of `vermagic` in its `.modinfo`.
fn release_of(module: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\0vermagic=";
    let at = module.windows(KEY.len()).position(|w| w == KEY)? + KEY.len();
    let word = module[at..].split(|b| *b == b' ' || *b == 0).next()?;
    Some(String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
pub mod tests {
    use super::super::unpack::tests::pack;
    use super::*;
    use proptest::prelude::*;

    /// What a module's file holds in tests.
    pub fn module(release: &str, name: &str) -> Vec<u8> {
        [b"\x7fELF", name.as_bytes(), b"\0vermagic=", release.as_bytes(), b" SMP mod_unload \0"].concat()
    }

    pub fn signed(module: &[u8], signature: &[u8]) -> Vec<u8> {
        [module, signature, &[0; 8], &(signature.len() as u32).to_be_bytes(), b"~Module signature appended~\n"].concat()
    }

    /// A kernel 1.0 whose modules directory has `dep` as its modules.dep, and every file that is named there.
    fn kernel(dep: &str, builtin: &str) -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.dep"), dep).unwrap();
        fs::write(dir.path().join("modules.builtin"), builtin).unwrap();
        for line in dep.lines() {
            let file = line.split(':').next().unwrap();
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, signed(&module("1.0", file), b"signature")).unwrap();
        }
        let kernel = Kernel { release: "1.0".into(), vmlinuz: "/none".into(), modules: dir.path().into(), config: None };
        (dir, kernel)
    }

    pub const DEP: &str = "k/virtio.ko: k/virtio_ring.ko\nk/virtio_ring.ko:\nk/virtio_pci.ko: k/virtio.ko k/virtio_ring.ko\n\
        k/virtio_console.ko: k/virtio.ko k/virtio_ring.ko\nk/virtiofs.ko: k/fuse.ko k/virtio.ko k/virtio_ring.ko\nk/fuse.ko:\n\
        k/char/virtio-rng.ko: k/virtio.ko k/virtio_ring.ko\nk/virtio_blk.ko: k/virtio.ko k/virtio_ring.ko\nk/sd_mod.ko: k/scsi_mod.ko k/scsi-common.ko\n\
        k/scsi_mod.ko: k/scsi-common.ko\nk/scsi-common.ko:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let (_dir, kernel) = kernel(DEP, "kernel/fs/overlayfs/overlay.ko\n");
        let set = collect(&kernel, &[]).unwrap();
        let names = |list: &[Module]| list.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&set.core), ["virtio_ring", "virtio", "virtio_pci", "virtio_console", "fuse", "virtiofs", "virtio_rng"]);
        assert_eq!(set.demand["virtio_blk"], Vec::<String>::new());
        assert_eq!(set.demand["sd_mod"], ["scsi_common", "scsi_mod"]);
        assert_eq!(set.demand["scsi_mod"], ["scsi_common"]);
        assert_eq!(names(&set.demand_modules), ["virtio_blk", "scsi_common", "scsi_mod", "sd_mod"]);
    }

    #[test]
    fn what_is_built_in_and_what_is_missing_is_recorded() {
        let (_dir, kernel) = kernel(DEP, "kernel/fs/overlayfs/overlay.ko\nkernel/fs/ext4/ext4.ko\n");
        let set = collect(&kernel, &[]).unwrap();
        assert_eq!(set.builtin, ["overlay", "ext4"]);
        assert_eq!(
            set.missing,
            ["virtio_net", "virtio_mem", "virtio_scsi", "loop", "vmw_vsock_virtio_transport", "pvpanic_pci", "virtio_balloon", "vxlan"]
        );
    }

    #[test]
    fn a_kernel_without_an_essential_module_is_refused_by_its_name() {
        let (_dir, kernel) = kernel(DEP, "");
        let error = collect(&kernel, &[]).unwrap_err();
        assert!(matches!(&error, ImageError::Module { module, .. } if module == "overlay"), "{error}");
    }

    #[test]
    fn modules_of_another_kernel_are_refused() {
        let (_dir, mut kernel) = kernel(DEP, "overlay.ko\n");
        kernel.release = "2.0".into();
        assert!(collect(&kernel, &[]).unwrap_err().to_string().ends_with("are of 1.0"));
    }

    #[test]
    fn a_damaged_list_or_file_is_told() {
        let (dir, kernel) = kernel("k/virtio_pci.ko: k/virtio.ko\n", "virtio_console.ko\nvirtiofs.ko\noverlay.ko\n");
        assert!(collect(&kernel, &[]).unwrap_err().to_string().contains("names virtio as a dependency"));
        fs::write(dir.path().join("modules.dep"), "k/virtio_pci.ko:\n").unwrap();
        fs::write(dir.path().join("k/virtio_pci.ko"), "").unwrap();
        assert!(collect(&kernel, &[]).unwrap_err().to_string().contains("no kernel module"));
        fs::remove_file(dir.path().join("k/virtio_pci.ko")).unwrap();
        assert!(collect(&kernel, &[]).unwrap_err().to_string().contains("virtio_pci.ko"));
    }

    #[test]
    fn a_signature_is_cut_and_nothing_else() {
        assert_eq!(without_signature(signed(b"module", b"SIGNATURE")), b"module");
        assert_eq!(without_signature(b"module".to_vec()), b"module");
        // A length that cannot be is left alone.
        let absurd = [&[0xff; 12][..], b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(absurd.clone()), absurd);
    }

    #[test]
    fn a_kernel_that_forces_signatures_gets_them() {
        let (dir, mut kernel) = kernel(DEP, "overlay.ko\n");
        let all_end = |set: &Set, end: &[u8]| set.core.iter().chain(&set.demand_modules).all(|m| m.data.ends_with(end));
        assert!(all_end(&collect(&kernel, &[]).unwrap(), b"mod_unload \0"));
        kernel.config = Some(dir.path().join("config"));
        fs::write(dir.path().join("config"), "CONFIG_MODULE_SIG_FORCE=y\n").unwrap();
        let set = collect(&kernel, &[]).unwrap();
        assert!(set.signed && all_end(&set, b"~Module signature appended~\n"));
    }

    #[test]
    fn compressed_modules_come_out() {
        let data = module("1.0", "x");
        for (packing, name) in [(Packing::Gzip, "x.ko.gz"), (Packing::Xz, "x.ko.xz"), (Packing::Zstd, "x.ko.zst")] {
            assert_eq!(unpack(Path::new(name), pack(packing, &data)).unwrap(), data);
            assert!(unpack(Path::new(name), b"nonsense".to_vec()).is_err());
            assert_eq!(name_of(name), "x");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(dep: String, data: Vec<u8>, length: u32) {
            let _ = without_signature([&data[..], &length.to_be_bytes(), b"~Module signature appended~\n"].concat());
            let _ = release_of(&data);
            let (_dir, kernel) = kernel("", "virtio_console.ko\nvirtiofs.ko\noverlay.ko\n");
            fs::write(kernel.modules.join("modules.dep"), format!("k/virtio_pci.ko: {dep}\n{dep}")).unwrap();
            let _ = collect(&kernel, &[]);
        }
    }
}
