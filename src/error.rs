//! A failure as data: set where it arises, rendered once at the edge.
//!
//! Modules have error enums of their own (`thiserror`), each variant's doc comment saying what to do about it; on the way
//! up they become a [`Failure`], the one value that reaches `ctr`, `kubectl describe`, `osc run` and the log alike.

use std::fmt;

use crate::rpc::Code;

/// Where in a pod's life something failed. The order is that of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// The request itself: arguments, a bundle, a specification, a configuration.
    Request,
    /// The guest image, or the container image.
    Image,
    /// The directory tree that virtio-fs shows to the guest, and its daemon.
    Share,
    /// Interfaces, addresses, routes.
    Network,
    /// QEMU: finding it, starting it, talking to it.
    Qemu,
    /// The guest kernel, from its first instruction to our PID 1.
    Kernel,
    /// PID 1 of the guest and the channel to it.
    Agent,
    /// A container or a process in it.
    Container,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Request => "request",
            Stage::Image => "image",
            Stage::Share => "share",
            Stage::Network => "network",
            Stage::Qemu => "qemu",
            Stage::Kernel => "kernel",
            Stage::Agent => "agent",
            Stage::Container => "container",
        })
    }
}

/// What went wrong, in a form that an edge can render: one line for a manager, several for a terminal.
#[derive(Clone, Debug)]
pub struct Failure {
    pub stage: Stage,
    /// What a container manager is told; it acts on the code, people read the text.
    pub code: Code,
    /// The thing, the value and the cause: `kernel 6.1.0-9: no modules in /lib/modules/6.1.0-9`.
    pub cause: String,
    /// What a user can do about it: `install linux-image-6.1.0-9 or pass --kernel-release`. May be empty.
    pub way_out: String,
    /// The last lines of the guest's console, where the guest has something to say about it.
    pub console: Vec<String>,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(stage: Stage, cause: impl Into<String>) -> Failure {
        Failure { stage, code: Code::Internal, cause: cause.into(), way_out: String::new(), console: Vec::new() }
    }

    /// A failure that another process of ours rendered: its text begins with its stage.
    pub fn told(code: Code, message: String) -> Failure {
        let stages =
            [Stage::Request, Stage::Image, Stage::Share, Stage::Network, Stage::Qemu, Stage::Kernel, Stage::Agent, Stage::Container];
        let found = stages.into_iter().find_map(|s| Some((s, message.strip_prefix(&format!("{s}: "))?.to_owned())));
        let (stage, cause) = found.unwrap_or((Stage::Request, message));
        Failure::new(stage, cause).code(code)
    }

    /// What `osc run` exits with: a shell's numbers for a command that is not there (127) or cannot be executed (126), 125 for
    /// everything that is ours.
    pub fn exit_status(&self) -> i32 {
        match (self.stage, self.code) {
            (Stage::Container, Code::NotFound) => 127,
            (Stage::Container, Code::PermissionDenied) => 126,
            _ => 125,
        }
    }

    /// For whoever knows better than the place where it arose.
    pub fn stage(mut self, stage: Stage) -> Failure {
        self.stage = stage;
        self
    }

    pub fn code(mut self, code: Code) -> Failure {
        self.code = code;
        self
    }

    pub fn way_out(mut self, way_out: impl Into<String>) -> Failure {
        self.way_out = way_out.into();
        self
    }

    pub fn console(mut self, lines: Vec<String>) -> Failure {
        self.console = lines;
        self
    }
}

/// One line: `stage: cause (way out)`. The console is for the edges that have room for it.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.cause)?;
        if !self.way_out.is_empty() {
            write!(f, " ({})", self.way_out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// Gives a lower error its stage and names the thing it happened to.
pub trait At<T> {
    /// `what` is the thing and its value (`mount /proc`); the error's own text follows after a colon.
    fn at<S: Into<String>>(self, stage: Stage, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display> At<T> for std::result::Result<T, E> {
    fn at<S: Into<String>>(self, stage: Stage, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Failure::new(stage, format!("{}: {e}", what().into())))
    }
}
