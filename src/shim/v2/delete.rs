//! `delete`: what a shim that died has left goes, from its record alone.
//!
//! A manager runs it when it has lost the shim, for every container of the pod. stdout carries the answer and nothing else.

use std::time::{Duration, UNIX_EPOCH};

use prost::Message;

use super::flags::Flags;
use super::pod::{self, Kind};
use super::start::socket_path;
use crate::error::{At, Failure, Result, Stage};
use crate::fs::mount;
use crate::process;
use crate::rpc::wire::task::DeleteResponse;
use crate::shim::sandbox::{self, LOST, cleanup, record};
use crate::shim::task::timestamp;

/// How long a shim that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Cleans up; answers a marshalled `DeleteResponse`.
pub fn delete(flags: &Flags) -> Result<Vec<u8>> {
    let bundle = flags.bundle()?;
    sandbox::check_id(&flags.id)?;
    // A bundle that is half gone still names its pod by its own id.
    let kind = pod::read_spec(&bundle).and_then(|spec| pod::kind(&spec)).unwrap_or(Kind::Single);
    let (pod, own) = kind.pod(&flags.id);
    sandbox::check_id(&pod)?;
    let dir = record::dir_of(&pod);
    let told = record::read(&dir).unwrap_or_default().exit_of(&flags.id);
    if sweep(&dir, own)? {
        // The root's mounts are the record's; those of a bundle whose record is gone are looked for as well.
        let rootfs = bundle.join("rootfs");
        mount::detach_below(&rootfs).at(Stage::Share, || format!("unmount {}", rootfs.display()))?;
    }
    if own {
        let _ = std::fs::remove_file(socket_path(&flags.address, &flags.namespace, &pod));
    }
    let (status, at) =
        told.map(|(status, at, _)| (status, UNIX_EPOCH + Duration::from_secs(at))).unwrap_or((LOST, std::time::SystemTime::now()));
    let answer = DeleteResponse { pid: 0, exit_status: status as u32, exited_at: Some(timestamp(at)) };
    Ok(answer.encode_to_vec())
}

/// A pod whose owner is gone is undone. An owner that lives is not touched for the sake of one of its containers, nor is
/// anything of that container (containerd runs `delete` late, when a container of the same name may be there again); for the
/// pod's own sake it is ended: its manager has given it up. Whether the owner is gone.
fn sweep(dir: &std::path::Path, own: bool) -> Result<bool> {
    let undone = |limit| cleanup::undo_when_free(dir, limit).at(Stage::Request, || format!("clean up {}", dir.display()));
    if undone(Duration::ZERO)? {
        return Ok(true);
    }
    if !own {
        return Ok(false);
    }
    let Some((pid, _)) = record::read(dir).unwrap_or_default().owner() else { return Ok(false) };
    // The lock is held, so the pid is still its owner's.
    if let Some(start) = process::start_time(pid) {
        process::kill_named(pid, start).at(Stage::Request, || format!("end shim {pid}"))?;
    }
    if undone(GONE)? {
        return Ok(true);
    }
    Err(Failure::new(Stage::Request, format!("shim {pid} does not end")).way_out("kill it, then run osc reap"))
}
