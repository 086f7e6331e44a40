//! `osc direct-volume`: what a CSI driver calls for volumes that a guest mounts itself, in the words of `kata-runtime direct-volume`.
//!
//! `add` and `remove` write and delete Kata's description on disk; `stats` and `resize` ask the shim that has the volume, on the
//! sandbox's own socket, where two methods beside the Task API answer. Kata's management socket answers the same by HTTP:
//! `/direct-volume/stats?path=DEVICE` and a POST of `{"VolumePath":DEVICE,"Size":BYTES}` to `/direct-volume/resize`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::ctl;
use super::sandbox::Sandbox;
use super::sandbox::direct::{self, MountInfo, invalid};
use super::task::status;
use crate::error::Result;
use crate::rpc::http::{Reply, Request};
use crate::rpc::wire::agent::{ResizeVolumeRequest, VolumeStatsRequest, VolumeStatsResponse};
use crate::rpc::wire::google::Empty;
use crate::rpc::{Code, Status, unary};

/// Methods of a sandbox's socket; a volume is named by its device on the host.
const STATS: &str = "DirectVolumeStats";
const RESIZE: &str = "DirectVolumeResize";

/// A guest that looks, or that grows a file system.
const LIMIT: Duration = Duration::from_secs(60);

/// Volumes that a pod's guest mounts itself
#[derive(clap::Subcommand, Debug)]
pub enum DirectVolume {
    /// Describe a volume: which device is behind its path
    Add {
        /// The path that the kubelet binds into containers
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
        /// {"volume-type":"block","device":"/dev/X","fstype":"ext4","options":[...],"metadata":{"fsGroup":"1000"}}
        #[arg(long, value_name = "JSON")]
        mount_info: String,
    },
    /// Forget a volume
    Remove {
        /// Its path
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
    },
    /// Print how full a volume is, as its guest sees it: JSON
    Stats {
        /// Its path
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
    },
    /// Have its guest see that the device has grown, and grow the file system
    Resize {
        /// Its path
        #[arg(long, value_name = "PATH")]
        volume_path: PathBuf,
        /// Bytes
        #[arg(long, value_name = "BYTES")]
        size: u64,
    },
}

impl DirectVolume {
    pub fn run(self) -> Result<()> {
        match self {
            DirectVolume::Add { volume_path, mount_info } => direct::add(&volume_path, &MountInfo::parse(&mount_info)?),
            DirectVolume::Remove { volume_path } => direct::remove(&volume_path),
            DirectVolume::Stats { volume_path } => {
                let (sandbox, info) = direct::owner(&volume_path)?;
                let stats = ctl::ask(&sandbox, STATS, &VolumeStatsRequest { volume_guest_path: info.device }, LIMIT)?;
                println!("{}", show(&stats));
                Ok(())
            }
            DirectVolume::Resize { volume_path, size } => {
                let (sandbox, info) = direct::owner(&volume_path)?;
                ctl::ask(&sandbox, RESIZE, &ResizeVolumeRequest { volume_guest_path: info.device, size }, LIMIT).map(|Empty {}| ())
            }
        }
    }
}

/// The shim's side; None for a method that is not one of these.
pub fn serve(sandbox: impl FnOnce() -> Result<std::sync::Arc<Sandbox>>, method: &str, payload: &[u8]) -> Option<Result<Vec<u8>, Status>> {
    match method {
        STATS => Some(unary(payload, |r: VolumeStatsRequest| {
            sandbox().and_then(|s| s.volume_stats(r.volume_guest_path.as_ref())).map_err(status)
        })),
        RESIZE => Some(unary(payload, |r: ResizeVolumeRequest| {
            sandbox().and_then(|s| s.volume_resize(r.volume_guest_path.as_ref(), r.size)).map(|()| Empty {}).map_err(status)
        })),
        _ => None,
    }
}

/// What Kata's management socket serves, each by GET and by POST: Kata's two runtimes differ in that.
pub const PATHS: &[&str] = &["/direct-volume/stats", "/direct-volume/resize"];

/// The body of a resize, in the words of either runtime.
#[derive(serde::Deserialize)]
struct Resize {
    #[serde(rename = "VolumePath", alias = "volume_guest_path")]
    device: PathBuf,
    #[serde(rename = "Size", alias = "size")]
    size: u64,
}

/// Answers one of [`PATHS`].
pub fn reply(request: &Request, sandbox: &Sandbox) -> Reply {
    let done = if request.path == PATHS[0] { stats(request, sandbox) } else { resize(request, sandbox) };
    match done {
        Ok(text) => Reply::ok("application/json", text),
        Err(e) if e.code == Code::InvalidArgument => Reply::error("400 Bad Request", e.to_string()),
        Err(e) => Reply::error("500 Internal Server Error", e.to_string()),
    }
}

fn stats(request: &Request, sandbox: &Sandbox) -> Result<String> {
    let device = request.decoded("path").ok_or_else(|| invalid("want ?path=DEVICE".into()))?;
    sandbox.volume_stats(device.as_ref()).map(|s| show(&s).to_string())
}

fn resize(request: &Request, sandbox: &Sandbox) -> Result<String> {
    let wanted: Resize =
        serde_json::from_slice(&request.body).map_err(|e| invalid(format!("{e}: want {{\"VolumePath\":DEVICE,\"Size\":BYTES}}")))?;
    sandbox.volume_resize(&wanted.device, wanted.size).map(|()| String::new())
}

/// The JSON that Kata prints.
fn show(stats: &VolumeStatsResponse) -> Value {
    let usage: Vec<Value> =
        stats.usage.iter().map(|u| json!({"available": u.available, "total": u.total, "used": u.used, "unit": u.unit})).collect();
    let condition = stats.volume_condition.as_ref().map(|c| json!({"abnormal": c.abnormal, "message": c.message}));
    json!({"usage": usage, "volume_condition": condition.unwrap_or_else(|| json!({}))})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::wire::agent::VolumeUsage;

    #[test]
    fn figures_as_kata_prints_them() {
        let usage = vec![VolumeUsage { available: 1, total: 3, used: 2, unit: 1 }];
        let text = show(&VolumeStatsResponse { usage, volume_condition: None }).to_string();
        assert_eq!(text, r#"{"usage":[{"available":1,"total":3,"unit":1,"used":2}],"volume_condition":{}}"#);
    }

    #[test]
    fn other_methods_are_not_ours() {
        let none = || Err(crate::error::Failure::new(crate::error::Stage::Request, "none").code(Code::NotFound));
        assert!(serve(none, "Create", b"").is_none());
        assert_eq!(serve(none, STATS, b"").unwrap().unwrap_err().code, Code::NotFound);
        for text in [r#"{"VolumePath":"/dev/a","Size":7}"#, r#"{"volume_guest_path":"/dev/a","size":7}"#] {
            assert_eq!(serde_json::from_str::<Resize>(text).unwrap().size, 7);
        }
    }
}
