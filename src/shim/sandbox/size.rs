//! How large the VM is: what it boots with and what its containers ask for on top.
//!
//! The sum rule: vCPUs = ceil(default + sum of quota/period), memory = default + sum of limits. A container is made once the
//! guest has what it asks for, online; it goes, and the guest gives back what virtio-mem and the kernel's own hot-unplug can.
//! A CPU limit beyond the VM's maximum is capped with a warning (its quota holds all the same); a memory limit beyond it is
//! refused.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::agent::{Agent, failed};
use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;
use crate::rpc::wire::agent as wire;
use crate::rpc::wire::google::Empty;
use crate::rpc::wire::oci::{LinuxResources, Spec};
use crate::vm::{Size, Vm};

/// How long plugged processors and memory may take to be online.
const ONLINE: Duration = Duration::from_secs(30);

/// What one container asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    pub milli_cpus: u64,
    pub bytes: u64,
}

impl Demand {
    /// Of its limits; of its CPU set where it has no quota.
    pub fn of(resources: &LinuxResources) -> Demand {
        let cpu = resources.cpu.clone().unwrap_or_default();
        let milli_cpus = if cpu.quota > 0 && cpu.period > 0 {
            (cpu.quota as u64).saturating_mul(1000).div_ceil(cpu.period)
        } else {
            set_size(&cpu.cpus) * 1000
        };
        let memory = resources.memory.as_ref().map(|m| m.limit).filter(|&l| l > 0 && l < UNLIMITED).unwrap_or(0) as u64;
        let pages: u64 = resources.hugepage_limits.iter().map(|h| h.limit).filter(|&l| l < UNLIMITED as u64).sum();
        Demand { milli_cpus, bytes: memory + pages }
    }
}

/// The demand of a container. Where the VM is sized by it, the host's CPU set is left out of the specification: its numbers
/// mean nothing in the guest.
pub fn take(spec: &mut Spec, grows: bool) -> Demand {
    let resources = spec.linux.as_mut().and_then(|l| l.resources.as_mut());
    resources.map(|r| take_of(r, grows)).unwrap_or_default()
}

/// The same of resources alone.
pub fn take_of(resources: &mut LinuxResources, grows: bool) -> Demand {
    let demand = Demand::of(resources);
    if let Some(cpu) = resources.cpu.as_mut().filter(|_| grows) {
        cpu.cpus.clear();
        cpu.mems.clear();
    }
    demand
}

/// Managers write "no limit" as one of the largest numbers.
const UNLIMITED: i64 = 1 << 60;

/// How many CPUs `0-3,8` names.
fn set_size(list: &str) -> u64 {
    let range = |r: &str| -> Option<u64> {
        let (first, last) = r.split_once('-').unwrap_or((r, r));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        last.checked_sub(first).map(|n| n + 1)
    };
    list.split(',').filter_map(range).sum()
}

/// The VM's size and the demands that make it up.
pub struct Sizing {
    base: Size,
    most_vcpus: u32,
    /// False where the VM keeps the size it was booted with.
    grows: bool,
    state: Mutex<State>,
}

struct State {
    demands: BTreeMap<String, Demand>,
    now: Size,
}

/// What `demands` add up to on top of `base`.
fn total(base: Size, demands: &BTreeMap<String, Demand>) -> Size {
    let milli: u64 = demands.values().map(|d| d.milli_cpus).sum();
    let mib: u64 = demands.values().map(|d| d.bytes.div_ceil(1 << 20)).sum();
    Size { vcpus: (u64::from(base.vcpus) * 1000 + milli).div_ceil(1000).min(u32::MAX.into()) as u32, mib: base.mib.saturating_add(mib) }
}

/// What a VM boots with that has one container, whose demand is known beforehand.
pub fn at_boot(base: Size, most: Size, demand: Demand) -> Size {
    let all = total(base, &BTreeMap::from([(String::new(), demand)]));
    Size { vcpus: all.vcpus.min(most.vcpus), mib: all.mib }
}

impl Sizing {
    /// `base` is the configuration's, `now` what the VM was booted with.
    pub fn new(base: Size, now: Size, most_vcpus: u32, grows: bool) -> Sizing {
        Sizing { base, most_vcpus, grows, state: Mutex::new(State { demands: BTreeMap::new(), now }) }
    }

    /// Whether containers make the VM larger.
    pub fn grows(&self) -> bool {
        self.grows
    }

    /// Makes room for `container`; a second claim replaces its first. On an error its demand is as before.
    pub fn claim(&self, container: &str, demand: Demand, vm: &dyn Vm, agent: &Agent) -> Result<()> {
        if !self.grows {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap_or_else(|p| p.into_inner());
        let mut demands = state.demands.clone();
        demands.insert(container.to_owned(), demand);
        self.resize(&mut state, total(self.base, &demands), vm, agent)?;
        state.demands = demands;
        Ok(())
    }

    /// `container` needs nothing any more. What the guest does not give back stays, for the next.
    pub fn release(&self, container: &str, vm: &dyn Vm, agent: &Agent) {
        let mut state = self.state.lock().unwrap_or_else(|p| p.into_inner());
        if state.demands.remove(container).is_none_or(|d| d == Demand::default()) {
            return;
        }
        let target = total(self.base, &state.demands);
        if let Err(e) = self.resize(&mut state, target, vm, agent) {
            log::info!("the VM keeps its size: {e}");
        }
    }

    fn resize(&self, state: &mut State, mut target: Size, vm: &dyn Vm, agent: &Agent) -> Result<()> {
        if target.vcpus > self.most_vcpus {
            log::warn!("{} vCPUs are asked for and the VM can have {}: limits hold by their quotas", target.vcpus, self.most_vcpus);
            target.vcpus = self.most_vcpus;
        }
        if target == state.now {
            return Ok(());
        }
        let before = state.now;
        let made = vm.resize(target)?;
        state.now = Size { vcpus: target.vcpus.min(made.vcpus), mib: made.mib };
        let request = wire::OnlineCpuMemRequest {
            wait: true,
            nb_cpus: target.vcpus.saturating_sub(before.vcpus),
            cpu_only: made.mib == before.mib,
            total_cpus: state.now.vcpus,
        };
        let online: Result<Empty, _> = agent.call("OnlineCPUMem", &request, Some(ONLINE));
        online.map_err(|status| failed("bring plugged CPUs and memory online", status))?;
        log::info!("the VM has {} vCPUs and {} MiB", state.now.vcpus, state.now.mib);
        Ok(())
    }
}

/// A memory limit that no VM of this configuration can hold.
pub fn check(demand: Demand, base: Size, most: Size) -> Result<()> {
    let mib = base.mib.saturating_add(demand.bytes.div_ceil(1 << 20));
    if mib <= most.mib {
        return Ok(());
    }
    let cause = format!("a memory limit of {} MiB makes a VM of {mib} MiB, and it can have {}", demand.bytes >> 20, most.mib);
    Err(Failure::new(Stage::Request, cause).code(Code::OutOfRange).way_out("lower the limit, or raise `default_maxmemory`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::oci::{LinuxCpu, LinuxMemory};

    fn limits(quota: i64, cpus: &str, limit: i64) -> LinuxResources {
        LinuxResources {
            cpu: Some(LinuxCpu { quota, period: 100_000, cpus: cpus.into(), ..Default::default() }),
            memory: Some(LinuxMemory { limit, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn demands_are_read_off_limits() {
        for (given, milli_cpus, bytes) in [
            (limits(200_000, "", 4 << 30), 2000, 4 << 30),
            (limits(50_001, "", 0), 501, 0),
            (limits(0, "0-2,7", -1), 4000, 0),
            (limits(-1, "", i64::MAX), 0, 0),
            (limits(100_000, "0-7", 0), 1000, 0),
        ] {
            assert_eq!(Demand::of(&given), Demand { milli_cpus, bytes }, "{given:?}");
        }
        assert_eq!((set_size("3-1,x,,5"), set_size("")), (1, 0));
    }

    #[test]
    fn the_sum_rule() {
        let base = Size { vcpus: 1, mib: 2048 };
        let two = Demand { milli_cpus: 2000, bytes: 4 << 30 };
        assert_eq!(at_boot(base, Size { vcpus: 8, mib: 1 << 20 }, two), Size { vcpus: 3, mib: 6144 });
        let half = Demand { milli_cpus: 500, bytes: 1 };
        let demands = BTreeMap::from([("a".to_owned(), half), ("b".to_owned(), half), ("c".to_owned(), half)]);
        assert_eq!(total(base, &demands), Size { vcpus: 3, mib: 2051 });
        assert_eq!(at_boot(base, Size { vcpus: 2, mib: 1 << 20 }, two).vcpus, 2);
    }

    #[test]
    fn a_limit_that_does_not_fit_is_refused_with_its_numbers() {
        let (base, most) = (Size { vcpus: 1, mib: 2048 }, Size { vcpus: 8, mib: 4096 });
        let e = check(Demand { milli_cpus: 0, bytes: 4 << 30 }, base, most).unwrap_err();
        assert!(e.code == Code::OutOfRange && e.cause.contains("6144 MiB") && e.cause.contains("4096"), "{e}");
        check(Demand { milli_cpus: 0, bytes: 2 << 30 }, base, most).unwrap();
    }
}
