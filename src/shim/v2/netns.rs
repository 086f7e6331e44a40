//! The shim lives in its pod's network namespace.
//!
//! A manager takes `/proc/<pid>/ns/net` and `/proc/<pid>/net/dev` of the pid it was answered for the pod's. A process's
//! namespace is that of its first thread, so that thread does nothing but wait here and enter what it is told to. A
//! namespace made here goes with the process: there is nothing to clean up.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Mutex, mpsc::Sender};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::pod::Network;
use crate::error::{At, Failure, Result, Stage};
use crate::rpc::Code;

type Job = (Network, SyncSender<Result<PathBuf>>);

/// Asks the first thread.
pub struct Door {
    jobs: Mutex<Sender<Job>>,
}

/// The first thread's end.
pub struct Porter {
    jobs: Receiver<Job>,
}

pub fn door() -> (Door, Porter) {
    let (jobs, inbox) = channel();
    (Door { jobs: Mutex::new(jobs) }, Porter { jobs: inbox })
}

impl Door {
    /// Moves the process there; answers the namespace's path.
    pub fn enter(&self, network: Network) -> Result<PathBuf> {
        let gone = || Failure::new(Stage::Network, "the shim is ending").code(Code::Unavailable);
        let (reply, answer) = sync_channel(1);
        self.jobs.lock().unwrap_or_else(|p| p.into_inner()).send((network, reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Porter {
    /// Serves for as long as the process lives. To be called by the first thread.
    pub fn serve(self) -> ! {
        for (network, reply) in self.jobs {
            let _ = reply.send(enter(network));
        }
        // The door is never closed: whoever ends the process ends this thread, too.
        loop {
            std::thread::park();
        }
    }
}

fn enter(network: Network) -> Result<PathBuf> {
    match network {
        Network::Host => Err(host_network()),
        Network::New => {
            // SAFETY: only this thread changes its network namespace; no memory is shared with anything that it concerns.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.at(Stage::Network, || "make a network namespace")?;
            Ok(PathBuf::from(format!("/proc/{}/ns/net", std::process::id())))
        }
        Network::At(path) => {
            let at = |e: io::Error| Failure::new(Stage::Network, format!("network namespace {}: {e}", path.display()));
            let file = File::open(&path).map_err(at)?;
            if same(&file, Path::new("/proc/self/ns/net")).map_err(at)? {
                return Err(host_network());
            }
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
                .map_err(|e| at(e.into()).code(Code::InvalidArgument))?;
            Ok(path)
        }
    }
}

fn host_network() -> Failure {
    Failure::new(Stage::Network, "the host's network namespace cannot be given to a VM")
        .code(Code::InvalidArgument)
        .way_out("run this pod without hostNetwork, or with another runtime class")
}

fn same(file: &File, other: &Path) -> io::Result<bool> {
    let (a, b) = (file.metadata()?, std::fs::metadata(other)?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}
