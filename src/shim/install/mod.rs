//! `osc install`, `osc uninstall`: this binary and what makes a node's managers use it.
//!
//! Everything is a list of [`Item`]s; [`manifest`] remembers what was put where, by hash, so that a second install replaces
//! what is still as the first left it, leaves alone what somebody edited, and uninstall removes exactly the rest. Files
//! arrive by rename: shims that run keep the old inode.

mod containerd;
mod kubernetes;
mod manifest;
mod node;
mod place;
mod texts;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{At, Failure, Result, Stage};
use crate::process::this_program;
use crate::role::ROLES;
use crate::rpc::Code;
use manifest::Manifest;
use node::Node;
use place::{Done, State};

/// Where to.
#[derive(clap::Args, Clone, Debug)]
struct Where {
    /// Directory of bin/osc
    #[arg(long, value_name = "DIR", default_value = "/usr/local")]
    prefix: PathBuf,
    /// The node's root directory, where that is mounted elsewhere
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Tell what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Install this binary and register it with the container managers that are here
///
/// What somebody else put there, or edited, is left alone. Can be repeated, also with pods running: they keep what they have.
#[derive(clap::Args, Debug)]
pub struct Install {
    #[command(flatten)]
    to: Where,
    /// Register with this manager also if it is not here yet; may be given several times
    #[arg(long, value_name = "containerd|crio", value_parser = ["containerd", "crio"])]
    manager: Vec<String>,
    #[command(flatten)]
    cluster: ToCluster,
}

/// Objects for a cluster, printed instead of installing anything here.
#[derive(clap::Args, Clone, Debug, Default)]
struct ToCluster {
    /// Print what a cluster needs for class kata, for kubectl apply -f -
    #[arg(long, conflicts_with_all = ["peer_pods", "manager", "root"])]
    kubernetes: bool,
    /// Print what it needs for peer pods, class kata-remote
    #[arg(long, requires = "provider", conflicts_with_all = ["manager", "root"])]
    peer_pods: bool,
    /// Who makes the VMs of peer pods: qemu, libvirt
    #[arg(long, value_name = "NAME", requires = "peer_pods")]
    provider: Option<String>,
    /// Image with this binary, sh, nsenter and kubectl
    #[arg(long, value_name = "REFERENCE", default_value = "osc:latest")]
    image: String,
    /// Namespace of the objects
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    namespace: String,
}

impl ToCluster {
    /// The objects, where they are asked for.
    fn print(&self, prefix: &Path) -> Result<Option<String>> {
        let to = kubernetes::Cluster { namespace: &self.namespace, image: &self.image, prefix };
        match (&self.provider, self.kubernetes) {
            (Some(provider), _) if self.peer_pods => kubernetes::peer_pods(&to, provider).map(Some),
            (_, true) => kubernetes::kata(&to).map(Some),
            _ => Ok(None),
        }
    }
}

/// Remove what `osc install` put here and nobody edited since
#[derive(clap::Args, Debug)]
pub struct Uninstall {
    #[command(flatten)]
    to: Where,
}

/// What can be put somewhere.
#[derive(Clone, Debug)]
enum What {
    File {
        content: Vec<u8>,
        mode: u32,
    },
    /// A symbolic link.
    Link {
        target: PathBuf,
    },
    /// Lines in a file that is somebody else's, between marks.
    Block {
        text: String,
    },
}

/// One thing, and its place as the node sees it.
#[derive(Clone, Debug)]
struct Item {
    path: PathBuf,
    what: What,
    /// Without it there is no use in the rest: something else in its place is an error.
    must: bool,
}

impl Install {
    pub fn run(self) -> Result<()> {
        if let Some(objects) = self.cluster.print(&self.to.prefix)? {
            let _ = std::io::stdout().write_all(objects.as_bytes());
            return Ok(());
        }
        let program = std::fs::read(this_program()).at(Stage::Request, || "read this program")?;
        let report = self.apply(program)?;
        print(&report);
        Ok(())
    }

    fn apply(&self, program: Vec<u8>) -> Result<Report> {
        let node = Node::new(&self.to.root)?;
        let prefix = absolute(&self.to.prefix)?;
        let mut report = Report::default();
        let mut manifest = Manifest::load(&node)?;
        let items = items(&node, &prefix, program, &self.manager, &manifest, &mut report)?;
        let states = items.iter().map(|i| place::look(&node, &manifest, i)).collect::<Result<Vec<_>>>()?;
        if let Some((item, _)) = items.iter().zip(&states).find(|(i, s)| i.must && **s == State::Foreign) {
            return Err(Failure::new(Stage::Request, format!("{} is there, and not ours", item.path.display()))
                .code(Code::AlreadyExists)
                .way_out("move it away, or choose another --prefix"));
        }
        let _lock = if self.to.dry_run { None } else { Some(manifest.lock(&node)?) };
        for (item, state) in items.iter().zip(states) {
            let done = match state {
                State::Same => Done::Unchanged,
                State::Foreign => Done::Kept,
                State::Absent | State::Ours if self.to.dry_run => Done::Put,
                State::Absent | State::Ours => place::put(&node, &mut manifest, item)?,
            };
            if done == Done::Unchanged && !self.to.dry_run {
                manifest.adopt(item);
            }
            report.did(done, &item.path);
        }
        // What an earlier install put elsewhere.
        for entry in manifest.others(&items) {
            report.did(place::remove(&node, &mut manifest, &entry, self.to.dry_run)?, &entry.path);
        }
        if !self.to.dry_run {
            manifest.save(&node)?;
        }
        report.dry_run = self.to.dry_run;
        Ok(report)
    }
}

impl Uninstall {
    pub fn run(self) -> Result<()> {
        let report = self.apply()?;
        print(&report);
        Ok(())
    }

    fn apply(&self) -> Result<Report> {
        let node = Node::new(&self.to.root)?;
        let mut report = Report { dry_run: self.to.dry_run, ..Report::default() };
        let mut manifest = Manifest::load(&node)?;
        let entries = manifest.others(&[]);
        if entries.is_empty() {
            report.notes.push("nothing is installed".into());
        }
        let _lock = if self.to.dry_run || entries.is_empty() { None } else { Some(manifest.lock(&node)?) };
        for entry in entries.iter().rev() {
            report.did(place::remove(&node, &mut manifest, entry, self.to.dry_run)?, &entry.path);
        }
        let running = node.real(Path::new("/run/osc/x")).ok().and_then(|p| p.parent()?.read_dir().ok()).map_or(0, Iterator::count);
        if running > 0 {
            report.notes.push(format!("{running} sandboxes are there: their shims go on, but nobody can clean up after one that dies"));
        }
        if report.touched("containerd/") {
            report.next.push("systemctl restart containerd".into());
        }
        if report.touched("crio/") {
            report.next.push("systemctl restart crio".into());
        }
        if !self.to.dry_run && !entries.is_empty() {
            manifest.clear(&node)?;
        }
        Ok(report)
    }
}

/// Everything that belongs on this node, in the order in which it is put there.
fn items(node: &Node, prefix: &Path, program: Vec<u8>, managers: &[String], manifest: &Manifest, report: &mut Report) -> Result<Vec<Item>> {
    let bin = prefix.join("bin");
    let mut items = vec![Item { path: bin.join("osc"), what: What::File { content: program, mode: 0o755 }, must: true }];
    for name in names() {
        items.push(Item { path: bin.join(name), what: What::Link { target: "osc".into() }, must: true });
    }
    let text =
        |path: &str, text: String| Item { path: path.into(), what: What::File { content: text.into_bytes(), mode: 0o644 }, must: false };
    items.push(text(texts::DEFAULTS, texts::defaults()));
    if node.has("/etc/systemd/system") {
        items.push(text(texts::UNIT, texts::unit(&bin)));
        items.push(Item { path: texts::WANTS.into(), what: What::Link { target: "../osc-image.service".into() }, must: false });
        report.next.push("systemctl daemon-reload".into());
    } else {
        report.notes.push("no systemd here: run osc image build at boot, or let the first pod wait for it".into());
    }
    let wanted = |name: &str, signs: &[&str]| managers.iter().any(|m| m == name) || signs.iter().any(|s| node.has(s));
    if wanted("containerd", &containerd::SIGNS) {
        let (item, notes) = containerd::register(node, &bin, manifest)?;
        items.extend(item);
        report.notes.extend(notes);
        report.next.push("systemctl restart containerd".into());
    } else {
        report.notes.push("no containerd here (--manager containerd registers with it all the same)".into());
    }
    if wanted("crio", &texts::CRIO_SIGNS) {
        items.push(text(texts::CRIO, texts::crio(&bin)));
        report.next.push("systemctl restart crio".into());
    } else {
        report.notes.push("no CRI-O here (--manager crio registers with it all the same)".into());
    }
    Ok(items)
}

/// Names besides `osc` that people and managers call this binary by. The others are for guests.
fn names() -> impl Iterator<Item = &'static str> {
    ROLES.iter().map(|r| r.name).filter(|n| !matches!(*n, "osc" | "init" | "osc-container"))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() && !path.components().any(|c| c == std::path::Component::ParentDir) {
        return Ok(path.to_owned());
    }
    Err(Failure::new(Stage::Request, format!("--prefix {}", path.display()))
        .code(Code::InvalidArgument)
        .way_out("want a path from the root, without .."))
}

/// What became of it.
#[derive(Debug, Default)]
struct Report {
    done: Vec<(Done, PathBuf)>,
    notes: Vec<String>,
    /// What somebody has to do now.
    next: Vec<String>,
    dry_run: bool,
}

impl Report {
    fn did(&mut self, done: Done, path: &Path) {
        self.done.push((done, path.to_owned()));
    }

    fn touched(&self, part: &str) -> bool {
        let changed = |d: &Done| matches!(d, Done::Put | Done::Removed);
        self.done.iter().any(|(d, path)| changed(d) && path.to_string_lossy().contains(part))
    }
}

fn print(report: &Report) {
    let mut out = std::io::stdout().lock();
    for (done, path) in &report.done {
        let _ = writeln!(out, "{:<12} {}", done.tell(report.dry_run), path.display());
    }
    report.notes.iter().for_each(|n| drop(writeln!(out, "note: {n}")));
    if report.done.iter().any(|(d, _)| matches!(d, Done::Put | Done::Removed)) {
        report.next.iter().for_each(|n| drop(writeln!(out, "next: {n}")));
    }
}
