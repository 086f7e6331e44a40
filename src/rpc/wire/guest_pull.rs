//! Images that the guest pulls: what managers hand over for one, and what the shim makes of it for the agent.
//!
//! A manager's snapshotter gives a mount with the option `io.katacontainers.volume=` and base64 of a JSON object, Kata's
//! `KataVirtualVolume`. The agent gets a storage with the driver `image_guest_pull`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The type of the volume, the name of the storage driver, and the driver's option that holds an [`ImagePull`].
pub const IMAGE_PULL: &str = "image_guest_pull";

/// Of our own: certificates to trust (PEM), and containerd's hosts.toml of the image's registry.
pub const CA: &str = "image_guest_pull_ca";
pub const HOSTS: &str = "image_guest_pull_hosts";

/// The mount option of a manager.
pub const VOLUME: &str = "io.katacontainers.volume";

/// Annotations of containerd and CRI-O: whether a container is the sandbox's own, and what its image is called.
pub const TYPES: [&str; 2] = ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];
pub const NAMES: [&str; 2] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];

/// What is in the option [`VOLUME`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VirtualVolume {
    pub volume_type: String,
    /// The image's name, where the annotations have none.
    pub source: String,
    pub image_pull: Option<ImagePull>,
}

/// What is in the driver's option.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImagePull {
    pub metadata: BTreeMap<String, String>,
}
