//! The pod's network: what the CNI left in its namespace becomes the guest's, and stays so.
//!
//! On the host each interface is tied to a tap ([`crate::net::endpoint`]), recorded before and after; in the guest the
//! agent gives the virtio-net device at its other end the same name, MAC, MTU, addresses, routes and neighbours. What
//! changes later (Docker and nerdctl fill an empty namespace after the create) is seen by a thread that listens to the
//! namespace, and by every start of a container; it is then plugged, unplugged or told to the agent.

pub(super) mod localhost;
pub mod public;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use super::Sandbox;
use super::agent::{Agent, failed};
use super::record::{Record, Thing};
use crate::config::Config;
use crate::error::{At, Result, Stage};
use crate::net::endpoint::{self, Rates, Tie};
use crate::net::monitor::Monitor;
use crate::net::scan::{Interface, Network};
use crate::net::{Namespace, NetError};
use crate::rpc::Status;
use crate::vm::{Device, Vm};

/// Queue pairs that a NIC has at most: more CPUs share them.
const MOST_QUEUES: usize = 64;

const VHOST_NET: &str = "/dev/vhost-net";

/// A CNI does several things in a row: they are looked at once, this long after the first.
const SETTLE: Duration = Duration::from_millis(50);

/// What the configuration says about a NIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    queues: usize,
    vhost: bool,
    rates: Rates,
}

impl Settings {
    /// For a VM that can have `vcpus` vCPUs.
    pub fn of(config: &Config, vcpus: u32) -> Settings {
        let queues = if config.network_queues == 0 { vcpus } else { config.network_queues };
        Settings {
            queues: (queues as usize).clamp(1, MOST_QUEUES),
            vhost: !config.disable_vhost_net,
            rates: Rates { rx: config.rx_rate_limiter_max_rate, tx: config.tx_rate_limiter_max_rate },
        }
    }
}

/// The network of a sandbox that runs.
pub(super) struct Live {
    namespace: Namespace,
    settings: Settings,
    now: Mutex<Now>,
    /// Nothing is changed any more: whoever takes the sandbox down goes by the record.
    closed: AtomicBool,
    /// Closing them ends the threads that listen.
    stop: Mutex<Vec<File>>,
}

/// What the guest has.
#[derive(Default)]
struct Now {
    network: Network,
    /// By the index of the interface.
    nics: BTreeMap<u32, Nic>,
}

struct Nic {
    tie: Tie,
    /// The guest's device takes no larger one.
    mtu: u32,
}

impl Live {
    /// Ties every interface of the namespace at `netns` to a tap; answers the VM's ends. On an error the record says what
    /// stands.
    pub fn attach(netns: &Path, settings: Settings, record: &Record) -> Result<(Live, Vec<Device>)> {
        let namespace = endpoint::open(netns)?;
        let live = Live { namespace, settings, now: Mutex::default(), closed: AtomicBool::new(false), stop: Mutex::default() };
        let network = endpoint::look(&live.namespace)?;
        let mut now = Now::default();
        let devices = network.interfaces.iter().map(|i| live.tie(&mut now, i, record)).collect::<Result<_>>()?;
        now.network = network;
        *live.lock() = now;
        Ok((live, devices))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn tie(&self, now: &mut Now, interface: &Interface, record: &Record) -> Result<Device> {
        let link = &interface.link;
        let tie = endpoint::plan(&self.namespace, std::slice::from_ref(interface))?.remove(0);
        let thing = Thing::Endpoint { tie: tie.clone() };
        record.intent(thing.clone()).at(Stage::Network, || "record")?;
        let queues = endpoint::tie(&self.namespace, &tie, self.settings.queues, false)?;
        endpoint::limit(&self.namespace, &tie, self.settings.rates)?;
        record.done(thing).at(Stage::Network, || "record")?;
        now.nics.insert(link.index, Nic { tie, mtu: link.mtu });
        let vhost = if self.settings.vhost { vhost(queues.len()) } else { Vec::new() };
        Ok(Device::Nic { id: nic_id(link.index), mac: link.ethernet().unwrap_or_default(), mtu: link.mtu, queues, vhost })
    }

    /// Makes the guest's network what the namespace's was at the attach.
    pub fn configure(&self, agent: &Agent) -> Result<(), Status> {
        let now = self.lock();
        now.network.interfaces.iter().try_for_each(|i| wire::update_interface(agent, i))?;
        wire::update_routes(agent, &now.network)?;
        wire::add_neighbours(agent, &now.network)
    }

    /// Looks at the namespace again and makes the guest follow.
    pub fn refresh(&self, vm: &dyn Vm, agent: &Agent, record: &Record) -> Result<()> {
        let mut now = self.lock();
        if self.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let new = endpoint::look(&self.namespace)?;
        if new == now.network {
            return Ok(());
        }
        let old = std::mem::take(&mut now.network);
        let result = self.follow(&mut now, &old, &new, vm, agent, record);
        // What could not be followed is tried again: it counts as not seen.
        now.network = if result.is_ok() { new } else { Network::default() };
        result
    }

    fn follow(&self, now: &mut Now, old: &Network, new: &Network, vm: &dyn Vm, agent: &Agent, record: &Record) -> Result<()> {
        let told = |what: &str, status| failed(what, status).stage(Stage::Network);
        let stays = |i: &Interface, nic: &Nic| {
            i.link.mtu <= nic.mtu && old.interfaces.iter().all(|o| o.link.index != i.link.index || o.link.mac == i.link.mac)
        };
        let gone: Vec<u32> = now
            .nics
            .iter()
            .filter(|(index, nic)| !new.interfaces.iter().any(|i| i.link.index == **index && stays(i, nic)))
            .map(|n| *n.0)
            .collect();
        for index in gone {
            log::info!("network: {} goes", now.nics.get(&index).map_or("", |n| &n.tie.link));
            vm.unplug(&nic_id(index))?;
            self.untie(now, index, record);
        }
        let mut told_of = false;
        for i in &new.interfaces {
            if !now.nics.contains_key(&i.link.index) {
                log::info!("network: {} comes", i.link.name);
                let device = self.tie(now, i, record)?;
                vm.plug(device).inspect_err(|_| self.untie(now, i.link.index, record))?;
            }
            let before = old.interfaces.iter().find(|o| o.link.index == i.link.index);
            if before.is_none_or(|o| changed(o, i)) {
                self.set_mtu(now, i)?;
                wire::update_interface(agent, i).map_err(|s| told(&i.link.name, s))?;
                told_of = true;
            }
        }
        if told_of || old.routes != new.routes {
            wire::update_routes(agent, new).map_err(|s| told("routes", s))?;
        }
        wire::add_neighbours(agent, new).map_err(|s| told("neighbours", s))
    }

    fn untie(&self, now: &mut Now, index: u32, record: &Record) {
        let Some(nic) = now.nics.remove(&index) else { return };
        // A tie that stays is undone with the sandbox.
        let undone = endpoint::untie(&nic.tie).map_err(|e| e.to_string());
        if let Err(e) = undone.and_then(|()| record.gone(Thing::Endpoint { tie: nic.tie.clone() }).map_err(|e| e.to_string())) {
            log::warn!("network: {}: {e}", nic.tie.link);
        }
    }

    /// The tap's, where the interface's has become smaller.
    fn set_mtu(&self, now: &Now, i: &Interface) -> Result<(), NetError> {
        let Some(nic) = now.nics.get(&i.link.index) else { return Ok(()) };
        let mut nl = self.namespace.netlink()?;
        let tap = crate::net::link::by_name(&mut nl, &nic.tie.tap)?;
        if tap.mtu == i.link.mtu { Ok(()) } else { crate::net::link::set_mtu(&mut nl, &tap, i.link.mtu) }
    }

    /// Follows what happens in the namespace until the sandbox is taken down.
    pub fn watch(&self, sandbox: &Arc<Sandbox>) -> Result<()> {
        let monitor = Monitor::open(&self.namespace)?;
        let stopped = self.stopped()?;
        let weak = Arc::downgrade(sandbox);
        crate::thread::start("watch-net", move || follow_events(&monitor, &stopped, &weak));
        Ok(())
    }

    /// Hands connections to the pod's localhost to the guest. A kernel that cannot costs no more than that.
    pub fn serve_localhost(&self, vm: Arc<dyn Vm>, record: &Record) -> Result<()> {
        let stopped = self.stopped()?;
        let thing = Thing::Rules { netns: self.namespace.path().to_owned(), id: self.namespace.id(), table: localhost::TABLE.into() };
        record.intent(thing).at(Stage::Network, || "record")?;
        if let Err(e) = localhost::start(&self.namespace, vm, stopped) {
            log::warn!("network: port-forward does not reach this pod: {e}");
        }
        Ok(())
    }

    /// What is closed when the sandbox is taken down.
    fn stopped(&self) -> Result<File> {
        let (stopped, stop) = crate::process::pipe().at(Stage::Network, || "pipe")?;
        self.stop.lock().unwrap_or_else(|p| p.into_inner()).push(stop);
        Ok(stopped)
    }

    /// Ends the following. What stands is undone by the record.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.stop.lock().unwrap_or_else(|p| p.into_inner()).clear();
    }
}

fn follow_events(monitor: &Monitor, stopped: &File, sandbox: &Weak<Sandbox>) {
    loop {
        match monitor.wait(stopped, SETTLE) {
            Ok(true) => {}
            Ok(false) => return,
            Err(e) => return log::warn!("network: {e}: later changes are seen when a container starts"),
        }
        let Some(sandbox) = sandbox.upgrade() else { return };
        if let Err(e) = sandbox.refresh_network() {
            if sandbox.death().is_some() {
                return;
            }
            log::warn!("{e}");
        }
    }
}

/// What the agent has to be told of.
fn changed(old: &Interface, new: &Interface) -> bool {
    let no_arp = |i: &Interface| i.link.has(libc::IFF_NOARP);
    (&old.link.name, old.link.mtu, &old.addresses, no_arp(old)) != (&new.link.name, new.link.mtu, &new.addresses, no_arp(new))
}

/// What the VM knows the interface with this index by.
fn nic_id(index: u32) -> String {
    format!("nic{index}")
}

/// A worker of the kernel for each queue, where the host has them.
fn vhost(queues: usize) -> Vec<OwnedFd> {
    let open = |_| File::options().read(true).write(true).open(VHOST_NET).map(OwnedFd::from);
    (0..queues).map(open).collect::<std::io::Result<_>>().unwrap_or_default()
}
