//! `osc direct-volume`: what a CSI driver calls for volumes that a guest mounts itself, in the words of `kata-runtime direct-volume`.
//!
//! `add` and `remove` write and delete Kata's description on disk; `stats` and `resize` ask the shim that has the volume, on the
//! sandbox's own socket, where two methods beside the Task API answer.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::ctl;
use super::sandbox::Sandbox;
use super::sandbox::direct::{self, MountInfo};
use super::task::status;
use crate::error::Result;
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
            if r.size == 0 {
                return Err(Status::new(Code::InvalidArgument, "a volume cannot have 0 bytes"));
            }
            sandbox().and_then(|s| s.volume_resize(r.volume_guest_path.as_ref(), r.size)).map(|()| Empty {}).map_err(status)
        })),
        _ => None,
    }
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
        assert_eq!(serve(none, RESIZE, b"").unwrap().unwrap_err().code, Code::InvalidArgument);
    }
}
