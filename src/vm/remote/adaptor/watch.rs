//! What the adaptor does without being asked: takes over what an earlier one left, notices VMs that are gone, and deletes those
//! that nobody owns.

use std::fs;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::journal::{Entry, Phase};
use super::pod::Pod;
use super::pods::Pods;
use super::seed;
use crate::error::{At, Result, Stage};
use crate::net::{Namespace, vxlan};
use crate::vm::remote::REASON;

/// A VM that was asked for, and that nobody comes for: its shim is gone.
const ORPHAN: u64 = 600;

fn gone(entry: &Entry) -> bool {
    !entry.netns.as_os_str().is_empty() && !entry.netns.exists()
}

impl Pods {
    /// Takes over what an earlier adaptor left: pods that run go on.
    pub fn resume_all(self: &Arc<Self>) {
        let (entries, errors) = self.journal.read();
        errors.iter().for_each(|e| log::error!("{e}"));
        for entry in entries {
            let pod = Pod::new(entry.clone(), self.caller.clone(), self.settings.forwarder_port);
            self.pods().insert(entry.sandbox.clone(), pod.clone());
            if entry.phase == Phase::Running && !gone(&entry) {
                if let Err(e) = self.resume(&pod) {
                    log::error!("{}: taken over, but {e}", entry.name);
                }
            }
        }
    }

    /// What was being deleted is, and what nobody owns goes.
    pub fn adopt(self: &Arc<Self>) {
        let all: Vec<Arc<Pod>> = self.pods().values().cloned().collect();
        for pod in all {
            match pod.entry() {
                entry if gone(&entry) => self.condemn(&pod, "its network namespace is gone"),
                entry if entry.phase == Phase::Stopping => self.condemn(&pod, ""),
                _ => {}
            }
        }
        self.delete_strays();
    }

    fn resume(&self, pod: &Arc<Pod>) -> Result<()> {
        let entry = pod.entry();
        let address = seed::first(&entry.addresses, &entry.name)?;
        let birth = Namespace::own()?;
        for tunnel in &entry.tunnels {
            vxlan::connect(&birth, tunnel, address)?;
        }
        self.listen(pod)?;
        log::info!("{}: taken over", entry.name);
        Ok(())
    }

    fn delete_strays(&self) {
        let owned = self.provider.list_owned().unwrap_or_else(|e| {
            log::error!("list pod VMs: {e}");
            Vec::new()
        });
        for stray in owned.into_iter().filter(|o| !self.pods().contains_key(&o.token)) {
            match self.provider.delete(&stray.token).and_then(|()| self.journal.remove(&stray.token).at(Stage::Agent, || "journal")) {
                Ok(()) => log::warn!("{}: nobody owned it; deleted", stray.id),
                Err(e) => log::error!("{}: nobody owns it: {e}", stray.id),
            }
        }
    }

    /// Looks after the VMs on a thread of its own.
    pub fn watch(self: &Arc<Self>) {
        let pods = self.clone();
        crate::thread::start("pods", move || {
            let mut missing: Vec<String> = Vec::new();
            loop {
                std::thread::sleep(pods.provider.pace());
                pods.look(&mut missing);
            }
        });
    }

    /// A VM that is missing twice is lost; one that nobody comes for goes.
    fn look(self: &Arc<Self>, missing: &mut Vec<String>) {
        let all: Vec<Arc<Pod>> = self.pods().values().cloned().collect();
        let Ok(owned) = self.provider.list_owned() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut absent = Vec::new();
        for pod in all {
            let entry = pod.entry();
            let there = owned.iter().any(|o| o.token == entry.sandbox && o.alive);
            match entry.phase {
                Phase::Running if !there && missing.contains(&entry.sandbox) => self.lose(&pod),
                Phase::Running if !there => absent.push(entry.sandbox),
                Phase::Created | Phase::Requested if now.saturating_sub(entry.since) > ORPHAN && pod.operation.try_lock().is_ok() => {
                    self.condemn(&pod, "nobody came for it");
                }
                _ => {}
            }
        }
        *missing = absent;
    }

    fn lose(&self, pod: &Arc<Pod>) {
        let sandbox = pod.entry().sandbox;
        let words = self.provider.last_words(&sandbox);
        let why = words.last().map_or_else(|| "the provider has no such VM any more".to_owned(), |w| format!("its last words: {w}"));
        log::error!("{}: lost: {why}", pod.entry().name);
        if let Err(e) = fs::write(self.dir(&sandbox).join(REASON), &why) {
            log::warn!("{e}");
        }
        if let Err(e) = self.change(pod, |e| (e.phase, e.error) = (Phase::Lost, why)) {
            log::error!("{e}");
        }
        pod.shut(&self.dir(&sandbox));
    }
}
