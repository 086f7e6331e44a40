//! What a specification says of the pod: which sandbox by the annotations of both managers, which network, how large.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::oci::{LinuxCpu, LinuxMemory, LinuxResources, Spec};
use crate::shim::sandbox::size::Demand;

/// What a container is to its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A container by itself (ctr, nerdctl, docker): its own sandbox.
    Single,
    /// The pod's sandbox (its pause container).
    Sandbox,
    /// A container of the sandbox with this id.
    Container { sandbox: String },
}

impl Kind {
    /// The sandbox of container `id`, and whether that is the container itself.
    pub fn pod(self, id: &str) -> (String, bool) {
        match self {
            Kind::Container { sandbox } => (sandbox, false),
            Kind::Single | Kind::Sandbox => (id.to_owned(), true),
        }
    }
}

/// (annotation that says what it is, annotation that names the sandbox)
const ANNOTATIONS: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"),
    ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID"),
    ("io.kubernetes.docker.type", "io.kubernetes.sandbox.id"),
];

/// Reads it off a specification.
pub fn kind(spec: &Spec) -> Result<Kind> {
    let Some((what, id)) = ANNOTATIONS.iter().find_map(|(k, id)| Some((spec.annotations.get(*k)?, *id))) else {
        return Ok(Kind::Single);
    };
    match what.as_str() {
        "sandbox" | "podsandbox" => Ok(Kind::Sandbox),
        _ => match spec.annotations.get(id) {
            Some(sandbox) => Ok(Kind::Container { sandbox: sandbox.clone() }),
            None => Err(Failure::new(Stage::Request, format!("a container of a pod, and no annotation {id} says of which"))
                .code(Code::InvalidArgument)),
        },
    }
}

/// The pod's network namespace as the specification has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's own: none is asked for.
    Host,
    /// One of its own, to be made.
    New,
    At(PathBuf),
}

pub fn network(spec: &Spec) -> Network {
    let namespaces = spec.linux.as_ref().map(|l| l.namespaces.as_slice()).unwrap_or_default();
    match namespaces.iter().find(|n| n.r#type == "network") {
        None => Network::Host,
        Some(n) if n.path.is_empty() => Network::New,
        Some(n) => Network::At(PathBuf::from(&n.path)),
    }
}

/// Namespaces of the host that Kubernetes lets a pod ask for, by what it calls them.
const OF_THE_HOST: [(&str, &str); 2] = [("pid", "hostPID"), ("ipc", "hostIPC")];

/// Refuses a pod that asks for the host's own namespaces: its sandbox has none of that kind. hostNetwork is [`Network::Host`].
pub fn refuse_host_namespaces(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux.as_ref().filter(|_| matches!(kind(spec), Ok(Kind::Sandbox))) else { return Ok(()) };
    match OF_THE_HOST.iter().find(|(kind, _)| !linux.namespaces.iter().any(|n| n.r#type == *kind)) {
        None => Ok(()),
        Some((kind, name)) => Err(Failure::new(Stage::Request, format!("{name}: the host's {kind} namespace cannot be given to a VM"))
            .code(Code::InvalidArgument)
            .way_out(format!("run this pod without {name}, or with another runtime class"))),
    }
}

/// What the sandbox's specification says of the size that is needed: the limits of a container that is alone.
pub fn demand(spec: &Spec) -> Demand {
    let resources = spec.linux.as_ref().and_then(|l| l.resources.as_ref());
    resources.map(Demand::of).unwrap_or_default()
}

/// The limits of a whole pod as newer managers tell them beforehand: they size a VM that does not grow. One that grows is
/// sized by its containers as they come.
pub fn told_demand(annotations: &BTreeMap<String, String>) -> Demand {
    let number =
        |name: &str| annotations.get(&format!("io.kubernetes.cri.sandbox-{name}")).and_then(|v| v.parse::<i64>().ok()).unwrap_or(0);
    Demand::of(&LinuxResources {
        cpu: Some(LinuxCpu { quota: number("cpu-quota"), period: number("cpu-period").max(0) as u64, ..Default::default() }),
        memory: Some(LinuxMemory { limit: number("memory"), ..Default::default() }),
        ..Default::default()
    })
}

/// Size of the pod's /dev/shm, bytes: what its mount says, or has on the host already.
pub fn shm_size(spec: &Spec) -> u64 {
    const DEFAULT: u64 = 64 << 20;
    let Some(mount) = spec.mounts.iter().find(|m| m.destination == "/dev/shm") else { return DEFAULT };
    if mount.r#type == "bind" {
        let stat = rustix::fs::statvfs(mount.source.as_str());
        return stat.ok().map(|s| s.f_blocks * s.f_frsize).filter(|&size| size > 0).unwrap_or(DEFAULT);
    }
    mount.options.iter().find_map(|o| bytes(o.strip_prefix("size=")?)).unwrap_or(DEFAULT)
}

/// `65536k`, as mount(8) takes it.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The specification in `bundle`.
pub fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let invalid = |e: String| Failure::new(Stage::Request, format!("{}: {e}", path.display())).code(Code::InvalidArgument);
    let text = std::fs::read(&path).map_err(|e| invalid(e.to_string()))?;
    serde_json::from_slice(&text).map_err(|e| invalid(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::{Linux, LinuxNamespace};

    fn spec(annotations: &[(&str, &str)]) -> Spec {
        Spec { annotations: annotations.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(), ..Default::default() }
    }

    #[test]
    fn the_size_of_shared_memory() {
        let shm = |options: &[&str]| Spec {
            mounts: vec![crate::rpc::wire::oci::Mount {
                r#type: "tmpfs".into(),
                destination: "/dev/shm".into(),
                options: options.iter().map(|o| o.to_string()).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        for (options, size) in
            [(&["nosuid", "size=65536k"][..], 64 << 20), (&["size=1g"], 1 << 30), (&["size=99999999999999g"], 64 << 20), (&[], 64 << 20)]
        {
            assert_eq!(shm_size(&shm(options)), size, "{options:?}");
        }
    }

    #[test]
    fn namespaces_of_the_host_are_refused_by_name() {
        let with = |kinds: &[&str], annotation: &str| {
            let mut spec = spec(&[("io.kubernetes.cri.container-type", annotation), ("io.kubernetes.cri.sandbox-id", "s")]);
            let namespaces = kinds.iter().map(|k| LinuxNamespace { r#type: k.to_string(), path: String::new() }).collect();
            spec.linux = Some(Linux { namespaces, ..Default::default() });
            spec
        };
        refuse_host_namespaces(&with(&["pid", "ipc", "network"], "sandbox")).unwrap();
        // What a container shares, its pod has.
        refuse_host_namespaces(&with(&[], "container")).unwrap();
        for (kinds, name) in [(&["ipc"][..], "hostPID"), (&["pid"], "hostIPC")] {
            let e = refuse_host_namespaces(&with(kinds, "sandbox")).unwrap_err();
            assert!(e.code == Code::InvalidArgument && e.to_string().contains(name), "{e}");
        }
    }

    #[test]
    fn both_managers_words() {
        assert_eq!(kind(&spec(&[])).unwrap(), Kind::Single);
        for (what, id) in ANNOTATIONS {
            assert_eq!(kind(&spec(&[(what, "container"), (id, "s1")])).unwrap(), Kind::Container { sandbox: "s1".into() });
        }
        assert_eq!(kind(&spec(&[("io.kubernetes.cri.container-type", "sandbox")])).unwrap(), Kind::Sandbox);
        assert_eq!(kind(&spec(&[("io.kubernetes.docker.type", "podsandbox")])).unwrap(), Kind::Sandbox);
        assert_eq!(kind(&spec(&[("io.kubernetes.cri-o.ContainerType", "container")])).unwrap_err().code, Code::InvalidArgument);
    }
}
