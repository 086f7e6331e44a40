//! Id-mapped mounts: files of the source appear with other owners (mount_setattr(2), MOUNT_ATTR_IDMAP).
//!
//! Volumes of a pod with a user namespace are mapped on the host, when they are bound into the share: the guest's virtio-fs
//! knows no such mounts. virtiofsd then reads and writes through the map, and the guest's own namespace has the same one.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::rpc::wire::oci::LinuxIdMapping;

/// Whose files are whose: the container's ids and what they are outside of its namespace.
#[derive(Clone, Copy, Debug)]
pub struct Owners<'a> {
    pub uids: &'a [LinuxIdMapping],
    pub gids: &'a [LinuxIdMapping],
    /// Of the mounts below as well.
    pub recursive: bool,
}

/// Maps the owners in `tree`. The kernel takes the map from a user namespace, which has to be had by a process: a child that
/// only waits.
pub fn map(tree: &OwnedFd, owners: Owners) -> io::Result<()> {
    let userns = user_namespace(owners.uids, owners.gids)?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: userns.as_raw_fd() as u64 };
    super::mount::set_attributes(tree, &attr, owners.recursive)
}

fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (from_child, to_parent) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: whatever other threads hold, the child makes system calls only, on memory of its own, and waits to be killed.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: as above; the buffer is the child's own. It goes with its parent, whatever becomes of that.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            let mut name = [0u8; 16];
            let length = match libc::unshare(libc::CLONE_NEWUSER) {
                // The /proc that is mounted here may be the guest's, and number this process otherwise than its own PID namespace.
                0 => libc::readlink(c"/proc/self".as_ptr(), name.as_mut_ptr().cast(), name.len()),
                _ => 0,
            };
            libc::write(to_parent.as_raw_fd(), name.as_ptr().cast(), length.max(0) as usize);
            libc::close(to_parent.as_raw_fd());
            loop {
                libc::pause();
            }
        }
    }
    drop(to_parent);
    let result = (|| {
        let mut name = String::new();
        fs::File::from(from_child).read_to_string(&mut name)?;
        if name.is_empty() {
            return Err(io::Error::other("no user namespace can be made"));
        }
        for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
            let text: String = maps.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect();
            fs::write(format!("/proc/{name}/{file}"), text)?;
        }
        Ok(fs::File::open(format!("/proc/{name}/ns/user"))?.into())
    })();
    // SAFETY: our own child, which nobody else reaps: the agent, whose reaper would, does this in a process of its own.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn owners_are_mapped_both_ways() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIP fs::idmap: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("old"), "").unwrap();
        let maps = [LinuxIdMapping { container_id: 0, host_id: 100_000, size: 65_536 }];
        let tree = crate::fs::mount::detached_bind(&source, true, false).unwrap();
        match map(&tree, Owners { uids: &maps, gids: &maps, recursive: true }) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return println!("SKIP fs::idmap: the file system has no id-mapped mounts"),
            r => r.unwrap(),
        }
        crate::fs::mount::attach(&tree, &target).unwrap();
        assert_eq!(fs::metadata(target.join("old")).unwrap().uid(), 100_000);
        // Nobody that the map knows.
        assert_eq!(fs::write(target.join("new"), "").unwrap_err().raw_os_error(), Some(libc::EOVERFLOW));
        crate::fs::mount::detach(&target).unwrap();
    }
}
