//! A network namespace: opened by its path, checked, entered by a thread of its own.
//!
//! Sockets and taps belong to the namespace of the thread that opens them and stay there, so no thread of ours ever has to
//! change over and back: what has to be opened inside is opened by a thread that ends with it (setns(2)).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::NetError;
use super::netlink::Netlink;

/// `NS_GET_NSTYPE` of linux/nsfs.h: what kind of namespace a descriptor is.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// What tells one namespace from another while either lives: device and inode of nsfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Id {
    pub dev: u64,
    pub ino: u64,
}

/// A network namespace that is held open: it cannot vanish while this lives.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
    id: Id,
}

impl Namespace {
    /// `path` is a bind mount (`/run/netns/x`) or a process's (`/proc/1/ns/net`).
    pub fn open(path: &Path) -> Result<Namespace, NetError> {
        let refuse = |cause: String| NetError::Namespace { path: path.to_owned(), cause };
        let file = File::open(path).map_err(|e| refuse(e.to_string()))?;
        // SAFETY: a request without argument on a descriptor of ours; other files answer ENOTTY.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE as _) };
        if kind != libc::CLONE_NEWNET {
            return Err(refuse("is no network namespace (is it unmounted, or another kind of namespace?)".into()));
        }
        let meta = file.metadata().map_err(|e| refuse(e.to_string()))?;
        Ok(Namespace { path: path.to_owned(), file, id: Id { dev: meta.dev(), ino: meta.ino() } })
    }

    /// The one that this process is in.
    pub fn own() -> Result<Namespace, NetError> {
        Namespace::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The same, if it is still the one that `id` names; `None` where the path is gone or means another one by now.
    pub fn reopen(path: &Path, id: Id) -> Option<Namespace> {
        Namespace::open(path).ok().filter(|ns| ns.id == id)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> Id {
        self.id
    }

    /// A descriptor of it, for a link that is to be born there.
    pub fn fd(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Runs `f` in a thread inside the namespace and answers what it answers.
    pub fn inside<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> Result<T, NetError> {
        let fd = self.fd()?;
        let path = self.path.clone();
        let thread = crate::thread::try_start("netns", move || {
            // SAFETY: a descriptor that we hold; only this thread changes over, and it ends here.
            if unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(NetError::Namespace { path, cause: format!("enter it: {}", io::Error::last_os_error()) });
            }
            Ok(f())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A socket that speaks of what is in there.
    pub fn netlink(&self) -> Result<Netlink, NetError> {
        self.inside(Netlink::open)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_named() {
        for (path, why) in [("/no/such", "No such file"), ("/proc/self/ns/mnt", "no network namespace"), ("/etc/hostname", "no network")] {
            let e = Namespace::open(Path::new(path)).unwrap_err().to_string();
            assert!(e.contains(path) && e.contains(why), "{e}");
        }
    }

    #[test]
    fn our_own_is_one_and_is_found_again() {
        let own = Namespace::own().unwrap();
        assert!(Namespace::reopen(own.path(), own.id()).is_some());
        assert!(Namespace::reopen(own.path(), Id { ino: own.id().ino + 1, ..own.id() }).is_none());
    }
}
