//! Provider `libvirt`: pod VMs of a libvirt anywhere, through `virsh -c URI` (`qemu:///system`, `qemu+ssh://...`).
//!
//! A VM is a domain, a volume over the base image and a volume with the user-data (cloud-init's NoCloud), all three named
//! `podvm-<owner>-<token>`: the owner is this adaptor, so that many workers may share a libvirt, and the token finds what an
//! interrupted call left. Descriptions and the VM's key go to virsh through memory, not through files.

use std::fs::File;
use std::io::{Seek, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::provider::{Instance, Owned, Provider, Wish};
use super::settings::{self, Settings};
use crate::error::{Failure, Result, Stage};
use crate::fs::image::disk::iso;
use crate::rpc::Code;
use crate::tool::{self, ToolError};

mod domain;
use domain::Domain;

/// No call of virsh takes longer; one over ssh may have to wait for a slow host.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a VM may take to get its address.
const ADDRESSED: Duration = Duration::from_secs(180);

/// Between two questions for the address; between two whether the VM still runs.
const ASK: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(2);

/// Between two lists of all VMs, each of which is a process or two and perhaps an ssh connection.
const PACE: Duration = Duration::from_secs(5);

/// A file that virsh is given has this number there.
const FILE: i32 = 3;
const AT: &str = "/proc/self/fd/3";

/// What virsh says, and what a user can do about it.
const WAYS_OUT: [(&str, &str); 7] = [
    ("connect to the hypervisor", "see whether libvirtd runs there and LIBVIRT_URI is right"),
    ("no storage pool", "LIBVIRT_POOL names the pool; `virsh pool-list --all` lists them"),
    ("pool is not active", "`virsh pool-start` starts it"),
    ("no storage vol", "LIBVIRT_VOL_NAME names the volume with the pod VM's image; `osc image build --disk qcow2` makes one"),
    ("Network not found", "LIBVIRT_NET names the network; `virsh net-list --all` lists them"),
    ("network is not active", "`virsh net-start` starts it"),
    ("No space left", "the pool is full: free some space in it, or name another with LIBVIRT_POOL"),
];

pub struct Libvirt {
    settings: settings::Libvirt,
    /// Before the token in every name.
    prefix: String,
    /// Whether VMs there run on hardware.
    kvm: OnceLock<bool>,
}

/// The name of a domain and of its volumes.
struct Names {
    domain: String,
    root: String,
    seed: String,
}

impl Libvirt {
    pub fn new(settings: &Settings) -> Libvirt {
        let node = if settings.node_name.is_empty() { hostname() } else { settings.node_name.clone() };
        let owner = Sha256::digest(format!("{node}\n{}", settings.pods_dir.display()));
        let prefix = format!("podvm-{}-", crate::fs::hex(&owner[..4]));
        Libvirt { settings: settings.libvirt.clone(), prefix, kvm: OnceLock::new() }
    }

    fn names(&self, token: &str) -> Names {
        let domain = format!("{}{token}", self.prefix);
        Names { root: format!("{domain}-root.qcow2"), seed: format!("{domain}-cloudinit.iso"), domain }
    }

    fn virsh(&self, args: &[&str]) -> Result<String> {
        self.virsh_with(args, None)
    }

    /// `file` is `/proc/self/fd/3` there.
    fn virsh_with(&self, args: &[&str], file: Option<File>) -> Result<String> {
        let run = || -> Result<String, ToolError> {
            let mut spawn = tool::find("virsh", "libvirt-clients")?.args(["-q", "-c", &self.settings.uri]).args(args);
            // It translates what it says.
            let own = std::env::vars_os().filter(|(k, _)| k != "LC_ALL" && k != "LANGUAGE");
            let own = own.map(|(k, v)| [k.as_encoded_bytes(), b"=", v.as_encoded_bytes()].concat()).chain([b"LC_ALL=C".to_vec()]);
            spawn.env = Some(own.filter_map(|v| std::ffi::CString::new(v).ok()).collect());
            if let Some(file) = file {
                spawn = spawn.fd(file, FILE);
            }
            tool::output(spawn, LIMIT)
        };
        run().map_err(|e| {
            let text = e.to_string();
            let known = WAYS_OUT.iter().find(|(said, _)| text.contains(said)).map(|(_, way_out)| (*way_out).to_owned());
            Failure::new(Stage::Qemu, format!("libvirt at {}: {}: {text}", self.settings.uri, args.first().unwrap_or(&"")))
                .way_out(known.unwrap_or_else(|| e.way_out()))
        })
    }

    /// (name, whether it runs) of each domain of ours.
    fn domains(&self) -> Result<Vec<(String, bool)>> {
        let text = self.virsh(&["list", "--all"])?;
        Ok(domains(&text).into_iter().filter(|(name, _)| name.starts_with(&self.prefix)).collect())
    }

    /// Volumes of ours.
    fn volumes(&self) -> Result<Vec<String>> {
        let text = self.virsh(&["vol-list", &self.settings.pool])?;
        let names = text.lines().filter_map(|l| l.split_whitespace().next()).filter(|n| n.starts_with(&self.prefix));
        Ok(names.map(str::to_owned).collect())
    }

    /// (bytes that a VM sees, format) of a volume.
    fn volume(&self, name: &str) -> Result<(u64, String)> {
        let xml = self.virsh(&["vol-dumpxml", name, "--pool", &self.settings.pool])?;
        let capacity = between(&xml, "<capacity unit='bytes'>", "</capacity>").and_then(|n| n.parse().ok());
        let format = between(&xml, "<format type='", "'").unwrap_or("raw").to_owned();
        let unread = || Failure::new(Stage::Qemu, format!("libvirt: volume {name}: its capacity is not told"));
        Ok((capacity.ok_or_else(unread)?, format))
    }

    fn kvm(&self) -> bool {
        match self.settings.virt_type.as_str() {
            "kvm" => true,
            "qemu" => false,
            _ => *self.kvm.get_or_init(|| self.virsh(&["domcapabilities", "--virttype", "kvm"]).is_ok()),
        }
    }

    fn make(&self, wish: &Wish, names: &Names) -> Result<()> {
        let s = &self.settings;
        let base = if wish.image.is_empty() { &s.volume } else { &wish.image };
        let (least, format) = self.volume(base)?;
        let capacity = least.max(s.root_disk_gib << 30).to_string();
        let over = ["--format", "qcow2", "--backing-vol", base, "--backing-vol-format", &format];
        self.virsh(&[&["vol-create-as", &s.pool, &names.root, &capacity][..], &over].concat())?;

        let user_data = (wish.user_data)(None)?;
        let meta_data = format!("instance-id: {0}\nlocal-hostname: {0}\n", wish.name);
        let files = [("user-data", user_data.as_bytes()), ("meta-data", meta_data.as_bytes()), ("vendor-data", b"")];
        let seed = iso::volume("cidata", &files);
        self.virsh(&["vol-create-as", &s.pool, &names.seed, &seed.len().to_string(), "--format", "raw"])?;
        self.virsh_with(&["vol-upload", &names.seed, AT, "--pool", &s.pool], Some(in_memory(&seed)?))?;

        let domain = Domain {
            name: &names.domain,
            uuid: &uuid(&names.domain),
            title: &wish.name,
            kvm: self.kvm(),
            vcpus: if wish.vcpus == 0 { s.cpu } else { wish.vcpus },
            mib: if wish.mib == 0 { s.memory } else { wish.mib },
            cpuset: &s.cpuset,
            firmware: &s.firmware,
            pool: &s.pool,
            root: &names.root,
            seed: &names.seed,
            network: &s.net,
        };
        self.virsh_with(&["define", AT], Some(in_memory(domain.xml().as_bytes())?))?;
        self.virsh(&["start", &names.domain]).map(drop)
    }

    /// Waits for the address that the network's DHCP server gives.
    fn addresses(&self, domain: &str) -> Result<Vec<IpAddr>> {
        let until = Instant::now() + ADDRESSED;
        let mut looked = Instant::now();
        loop {
            let found = addresses(&self.virsh(&["domifaddr", domain, "--source", "lease"])?);
            if !found.is_empty() {
                return Ok(found);
            }
            if looked.elapsed() > LOOK {
                looked = Instant::now();
                let state = self.virsh(&["domstate", domain, "--reason"])?;
                if !state.starts_with("running") {
                    return Err(Failure::new(Stage::Kernel, format!("{domain}: the VM ended before it had an address: {}", state.trim())));
                }
            }
            if Instant::now() > until {
                let cause = format!("{domain}: no address within {} s on network {}", ADDRESSED.as_secs(), self.settings.net);
                return Err(Failure::new(Stage::Network, cause)
                    .way_out("LIBVIRT_NET has to be a network with a DHCP server of libvirt's; `virsh console` shows what the VM says"));
            }
            std::thread::sleep(ASK);
        }
    }

    /// Takes away whatever there is of one VM; `there` are the domains that libvirt has.
    fn clear(&self, names: &Names, there: Vec<(String, bool)>) -> Result<()> {
        let listed = |domains: Vec<(String, bool)>| domains.into_iter().find(|(name, _)| *name == names.domain);
        if let Some((_, runs)) = listed(there) {
            let ended = if runs { self.virsh(&["destroy", &names.domain]) } else { Ok(String::new()) };
            // It may have ended by itself meanwhile.
            if let Err(e) = ended {
                if listed(self.domains()?).is_some_and(|(_, runs)| runs) {
                    return Err(e);
                }
            }
            self.virsh(&["undefine", &names.domain, "--nvram"])?;
        }
        let volumes = self.volumes()?;
        for volume in [&names.root, &names.seed].into_iter().filter(|v| volumes.contains(v)) {
            self.virsh(&["vol-delete", volume, "--pool", &self.settings.pool])?;
        }
        Ok(())
    }
}

impl Provider for Libvirt {
    fn verify_config(&self) -> Result<()> {
        let s = &self.settings;
        let active = |info: &str| {
            info.lines().any(|l| l.starts_with("Active:") && l.ends_with("yes") || l.starts_with("State:") && l.ends_with("running"))
        };
        for (verb, name, way_out) in [("pool-info", &s.pool, "virsh pool-start"), ("net-info", &s.net, "virsh net-start")] {
            if !active(&self.virsh(&[verb, name])?) {
                let cause = format!("libvirt at {}: {name} is not active", s.uri);
                return Err(Failure::new(Stage::Qemu, cause)
                    .code(Code::FailedPrecondition)
                    .way_out(format!("`{way_out} {name}` starts it")));
            }
        }
        self.volume(&s.volume).map(drop)
    }

    fn create(&self, wish: &Wish) -> Result<Instance> {
        let names = self.names(&wish.token);
        let there = self.domains()?;
        if !there.contains(&(names.domain.clone(), true)) {
            // What an interrupted call left may be half of anything.
            self.clear(&names, there)?;
            self.make(wish, &names)?;
        }
        Ok(Instance { id: uuid(&names.domain), addresses: self.addresses(&names.domain)? })
    }

    fn delete(&self, token: &str) -> Result<()> {
        self.clear(&self.names(token), self.domains()?)
    }

    fn list_owned(&self) -> Result<Vec<Owned>> {
        let token = |name: &str| name.strip_prefix(&self.prefix).map(str::to_owned);
        let domains = self.domains()?.into_iter().filter_map(|(id, alive)| Some(Owned { token: token(&id)?, id, alive }));
        let mut owned: Vec<Owned> = domains.collect();
        for volume in self.volumes()? {
            let id = volume.strip_suffix("-root.qcow2").or_else(|| volume.strip_suffix("-cloudinit.iso")).unwrap_or(&volume);
            if let Some(token) = token(id).filter(|t| owned.iter().all(|o| o.token != *t)) {
                owned.push(Owned { id: id.to_owned(), token, alive: false });
            }
        }
        Ok(owned)
    }

    fn pace(&self) -> Duration {
        PACE
    }

    fn last_words(&self, token: &str) -> Vec<String> {
        let state = self.virsh(&["domstate", &self.names(token).domain, "--reason"]).unwrap_or_default();
        state.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("libvirt: {l}")).collect()
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A name that libvirt takes for an identity: the same for the same domain.
fn uuid(name: &str) -> String {
    let mut b = Sha256::digest(name);
    // RFC 9562, version 8: of our own making.
    (b[6], b[8]) = (b[6] & 0x0f | 0x80, b[8] & 0x3f | 0x80);
    let h = crate::fs::hex(&b[..16]);
    format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
}

/// A file that has no name; virsh reads it as [`AT`].
fn in_memory(data: &[u8]) -> Result<File> {
    let made = || {
        let mut file = File::from(rustix::fs::memfd_create("osc", rustix::fs::MemfdFlags::CLOEXEC)?);
        file.write_all(data)?;
        file.rewind()?;
        Ok(file)
    };
    made().map_err(|e: std::io::Error| Failure::new(Stage::Qemu, format!("memory for a file: {e}")))
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}

/// Rows of `virsh -q list --all`: an id or `-`, the name, the state.
fn domains(text: &str) -> Vec<(String, bool)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (id, name) = (words.next()?, words.next()?);
        Some((name.to_owned(), id != "-"))
    };
    text.lines().filter_map(row).collect()
}

/// Rows of `virsh -q domifaddr`: interface, MAC, protocol, address with its length.
fn addresses(text: &str) -> Vec<IpAddr> {
    let row = |line: &str| {
        let address = line.split_whitespace().skip_while(|w| *w != "ipv4").nth(1)?.split('/').next()?;
        address.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_virsh_says_is_understood() {
        let list = " 1    podvm-a-1   running\n -    podvm-a-2   shut off\n\n";
        assert_eq!(domains(list), [("podvm-a-1".to_owned(), true), ("podvm-a-2".to_owned(), false)]);
        let lease =
            " vnet0      52:54:00:9c:d1:05    ipv4         192.168.122.7/24\n -          -                    ipv6         fd00::1/64\n";
        assert_eq!(addresses(lease), [IpAddr::V4(Ipv4Addr::new(192, 168, 122, 7))]);
        assert!(addresses("").is_empty() && addresses(" vnet0 x ipv4 N/A\n").is_empty());
        let xml = "<volume>\n<capacity unit='bytes'>60817408</capacity><target>\n<format type='qcow2'/>";
        assert_eq!(between(xml, "<capacity unit='bytes'>", "</capacity>"), Some("60817408"));
        assert_eq!(between(xml, "<format type='", "'"), Some("qcow2"));
    }

    #[test]
    fn names_tell_whose_they_are_and_identities_last() {
        let of = |node: &str| {
            let args = ["libvirt".to_owned()];
            let node = node.to_owned();
            Libvirt::new(&Settings::read(&args, move |name| (name == "NODE_NAME").then(|| node.clone())).unwrap())
        };
        let (a, b) = (of("a"), of("b"));
        assert_ne!(a.names("t").domain, b.names("t").domain);
        assert_eq!(a.names("t").domain, of("a").names("t").domain);
        assert!(a.names("t").root.ends_with("-t-root.qcow2"));
        assert_eq!(uuid("x"), uuid("x"));
        assert_eq!((uuid("x").len(), &uuid("x")[14..15]), (36, "8"));
    }
}
