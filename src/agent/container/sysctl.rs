//! Kernel settings of a container: those that a namespace of its own holds, and no others.

use std::fs::File;
use std::io::{self, Write};

use super::namespaces;
use crate::rpc::wire::oci::Linux;
use crate::rpc::{Code, Status};

/// Settings of the IPC namespace, beside all of `fs.mqueue.`.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Writes them all, or says which may not be written: it would be the guest's, and with it every other container's.
pub fn set(linux: &Linux) -> Result<(), Status> {
    let flags = namespaces::flags(linux)?;
    for (given, value) in &linux.sysctl {
        let key = with_dots(given);
        allowed(&key, flags).map_err(|why| Status::new(Code::InvalidArgument, format!("sysctl {given}: {why}")))?;
        // In a name of dots, a slash stands for a dot: `net.ipv4.conf.eth0/100.forwarding`.
        let file: String = key.chars().map(swapped).collect();
        write(&format!("/proc/sys/{file}"), value)
            .map_err(|e| Status::new(Code::InvalidArgument, format!("sysctl {given}={value}: {e}")))?;
    }
    Ok(())
}

/// Into the kernel and nowhere else: a mount could stand in the way (CVE-2025-52881).
fn write(path: &str, value: &str) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    if rustix::fs::fstatfs(&file)?.f_type != libc::PROC_SUPER_MAGIC {
        return Err(io::Error::other("what is there is not the kernel's"));
    }
    file.write_all(value.as_bytes())
}

fn swapped(c: char) -> char {
    match c {
        '.' => '/',
        '/' => '.',
        c => c,
    }
}

/// sysctl(8): the first separator says which of the two separates.
fn with_dots(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key[at..].starts_with('/') => key.chars().map(swapped).collect(),
        _ => key.to_owned(),
    }
}

fn allowed(key: &str, flags: i32) -> Result<(), &'static str> {
    let in_namespace = |flag: i32| if flags & flag != 0 { Ok(()) } else { Err("it is not in a namespace of the container") };
    match key {
        // A path that climbs out would be no setting of any namespace.
        k if k.split('.').any(str::is_empty) => Err("no such setting"),
        k if IPC.contains(&k) || k.starts_with("fs.mqueue.") => in_namespace(libc::CLONE_NEWIPC),
        "kernel.domainname" => in_namespace(libc::CLONE_NEWUTS),
        "kernel.hostname" => Err("the specification's own hostname says it"),
        // The guest's network is the pod's own.
        k if k.starts_with("net.") => Ok(()),
        _ => Err("it is not in a namespace of the container"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_namespace_holds_is_allowed() {
        let all = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        for key in ["net.ipv4.ip_forward", "kernel.msgmax", "fs.mqueue.msg_max", "kernel.domainname"] {
            assert_eq!(allowed(key, all), Ok(()), "{key}");
        }
        for key in ["vm.swappiness", "kernel.hostname", "kernel.panic", "net", "net...kernel.panic"] {
            assert!(allowed(key, all).is_err(), "{key}");
        }
        assert!(allowed("kernel.sem", 0).is_err() && allowed("kernel.domainname", 0).is_err());
    }

    #[test]
    fn either_separator_is_understood() {
        assert_eq!(with_dots("net/ipv4/conf/eth0.100/forwarding"), "net.ipv4.conf.eth0/100.forwarding");
        assert_eq!(with_dots("net.ipv4.conf.eth0/100.forwarding"), "net.ipv4.conf.eth0/100.forwarding");
        assert_eq!(with_dots("kernel"), "kernel");
    }
}
