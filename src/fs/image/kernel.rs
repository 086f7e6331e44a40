//! Which kernel a guest runs, and where its files are.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;

/// Where kernels lie that were unpacked but not installed: `<release>/{vmlinuz,config,modules/}`.
pub const UNPACKED: &str = "/var/cache/kata-containers/kernels";

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub release: String,
    /// A bzImage, or an ELF file.
    pub vmlinuz: PathBuf,
    /// Holds `modules.dep`.
    pub modules: PathBuf,
    /// Its build configuration, where it is installed.
    pub config: Option<PathBuf>,
}

impl Kernel {
    /// Whether it was built with `option` (`CONFIG_X`) set to y. Where its configuration is not installed: no.
    pub fn has_config(&self, option: &str) -> bool {
        let text = self.config.as_ref().and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default();
        text.lines().any(|l| l.strip_prefix(option) == Some("=y"))
    }

    fn usable(self) -> Option<Kernel> {
        (self.vmlinuz.is_file() && self.modules.join("modules.dep").is_file()).then_some(self)
    }
}

/// Finds the kernel of `release`, else the host's own, else the newest usable one.
pub fn find(release: Option<&str>) -> Result<Kernel, ImageError> {
    find_in(Path::new("/"), release)
}

/// The same on the host whose root is `root`.
pub fn find_in(root: &Path, release: Option<&str>) -> Result<Kernel, ImageError> {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    search(root, release, &running)
}

fn search(root: &Path, release: Option<&str>, running: &str) -> Result<Kernel, ImageError> {
    if let Some(release) = release {
        return named(root, release);
    }
    let below = |dir: &str| root.join(dir.trim_start_matches('/'));
    let in_boot = names(&below("boot")).into_iter().filter_map(|n| n.strip_prefix("vmlinuz-").map(str::to_owned));
    let mut releases: Vec<String> = in_boot.chain(names(&below("lib/modules"))).collect();
    newest_first(&mut releases);
    let mut fetched = names(&below(UNPACKED));
    newest_first(&mut fetched);
    installed(root, running)
        .or_else(|| releases.iter().find_map(|r| installed(root, r)))
        .or_else(|| fetched.iter().find_map(|r| unpacked(root, r)))
        .ok_or_else(|| ImageError::NoKernel {
            looked: format!(
                "the running one, {running}, has no kernel file and modules in /lib/modules/{running} and /boot; {}; nothing is in {UNPACKED}",
                releases.first().map_or("no other is installed".into(), |r| format!("nor have others ({r} is the newest)"))
            ),
        })
}

fn named(root: &Path, release: &str) -> Result<Kernel, ImageError> {
    let error = |what: String| ImageError::Kernel { release: release.into(), what };
    if release.is_empty() || release.contains('/') || release.starts_with('.') {
        return Err(error("that is no kernel release".into()));
    }
    installed(root, release).or_else(|| unpacked(root, release)).ok_or_else(|| {
        let has = |path: String| root.join(path).is_file();
        error(match has(format!("lib/modules/{release}/vmlinuz")) || has(format!("boot/vmlinuz-{release}")) {
            true => format!("no modules: there is no /lib/modules/{release}/modules.dep"),
            false => format!("neither /lib/modules/{release}/vmlinuz nor /boot/vmlinuz-{release}, and not in {UNPACKED}"),
        })
    })
}

fn installed(root: &Path, release: &str) -> Option<Kernel> {
    let modules = root.join("lib/modules").join(release);
    let boot = root.join("boot");
    let vmlinuz = [modules.join("vmlinuz"), boot.join(format!("vmlinuz-{release}"))].into_iter().find(|p| p.is_file())?;
    let config = [boot.join(format!("config-{release}")), modules.join("config")].into_iter().find(|p| p.is_file());
    Kernel { release: release.into(), vmlinuz, modules, config }.usable()
}

fn unpacked(root: &Path, release: &str) -> Option<Kernel> {
    let dir = root.join(UNPACKED.trim_start_matches('/')).join(release);
    let config = [dir.join("config"), dir.join("modules/config")].into_iter().find(|p| p.is_file());
    Kernel { release: release.into(), vmlinuz: dir.join("vmlinuz"), modules: dir.join("modules"), config }.usable()
}

/// Names in a directory; what is hidden there is being made.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).filter(|n| !n.starts_with('.')).collect()
}

fn newest_first(releases: &mut Vec<String>) {
    releases.sort_by(|a, b| compare(b, a));
    releases.dedup();
}

/// Orders releases as people do: runs of digits by their number.
pub fn compare(a: &str, b: &str) -> Ordering {
    pieces(a).cmp(&pieces(b)).then_with(|| a.cmp(b))
}

/// `6.1.0-9-amd64` -> (6, "."), (1, "."), (0, "-"), (9, "-amd"), (64, "").
fn pieces(text: &str) -> Vec<(u64, &str)> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (word, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        pieces.push((digits.parse().unwrap_or(0), word));
        rest = after;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_number() {
        let mut all = ["6.1.0-9-amd64", "6.10.0-1-amd64", "5.19.0-1-amd64", "6.1.0-56-amd64", "6.1.0-9-amd64"].map(String::from).to_vec();
        newest_first(&mut all);
        assert_eq!(all, ["6.10.0-1-amd64", "6.1.0-56-amd64", "6.1.0-9-amd64", "5.19.0-1-amd64"]);
        let rhel = ["5.14.0-427.9.1.el9_4.x86_64", "5.14.0-427.13.1.el9_4.x86_64"];
        assert_eq!(compare(rhel[0], rhel[1]), Ordering::Less);
    }

    struct Host(tempfile::TempDir);

    impl Host {
        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn find(&self, release: Option<&str>) -> Result<Kernel, ImageError> {
            search(self.0.path(), release, "1.0")
        }
    }

    #[test]
    fn the_hosts_own_kernel_goes_first_and_one_without_modules_is_none() {
        let host = Host(tempfile::tempdir().unwrap());
        assert!(host.find(None).unwrap_err().to_string().contains("no other is installed"));
        host.put("boot/vmlinuz-9.0", "");
        assert!(host.find(None).unwrap_err().to_string().contains("9.0 is the newest"));
        let fetched = UNPACKED.trim_start_matches('/');
        host.put(&format!("{fetched}/3.0/vmlinuz"), "");
        host.put(&format!("{fetched}/3.0/modules/modules.dep"), "");
        host.put(&format!("{fetched}/.unpack-x/vmlinuz"), "");
        host.put(&format!("{fetched}/.unpack-x/modules/modules.dep"), "");
        assert_eq!(host.find(None).unwrap().release, "3.0");
        host.put("boot/vmlinuz-2.0", "");
        host.put("lib/modules/2.0/modules.dep", "");
        assert_eq!(host.find(None).unwrap().release, "2.0");
        // Where /boot is another system's, the kernel lies beside its modules.
        host.put("lib/modules/2.1/vmlinuz", "");
        host.put("lib/modules/2.1/modules.dep", "");
        assert_eq!(host.find(None).unwrap().vmlinuz, host.0.path().join("lib/modules/2.1/vmlinuz"));
        host.put("boot/vmlinuz-1.0", "");
        host.put("lib/modules/1.0/modules.dep", "");
        assert_eq!(host.find(None).unwrap().release, "1.0");
        assert_eq!(host.find(Some("3.0")).unwrap().release, "3.0");
    }

    #[test]
    fn errors_say_what_a_named_kernel_lacks() {
        let host = Host(tempfile::tempdir().unwrap());
        host.put("boot/vmlinuz-9.0", "");
        let text = |release| host.find(Some(release)).unwrap_err().to_string();
        assert_eq!(text("9.0"), "kernel 9.0: no modules: there is no /lib/modules/9.0/modules.dep");
        assert!(text("8.0").starts_with("kernel 8.0: neither /lib/modules/8.0/vmlinuz nor /boot/vmlinuz-8.0"));
        assert_eq!(text("../../etc"), "kernel ../../etc: that is no kernel release");
        assert_eq!(text(""), "kernel : that is no kernel release");
    }

    #[test]
    fn options_are_read_from_the_config_beside_it() {
        let host = Host(tempfile::tempdir().unwrap());
        host.put("boot/vmlinuz-1.0", "");
        host.put("lib/modules/1.0/modules.dep", "");
        assert!(!host.find(None).unwrap().has_config("CONFIG_PVM_GUEST"));
        host.put("lib/modules/1.0/config", "CONFIG_PVM_GUEST=y\nCONFIG_VIRTIO=m\n# CONFIG_MODULE_SIG_FORCE is not set\n");
        let kernel = host.find(None).unwrap();
        assert!(kernel.has_config("CONFIG_PVM_GUEST"));
        assert!(!kernel.has_config("CONFIG_VIRTIO") && !kernel.has_config("CONFIG_MODULE_SIG_FORCE") && !kernel.has_config("CONFIG_PVM"));
    }
}
