//! OnlineCPUMem: plugged processors and memory become usable.
//!
//! The kernel's own files (Documentation/admin-guide/cputopology.rst, mm/memory-hotplug.rst): `cpuN/online` takes 1,
//! `memoryN/state` takes `online`. Most guests boot with `memhp_default_state=online` and find their memory online already.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{AgentService, Answer, DONE};
use crate::rpc::wire::agent::OnlineCpuMemRequest;
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Status};

/// Time for plugged processors to show up; Kata's `agent.hotplug_timeout`.
const PLUG_LIMIT: Duration = Duration::from_secs(3);

const PROCESSORS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

impl AgentService {
    /// Brings online all that is there; with `wait`, once `nb_cpus` more have come.
    pub(super) fn online_cpu_mem(&self, r: OnlineCpuMemRequest) -> Answer<Empty> {
        if r.total_cpus > 0 {
            self.exactly(r.total_cpus as usize)?;
            if !r.cpu_only {
                online(Path::new(MEMORY), "memory", "state", "offline", "online");
            }
            super::spread::over(&processors());
            return DONE;
        }
        let wanted = if r.wait { r.nb_cpus as usize } else { 0 };
        let mut count = 0;
        let came = self.guest.events.until(Some(PLUG_LIMIT), || {
            count += online(Path::new(PROCESSORS), "cpu", "online", "0", "1");
            (count >= wanted).then_some(())
        });
        if count > 0 {
            super::network::spread_queues();
        }
        if !r.cpu_only {
            online(Path::new(MEMORY), "memory", "state", "offline", "online");
        }
        super::spread::over(&processors());
        match came {
            Some(()) => DONE,
            None => Err(Status::new(Code::DeadlineExceeded, format!("{count} of {wanted} processors came online within {PLUG_LIMIT:?}"))),
        }
    }
}

impl AgentService {
    /// The first `total` processors online, once they have come, and the others offline: a processor that QEMU cannot take
    /// away is at least not used.
    fn exactly(&self, total: usize) -> Answer<()> {
        let root = Path::new(PROCESSORS);
        let came = self.guest.events.until(Some(PLUG_LIMIT), || {
            online(root, "cpu", "online", "0", "1");
            (processors().len() >= total).then_some(())
        });
        if came.is_none() {
            let text = format!("{} of {total} processors came online within {PLUG_LIMIT:?}", processors().len());
            return Err(Status::new(Code::DeadlineExceeded, text));
        }
        for extra in processors().into_iter().skip(total) {
            let file = root.join(format!("cpu{extra}/online"));
            fs::write(&file, "0").map_err(super::failed(file.display().to_string()))?;
        }
        Ok(())
    }
}

/// Numbers of the processors that are online.
fn processors() -> Vec<u32> {
    let list = fs::read_to_string(Path::new(PROCESSORS).join("online")).unwrap_or_default();
    let range = |r: &str| {
        let (first, last) = r.split_once('-').unwrap_or((r, r));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// Writes `to` where `file` of a `prefix`N below `root` says `from`; how many took it.
fn online(root: &Path, prefix: &str, file: &str, from: &str, to: &str) -> usize {
    let mut numbered: Vec<(u32, PathBuf)> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?, e.path().join(file))))
        .collect();
    numbered.sort();
    let offline = numbered.into_iter().filter(|(_, path)| fs::read_to_string(path).is_ok_and(|s| s.trim() == from));
    offline.filter(|(_, path)| fs::write(path, to).inspect_err(|e| log::warn!("{}: {e}", path.display())).is_ok()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offline_and_only_that_is_brought_online() {
        let dir = tempfile::tempdir().unwrap();
        for (name, state) in
            [("cpu0", None), ("cpu1", Some("1\n")), ("cpu2", Some("0\n")), ("cpu10", Some("0\n")), ("cpufreq", Some("0\n"))]
        {
            fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(state) = state {
                fs::write(dir.path().join(name).join("online"), state).unwrap();
            }
        }
        assert_eq!(online(dir.path(), "cpu", "online", "0", "1"), 2);
        assert_eq!(fs::read_to_string(dir.path().join("cpu10/online")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("cpufreq/online")).unwrap(), "0\n");
        assert_eq!(online(dir.path(), "cpu", "online", "0", "1"), 0);
    }
}
