//! What an operator tells the adaptor: the field's environment variables (`peer-pods-cm`, `peer-pods-secret`) and flags, one table.
//!
//! A flag wins over the environment, that over the default; an empty variable is one that is not set. What does not parse is an
//! error, never ignored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Failure, Result, Stage};
use crate::net::vxlan;
use crate::rpc::Code;
use crate::rpc::wire::apf;

/// The adaptor's settings, and those of the provider by the names of their variables.
#[derive(Clone, Debug)]
pub struct Settings {
    pub provider: String,
    pub socket: PathBuf,
    pub pods_dir: PathBuf,
    pub forwarder_port: u16,
    /// How long an agent may take to answer once its VM is made.
    pub proxy_timeout: Duration,
    pub vxlan_port: u16,
    pub vxlan_min_id: u32,
    pub host_interface: String,
    pub disable_tls: bool,
    pub pods_limit: i64,
    pub metrics: String,
    /// This worker among others that share a provider; empty: by its host name.
    pub node_name: String,
    pub libvirt: Libvirt,
    pub qemu: Qemu,
}

#[derive(Clone, Debug, Default)]
pub struct Libvirt {
    pub uri: String,
    pub pool: String,
    pub net: String,
    pub volume: String,
    pub cpu: u32,
    pub memory: u64,
    pub root_disk_gib: u64,
    /// CPUs of the host; empty: any.
    pub cpuset: String,
    /// UEFI's code there; `none`: a BIOS.
    pub firmware: String,
    /// `kvm`, `qemu`, or what is there.
    pub virt_type: String,
}

#[derive(Clone, Debug)]
pub struct Qemu {
    pub cpu: u32,
    pub memory: u64,
    /// Where the VMs' addresses are taken from: two of it for each.
    pub subnet: crate::net::Prefix,
}

/// A setting: its variable, its flag (either may be missing), its default as it would be written, what it is for.
pub struct Setting {
    pub variable: &'static str,
    pub flag: &'static str,
    pub default: &'static str,
    pub help: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
}

fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "not a number in its range".to_owned())
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "" | "0" | "false" => Ok(false),
        _ => Err("true or false".into()),
    }
}

/// Go's durations: `5m`, `1h30m`, `1.5s`, `300ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let bad = || "a duration such as 5m, 90s or 1h30m".to_owned();
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(bad()),
        };
        sum += Duration::try_from_secs_f64(number * unit).map_err(|_| bad())?;
        rest = &rest[end..];
    }
    if sum.is_zero() { Err(bad()) } else { Ok(sum) }
}

fn nothing_of(wanted: &str, text: &str, why: &str) -> Result<(), String> {
    if text.is_empty() || text == wanted { Ok(()) } else { Err(why.into()) }
}

/// Why certificates are not taken from outside.
const OWN_CERTIFICATES: &str = "each pod VM gets a certificate of its own, from an authority that the adaptor keeps in PODS_DIR";

fn one_of(allowed: &[&str], text: &str) -> Result<String, String> {
    if allowed.contains(&text) { Ok(text.to_owned()) } else { Err(allowed.join(", ")) }
}

fn cpuset(text: &str) -> Result<String, String> {
    let plain = text.chars().all(|c| c.is_ascii_digit() || "-,^".contains(c));
    if plain { Ok(text.to_owned()) } else { Err("CPUs such as 0-3,^2".into()) }
}

/// A setting that means nothing here, whatever it says.
fn moot() {}

macro_rules! settings {
    ($($variable:literal $flag:literal $default:literal $help:literal |$s:ident, $v:ident| $set:expr;)*) => {
        /// Every setting.
        pub const TABLE: &[Setting] = &[$(Setting {
            variable: $variable, flag: $flag, default: $default, help: $help, set: |$s, $v| { $set; Ok(()) },
        }),*];
    };
}

settings! {
    "CLOUD_PROVIDER" "provider" "qemu" "who makes the VMs" |s, v| s.provider = v.to_owned();
    "REMOTE_HYPERVISOR_ENDPOINT" "socket" "/run/peerpod/hypervisor.sock" "where the shims come to" |s, v| s.socket = v.into();
    "PODS_DIR" "pods-dir" "/run/peerpod/pods" "a directory for each pod" |s, v| s.pods_dir = v.into();
    "FORWARDER_PORT" "forwarder-port" "15150" "of the forwarder in the pod VM" |s, v| s.forwarder_port = parsed(v)?;
    "PROXY_TIMEOUT" "proxy-timeout" "5m" "how long a VM's agent may take to answer" |s, v| s.proxy_timeout = duration(v)?;
    "TUNNEL_TYPE" "tunnel-type" "vxlan" "how the pod's network reaches the VM" |_s, v| nothing_of("vxlan", v, "vxlan is the only one")?;
    "VXLAN_PORT" "vxlan-port" "4789" "UDP port of the tunnels" |s, v| s.vxlan_port = parsed(v)?;
    "" "vxlan-min-id" "555000" "the first VNI that is tried" |s, v| s.vxlan_min_id = parsed(v)?;
    "" "host-interface" "" "the interface whose address the VMs are told; else the one towards each VM" |s, v| s.host_interface = v.to_owned();
    "" "disable-tls" "false" "talk to the VMs in the clear" |s, v| s.disable_tls = boolean(v)?;
    "TLS_SKIP_VERIFY" "tls-skip-verify" "false" "" |_s, v| if boolean(v)? { return Err("osc always checks its pod VMs' certificates".into()) };
    "TLS_MIN_VERSION" "tls-min-version" "" "always TLS 1.2 at least, 1.3 between osc and osc" |_s, v| one_of(&["", "VersionTLS12", "VersionTLS13"], v).map(drop)?;
    "TLS_CIPHER_SUITES" "tls-cipher-suites" "" "" |_s, v| nothing_of("", v, "the suites are those of TLS 1.3 and the sound ones of 1.2")?;
    "CACERT_FILE" "ca-cert-file" "" "" |_s, v| nothing_of("", v, OWN_CERTIFICATES)?;
    "CERT_FILE" "cert-file" "" "" |_s, v| nothing_of("", v, OWN_CERTIFICATES)?;
    "CERT_KEY" "cert-key" "" "" |_s, v| nothing_of("", v, OWN_CERTIFICATES)?;
    "CLOUD_CONFIG_VERIFY" "cloud-config-verify" "true" "the provider is always asked at the start" |_s, v| boolean(v).map(drop)?;
    "PAUSE_IMAGE" "pause-image" "" "" |_s, _v| moot();
    "POD_SUBNET_CIDRS" "pod-subnet-cidrs" "" "" |_s, v| nothing_of("", v, "a pod VM has the routes of the pod's own namespace")?;
    "PEERPODS_LIMIT_PER_NODE" "peerpods-limit-per-node" "10" "pod VMs of this node; below 0: any number" |s, v| s.pods_limit = parsed(v)?;
    "DISABLECVM" "disable-cvm" "true" "confidential VMs are not done" |_s, v| if !boolean(v)? { return Err("confidential VMs are not done: leave it out, or true".into()) };
    "ENABLE_SCRATCH_SPACE" "enable-scratch-space" "false" "" |_s, v| if boolean(v)? { return Err("the container storage always has the whole disk".into()) };
    "EXTERNAL_NETWORK_VIA_PODVM" "ext-network-via-podvm" "false" "" |_s, v| if boolean(v)? { return Err("the pod's traffic always goes through its worker".into()) };
    "INITDATA" "initdata" "" "" |_s, v| nothing_of("", v, "confidential guests are not done")?;
    "OSC_METRICS" "metrics" "" "address:port for Prometheus; none without" |s, v| s.metrics = v.to_owned();
    "NODE_NAME" "node-name" "" "" |s, v| s.node_name = v.to_owned();
    "LIBVIRT_URI" "uri" "qemu+ssh://root@192.168.122.1/system?no_verify=1" "libvirt" |s, v| s.libvirt.uri = v.to_owned();
    "LIBVIRT_POOL" "pool-name" "default" "storage pool" |s, v| s.libvirt.pool = v.to_owned();
    "LIBVIRT_NET" "network-name" "default" "network of the VMs" |s, v| s.libvirt.net = v.to_owned();
    "LIBVIRT_VOL_NAME" "vol-name" "podvm-base.qcow2" "volume with the pod VM's image" |s, v| s.libvirt.volume = v.to_owned();
    "LIBVIRT_CPU" "libvirt-cpu" "2" "vCPUs of a VM" |s, v| s.libvirt.cpu = parsed(v)?;
    "LIBVIRT_MEMORY" "libvirt-memory" "8192" "MiB of a VM" |s, v| s.libvirt.memory = parsed(v)?;
    "LIBVIRT_ROOT_DISK_SIZE" "root-disk-size" "10" "GiB" |s, v| s.libvirt.root_disk_gib = parsed(v)?;
    "LIBVIRT_CPUSET" "cpuset" "" "CPUs of the host that VMs run on" |s, v| s.libvirt.cpuset = cpuset(v)?;
    "LIBVIRT_EFI_FIRMWARE" "efi-firmware" "/usr/share/OVMF/OVMF_CODE_4M.fd" "UEFI of the VMs; none: a BIOS" |s, v| s.libvirt.firmware = v.to_owned();
    "LIBVIRT_VIRT_TYPE" "virt-type" "auto" "kvm, qemu (emulated), or whichever is there" |s, v| s.libvirt.virt_type = one_of(&["auto", "kvm", "qemu"], v)?;
    "LIBVIRT_LAUNCH_SECURITY" "launch-security" "" "" |_s, v| nothing_of("", v, "confidential VMs are not done")?;
    "QEMU_CPU" "qemu-cpu" "2" "vCPUs of a VM" |s, v| s.qemu.cpu = parsed(v)?;
    "QEMU_MEMORY" "qemu-memory" "2048" "MiB of a VM" |s, v| s.qemu.memory = parsed(v)?;
    "QEMU_SUBNET" "qemu-subnet" "100.127.224.0/20" "addresses between this host and its pod VMs" |s, v| s.qemu.subnet = crate::net::Prefix::parse(v).map_err(|e| e.to_string())?;
}

impl Settings {
    fn empty() -> Settings {
        let any = crate::net::Prefix { address: std::net::Ipv4Addr::UNSPECIFIED.into(), length: 0 };
        Settings {
            provider: String::new(),
            socket: PathBuf::new(),
            pods_dir: PathBuf::new(),
            forwarder_port: apf::PORT,
            proxy_timeout: Duration::ZERO,
            vxlan_port: vxlan::PORT,
            vxlan_min_id: vxlan::FIRST_VNI,
            host_interface: String::new(),
            disable_tls: false,
            pods_limit: 0,
            metrics: String::new(),
            node_name: String::new(),
            libvirt: Libvirt::default(),
            qemu: Qemu { cpu: 0, memory: 0, subnet: any },
        }
    }

    /// From `args` (the first may be the provider alone, as the field's entry point has it) and the environment.
    pub fn read(args: &[String], environment: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let flags = flags(args)?;
        let mut settings = Settings::empty();
        for s in TABLE {
            let variable = environment(s.variable).filter(|v| !v.is_empty() && !s.variable.is_empty());
            let (origin, value) = match (flags.get(s.flag), variable) {
                (Some(v), _) => (format!("--{}", s.flag), v.clone()),
                (None, Some(v)) => (s.variable.to_owned(), v),
                (None, None) => (s.variable.to_owned(), s.default.to_owned()),
            };
            (s.set)(&mut settings, value.trim()).map_err(|why| refuse(format!("{origin}={value}: {why}")))?;
        }
        Ok(settings)
    }
}

fn refuse(cause: String) -> Failure {
    Failure::new(Stage::Request, cause).code(Code::InvalidArgument)
}

/// `-name value`, `--name value`, `-name=value`; a boolean's value may be left out.
fn flags(args: &[String]) -> Result<BTreeMap<&str, String>> {
    let mut flags = BTreeMap::new();
    let mut rest = args.iter().peekable();
    if let Some(provider) = rest.next_if(|a| !a.starts_with('-')) {
        flags.insert("provider", provider.clone());
    }
    while let Some(arg) = rest.next() {
        let name = arg.trim_start_matches('-');
        let (name, value) = name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v.to_owned())));
        let known = TABLE.iter().find(|s| s.flag == name && arg.starts_with('-'));
        let known = known.ok_or_else(|| refuse(format!("{arg}: no such flag")).way_out("`osc adaptor --help` lists them"))?;
        let switch = ["true", "false"].contains(&known.default);
        let value = match value {
            Some(value) => value,
            None if switch => rest.next_if(|a| boolean(a).is_ok()).cloned().unwrap_or_else(|| "true".into()),
            None => rest.next().cloned().ok_or_else(|| refuse(format!("{arg}: its value is missing")))?,
        };
        flags.insert(known.flag, value);
    }
    Ok(flags)
}

/// The table, for people.
pub fn help() -> String {
    let mut text = "Usage: osc adaptor [PROVIDER] [--FLAG VALUE]...\n       osc adaptor status [--json]\n\n".to_owned();
    for s in TABLE {
        let flag = format!("--{}", s.flag);
        text += &format!("  {flag:<28} {:<28} {} [{}]\n", s.variable, s.help, s.default);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str], environment: &[(&str, &str)]) -> Result<Settings> {
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        Settings::read(&args, |name| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        let s = read(&[], &[]).unwrap();
        assert_eq!((s.provider.as_str(), s.vxlan_port, s.pods_limit, s.proxy_timeout.as_secs()), ("qemu", 4789, 10, 300));
        assert_eq!((s.libvirt.cpu, s.libvirt.memory), (2, 8192));
        let s = read(&[], &[("VXLAN_PORT", "9000"), ("CLOUD_PROVIDER", "libvirt"), ("LIBVIRT_CPU", "4"), ("PODS_DIR", "")]).unwrap();
        assert_eq!((s.provider.as_str(), s.vxlan_port, s.libvirt.cpu), ("libvirt", 9000, 4));
        assert_eq!(s.pods_dir, PathBuf::from("/run/peerpod/pods"));
        let s = read(&["libvirt", "-vxlan-port", "9001", "--proxy-timeout=1h30m", "-disable-tls"], &[("VXLAN_PORT", "9000")]).unwrap();
        assert_eq!((s.provider.as_str(), s.vxlan_port, s.proxy_timeout.as_secs(), s.disable_tls), ("libvirt", 9001, 5400, true));
    }

    #[test]
    fn what_does_not_parse_is_an_error_that_names_it() {
        for (variable, value) in [
            ("VXLAN_PORT", "x"),
            ("VXLAN_PORT", "70000"),
            ("PROXY_TIMEOUT", "5"),
            ("PROXY_TIMEOUT", "5 minutes"),
            ("PEERPODS_LIMIT_PER_NODE", "many"),
            ("LIBVIRT_MEMORY", "8Gi"),
            ("DISABLECVM", "false"),
            ("TLS_SKIP_VERIFY", "yes"),
            ("TUNNEL_TYPE", "routing"),
            ("QEMU_SUBNET", "10.0.0.0"),
            ("TLS_MIN_VERSION", "VersionTLS10"),
            ("TLS_CIPHER_SUITES", "x"),
            ("CACERT_FILE", "/c"),
            ("CERT_FILE", "/c"),
            ("CERT_KEY", "/c"),
            ("CLOUD_CONFIG_VERIFY", "maybe"),
            ("POD_SUBNET_CIDRS", "10.0.0.0/8"),
            ("ENABLE_SCRATCH_SPACE", "true"),
            ("EXTERNAL_NETWORK_VIA_PODVM", "true"),
            ("INITDATA", "x"),
            ("FORWARDER_PORT", "no"),
            ("LIBVIRT_CPU", "two"),
            ("LIBVIRT_ROOT_DISK_SIZE", "10Gi"),
            ("QEMU_CPU", "x"),
            ("QEMU_MEMORY", "2Gi"),
            ("LIBVIRT_CPUSET", "all"),
            ("LIBVIRT_VIRT_TYPE", "xen"),
            ("LIBVIRT_LAUNCH_SECURITY", "s390-pv"),
        ] {
            let e = read(&[], &[(variable, value)]).unwrap_err();
            assert!(e.cause.starts_with(&format!("{variable}={value}: ")), "{e}");
        }
        assert!(read(&["--no-such"], &[]).unwrap_err().cause.contains("--no-such"));
        assert!(read(&["--vxlan-port"], &[]).unwrap_err().cause.contains("missing"));
    }

    #[test]
    fn every_setting_has_a_name_of_its_own() {
        for (n, s) in TABLE.iter().enumerate() {
            assert!(TABLE[..n].iter().all(|o| o.flag != s.flag && (o.variable.is_empty() || o.variable != s.variable)), "{}", s.flag);
            assert!(help().contains(&format!("--{}", s.flag)));
        }
    }

    #[test]
    fn each_variable_has_a_proof() {
        let table = include_str!("../../../../tests/VARIABLES.md");
        for s in TABLE.iter().filter(|s| !s.variable.is_empty()) {
            let row = table.lines().find(|l| l.starts_with(&format!("| `{}` |", s.variable)));
            let proof = row.and_then(|r| r.trim_end_matches(" |").rsplit_once("| ")).map(|(_, p)| p.to_owned());
            assert!(proof.is_some_and(|p| p.starts_with('`')), "{}", s.variable);
        }
    }
}
