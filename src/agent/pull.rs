//! Storage driver `image_guest_pull`: a container's root that this guest pulls itself.
//!
//! The contract is Kata's: `source` is the image's name, and one of `driver_options` is `image_guest_pull=` and a JSON object whose
//! `metadata` are the container's annotations. A sandbox's own container is not pulled: its root holds our `pause`. What else a pull
//! needs comes in options of our own, which other agents overlook: certificates and the registry's hosts.toml of the node.
//! Pull secrets are the pod VM's (/run/peerpod/auth.json). A pod VM whose own network leads nowhere pulls over the pod's.
//!
//! `osc pull --unpack` does it, in a process of its own: what a hostile image does to it, it does not do to PID 1.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::boot::{self, KATA_RUN};
use super::storage::{Host, Made, Options};
use crate::net::netlink::Netlink;
use crate::net::route;
use crate::process::{Ended, Spawn, this_program};
use crate::rpc::wire::agent::Storage;
use crate::rpc::wire::apf::POD_NETNS;
use crate::rpc::wire::guest_pull::{CA, HOSTS, IMAGE_PULL, ImagePull, TYPES};

/// A guest with a disk of its own for images has it mounted here, as Kata's have.
const DISK: &str = "/run/kata-containers/image";

/// Before the name of a root's directory there.
const PULLED: &str = "pulled-";

/// Of the guest's memory, where there is no such disk: an image that does not fit is told so, and nothing is killed for it.
const OF_MEMORY: &str = "size=75%";

/// The most that is kept of what the pull said.
const LONGEST_ERROR: u64 = 4096;

/// Makes the root at `at`. Answers the directory on the disk that holds it, where one does.
pub fn mount(host: &Host, storage: &Storage, at: &Path) -> io::Result<Option<Made>> {
    let pull = option(storage, IMAGE_PULL).map(serde_json::from_str::<ImagePull>).transpose().map_err(io::Error::other)?;
    let pull = pull.unwrap_or_default();
    fs::create_dir_all(at)?;
    let disk = place(at)?.map(Made::Filled);
    match &disk {
        Some(dir) => Options::parse(&["rbind"]).mount(&dir.path().to_string_lossy(), at, "bind")?,
        None => Options::parse(&["mode=0755", OF_MEMORY]).mount("image", at, "tmpfs")?,
    }
    let is_sandbox = TYPES.iter().any(|key| pull.metadata.get(*key).is_some_and(|t| t == "sandbox"));
    let filled = if is_sandbox || storage.source == "pause" { pause(at) } else { fill(host, storage, at) };
    filled.inspect_err(|_| {
        super::storage::unmount(at);
        disk.as_ref().inspect(|dir| dir.remove());
    })?;
    Ok(disk)
}

/// A new directory on a disk, where this guest has one: for images, or for all that is of containers.
fn place(at: &Path) -> io::Result<Option<PathBuf>> {
    let base = [DISK, KATA_RUN].map(Path::new).into_iter().find(|dir| is_on_disk(dir));
    let Some(base) = base else { return Ok(None) };
    let name: Vec<_> = at.components().skip(1).map(|c| c.as_os_str().to_string_lossy()).collect();
    let dir = base.join(format!("{PULLED}{}", name.join("-")));
    // What an earlier attempt left.
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => fs::create_dir(&dir)?,
    }
    Ok(Some(dir))
}

fn is_on_disk(dir: &Path) -> bool {
    boot::is_memory(dir).is_ok_and(|memory| !memory)
}

fn option<'a>(storage: &'a Storage, name: &str) -> Option<&'a str> {
    storage.driver_options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='))
}

fn fill(host: &Host, storage: &Storage, at: &Path) -> io::Result<()> {
    let given = Given::write(storage, at)?;
    let (mut said, stderr) = crate::process::pipe()?;
    let mut pull = Spawn::new(this_program()).arg0("osc").args(["pull", &storage.source, "--unpack"]).arg(at).fd(stderr, 2);
    pull = pull.args(given.args());
    pull.netns = network();
    pull.env = Some(proxies(boot::command_line()));
    log::info!("image {}: pulling it to {}", storage.source, at.display());
    let ended = (host.run)(pull, &mut || {
        let mut text = Vec::new();
        let _ = said.by_ref().take(LONGEST_ERROR).read_to_end(&mut text);
        // Its end is the pull's.
        let _ = io::copy(&mut said, &mut io::sink());
        String::from_utf8_lossy(&text).into_owned()
    })?;
    match ended {
        (Ended::Exited(0), _) => Ok(()),
        (_, text) if !text.trim().is_empty() => {
            let text = text.trim().trim_start_matches("osc: ").lines().map(str::trim).collect::<Vec<_>>();
            Err(io::Error::other(text.join("; ")))
        }
        (ended, _) => Err(io::Error::other(format!("image {}: its pull {ended}", storage.source))),
    }
}

/// Files that the pull is given, gone with it.
struct Given {
    dir: PathBuf,
    ca: bool,
}

impl Given {
    fn write(storage: &Storage, at: &Path) -> io::Result<Given> {
        let dir = at.with_file_name("pull");
        let given = Given { ca: option(storage, CA).is_some(), dir };
        fs::create_dir_all(given.hosts().join("_default"))?;
        if let Some(ca) = option(storage, CA) {
            fs::write(given.dir.join("ca.pem"), ca)?;
        }
        if let Some(hosts) = option(storage, HOSTS) {
            fs::write(given.hosts().join("_default/hosts.toml"), hosts)?;
        }
        Ok(given)
    }

    fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    fn args(&self) -> Vec<PathBuf> {
        let ca = self.ca.then(|| ["--ca".into(), self.dir.join("ca.pem")]);
        ["--hosts".into(), self.hosts()].into_iter().chain(ca.into_iter().flatten()).collect()
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The proxies of Kata's kernel parameters, `agent.https_proxy` and `agent.no_proxy`.
fn proxies(cmdline: &str) -> Vec<CString> {
    let rows = [("agent.https_proxy=", "HTTPS_PROXY="), ("agent.no_proxy=", "NO_PROXY=")];
    let found =
        rows.iter().filter_map(|(from, to)| Some(format!("{to}{}", cmdline.split_whitespace().find_map(|w| w.strip_prefix(from))?)));
    found.filter_map(|v| CString::new(v).ok()).collect()
}

/// The pod's network namespace, where this guest's own has no default route.
fn network() -> Option<OwnedFd> {
    let routes = Netlink::open().and_then(|mut nl| route::list(&mut nl)).unwrap_or_default();
    if routes.iter().any(|r| r.destination.is_none() && r.kind == route::Kind::Unicast) {
        return None;
    }
    fs::File::open(POD_NETNS).ok().map(OwnedFd::from)
}

/// The root of a sandbox's own container: `/pause`, which is this program by another name.
fn pause(at: &Path) -> io::Result<()> {
    fs::copy(this_program(), at.join("pause")).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_their_whole_name() {
        let storage = Storage {
            driver_options: vec![format!("{CA}=pem"), format!("{IMAGE_PULL}={{\"metadata\":{{\"a\":\"b\"}}}}")],
            ..Default::default()
        };
        assert_eq!(option(&storage, CA), Some("pem"));
        assert_eq!(option(&storage, HOSTS), None);
        let pull: ImagePull = serde_json::from_str(option(&storage, IMAGE_PULL).unwrap()).unwrap();
        assert_eq!(pull.metadata["a"], "b");
    }

    #[test]
    fn what_is_not_there_is_on_no_disk() {
        assert!(!is_on_disk(Path::new("/no/such/directory")));
    }

    #[test]
    fn proxies_of_the_kernel_command_line() {
        let text = |v: Vec<CString>| v.into_iter().map(|c| c.into_string().unwrap()).collect::<Vec<_>>();
        let found = text(proxies("quiet agent.https_proxy=http://p:3128 agent.no_proxy=.svc,10.0.0.0/8"));
        assert_eq!(found, ["HTTPS_PROXY=http://p:3128", "NO_PROXY=.svc,10.0.0.0/8"]);
        assert!(proxies("agent.log=debug").is_empty());
    }
}
