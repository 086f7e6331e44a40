//! Host cgroups of a pod: shim, QEMU and virtiofsd sit where the pod's manager looks for the pod.
//!
//! The shim moves itself before it forks, so that everything it starts is born there. With `sandbox_cgroup_only` all of it
//! goes to the pod's cgroup. Without, the VM's memory is charged to `/kata_overhead/<sandbox>`: by the sum rule a VM has
//! more memory than its pod's limit. cgroup v1 splits by controller, so vCPU time is still the pod's; v2 cannot split a
//! process, and everything goes to the overhead cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::{Record, Thing};
use crate::error::{At, Result, Stage};

/// Where the memory of VMs is charged that is not their pods'.
const OVERHEAD: &str = "kata_overhead";

/// What a manager asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// `linux.cgroupsPath`: a path, or `slice:prefix:name`. Empty: stay where we are.
    pub path: String,
    /// `sandbox_cgroup_only`.
    pub only: bool,
}

/// The cgroups that this process was taken from, to return to before theirs are removed.
#[derive(Debug, Default)]
pub struct Placed {
    homes: Vec<PathBuf>,
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// Empty for cgroup v2.
    controllers: Vec<String>,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|c| c == controller)
    }

    /// Where a pod's processes go in it, relative to its root.
    fn place(&self, pod: &Path, sandbox: &str, only: bool) -> PathBuf {
        let beside = !only && (self.controllers.is_empty() || self.has("memory"));
        if beside { Path::new(OVERHEAD).join(sandbox) } else { pod.to_owned() }
    }
}

/// Moves this process, and with it everything it starts later.
pub fn enter(wish: &Wish, sandbox: &str, record: &Record) -> Result<Placed> {
    let mut placed = Placed::default();
    if !wish.path.is_empty() {
        let entered = enter_all(wish, sandbox, record, &mut placed);
        entered.inspect_err(|_| placed.leave())?;
    }
    Ok(placed)
}

fn enter_all(wish: &Wish, sandbox: &str, record: &Record, placed: &mut Placed) -> Result<()> {
    let pod = resolve(&wish.path);
    let mounts = fs::read_to_string("/proc/self/mountinfo").at(Stage::Request, || "mount table")?;
    let own = fs::read_to_string("/proc/self/cgroup").at(Stage::Request, || "own cgroups")?;
    for hierarchy in hierarchies(&mounts) {
        let dir = hierarchy.root.join(hierarchy.place(&pod, sandbox, wish.only));
        let home = hierarchy.root.join(home(&own, &hierarchy));
        let thing = Thing::Cgroup { path: dir.clone() };
        record.intent(thing.clone()).at(Stage::Request, || "record")?;
        make(&hierarchy, &dir).and_then(|()| join(&dir)).at(Stage::Request, || format!("cgroup {}", dir.display()))?;
        record.done(thing).at(Stage::Request, || "record")?;
        placed.homes.push(home);
    }
    Ok(())
}

impl Placed {
    /// Back to where this process was, so that the pod's cgroups can go.
    pub fn leave(&self) {
        for home in &self.homes {
            if let Err(e) = join(home) {
                log::debug!("cgroup {}: {e}", home.display());
            }
        }
    }
}

/// Removes a cgroup of ours, and the folder of all overhead cgroups with the last one. A process that was just killed may
/// be counted a moment longer.
pub fn remove(dir: &Path) -> io::Result<()> {
    const TRIES: u32 = 100;
    let mut result = Ok(());
    for _ in 0..TRIES {
        result = crate::fs::share::gone_is_fine(fs::remove_dir(dir));
        match &result {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(10)),
            _ => break,
        }
    }
    if let Some(parent) = dir.parent().filter(|p| p.ends_with(OVERHEAD)) {
        // Not empty while another pod is there.
        let _ = fs::remove_dir(parent);
    }
    result
}

fn make(hierarchy: &Hierarchy, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if hierarchy.has("cpuset") {
        // A new v1 cpuset is empty, and no process can enter it.
        let below = dir.strip_prefix(&hierarchy.root).unwrap_or(dir);
        let mut at = hierarchy.root.clone();
        for part in below.components() {
            let parent = at.clone();
            at.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if fs::read_to_string(at.join(file))?.trim().is_empty() {
                    fs::write(at.join(file), fs::read_to_string(parent.join(file))?.trim())?;
                }
            }
        }
    }
    Ok(())
}

fn join(dir: &Path) -> io::Result<()> {
    fs::write(dir.join("cgroup.procs"), std::process::id().to_string())
}

/// `slice:prefix:name` of systemd's driver becomes its folder; a path is taken as it is, relative to a hierarchy's root.
fn resolve(path: &str) -> PathBuf {
    let parts: Vec<&str> = path.split(':').collect();
    let [slice, prefix, name] = parts[..] else {
        return path.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..").collect();
    };
    let mut folder = PathBuf::new();
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    // `a-b-c.slice` lies in `a.slice/a-b.slice`.
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        if at > 0 {
            folder.push(format!("{}.slice", &stem[..at]));
        }
    }
    folder.push(if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") });
    folder
}

/// The hierarchies to place a process in: all of v1, and v2 where it is the only one.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (fields, kind): (Vec<&str>, Vec<&str>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(fstype), Some(options)) = (fields.get(4), kind.first(), kind.get(2)) else { continue };
        let controllers = match *fstype {
            "cgroup2" => Vec::new(),
            "cgroup" => options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "xattr" | "clone_children")).map(str::to_owned).collect(),
            _ => continue,
        };
        let hierarchy = Hierarchy { root: PathBuf::from(root), controllers };
        if !found.iter().any(|f| f.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    if found.iter().any(|h| !h.controllers.is_empty()) {
        found.retain(|h| !h.controllers.is_empty() && !h.controllers.iter().any(|c| c.starts_with("name=")));
    }
    found
}

/// Where this process is in `hierarchy`, relative to its root.
fn home(own: &str, hierarchy: &Hierarchy) -> PathBuf {
    let line = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match hierarchy.controllers.first() {
            None => controllers.is_empty(),
            Some(first) => controllers.split(',').any(|c| c == first),
        };
        ours.then(|| path.trim_start_matches('/').to_owned())
    });
    // A process of another cgroup namespace shows as `/../..`: the root will do.
    line.filter(|p| !p.contains("..")).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_names_become_folders() {
        for (given, folder) in [
            ("/kubepods/burstable/pod1/abc", "kubepods/burstable/pod1/abc"),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:abc",
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-abc.scope",
            ),
            ("system.slice:osc:x", "system.slice/osc-x.scope"),
            ("/a/../../etc", "a/etc"),
        ] {
            assert_eq!(resolve(given), Path::new(folder), "{given}");
        }
    }

    const HYBRID: &str = "30 20 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        31 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        33 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn memory_goes_beside_the_pod_unless_told_otherwise() {
        let found = hierarchies(HYBRID);
        let names: Vec<_> = found.iter().map(|h| h.controllers.join(",")).collect();
        assert_eq!(names, ["memory", "cpu,cpuacct"]);
        let pod = Path::new("kubepods/pod1");
        assert_eq!(found[0].place(pod, "s1", false), Path::new("kata_overhead/s1"));
        assert_eq!(found[1].place(pod, "s1", false), pod);
        assert_eq!(found[0].place(pod, "s1", true), pod);
        let v2 = hierarchies("33 20 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!((v2.len(), v2[0].place(pod, "s1", false)), (1, PathBuf::from("kata_overhead/s1")));
    }

    #[test]
    fn the_way_back_is_read_off_proc() {
        let found = hierarchies(HYBRID);
        let own = "5:cpu,cpuacct:/system.slice/containerd.service\n4:memory:/../x\n0::/init.scope\n";
        assert_eq!(home(own, &found[1]), Path::new("system.slice/containerd.service"));
        assert_eq!(home(own, &found[0]), Path::new(""));
    }
}
