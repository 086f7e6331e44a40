//! `osc netsetup`: what the shim does to a pod's network, by hand, and what can be seen of it.
//!
//! For whoever debugs a node at night: `inspect` draws what is there, `verify` walks the way of a packet and says at which
//! hop it ends, `tap` and `undo` make and unmake it, `--dry-run` prints the commands that would do the same.

mod picture;
mod svg;
mod verify;
mod view;
mod vxlan;

use std::path::PathBuf;

use clap::Subcommand;

use super::endpoint::{self, Tie};
use super::namespace::Namespace;
use super::{NetError, link};
use crate::error::{At, Failure, Result, Stage};
pub use view::View;

/// Make, look at, check and undo what ties a pod's network to its VM
#[derive(Subcommand, Debug)]
pub enum Netsetup {
    /// Tie every interface of a namespace to a tap, as for a VM on this host
    Tap(Tap),
    #[command(subcommand)]
    Vxlan(vxlan::Ends),
    /// Draw what is in a namespace: devices, addresses, redirections, routes
    Inspect(Inspect),
    /// Walk a packet's way hop by hop and say where it ends
    Verify(Where),
    /// Take away taps and redirections; what the CNI made stays
    Undo(Change),
}

/// Which namespace, and how to tell.
#[derive(clap::Args, Debug)]
pub struct Where {
    /// The pod's network namespace: /run/netns/NAME or /proc/PID/ns/net
    #[arg(long, value_name = "PATH")]
    pub netns: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Something that changes the namespace.
#[derive(clap::Args, Debug)]
pub struct Change {
    #[command(flatten)]
    pub place: Where,
    /// Print the ip and tc commands that do the same, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  osc netsetup tap --netns /run/netns/pod --dry-run | sh")]
pub struct Tap {
    #[command(flatten)]
    pub change: Change,
    /// Queues of each tap: one for each vCPU of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queues: usize,
}

#[derive(clap::Args, Debug)]
pub struct Inspect {
    #[command(flatten)]
    pub place: Where,
    /// Draw into a file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

impl Netsetup {
    /// Answers the exit status: 1 where `verify` found something broken.
    pub fn run(&self) -> Result<i32> {
        if !rustix::process::geteuid().is_root() {
            return Err(Failure::new(Stage::Request, "osc netsetup needs root: it enters network namespaces").way_out("use sudo"));
        }
        match self {
            Netsetup::Tap(t) => t.run(),
            Netsetup::Vxlan(v) => v.run(),
            Netsetup::Inspect(i) => i.run(),
            Netsetup::Verify(w) => w.verify(),
            Netsetup::Undo(c) => c.undo(),
        }
    }
}

impl Tap {
    fn run(&self) -> Result<i32> {
        let place = &self.change.place;
        let namespace = endpoint::open(&place.netns)?;
        let network = endpoint::look(&namespace)?;
        let view = View::of(&namespace)?;
        let tied = |name: &str| view.devices.iter().any(|d| d.name == name && !d.redirect.is_empty());
        if let Some(done) = network.interfaces.iter().find(|i| tied(&i.link.name)) {
            let cause = format!("{} of {} is tied already", done.link.name, place.netns.display());
            let way_out = format!("osc netsetup inspect --netns {0}; undo it with osc netsetup undo --netns {0}", place.netns.display());
            return Err(Failure::new(Stage::Network, cause).way_out(way_out));
        }
        if network.interfaces.is_empty() {
            let cause = format!("{}: no interface to tie (none is up or has an address)", place.netns.display());
            return Err(Failure::new(Stage::Network, cause).way_out("let the CNI, or `ip link`, put one there first"));
        }
        if self.change.dry_run {
            let ties = endpoint::plan(&namespace, &network.interfaces)?;
            let steps = network.interfaces.iter().zip(&ties).flat_map(|(i, t)| endpoint::steps(t, i.link.mtu, self.queues));
            steps.for_each(|s| println!("{}", in_namespace(&place.netns, &s.to_string())));
            return Ok(0);
        }
        let (_, made) = endpoint::attach(&place.netns, self.queues, true)?;
        if place.json {
            return json(&made.iter().map(|e| &e.tie).collect::<Vec<_>>());
        }
        for e in &made {
            let Tie { link, tap, .. } = &e.tie;
            println!(
                "{link} <-> {tap}  MAC {}  MTU {}  queues {}",
                link::show_mac(&e.interface.link.mac),
                e.interface.link.mtu,
                self.queues
            );
        }
        println!(
            "A guest on {} needs the MAC of its interface. See: osc netsetup verify --netns {}",
            made[0].tie.tap,
            place.netns.display()
        );
        Ok(0)
    }
}

impl Inspect {
    fn run(&self) -> Result<i32> {
        let view = View::of(&Namespace::open(&self.place.netns)?)?;
        if let Some(file) = &self.svg {
            std::fs::write(file, svg::draw(&view)).at(Stage::Request, || format!("write {}", file.display()))?;
        }
        if self.place.json {
            return json(&view);
        }
        print!("{}", picture::draw(&view));
        Ok(0)
    }
}

impl Where {
    fn verify(&self) -> Result<i32> {
        let hops = verify::walk(&Namespace::open(&self.netns)?)?;
        let broken = hops.iter().any(|h| !h.ok);
        if self.json {
            json(&hops)?;
        } else {
            hops.iter().for_each(|h| println!("{} {:<34} {}", if h.ok { "ok    " } else { "BROKEN" }, h.hop, h.detail));
        }
        Ok(i32::from(broken))
    }
}

impl Change {
    fn undo(&self) -> Result<i32> {
        let namespace = endpoint::open(&self.place.netns)?;
        let ties = standing(&namespace)?;
        if self.dry_run {
            ties.iter().flat_map(endpoint::undo_commands).for_each(|c| println!("{}", in_namespace(&self.place.netns, &c)));
            return Ok(0);
        }
        let tunnels = vxlan::rules_of(&namespace)?;
        let mut errors = endpoint::detach(&ties);
        errors.extend(vxlan::remove_rules(&tunnels).err());
        if self.place.json {
            json(&ties)?;
        } else if ties.is_empty() {
            println!("{}: nothing of ours", self.place.netns.display());
        } else {
            ties.iter().for_each(|t| println!("{} <-> {} undone", t.link, t.tap));
        }
        match errors.into_iter().next() {
            Some(e) => Err(e.into()),
            None => Ok(0),
        }
    }
}

/// The ties that stand in the namespace, seen from its devices. A redirection to a tap that is gone counts.
pub fn standing(namespace: &Namespace) -> Result<Vec<Tie>, NetError> {
    let view = View::of(namespace)?;
    let tie = |link: &str, tap: &str| Tie { netns: namespace.path().to_owned(), id: namespace.id(), link: link.into(), tap: tap.into() };
    let ours = |name: &str| view.devices.iter().any(|d| d.name == name && d.ours);
    let of_links = view.devices.iter().filter(|d| !d.ours).filter_map(|d| {
        let to = d.redirect.first()?;
        (to == view::GONE || ours(to)).then(|| tie(&d.name, to))
    });
    let mut ties: Vec<Tie> = of_links.collect();
    let lone = view.devices.iter().filter(|d| d.ours).filter(|d| !ties.iter().any(|t| t.tap == d.name)).map(|d| tie("", &d.name));
    let lone: Vec<Tie> = lone.collect();
    ties.extend(lone);
    Ok(ties)
}

/// The command as it is typed outside the namespace.
fn in_namespace(netns: &std::path::Path, command: &str) -> String {
    command.split(" || ").map(|c| format!("nsenter --net={} {c}", netns.display())).collect::<Vec<_>>().join(" || ")
}

fn json(value: &impl serde::Serialize) -> Result<i32> {
    println!("{}", serde_json::to_string_pretty(value).at(Stage::Request, || "JSON")?);
    Ok(0)
}
