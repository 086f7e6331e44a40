//! From nothing to a pod VM whose agent answers: the adaptor makes it and ties the pod's network to it; files are copied.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::NewSandbox;
use super::agent::{Agent, failed};
use super::boot::{Booted, create_in_guest, seed};
use super::files::{Copies, FEATURE, Files};
use super::guest_pull::Wish;
use super::live::Live;
use super::network::localhost;
use super::record::{Record, Thing};
use crate::config::{Config, Origin};
use crate::error::{At, Result, Stage};
use crate::net::Namespace;
use crate::rpc::wire::guest_pull::IMAGE_PULL;
use crate::shim::progress::Progress;
use crate::vm::Vm;
use crate::vm::remote::{Plan, Remote};

/// (what the protocol calls it, what the managers do)
const IDENTITY: [(&str, &[&str]); 2] = [
    ("io.kubernetes.cri.sandbox-name", &["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName", "io.kubernetes.pod.name"]),
    (
        "io.kubernetes.cri.sandbox-namespace",
        &["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace", "io.kubernetes.pod.namespace"],
    ),
];

/// What an agent that takes connections to the guest's localhost says of itself.
const FORWARDS: &str = "tcp-forward";

/// Before what a pod asks of the provider.
const HYPERVISOR: &str = "io.katacontainers.config.hypervisor.";

/// What the adaptor is told of a pod: who it is, and what it asked for itself. A size that only the configuration names is the
/// provider's to choose.
fn annotations(config: &Config, pod: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut told: BTreeMap<String, String> =
        IDENTITY.iter().filter_map(|(name, of)| Some(((*name).to_owned(), of.iter().find_map(|k| pod.get(*k))?.clone()))).collect();
    let asked = |name: &str| matches!(config.origins.get(&format!("hypervisor.{name}")), Some(Origin::Annotation(_)));
    let rows = [
        ("machine_type", config.machine_type.clone()),
        ("image", config.image.clone()),
        ("default_vcpus", asked("default_vcpus").then(|| config.default_vcpus.to_string())),
        ("default_memory", asked("default_memory").then(|| config.default_memory.to_string())),
        ("default_gpus", (config.default_gpus > 0).then(|| config.default_gpus.to_string())),
        ("default_gpu_model", config.default_gpu_model.clone()),
    ];
    told.extend(rows.into_iter().filter_map(|(name, value)| Some((format!("{HYPERVISOR}{name}"), value.filter(|v| !v.is_empty())?))));
    told
}

pub(super) fn boot(new: &NewSandbox, record: &Record, progress: &Progress) -> Result<Booted> {
    let config = &new.config;
    progress.stage("pod vm");
    let socket = config.remote_hypervisor_socket.clone();
    let thing = Thing::PodVm { socket: socket.clone(), sandbox: new.id.clone() };
    record.intent(thing.clone()).at(Stage::Agent, || "record")?;
    let plan = Plan {
        id: new.id.clone(),
        socket,
        timeout: config.remote_hypervisor_timeout,
        annotations: annotations(config, &new.annotations),
        netns: new.netns.clone().unwrap_or_default(),
    };
    let vm: Arc<dyn Vm> = Remote::start(plan)?;
    let stop = |e| {
        vm.stop(std::time::Duration::ZERO);
        e
    };
    record.done(thing).at(Stage::Agent, || "record").map_err(stop)?;
    let agent = Arc::new(Agent::dial(vm.clone()).map_err(stop)?);
    let limit = config.boot_timeout;
    agent.wait_ready(limit).map_err(|s| stop(vm.boot_failure(&s.message)))?;

    progress.stage("sandbox");
    let made = seed(&agent).and_then(|()| create_in_guest(new, &agent, false)).and_then(|()| agent.details());
    let details = made.map_err(|s| stop(failed("set up the pod VM", s).stage(Stage::Agent)))?;
    let streams = details.extra_features.iter().any(|f| f == FEATURE);
    let pulls = match (config.force_guest_pull, details.storage_handlers.iter().any(|d| d == IMAGE_PULL)) {
        (true, _) => Wish::Always,
        (false, true) if !streams => Wish::WhereNamed,
        _ => Wish::Never,
    };
    let live = Live::new(vm.clone(), agent.clone());
    let files = Files::copied_to(Copies::new(vm.clone(), agent.clone(), streams, pulls), live);
    let forwards = details.extra_features.iter().any(|f| f == FORWARDS);
    let localhost = new.netns.as_deref().filter(|_| forwards).and_then(|netns| localhost(netns, &vm, record));
    Ok(Booted { image: None, files, daemon: None, vm: vm.clone(), agent, network: None, localhost })
}

/// Hands connections to the pod's localhost on this host to the pod VM, until what is answered is closed. A kernel that cannot
/// costs no more than that.
fn localhost(netns: &Path, vm: &Arc<dyn Vm>, record: &Record) -> Option<File> {
    let started = || -> Result<File> {
        let namespace = Namespace::open(netns)?;
        let thing = Thing::Rules { netns: netns.to_owned(), id: namespace.id(), table: localhost::TABLE.into() };
        record.intent(thing).at(Stage::Network, || "record")?;
        let (stopped, stop) = crate::process::pipe().at(Stage::Network, || "pipe")?;
        localhost::start(&namespace, vm.clone(), stopped)?;
        Ok(stop)
    };
    started().inspect_err(|e| log::warn!("port-forward does not reach this pod: {e}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_size_that_the_pod_asked_for_is_told() {
        let pod = [("io.kubernetes.cri-o.KubeName", "web"), ("io.kubernetes.cri.sandbox-namespace", "shop"), ("other", "x")];
        let pod: BTreeMap<String, String> = pod.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let mut config = Config { machine_type: Some("t3.large".into()), ..Config::default() };
        let told = annotations(&config, &pod);
        assert_eq!(told.len(), 3, "{told:?}");
        assert_eq!(told["io.kubernetes.cri.sandbox-name"], "web");
        assert_eq!(told["io.katacontainers.config.hypervisor.machine_type"], "t3.large");
        config.origins.insert("hypervisor.default_vcpus".into(), Origin::Annotation("x".into()));
        assert_eq!(annotations(&config, &pod)["io.katacontainers.config.hypervisor.default_vcpus"], "1");
    }
}
