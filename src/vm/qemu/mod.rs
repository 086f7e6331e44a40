//! A VM run by QEMU on this host.
//!
//! QEMU is a child that dies with this process. Its ends of everything (QMP, the agent's port, the mux, tap queues) are
//! descriptors it is born with: no path to guess, nobody else to connect, and their end of file is its death.

pub mod accel;

use std::path::PathBuf;
use std::time::Duration;

pub use accel::Accel;

use super::{Caps, Device, Exit, Size, Vm};
use crate::error::{Failure, Result, Stage};
use crate::process::Ledger;
use crate::rpc::Stream;

/// What a VM is to be.
#[derive(Debug)]
pub struct Plan {
    /// The sandbox: becomes the argument `sandbox-<id>`, by which its QEMU is found.
    pub id: String,
    /// QEMU as configured, else [`find`] looks for it.
    pub program: Option<PathBuf>,
    /// The guest kernel, uncompressed (PVH), and its initrd.
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub accel: Accel,
    /// What it boots with.
    pub size: Size,
    /// How far it can grow; never less than `size`.
    pub max: Size,
    /// Present from the start; the sandbox's later ones are plugged.
    pub devices: Vec<Device>,
    /// A directory of the sandbox's own: `console.log` is made there.
    pub dir: PathBuf,
    /// A talkative kernel on the console.
    pub debug: bool,
    /// Appended to the kernel's command line.
    pub kernel_params: Vec<String>,
}

/// A QEMU process and what it runs.
#[derive(Debug)]
pub struct Qemu {}

impl Qemu {
    /// Starts QEMU and returns once it answers on QMP; the guest is then on its way. On an error no process is left.
    pub fn start(_plan: Plan, _ledger: &dyn Ledger) -> Result<Qemu> {
        Err(not_built())
    }

    /// The process of QEMU.
    pub fn pid(&self) -> i32 {
        0
    }
}

/// QEMU where distributions put it: `configured` alone if given, else the names along PATH and the known places.
pub fn find(_configured: Option<&std::path::Path>) -> Result<PathBuf> {
    Err(not_built())
}

/// The command of `plan` as a line for a shell (`osc run --dry-run`); numbers of descriptors are those QEMU would get.
pub fn render(_plan: &Plan) -> Result<String> {
    Err(not_built())
}

fn not_built() -> Failure {
    Failure::new(Stage::Qemu, "not built yet")
}

impl Vm for Qemu {
    fn caps(&self) -> Caps {
        Caps { share: true, hotplug_cpu: true, hotplug_memory: true, block: true, nic: true }
    }

    fn dial(&self, _port: u32) -> Result<Stream> {
        Err(not_built())
    }

    fn resize(&self, _want: Size) -> Result<Size> {
        Err(not_built())
    }

    fn plug(&self, _device: Device) -> Result<()> {
        Err(not_built())
    }

    fn unplug(&self, _id: &str) -> Result<()> {
        Err(not_built())
    }

    fn wait(&self) -> Exit {
        Exit { orderly: false, reason: "not built yet".into() }
    }

    fn stop(&self, _grace: Duration) {}

    fn boot_failure(&self, cause: &str) -> Failure {
        Failure::new(Stage::Agent, cause)
    }

    fn console_tail(&self, _lines: usize) -> Vec<String> {
        Vec::new()
    }
}
