//! The guest: PID 1, containers, storage, hotplug. Knows neither the shim nor the VM it runs in.

pub mod boot;
pub mod channel;
pub mod container;
pub mod forward;
pub mod forwarder;
mod guest;
pub mod live;
pub mod modules;
pub mod oom;
pub mod port;
pub mod power;
mod pull;
pub mod reaper;
pub mod service;
pub mod stdio;
pub mod storage;
pub mod streams;
#[cfg(test)]
pub(crate) use crate::testing;
pub mod trees;
pub mod uevent;

use std::convert::Infallible;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use crate::error::{At, Result, Stage};

/// Role `init`. Returns only where it is not PID 1.
pub fn main(_args: Vec<OsString>) -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("osc: the role init is PID 1 of a guest: this is process {}", std::process::id());
        return ExitCode::from(2);
    }
    let Err(failure) = run();
    power::off(&failure.to_string());
}

/// The guest's life, phase by phase. An error ends it.
fn run() -> Result<Infallible> {
    // What belongs to the process, before there is a second thread.
    power::off_on_panic();
    power::hold_signals();
    crate::memory::tune();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    // Read before the root changes, and gone from there: it holds a key.
    let seed = forwarder::Seed::take().transpose();

    // A root that containers can leave, and what a system has on it.
    boot::move_root()?;
    boot::lay_out()?;
    log_to_console();

    // Devices: whoever waits for one must listen before the drivers come.
    let events = uevent::Uevents::start().at(Stage::Agent, || "device events")?;
    let modules = Arc::new(modules::Modules::new(modules::DIR));
    told(modules.load_channel());

    // Processes: from here on nothing else may wait for one.
    let guest = guest::Guest::new(modules.clone(), events, reaper::Reaper::start()).at(Stage::Agent, || "containers")?;
    let guest = Arc::new(guest);

    let seed = seed?;
    if seed.is_some() || forwarder::disk::is_ours() {
        told(modules.load_rest());
        let seed = match seed {
            Some(seed) => seed,
            None => forwarder::disk::start(&guest)?,
        };
        boot::settle();
        guest.settled.open();
        forwarder::start(guest, seed)?;
        power::off_on_signal()
    }

    // The host may call; what it asks for waits for what it needs of the rest.
    channel::Channel::new(guest.clone()).listen();
    log::info!("agent {} listens {} ms after the kernel", crate::VERSION, uptime_ms());
    told(modules.load_rest());
    told(modules.load_drivers());
    boot::settle();
    guest.settled.open();
    power::off_on_signal()
}

fn told(failed: Vec<modules::ModuleError>) {
    for e in failed {
        log::error!("{e}");
    }
}

/// Log lines to the console; `agent.log=LEVEL` on the kernel's command line is Kata's name for how many.
fn log_to_console() {
    use std::os::unix::fs::OpenOptionsExt;
    let level = boot::command_line().split_whitespace().find_map(|w| w.strip_prefix("agent.log=")).and_then(|l| l.parse().ok());
    if let Ok(console) = std::fs::File::options().write(true).custom_flags(libc::O_NOCTTY).open("/dev/console") {
        crate::log::init(console, None, level.unwrap_or(log::LevelFilter::Info));
    }
}

/// Since the kernel's first instruction.
fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}
