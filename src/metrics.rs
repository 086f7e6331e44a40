//! Figures in Prometheus' text form (0.0.4), and those of a process as proc(5) has them, for whoever tells some: the agent
//! of a guest, a shim, the adaptor, `osc monitor`.
//!
//! Names of items are those of Kata's metrics (docs/design/kata-2-0-metrics.md of that project), so that dashboards fit.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::fs;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// What the text is announced as.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The text being written.
#[derive(Default)]
pub struct Text(pub String);

impl Text {
    /// Announces a family; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A sample. `labels` as `a="x",b="y"`, or empty.
    pub fn value(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = if labels.is_empty() { writeln!(self.0, "{name} {value}") } else { writeln!(self.0, "{name}{{{labels}}} {value}") };
    }

    /// A family of one sample.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.value(name, "", value);
    }

    /// A family whose samples differ by the label `item`.
    pub fn items<V: Display>(&mut self, name: &str, help: &str, items: impl IntoIterator<Item = (String, V)>) {
        self.family(name, "gauge", help);
        items.into_iter().for_each(|(item, value)| self.value(name, &format!("item=\"{item}\""), value));
    }
}

/// A label's value, safe between quotes.
pub fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// `MemTotal` becomes `mem_total`, `CloseIO` `close_io`, `Active(anon)` `active_anon`, `DirectMap1G` `direct_map_1G`.
pub fn snake(camel: &str) -> String {
    let mut out = String::with_capacity(camel.len() + 4);
    let chars: Vec<char> = camel.chars().collect();
    for (n, &c) in chars.iter().enumerate() {
        let before = n.checked_sub(1).map(|b| chars[b]);
        let after = chars.get(n + 1);
        if !c.is_ascii_alphanumeric() {
            out.push_str(if after.is_some() { "_" } else { "" });
            continue;
        }
        let begins = match before {
            None => false,
            Some(b) if c.is_ascii_digit() => b.is_ascii_alphabetic(),
            Some(b) => {
                c.is_ascii_uppercase() && (b.is_ascii_lowercase() || b.is_ascii_uppercase() && after.is_some_and(char::is_ascii_lowercase))
            }
        };
        if begins {
            out.push('_');
        }
        out.push(if before.is_some_and(|b| b.is_ascii_digit()) { c } else { c.to_ascii_lowercase() });
    }
    // Words that Kata writes as one, or as two.
    out.replace("huge_pages", "hugepages").replace("percpu", "per_cpu")
}

/// How long calls took, by what was called: the histogram of Kata's `*_durations_histogram_milliseconds`.
pub struct Durations(Mutex<BTreeMap<String, Cells>>);

/// Upper bounds of the buckets, milliseconds.
const BOUNDS: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

#[derive(Default)]
struct Cells {
    /// By the first bound that holds the call; the last beyond all.
    counts: [u32; BOUNDS.len() + 1],
    milliseconds: f64,
}

impl Durations {
    pub const fn new() -> Durations {
        Durations(Mutex::new(BTreeMap::new()))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Cells>> {
        self.0.lock().unwrap_or_else(|p| p.into_inner())
    }

    pub fn took(&self, what: &str, time: Duration) {
        let milliseconds = time.as_secs_f64() * 1000.0;
        let bucket = BOUNDS.iter().position(|&b| milliseconds <= f64::from(b)).unwrap_or(BOUNDS.len());
        let mut all = self.lock();
        if !all.contains_key(what) {
            all.insert(what.to_owned(), Cells::default());
        }
        if let Some(cells) = all.get_mut(what) {
            cells.counts[bucket] = cells.counts[bucket].saturating_add(1);
            cells.milliseconds += milliseconds;
        }
    }

    /// Runs `f` and notes how long it took.
    pub fn time<T>(&self, what: &str, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let value = f();
        self.took(what, began.elapsed());
        value
    }

    /// `label` names what was called; `spell` makes its value of the name under which it was noted.
    pub fn render(&self, text: &mut Text, name: &str, help: &str, label: Option<&str>, spell: impl Fn(&str) -> String) {
        text.family(name, "histogram", help);
        for (what, cells) in self.lock().iter() {
            let of = label.map(|l| format!("{l}=\"{}\"", spell(what))).unwrap_or_default();
            let comma = if of.is_empty() { "" } else { "," };
            let mut sum = 0u64;
            for (count, bound) in cells.counts.iter().zip(BOUNDS.iter().map(u32::to_string).chain(["+Inf".to_owned()])) {
                sum += u64::from(*count);
                text.value(&format!("{name}_bucket"), &format!("{of}{comma}le=\"{bound}\""), sum);
            }
            text.value(&format!("{name}_sum"), &of, cells.milliseconds);
            text.value(&format!("{name}_count"), &of, sum);
        }
    }
}

impl Default for Durations {
    fn default() -> Durations {
        Durations::new()
    }
}

/// A number, looked for by the start of its line: `VmRSS:`.
pub fn field(text: &str, start: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(start))?.split_whitespace().next()?.parse().ok()
}

/// A file of /proc, empty where it cannot be read.
pub fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The times of /proc/<pid>/stat, clock ticks: utime, stime, cutime, cstime.
pub fn times(stat: &str) -> [u64; 4] {
    // The command's name may hold anything: count from its last parenthesis.
    let fields: Vec<u64> =
        stat.rsplit_once(')').map_or("", |(_, r)| r).split_whitespace().skip(11).take(4).map(|w| w.parse().unwrap_or(0)).collect();
    std::array::from_fn(|n| fields.get(n).copied().unwrap_or(0))
}

/// Clock ticks a second.
pub fn ticks() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// What a process is, for the parts in which Kata tells of some otherwise than of others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An agent: the items of its IO have underscores, and the guest's interfaces are told elsewhere.
    Agent,
    /// A daemon without a network.
    Daemon,
    /// One whose network namespace is told of, too.
    Networked,
}

/// The families of process `pid` under `prefix`: `kata_hypervisor_fds` and so on. `what` begins their help.
pub fn process(text: &mut Text, prefix: &str, what: &str, pid: u32, kind: Kind) {
    let proc = |name: &str| read(&format!("/proc/{pid}/{name}"));
    let status = proc("status");
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |d| d.count());
    text.single(&format!("{prefix}_fds"), "gauge", &format!("{what} open FDs."), fds);
    text.single(&format!("{prefix}_threads"), "gauge", &format!("{what} process threads."), field(&status, "Threads:").unwrap_or(0));
    text.items(&format!("{prefix}_proc_stat"), &format!("{what} process statistics."), stat_items(&proc("stat")));
    text.items(&format!("{prefix}_proc_status"), &format!("{what} process status."), status_items(&status));
    let io = proc("io");
    let io = io.lines().filter_map(|l| l.split_once(": ")).map(|(item, value)| {
        let item = if kind == Kind::Agent { item.to_owned() } else { item.replace('_', "") };
        (item, value.to_owned())
    });
    text.items(&format!("{prefix}_io_stat"), &format!("{what} process IO statistics."), io);
    if kind == Kind::Networked {
        netdev(text, &format!("{prefix}_netdev"), &format!("{what} network devices statistics."), &proc("net/dev"));
    }
}

/// `utime`, `stime`, `cutime`, `cstime`, clock ticks.
pub fn stat_items(stat: &str) -> Vec<(String, u64)> {
    ["utime", "stime", "cutime", "cstime"].iter().map(|n| n.to_string()).zip(times(stat)).collect()
}

/// Sizes (bytes) and context switches of /proc/<pid>/status.
pub fn status_items(status: &str) -> Vec<(String, u64)> {
    let one = |line: &str| {
        let (name, value) = line.split_once(':')?;
        let mut words = value.split_whitespace();
        let number: u64 = words.next()?.parse().ok()?;
        let size = words.next() == Some("kB");
        let wanted = size || name.ends_with("ctxt_switches");
        wanted.then(|| (name.to_lowercase(), if size { number * 1024 } else { number }))
    };
    status.lines().filter_map(one).collect()
}

/// Columns of /proc/net/dev, in its order.
const NETDEV: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

/// The interfaces of a /proc/net/dev.
pub fn netdev(text: &mut Text, name: &str, help: &str, lines: &str) {
    text.family(name, "gauge", help);
    for (interface, counters) in lines.lines().skip(2).filter_map(|l| l.split_once(':')) {
        for (item, value) in NETDEV.iter().zip(counters.split_whitespace()) {
            text.value(name, &format!("interface=\"{}\",item=\"{item}\"", interface.trim()), value);
        }
    }
}

/// What Prometheus' own libraries tell of the process they are in, under `prefix`: `kata_shim_process_open_fds` and so on.
pub fn own_process(text: &mut Text, prefix: &str) {
    let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
    let [user, system, ..] = times(&stat);
    let started = || -> Option<f64> {
        let since_boot = crate::process::start_time(std::process::id() as i32)? as f64;
        Some(field(&read("/proc/stat"), "btime ")? as f64 + since_boot / ticks())
    };
    let limit = |resource| rustix::process::getrlimit(resource).current.map_or(-1.0, |n| n as f64);
    let bytes = |name| field(&status, name).unwrap_or(0) * 1024;
    let fds = fs::read_dir("/proc/self/fd").map_or(0, |d| d.count());
    let rows: [(&str, &str, &str, f64); 7] = [
        ("cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.", (user + system) as f64 / ticks()),
        ("max_fds", "gauge", "Maximum number of open file descriptors.", limit(rustix::process::Resource::Nofile)),
        ("open_fds", "gauge", "Number of open file descriptors.", fds as f64),
        ("resident_memory_bytes", "gauge", "Resident memory size in bytes.", bytes("VmRSS:") as f64),
        ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", started().unwrap_or(0.0)),
        ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", bytes("VmSize:") as f64),
        ("virtual_memory_max_bytes", "gauge", "Maximum amount of virtual memory available in bytes.", limit(rustix::process::Resource::As)),
    ];
    rows.into_iter().for_each(|(name, kind, help, value)| text.single(&format!("{prefix}_process_{name}"), kind, help, value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_kata_writes_them() {
        for (camel, snaked) in [
            ("MemTotal", "mem_total"),
            ("Active(anon)", "active_anon"),
            ("KReclaimable", "k_reclaimable"),
            ("SUnreclaim", "s_unreclaim"),
            ("HugePages_Total", "hugepages_total"),
            ("AnonHugePages", "anon_hugepages"),
            ("Hugepagesize", "hugepagesize"),
            ("NFS_Unstable", "nfs_unstable"),
            ("Committed_AS", "committed_as"),
            ("DirectMap4k", "direct_map_4k"),
            ("DirectMap1G", "direct_map_1G"),
            ("Percpu", "per_cpu"),
            ("ShmemPmdMapped", "shmem_pmd_mapped"),
            ("CloseIO", "close_io"),
            ("ResizePty", "resize_pty"),
            ("OnlineCPUMem", "online_cpu_mem"),
        ] {
            assert_eq!(snake(camel), snaked);
        }
    }

    #[test]
    fn a_histogram_counts_up() {
        let d = Durations::new();
        for ms in [0, 3, 3, 900] {
            d.took("Create", Duration::from_millis(ms));
        }
        let mut text = Text::default();
        d.render(&mut text, "x", "Help.", Some("action"), snake);
        for line in [
            "# TYPE x histogram",
            "x_bucket{action=\"create\",le=\"1\"} 1",
            "x_bucket{action=\"create\",le=\"4\"} 3",
            "x_bucket{action=\"create\",le=\"512\"} 3",
            "x_bucket{action=\"create\",le=\"+Inf\"} 4",
            "x_sum{action=\"create\"} 906",
            "x_count{action=\"create\"} 4",
        ] {
            assert!(text.0.lines().any(|l| l == line), "{line} is not in:\n{}", text.0);
        }
    }

    #[test]
    fn a_process_of_any_name() {
        assert_eq!(times("7 (a) b (c) S 1 1 1 0 -1 4 0 0 0 0 5 6 7 8 20 0"), [5, 6, 7, 8]);
        assert_eq!(times(""), [0; 4]);
        let items = status_items("Name:\tx\nVmRSS:\t  12 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t9\n");
        assert_eq!(items, [("vmrss".into(), 12 * 1024), ("voluntary_ctxt_switches".into(), 9)]);
        let mut text = Text::default();
        process(&mut text, "p", "Test", std::process::id(), Kind::Networked);
        own_process(&mut text, "p");
        for name in
            ["p_fds ", "p_threads ", "p_proc_stat{item=\"utime\"}", "p_io_stat{item=\"cancelledwritebytes\"}", "p_netdev{interface=\"lo\""]
        {
            assert!(text.0.lines().any(|l| l.starts_with(name)), "{name}\n{}", text.0);
        }
        let started: f64 = text.0.lines().find_map(|l| l.strip_prefix("p_process_start_time_seconds ")?.parse().ok()).unwrap();
        assert!(started > 1e9, "{started}");
    }

    #[test]
    fn labels_cannot_break_out() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
