//! Mount options as `mount(8)` spells them, read into the flags, data and propagation of `mount(2)`.

use std::ffi::CString;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags as F, MountPropagationFlags as P, mount, mount_bind, mount_bind_recursive, mount_change, mount_remount};

/// (option, the flag, whether it sets or clears it).
const FLAGS: &[(&str, F, bool)] = &[
    ("async", F::SYNCHRONOUS, false),
    ("atime", F::NOATIME, false),
    ("dev", F::NODEV, false),
    ("diratime", F::NODIRATIME, false),
    ("dirsync", F::DIRSYNC, true),
    ("exec", F::NOEXEC, false),
    ("mand", F::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("noatime", F::NOATIME, true),
    ("nodev", F::NODEV, true),
    ("nodiratime", F::NODIRATIME, true),
    ("noexec", F::NOEXEC, true),
    ("nomand", F::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("norelatime", F::RELATIME, false),
    ("nostrictatime", F::STRICTATIME, false),
    ("nosuid", F::NOSUID, true),
    ("relatime", F::RELATIME, true),
    ("ro", F::RDONLY, true),
    ("rw", F::RDONLY, false),
    ("strictatime", F::STRICTATIME, true),
    ("suid", F::NOSUID, false),
    ("sync", F::SYNCHRONOUS, true),
];

const PROPAGATION: &[(&str, P)] = &[
    ("private", P::PRIVATE),
    ("rprivate", P::PRIVATE.union(P::REC)),
    ("shared", P::SHARED),
    ("rshared", P::SHARED.union(P::REC)),
    ("slave", P::DOWNSTREAM),
    ("rslave", P::DOWNSTREAM.union(P::REC)),
    ("unbindable", P::UNBINDABLE),
    ("runbindable", P::UNBINDABLE.union(P::REC)),
];

/// A list of options, sorted by what the kernel does with each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub flags: Flags,
    pub bind: bool,
    pub recursive: bool,
    pub propagation: Vec<u32>,
    /// What the file system itself reads: everything that is none of the above.
    pub data: Vec<String>,
}

/// What mount(2) takes of data: a page, its last byte zero.
const MOST_DATA: usize = 4096;

/// The directory that all lower layers lie under, and the options with the layers named from there.
fn compact(data: &[String]) -> (String, String) {
    let layers = data.iter().find_map(|o| o.strip_prefix("lowerdir=")).unwrap_or_default();
    let first = layers.split(':').next().unwrap_or_default();
    let shared = layers.split(':').fold(first.len(), |n, l| n.min(l.bytes().zip(first.bytes()).take_while(|(a, b)| a == b).count()));
    let common = first[..shared].rfind('/').map(|at| &first[..=at]).unwrap_or_default();
    let relative = |o: &String| match o.strip_prefix("lowerdir=") {
        Some(list) => {
            let list: Vec<&str> = list.split(':').map(|l| l.strip_prefix(common).unwrap_or(l)).collect();
            format!("lowerdir={}", list.join(":"))
        }
        None => o.clone(),
    };
    let data: Vec<String> = data.iter().map(relative).collect();
    (if common.is_empty() { "/".into() } else { common.into() }, data.join(","))
}

/// `MountFlags` with an order to compare by.
pub type Flags = u32;

impl Options {
    pub fn parse<S: AsRef<str>>(list: &[S]) -> Options {
        let mut options = Options::default();
        // One entry may hold several, as in /etc/fstab.
        for word in list.iter().flat_map(|o| o.as_ref().split(',')).filter(|w| !w.is_empty()) {
            if let Some(&(_, flag, set)) = FLAGS.iter().find(|(name, ..)| *name == word) {
                if set { options.flags |= flag.bits() } else { options.flags &= !flag.bits() }
            } else if let Some((_, how)) = PROPAGATION.iter().find(|(name, _)| *name == word) {
                options.propagation.push(how.bits());
            } else {
                match word {
                    "bind" => options.bind = true,
                    "rbind" => (options.bind, options.recursive) = (true, true),
                    // What a caller says to mount(8) only.
                    "defaults" | "loop" | "_netdev" | "nofail" | "auto" | "noauto" | "user" | "nouser" => {}
                    data => options.data.push(data.to_owned()),
                }
            }
        }
        options
    }

    /// Mounts `source` at `target` as the options say. A failure leaves nothing mounted.
    pub fn mount(&self, source: &str, target: &Path, fstype: &str) -> io::Result<()> {
        let flags = F::from_bits_retain(self.flags);
        let data = self.data.join(",");
        if fstype == "overlay" && data.len() >= MOST_DATA {
            self.mount_compact(source, target, flags)?;
            return self.finish(target, flags);
        }
        let data = CString::new(data)?;
        if self.bind || fstype == "bind" {
            if self.recursive { mount_bind_recursive(source, target)? } else { mount_bind(source, target)? }
        } else {
            mount(source, target, fstype, flags, Some(data.as_c_str()))?;
        }
        self.finish(target, flags).inspect_err(|_| {
            let _ = crate::fs::mount::detach(target);
        })
    }

    /// An overlay of so many layers that their paths do not fit the page that mount(2) takes: they are named from the
    /// directory they have in common. The working directory is changed in a thread of its own.
    fn mount_compact(&self, source: &str, target: &Path, flags: F) -> io::Result<()> {
        let (common, data) = compact(&self.data);
        let (source, target, data) = (source.to_owned(), target.to_owned(), CString::new(data)?);
        crate::thread::start("mount", move || -> io::Result<()> {
            // SAFETY: from here this thread alone has a working directory of its own; nothing in memory changes.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS)? };
            std::env::set_current_dir(&common)?;
            Ok(mount(source.as_str(), target.as_path(), "overlay", flags, Some(data.as_c_str()))?)
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    }

    /// What takes a call of its own after the mount.
    fn finish(&self, target: &Path, flags: F) -> io::Result<()> {
        // A bind keeps its source's flags and ignores those it is given; a second call changes them.
        if self.bind && !flags.is_empty() {
            mount_remount(target, F::BIND | flags, c"")?;
        }
        for how in &self.propagation {
            mount_change(target, P::from_bits_retain(*how))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_sorted_by_what_reads_them() {
        let o = Options::parse(&["nodev,nosuid", "size=64m", "rw", "mode=1777", "rslave", "defaults"]);
        assert_eq!(o.flags, (F::NODEV | F::NOSUID).bits());
        assert_eq!(o.data, ["size=64m", "mode=1777"]);
        assert_eq!(o.propagation, [(P::DOWNSTREAM | P::REC).bits()]);
        assert!(!o.bind);
        let o = Options::parse(&["ro", "rbind", "rw"]);
        assert!((o.bind, o.recursive, o.flags) == (true, true, 0), "the last word wins");
    }

    #[test]
    fn layers_are_named_from_what_they_have_in_common() {
        let data = ["index=off".to_owned(), "lowerdir=/v/s/12/fs:/v/s/13/fs:/v/s/9/fs".into(), "upperdir=/v/s/20/fs".into()];
        assert_eq!(compact(&data), ("/v/s/".into(), "index=off,lowerdir=12/fs:13/fs:9/fs,upperdir=/v/s/20/fs".into()));
        assert_eq!(compact(&["lowerdir=a:b".into()]).0, "/");
    }

    #[test]
    fn binds_get_their_flags_and_failures_leave_nothing() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: mounting needs root");
        }
        crate::testing::in_own_process("fs::options::tests::binds_get_their_flags_and_failures_leave_nothing", || {
            crate::testing::own_mounts();
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("a"), dir.path().join("b"));
            std::fs::create_dir_all(&a).unwrap();
            std::fs::create_dir_all(&b).unwrap();
            Options::parse(&["bind", "ro"]).mount(a.to_str().unwrap(), &b, "bind").unwrap();
            assert_eq!(std::fs::write(b.join("x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
            crate::fs::mount::detach(&b).unwrap();
            Options::parse(&["size=1m", "mode=0700"]).mount("tmpfs", &b, "tmpfs").unwrap();
            assert_eq!(rustix::fs::statfs(&b).unwrap().f_blocks, 256);
            crate::fs::mount::detach(&b).unwrap();
            assert!(Options::parse(&["nonsense=1"]).mount("tmpfs", &b, "tmpfs").is_err());
        });
    }
}
