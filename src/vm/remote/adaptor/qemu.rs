//! Provider `qemu`: pod VMs on this very host, from osc's own guest image. Works offline and on a laptop.
//!
//! ```text
//!   this host: ppN  100.127.224.2N ---tap--- 100.127.224.2N+1  eth0 of the VM
//! ```
//!
//! Each VM has a link of its own to this host (RFC 3021: two addresses), made with the VM and gone with it. It is given its seed in an
//! archive before the initrd's, a file that is gone as soon as QEMU has read it: the VM's key is in it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use cpio::newc::{Builder, trailer};

use super::journal::private;
use super::provider::{Instance, Owned, Provider, Wish};
use super::settings::{self, Settings};
use crate::error::{At, Failure, Result, Stage};
use crate::fs::image::{self, GuestImage, Want};
use crate::net::link::{self, show_mac};
use crate::net::netlink::Netlink;
use crate::net::{Prefix, address, neighbour, tap};
use crate::process;
use crate::rpc::Code;
use crate::vm::Size;
use crate::vm::qemu::accel::{self, Facts};
use crate::vm::qemu::detached::{self, Detached};
use crate::watch::last_lines;

/// Below a pod's directory.
const DIR: &str = "vm";
const CONSOLE: &str = "console.log";
const LINK: &str = "link";

/// A neighbour's state (linux/neighbour.h): told, for good.
const NUD_PERMANENT: u16 = 0x80;

/// Before a tap's number.
const TAP: &str = "pp";

/// Lines of the console and of QEMU that tell why a VM ended.
const WORDS: usize = 12;

/// Archives in an initrd begin at multiples of this.
const ALIGNMENT: usize = 512;

/// How long QEMU needs at most to have read its initrd: until the guest has said something.
const SEED_READ: Duration = Duration::from_secs(60);

pub struct Local {
    pods: PathBuf,
    settings: settings::Qemu,
    /// Held while a link's number is chosen.
    choosing: Mutex<()>,
}

/// A VM's link to this host.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Ends {
    tap: String,
    host: Ipv4Addr,
    guest: Ipv4Addr,
    mac: [u8; 6],
}

fn marker(token: &str) -> String {
    format!("peerpod-{token}")
}

impl Local {
    pub fn new(settings: &Settings) -> Result<Local> {
        let subnet = settings.qemu.subnet;
        if !matches!(subnet.address, IpAddr::V4(_)) || !(8..=30).contains(&subnet.length) {
            let cause = format!("QEMU_SUBNET={subnet}: an IPv4 network of 4 addresses at least");
            return Err(Failure::new(Stage::Request, cause).code(Code::InvalidArgument));
        }
        let pods = fs::canonicalize(&settings.pods_dir).at(Stage::Request, || format!("PODS_DIR={}", settings.pods_dir.display()))?;
        Ok(Local { pods, settings: settings.qemu.clone(), choosing: Mutex::default() })
    }

    fn dir(&self, token: &str) -> PathBuf {
        self.pods.join(token).join(DIR)
    }

    fn ends(&self, token: &str) -> Option<Ends> {
        serde_json::from_slice(&fs::read(self.dir(token).join(LINK)).ok()?).ok()
    }

    /// A tap with a number that nobody has, and its addresses.
    fn link(&self, token: &str) -> Result<(Ends, OwnedFd)> {
        let IpAddr::V4(base) = crate::net::network_of(&self.settings.subnet).address else {
            return Err(Failure::new(Stage::Network, "no IPv4 network"));
        };
        let _choosing = self.choosing.lock().unwrap_or_else(|p| p.into_inner());
        let mut nl = Netlink::open().at(Stage::Network, || "netlink")?;
        let taken: Vec<String> = link::list(&mut nl)?.into_iter().map(|l| l.name).collect();
        let pairs = 1u32 << (32 - u32::from(self.settings.subnet.length) - 1);
        for n in (0..pairs).filter(|n| !taken.contains(&format!("{TAP}{n}"))) {
            let at = |k: u32| Ipv4Addr::from(u32::from(base) + 2 * n + k);
            let guest = at(1).octets();
            let mac = [0x02, 0x05, guest[0], guest[1], guest[2], guest[3]];
            let ends = Ends { tap: format!("{TAP}{n}"), host: at(0), guest: at(1), mac };
            private(&self.dir(token).join(LINK), &serde_json::to_vec(&ends).unwrap_or_default()).at(Stage::Network, || "write the link")?;
            let queue = match tap::open(&ends.tap, 1) {
                Ok(mut queues) => queues.remove(0),
                // Another adaptor's, made meanwhile.
                Err(e) if e.errno() == Some(libc::EBUSY) => continue,
                Err(e) => return Err(e.into()),
            };
            let device = link::by_name(&mut nl, &ends.tap)?;
            link::no_link_local(&mut nl, &device)?;
            link::up(&mut nl, &device, true)?;
            address::add(&mut nl, &device, &Prefix { address: ends.host.into(), length: 31 })?;
            // Known, it is not asked for: the kernel repeats such a question once a second, and the VM may be up sooner.
            neighbour::add(&mut nl, &device, &ends.guest.into(), &ends.mac, NUD_PERMANENT, 0)?;
            return Ok((ends, queue));
        }
        Err(Failure::new(Stage::Network, format!("QEMU_SUBNET={}: all its {pairs} links are taken", self.settings.subnet))
            .code(Code::ResourceExhausted))
    }

    fn image(&self) -> Result<GuestImage> {
        Ok(image::ensure(&Want::default(), &|what| log::info!("{what}"))?)
    }

    fn start(&self, wish: &Wish) -> Result<Instance> {
        let dir = self.dir(&wish.token);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).at(Stage::Qemu, || format!("make {}", dir.display()))?;
        let image = self.image()?;
        let (ends, tap) = self.link(&wish.token)?;
        let user_data = (wish.user_data)(Some(Prefix { address: ends.host.into(), length: 31 }))?;
        let initrd = dir.join("initrd");
        write_initrd(&initrd, &image.initrd, &user_data, &network_config(&ends))
            .at(Stage::Qemu, || format!("write {}", initrd.display()))?;
        let vm = Detached {
            marker: marker(&wish.token),
            program: None,
            kernel: image.kernel,
            initrd: initrd.clone(),
            accel: accel::choose(&Facts::gather(image.kernel_config.as_deref()), None).accel,
            size: Size {
                vcpus: if wish.vcpus == 0 { self.settings.cpu } else { wish.vcpus },
                mib: if wish.mib == 0 { self.settings.memory } else { wish.mib },
            },
            tap,
            mac: ends.mac,
            console: dir.join(CONSOLE),
            log: dir.join("qemu.log"),
        };
        let console = vm.console.clone();
        let child = vm.start()?;
        crate::thread::start("pod-vm-end", move || {
            // QEMU reads the initrd before the guest's first instruction.
            let until = std::time::Instant::now() + SEED_READ;
            let read = || fs::metadata(&console).is_ok_and(|m| m.len() > 0);
            while !read() && std::time::Instant::now() < until && matches!(child.wait_within(Some(Duration::from_millis(50))), Ok(None)) {}
            let _ = fs::remove_file(&initrd);
            let _ = child.wait();
        });
        Ok(Instance { id: marker(&wish.token), addresses: vec![ends.guest.into()] })
    }
}

impl Provider for Local {
    fn verify_config(&self) -> Result<()> {
        crate::vm::qemu::find(None)?;
        self.image().map(drop)
    }

    fn create(&self, wish: &Wish) -> Result<Instance> {
        let name = marker(&wish.token);
        let alive = !detached::running(&self.pods.join(&wish.token), Some(&name)).is_empty();
        match self.ends(&wish.token) {
            Some(ends) if alive => Ok(Instance { id: name, addresses: vec![ends.guest.into()] }),
            _ => self.start(wish),
        }
    }

    fn delete(&self, token: &str) -> Result<()> {
        for (pid, start) in detached::running(&self.pods.join(token), Some(&marker(token))) {
            process::kill_named(pid, start).at(Stage::Qemu, || format!("end QEMU {pid}"))?;
        }
        match fs::remove_dir_all(self.dir(token)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).at(Stage::Qemu, || format!("remove {}", self.dir(token).display())),
            _ => Ok(()),
        }
    }

    fn list_owned(&self) -> Result<Vec<Owned>> {
        let named = |(pid, _): (i32, u64)| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut args = line.split(|&b| b == 0).map(String::from_utf8_lossy);
            args.find_map(|a| a.strip_prefix("peerpod-").map(str::to_owned))
        };
        let tokens = detached::running(&self.pods, None).into_iter().filter_map(named);
        Ok(tokens.map(|token| Owned { id: marker(&token), token, alive: true }).collect())
    }

    fn last_words(&self, token: &str) -> Vec<String> {
        let words = |name| last_lines(&fs::read(self.dir(token).join(name)).unwrap_or_default(), WORDS);
        [words("qemu.log"), words(CONSOLE)].concat()
    }
}

fn network_config(ends: &Ends) -> String {
    let ethernet = serde_json::json!({
        "match": { "macaddress": show_mac(&ends.mac) },
        "addresses": [format!("{}/31", ends.guest)],
        "gateway4": ends.host.to_string(),
    });
    serde_json::json!({ "version": 2, "ethernets": { "eth0": ethernet } }).to_string()
}

/// `image` after an archive with the seed, for root alone.
fn write_initrd(path: &Path, image: &Path, user_data: &str, network: &str) -> io::Result<()> {
    let mut archive: Vec<u8> = Vec::new();
    for dir in ["media", "media/cidata"] {
        let writer = Builder::new(dir).mode(0o040_755).nlink(2).write(&mut archive, 0);
        writer.finish()?;
    }
    for (name, data) in [("user-data", user_data), ("network-config", network)] {
        let builder = Builder::new(&format!("media/cidata/{name}")).mode(0o100_600).nlink(1);
        let mut writer = builder.write(&mut archive, data.len() as u32);
        writer.write_all(data.as_bytes())?;
        writer.finish()?;
    }
    trailer(&mut archive)?;
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&archive)?;
    io::copy(&mut File::open(image)?, &mut file).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_stands_before_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (image, initrd) = (dir.path().join("image"), dir.path().join("initrd"));
        fs::write(&image, "IMAGE").unwrap();
        write_initrd(&initrd, &image, "#cloud-config\n{}\n", "{}").unwrap();
        let bytes = fs::read(&initrd).unwrap();
        assert_eq!(bytes.len() % ALIGNMENT, 5);
        assert!(bytes.ends_with(b"IMAGE"));
        let reader = cpio::newc::Reader::new(&bytes[..]).unwrap();
        assert_eq!(reader.entry().name(), "media");
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(initrd).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
