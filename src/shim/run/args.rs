//! The command line of `osc run`, and what it says of the container.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Job;
use super::spec::{Wish, build};
use crate::error::{At, Failure, Result, Stage};
use crate::net::Prefix;
use crate::rpc::Code;
use crate::rpc::wire::oci::Spec;
use crate::shim::progress::Progress;
use crate::shim::sandbox::Claimed;
use crate::shim::sandbox::network::public;
use crate::shim::sandbox::volume::Rootfs;
use crate::vm::{Device, user_net};

/// Run a command in a container in a virtual machine of its own.
///
/// Without an image, --rootfs or --bundle the command sees this host's own root, read-only, and what it writes is thrown
/// away. The exit status is the command's; 125 if osc failed, 126 if the command cannot be executed, 127 if it is not there.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(
    after_help = "Examples:\n  osc run -- uname -a\n  osc run --rootfs ./alpine --cpus 2 --memory 512M -- sh\n  docker save busybox | osc run --image - -- echo hello\n  osc run debian:12 -- cat /etc/os-release"
)]
pub struct Args {
    /// Root file system: a directory, written to as it is
    #[arg(long, value_name = "DIR", conflicts_with_all = ["bundle", "image_file", "name_of_image"])]
    pub rootfs: Option<PathBuf>,
    /// OCI bundle: a directory with config.json
    #[arg(long, value_name = "DIR", conflicts_with_all = ["image_file", "name_of_image"])]
    pub bundle: Option<PathBuf>,
    /// Container image: an OCI layout (directory or archive) or a `docker save` archive; - reads an archive from stdin
    #[arg(long = "image", value_name = "FILE", id = "image_file", conflicts_with = "name_of_image")]
    pub image: Option<PathBuf>,
    /// CPUs the command may use, and the VM's vCPUs (rounded up)
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<f64>,
    /// Memory limit of the command: bytes, or with K, M, G
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<u64>,
    /// Mount a host file or directory: SRC:DST[:ro]; may be given several times
    #[arg(long, short = 'v', value_name = "SRC:DST[:ro]", value_parser = volume)]
    pub volume: Vec<(String, String, bool)>,
    /// Environment variable: K=V, or K alone to hand on ours; may be given several times
    #[arg(long, short = 'e', value_name = "K=V")]
    pub env: Vec<String>,
    /// Working directory in the container
    #[arg(long, short = 'w', value_name = "DIR")]
    pub workdir: Option<String>,
    /// User to run as: name or uid, with an optional group
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Network: public (the internet by NAT, and nothing private or of this host; turns on ip_forward); none; or user (QEMU's
    /// user-mode network: reaches out, and opens this host's loopback at 10.0.2.2)
    #[arg(long, value_name = "public|none|user", default_value = "public", value_parser = ["public", "none", "user"])]
    pub network: String,
    /// On the public network: a range that may be reached although it is private; may be given several times
    #[arg(long, value_name = "IP/LEN", value_parser = range)]
    pub allow: Vec<Prefix>,
    /// Give the command the interfaces of a network namespace: /run/netns/NAME
    #[arg(long, value_name = "PATH", conflicts_with = "network")]
    pub netns: Option<PathBuf>,
    /// Forward a host port to the command, with --network user: [ADDRESS:]PORT:GUESTPORT (loopback unless told otherwise)
    #[arg(long, short = 'p', value_name = "[ADDR:]PORT:PORT", value_parser = publish)]
    pub publish: Vec<(String, u16, u16)>,
    /// Name of the sandbox
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Remove a detached sandbox when its command ends (one in the foreground always goes)
    #[arg(long)]
    pub rm: bool,
    /// Run in the background; see osc ps, logs, exec, stop
    #[arg(long, short = 'd')]
    pub detach: bool,
    /// Give the command a terminal (the default where stdin and stdout are one)
    #[arg(long, short = 't', overrides_with = "no_tty")]
    pub tty: bool,
    /// Give it none
    #[arg(long)]
    pub no_tty: bool,
    /// Print QEMU's command line and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Draw where the start went, phase by phase, on stderr
    #[arg(long)]
    pub timings: bool,
    /// Release of the guest kernel (default: this host's own)
    #[arg(long, value_name = "R")]
    pub kernel_release: Option<String>,
    /// Uncompressed guest kernel to boot (default: that of the guest image)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initrd to boot (default: that of the guest image)
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// QEMU to use
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// virtiofsd to use
    #[arg(long, value_name = "PATH")]
    pub virtiofsd: Option<PathBuf>,
    /// A talkative guest
    #[arg(long)]
    pub debug: bool,
    #[arg(long, hide = true)]
    pub background: Option<i32>,
    /// Container image of a registry; pulled where this host has not got it yet (see osc pull)
    #[arg(value_name = "IMAGE")]
    pub name_of_image: Option<String>,
    /// The command and its arguments, after --
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn invalid(cause: impl Into<String>) -> Failure {
    Failure::new(Stage::Request, cause).code(Code::InvalidArgument)
}

impl Args {
    /// What no parser of a single option sees.
    pub fn check(&self) -> Result<()> {
        if let Some(image) = &self.name_of_image {
            let told = |f: Failure| f.way_out("a word before -- is an image's name; a command follows --: osc run -- uname -a");
            crate::fs::oci::registry::Reference::parse(image).map_err(|e| told(e.into()))?;
        }
        if self.command.is_empty() && self.bundle.is_none() && self.image.is_none() && self.name_of_image.is_none() {
            return Err(invalid("no command").way_out("it follows --: osc run -- uname -a"));
        }
        if !self.allow.is_empty() && self.network() != "public" {
            return Err(invalid("--allow opens ranges of a public network").way_out("leave out --network, or --netns"));
        }
        if !self.publish.is_empty() && self.network() != "user" {
            return Err(invalid("--publish needs QEMU's own network").way_out("add --network user"));
        }
        Ok(())
    }

    /// The network that we make; with a namespace of somebody else's none.
    pub(super) fn network(&self) -> &str {
        if self.netns.is_some() { "none" } else { &self.network }
    }

    pub fn wants_terminal(&self) -> bool {
        super::terminal::wanted(self.tty, self.no_tty || self.detach && !self.tty)
    }

    /// Whom the command asks for names, where its network is ours.
    pub(super) fn name_servers(&self) -> Option<Vec<IpAddr>> {
        match self.network() {
            "user" => user_net::DNS.parse().ok().map(|a| vec![a]),
            "public" => Some(public::name_servers()),
            _ => None,
        }
    }

    /// Devices besides the share.
    pub fn devices(&self) -> Result<Vec<Device>> {
        Ok(match self.network() {
            "user" => vec![Device::UserNet { id: "net0".into(), forwards: self.publish.clone() }],
            _ => Vec::new(),
        })
    }

    /// What is to run. Without a claim nothing is unpacked: good enough to see what it would run in.
    pub(super) fn job(&self, name: &str, terminal: bool, progress: &Progress, claimed: Option<&Claimed>) -> Result<Job> {
        if let Some(bundle) = &self.bundle {
            return self.bundle_job(bundle, terminal);
        }
        if self.image.is_some() || self.name_of_image.is_some() {
            return match claimed {
                Some(claimed) => self.image_job(name, terminal, progress, claimed),
                None => {
                    let dir = self.image.clone().unwrap_or_else(|| Path::new(SCRATCH).join(name));
                    Ok(Job { spec: build(&self.wish(name, terminal)), rootfs: Rootfs::Dir(dir.clone()), bundle: dir })
                }
            };
        }
        let (rootfs, root) = match &self.rootfs {
            Some(dir) => {
                let dir = directory(dir, "--rootfs")?;
                (Rootfs::Dir(dir.clone()), dir)
            }
            None => (Rootfs::Overlay("/".into()), PathBuf::from("/")),
        };
        let mut wish = self.wish(name, terminal);
        wish.args = self.command.clone();
        self.set_user(&mut wish, &root, self.user.as_deref().unwrap_or("0"))?;
        Ok(Job { spec: build(&wish), rootfs, bundle: root })
    }

    fn bundle_job(&self, bundle: &Path, terminal: bool) -> Result<Job> {
        let bundle = directory(bundle, "--bundle")?;
        let file = bundle.join("config.json");
        let text = std::fs::read(&file).map_err(|e| {
            invalid(format!("{}: {e}", file.display())).way_out("a bundle is a directory with config.json and a root file system")
        })?;
        let mut spec: Spec = serde_json::from_slice(&text).map_err(|e| invalid(format!("{}: {e}", file.display())))?;
        let root = spec.root.as_ref().map(|r| bundle.join(&r.path)).ok_or_else(|| invalid(format!("{}: no root", file.display())))?;
        let root = directory(&root, "root.path")?;
        let process = spec.process.as_mut().ok_or_else(|| invalid(format!("{}: no process", file.display())))?;
        if !self.command.is_empty() {
            process.args = self.command.clone();
        }
        if self.tty || self.no_tty {
            process.terminal = terminal;
        }
        if process.terminal && !terminal {
            return Err(invalid("the bundle asks for a terminal and there is none").way_out("run osc from a terminal, or add --no-tty"));
        }
        Ok(Job { spec, rootfs: Rootfs::Dir(root), bundle })
    }

    fn image_job(&self, name: &str, terminal: bool, progress: &Progress, claimed: &Claimed) -> Result<Job> {
        let image = match (&self.image, &self.name_of_image) {
            (None, Some(name)) => crate::shim::pull::stored(name, &|what| progress.tell(what))?,
            (file, _) => crate::fs::oci::Image::open(file.as_deref().unwrap_or(Path::new("-")))?,
        };
        let dir = Path::new(SCRATCH).join(name);
        claimed.directory(&dir)?;
        let root = dir.join("rootfs");
        std::fs::create_dir(&root).at(Stage::Image, || format!("make {}", root.display()))?;
        image.unpack(&root, &|what| progress.tell(what))?;
        let process = image.config.process(&self.command);
        if process.args.is_empty() {
            return Err(invalid("the image names no command").way_out("give one after --"));
        }
        let mut wish = self.wish(name, terminal);
        wish.args = process.args;
        if process.env.iter().any(|e| e.starts_with("PATH=")) && !self.env.iter().any(|e| e.starts_with("PATH=")) {
            // The image's own, before our default.
            wish.env.retain(|e| !e.starts_with("PATH="));
        }
        wish.env = with_defaults(process.env, wish.env);
        if self.workdir.is_none() && !process.cwd.is_empty() {
            wish.cwd = process.cwd;
        }
        self.set_user(&mut wish, &root, self.user.as_deref().unwrap_or(&process.user))?;
        Ok(Job { spec: build(&wish), rootfs: Rootfs::Dir(root), bundle: dir })
    }

    /// Everything that does not depend on where the root comes from.
    fn wish(&self, name: &str, terminal: bool) -> Wish {
        let ours = |k: &str| std::env::var(k).ok().map(|v| format!("{k}={v}"));
        let mut env = vec![PATH.to_owned()];
        env.extend(terminal.then(|| ours("TERM").unwrap_or_else(|| "TERM=xterm".into())));
        let given = self.env.iter().filter_map(|e| if e.contains('=') { Some(e.clone()) } else { ours(e) });
        let env = with_defaults(env, given.collect());
        let mut volumes = self.volume.clone();
        if self.name_servers().is_some() {
            volumes.push((super::resolv_conf(name).to_string_lossy().into_owned(), "/etc/resolv.conf".into(), true));
        }
        Wish {
            env,
            cwd: self.workdir.clone().unwrap_or_else(|| "/".into()),
            terminal,
            hostname: name.to_owned(),
            volumes,
            cpus: self.cpus,
            memory_bytes: self.memory,
            ..Wish::default()
        }
    }

    fn set_user(&self, wish: &mut Wish, root: &Path, user: &str) -> Result<()> {
        let user = crate::fs::oci::user::resolve(root, user)?;
        (wish.uid, wish.gid, wish.additional_gids) = (user.uid, user.gid, user.additional_gids);
        if !wish.env.iter().any(|e| e.starts_with("HOME=")) {
            wish.env.push(format!("HOME={}", user.home));
        }
        Ok(())
    }
}

/// Where images are unpacked for one run.
const SCRATCH: &str = "/var/lib/osc";

/// `more` over `base`: a variable that is set twice has its later value, in its first place.
fn with_defaults(base: Vec<String>, more: Vec<String>) -> Vec<String> {
    let key = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
    more.into_iter().fold(base, |mut env, e| {
        match env.iter_mut().find(|old| key(old) == key(&e)) {
            Some(old) => *old = e,
            None => env.push(e),
        }
        env
    })
}

fn directory(path: &Path, what: &str) -> Result<PathBuf> {
    let path = path.canonicalize().map_err(|e| invalid(format!("{what} {}: {e}", path.display())))?;
    if path.is_dir() { Ok(path) } else { Err(invalid(format!("{what} {} is no directory", path.display()))) }
}

fn cpus(text: &str) -> Result<f64, String> {
    let n: f64 = text.parse().map_err(|_| "a number, like 2 or 0.5".to_string())?;
    if n.is_finite() && n >= 0.01 { Ok(n) } else { Err("at least 0.01".into()) }
}

/// Bytes, with K, M, G, T as powers of 1024.
fn memory(text: &str) -> Result<u64, String> {
    const LEAST: u64 = 6 << 20;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" | "ki" => 10,
        "m" | "mb" | "mib" | "mi" => 20,
        "g" | "gb" | "gib" | "gi" => 30,
        "t" | "tb" | "tib" | "ti" => 40,
        unit => return Err(format!("{unit:?} is no unit; K, M, G or T are")),
    };
    let n: u64 = digits.parse().map_err(|_| "a whole number and a unit, like 512M".to_string())?;
    let bytes = n.checked_mul(1 << shift).ok_or("more than 16 EiB")?;
    if bytes < LEAST { Err(format!("at least {} MiB", LEAST >> 20)) } else { Ok(bytes) }
}

fn volume(text: &str) -> Result<(String, String, bool), String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, read_only) = match parts[..] {
        [source, destination] => (source, destination, false),
        [source, destination, "ro"] => (source, destination, true),
        [source, destination, "rw"] => (source, destination, false),
        _ => return Err("SRC:DST or SRC:DST:ro".into()),
    };
    if !destination.starts_with('/') {
        return Err(format!("{destination:?} is no absolute path in the container"));
    }
    let source = std::fs::canonicalize(source).map_err(|e| format!("{source}: {e}"))?;
    Ok((source.to_string_lossy().into_owned(), destination.into(), read_only))
}

fn range(text: &str) -> Result<Prefix, String> {
    Prefix::parse(text).map_err(|e| e.to_string())
}

fn publish(text: &str) -> Result<(String, u16, u16), String> {
    let port = |p: &str| p.parse::<u16>().ok().filter(|&p| p > 0).ok_or(format!("{p:?} is no port"));
    let parts: Vec<&str> = text.rsplitn(3, ':').collect();
    match parts[..] {
        [guest, host] => Ok(("127.0.0.1".into(), port(host)?, port(guest)?)),
        [guest, host, address] => {
            let address: std::net::Ipv4Addr = address.parse().map_err(|_| format!("{address:?} is no IPv4 address"))?;
            Ok((address.to_string(), port(host)?, port(guest)?))
        }
        _ => Err("[ADDR:]PORT:GUESTPORT".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("512M"), Ok(512 << 20));
        assert_eq!(memory("2GiB"), Ok(2 << 30));
        for bad in ["", "M", "12X", "1k", "-5M", "99999999999T", "1.5G"] {
            assert!(memory(bad).is_err(), "{bad}");
        }
        assert_eq!(cpus("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "inf", "x"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_and_ports() {
        assert_eq!(volume("/tmp:/data:ro"), Ok(("/tmp".into(), "/data".into(), true)));
        for bad in ["/tmp", "/tmp:data", "/no/such:/x", "/tmp:/a:xx"] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert_eq!(publish("8080:80"), Ok(("127.0.0.1".into(), 8080, 80)));
        assert_eq!(publish("0.0.0.0:8080:80"), Ok(("0.0.0.0".into(), 8080, 80)));
        for bad in ["80", "0:80", "x:1:2", "70000:1"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_later_variable_wins_in_its_first_place() {
        let env = with_defaults(vec!["A=1".into(), "B=2".into()], vec!["A=3".into(), "C=4".into()]);
        assert_eq!(env, ["A=3", "B=2", "C=4"]);
    }
}
