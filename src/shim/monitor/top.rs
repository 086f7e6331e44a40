//! `osc top`: the pods of this host, live. Everything shown is read off the sandboxes' own figures.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::exporter::{ask_all, sandboxes};
use super::merge::{INFO, value};
use crate::error::Result;
use crate::metrics::ticks;

/// Show the pods of this host: vCPUs, memory, I/O, overhead
#[derive(clap::Args, Debug)]
pub struct Top {
    /// Seconds between two looks
    #[arg(long, short = 'd', default_value_t = 2.0, value_name = "SECONDS")]
    interval: f64,
    /// Print one table and end
    #[arg(long)]
    once: bool,
    /// With --once: one JSON object a line
    #[arg(long, requires = "once")]
    json: bool,
}

/// A second is 100 % of a CPU.
const PERCENT: f64 = 100.0;

/// What of a sandbox only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    /// Seconds of its processes on this host.
    cpu: f64,
    /// Bytes, files and disks.
    read: f64,
    written: f64,
    received: f64,
    sent: f64,
}

/// A sandbox at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
struct Look {
    pod: String,
    vcpus: u64,
    total: f64,
    used: f64,
    overhead: f64,
    counters: Counters,
}

/// A line of the table. Sizes in bytes, rates in bytes a second.
#[derive(Debug, serde::Serialize)]
struct Row {
    sandbox: String,
    /// namespace/name, or empty
    pod: String,
    vcpus: u64,
    cpu_percent: f64,
    memory: u64,
    memory_used: u64,
    read_rate: u64,
    write_rate: u64,
    receive_rate: u64,
    send_rate: u64,
    overhead: u64,
}

impl Top {
    pub fn run(self) -> Result<()> {
        let interval = Duration::from_secs_f64(self.interval.clamp(0.1, 3600.0));
        let mut before = look();
        loop {
            let began = Instant::now();
            std::thread::sleep(interval);
            let now = look();
            let rows = rows(&before, &now, began.elapsed().as_secs_f64());
            let text = if self.json { lines(&rows) } else { table(&rows) };
            let mut out = std::io::stdout().lock();
            // To the upper left, then everything below is cleared.
            let clear = if !self.once && out.is_terminal() { "\x1b[H\x1b[J" } else { "" };
            if write!(out, "{clear}{text}").and_then(|()| out.flush()).is_err() || self.once {
                return Ok(());
            }
            before = now;
        }
    }
}

fn look() -> BTreeMap<String, Look> {
    ask_all(sandboxes()).into_iter().filter_map(|(id, text, _)| Some((id, read(&text.ok()?)))).collect()
}

/// What a sandbox's figures say.
fn read(text: &str) -> Look {
    let label = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(INFO))?;
        Some(line.split_once(&format!("{name}=\""))?.1.split('"').next()?.to_owned())
    };
    let item = |name: &str, item: &str| value(text, name, &[&format!("item=\"{item}\"")]).unwrap_or(0.0);
    // Of every label but `item`: all interfaces, all disks.
    let sum = |name: &str, item: &str, but: &str| -> f64 {
        let ours = |l: &&str| {
            l.strip_prefix(name).is_some_and(|r| r.starts_with('{')) && l.contains(&format!("item=\"{item}\"")) && !l.contains(but)
        };
        text.lines().filter(ours).filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    let times = |process: &str| item(&format!("kata_{process}_proc_stat"), "utime") + item(&format!("kata_{process}_proc_stat"), "stime");
    const SECTOR: f64 = 512.0;
    const NO_LOOPBACK: &str = "interface=\"lo\"";
    let disk = |what: &str| sum("kata_guest_diskstat", what, "disk=\"loop") * SECTOR;
    let net = |what: &str| sum("kata_guest_netdev_stat", what, NO_LOOPBACK);
    let pod = match (label("cri_namespace"), label("cri_name")) {
        (Some(namespace), Some(name)) if !name.is_empty() => format!("{namespace}/{name}"),
        _ => String::new(),
    };
    let cpus = text
        .lines()
        .filter(|l| l.starts_with("kata_guest_cpu_time{") && l.contains("item=\"user\"") && !l.contains("cpu=\"total\""))
        .count();
    let memory = |what: &str| item("kata_guest_meminfo", what);
    Look {
        pod,
        vcpus: cpus as u64,
        total: memory("mem_total"),
        used: (memory("mem_total") - memory("mem_available")).max(0.0),
        overhead: value(text, "kata_shim_pod_overhead_memory_in_bytes", &[]).unwrap_or(0.0),
        counters: Counters {
            cpu: (times("shim") + times("hypervisor") + times("virtiofsd")) / ticks(),
            read: item("kata_virtiofsd_io_stat", "rchar") + disk("sectors_read"),
            written: item("kata_virtiofsd_io_stat", "wchar") + disk("sectors_written"),
            received: net("recv_bytes"),
            sent: net("sent_bytes"),
        },
    }
}

/// One that was not there before has no rates yet.
fn rows(before: &BTreeMap<String, Look>, now: &BTreeMap<String, Look>, seconds: f64) -> Vec<Row> {
    let row = |(sandbox, look): (&String, &Look)| {
        let then = before.get(sandbox).map_or(look.counters, |l| l.counters);
        let rate = |of: fn(&Counters) -> f64| ((of(&look.counters) - of(&then)) / seconds).max(0.0);
        Row {
            sandbox: sandbox.clone(),
            pod: look.pod.clone(),
            vcpus: look.vcpus,
            cpu_percent: (rate(|c| c.cpu) * PERCENT * 10.0).round() / 10.0,
            memory: look.total as u64,
            memory_used: look.used as u64,
            read_rate: rate(|c| c.read) as u64,
            write_rate: rate(|c| c.written) as u64,
            receive_rate: rate(|c| c.received) as u64,
            send_rate: rate(|c| c.sent) as u64,
            overhead: look.overhead as u64,
        }
    };
    now.iter().map(row).collect()
}

fn lines(rows: &[Row]) -> String {
    rows.iter().map(|r| serde_json::to_string(r).unwrap_or_default() + "\n").collect()
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<16} {:<32} {:>5} {:>6} {:>15} {:>8} {:>8} {:>8} {:>8} {:>8}\n",
        "SANDBOX", "POD", "VCPUS", "CPU%", "MEMORY", "READ/s", "WRITE/s", "RECV/s", "SENT/s", "OVERHEAD"
    );
    for r in rows {
        let memory = format!("{}/{}", size(r.memory_used), size(r.memory));
        text += &format!(
            "{:<16.16} {:<32.32} {:>5} {:>6.1} {:>15} {:>8} {:>8} {:>8} {:>8} {:>8}\n",
            r.sandbox,
            r.pod,
            r.vcpus,
            r.cpu_percent,
            memory,
            size(r.read_rate),
            size(r.write_rate),
            size(r.receive_rate),
            size(r.send_rate),
            size(r.overhead)
        );
    }
    text
}

/// `1.5M`
fn size(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let (mut n, mut unit) = (bytes as f64, 0);
    while n >= 1000.0 && unit + 1 < units.len() {
        n /= 1024.0;
        unit += 1;
    }
    if unit == 0 || n >= 10.0 { format!("{n:.0}{}", units[unit]) } else { format!("{n:.1}{}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "osc_sandbox_info{sandbox_id=\"s\",cri_uid=\"\",cri_name=\"web\",cri_namespace=\"shop\"} 1\n\
        kata_guest_cpu_time{cpu=\"total\",item=\"user\"} 5\nkata_guest_cpu_time{cpu=\"0\",item=\"user\"} 2\nkata_guest_cpu_time{cpu=\"1\",item=\"user\"} 3\n\
        kata_guest_meminfo{item=\"mem_total\"} 1000\nkata_guest_meminfo{item=\"mem_available\"} 400\n\
        kata_guest_netdev_stat{interface=\"lo\",item=\"recv_bytes\"} 9\nkata_guest_netdev_stat{interface=\"eth0\",item=\"recv_bytes\"} 50\n\
        kata_guest_diskstat{disk=\"vda\",item=\"sectors_read\"} 2\nkata_virtiofsd_io_stat{item=\"rchar\"} 76\n\
        kata_hypervisor_proc_stat{item=\"utime\"} 100\nkata_shim_pod_overhead_memory_in_bytes 77\n";

    #[test]
    fn a_row_of_two_looks() {
        let now = read(TEXT);
        assert_eq!((now.pod.as_str(), now.vcpus, now.used, now.overhead), ("shop/web", 2, 600.0, 77.0));
        let mut before = now.clone();
        before.counters = Counters::default();
        let of = |l: Look| BTreeMap::from([("s".to_owned(), l)]);
        let rows = rows(&of(before), &of(now.clone()), 2.0);
        assert_eq!((rows[0].read_rate, rows[0].receive_rate), (550, 25));
        assert_eq!(rows[0].cpu_percent, 100.0 / ticks() * 50.0);
        assert!(table(&rows).contains("shop/web"), "{}", table(&rows));
        assert!(lines(&rows).contains("\"vcpus\":2"), "{}", lines(&rows));
        assert_eq!(super::rows(&BTreeMap::new(), &of(now), 1.0)[0].cpu_percent, 0.0);
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, short) in [(0, "0"), (999, "999"), (1536, "1.5K"), (20 << 20, "20M"), (3 << 30, "3.0G")] {
            assert_eq!(size(bytes), short);
        }
    }
}
