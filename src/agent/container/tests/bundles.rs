//! Bundles around one field of the runtime specification each, as patches to what `runc spec` writes.
//!
//! `bundles.txt` holds them: `== name`, one line of JSON that is laid over the base (`$B` is the bundle's directory, `$ID` the container's id), and a
//! shell script that is run in the container. After a line `--` comes what it must print where runc 1.1 is no measure: it
//! lacks the field, or refuses what makes sense in a VM.

pub struct Bundle {
    pub name: String,
    pub patch: String,
    pub probe: String,
    /// What it must print, where runc is no measure.
    pub expected: Option<String>,
}

/// What probes have in common: `$NAME` at the start of a probe's line stands for it.
const PROBES: [(&str, &str); 4] = [
    ("$MOUNTS", "awk '{ $1=$2=$3=\"\"; gsub(/:[0-9]+/, \"\"); print }' /proc/self/mountinfo"),
    (
        "$STATUS",
        "grep -vE '^(Vm|Rss|Huge|Sig|Shd|vol|nonvol|FDSize|State|THP|Pid|Tgid|NS|PPid)' /proc/self/status; grep -E '^(SigIgn|SigBlk|SigCgt)' /proc/self/status",
    ),
    ("$WHO", "id; grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp)' /proc/self/status; pwd; umask; echo HOME=$HOME"),
    ("$DEV", "ls -lnR /dev | awk '{print $1,$3,$4,$5 == \"0\" ? \"\" : $5,$6 ~ /^[0-9]+$/ ? $6 : \"\",$NF}' | grep -v total"),
];

/// The file, read when the test runs.
pub fn bundles() -> Vec<Bundle> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/agent/container/tests/bundles.txt")).unwrap();
    format!("\n{text}").split("\n== ").skip(1).map(parse).collect()
}

fn parse(text: &str) -> Bundle {
    let mut parts = text.splitn(3, '\n');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let (name, patch, mut probe) = (next(), next(), next());
    for (short, long) in PROBES {
        probe = probe.replace(short, long);
    }
    let expected = probe.split_once("--\n").map(|(probe, expected)| (probe.to_owned(), expected.to_owned()));
    match expected {
        Some((probe, expected)) => Bundle { name, patch, probe, expected: Some(expected) },
        None => Bundle { name, patch, probe, expected: None },
    }
}
