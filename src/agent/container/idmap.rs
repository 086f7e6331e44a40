//! Id-mapped mounts: files of the source appear with other owners (mount_setattr(2), MOUNT_ATTR_IDMAP).

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use crate::rpc::wire::oci::{LinuxIdMapping, Mount};

/// Maps the owners in `tree` as `mount` says. The kernel takes the map from a user namespace, which has to be had by a
/// process: a child that only waits.
pub fn map(tree: &OwnedFd, mount: &Mount) -> io::Result<()> {
    if mount.uid_mappings.is_empty() {
        return Ok(());
    }
    let userns = user_namespace(&mount.uid_mappings, &mount.gid_mappings)?;
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd: userns.as_raw_fd() as u64 };
    let recursive = mount.options.iter().any(|o| o == "ridmap");
    crate::fs::mount::set_attributes(tree, &attr, recursive)
}

fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    let (from_child, to_parent) = rustix::pipe::pipe()?;
    // SAFETY: this process has one thread; the child makes system calls only and waits to be killed.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        // SAFETY: as above; the buffer is the child's own.
        unsafe {
            let mut name = [0u8; 16];
            let length = match libc::unshare(libc::CLONE_NEWUSER) {
                // The /proc that is mounted here is the guest's, and numbers this process otherwise than its own PID namespace does.
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
    // SAFETY: our own child, which nobody else reaps: this process is not the agent.
    unsafe {
        libc::kill(pid, libc::SIGKILL);
        libc::waitpid(pid, std::ptr::null_mut(), 0);
    }
    result
}
