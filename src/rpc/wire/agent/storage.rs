//! Mounts, files and volumes of the guest.

use super::super::types;

/// Group ownership of a volume.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FsGroup {
    /// The group that owns the volume's files.
    #[prost(uint32, tag = "2")]
    pub group_id: u32,
    /// A [`types::FsGroupChangePolicy`].
    #[prost(enumeration = "types::FsGroupChangePolicy", tag = "3")]
    pub group_change_policy: i32,
}

/// Something to mount in the guest.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Storage {
    /// Which handler: `virtio-fs`, `blk`, `ephemeral`, `local` and their kin.
    #[prost(string, tag = "1")]
    pub driver: String,
    /// For the handler.
    #[prost(string, repeated, tag = "2")]
    pub driver_options: Vec<String>,
    /// What mount(2) gets, or how the handler finds the device.
    #[prost(string, tag = "3")]
    pub source: String,
    #[prost(string, tag = "4")]
    pub fstype: String,
    /// As in fstab, one word each.
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
    /// In the guest.
    #[prost(string, tag = "6")]
    pub mount_point: String,
    #[prost(message, optional, tag = "7")]
    pub fs_group: Option<FsGroup>,
    /// Several containers use it: it goes with the last.
    #[prost(bool, tag = "8")]
    pub shared: bool,
}

/// A file, directory or link for the guest where there is no share.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CopyFileRequest {
    /// In the guest, below the containers' shared directory.
    #[prost(string, tag = "1")]
    pub path: String,
    /// The size it is to have, bytes.
    #[prost(int64, tag = "2")]
    pub file_size: i64,
    /// Type and permissions (st_mode).
    #[prost(uint32, tag = "3")]
    pub file_mode: u32,
    /// Permissions of directories made on the way.
    #[prost(uint32, tag = "4")]
    pub dir_mode: u32,
    #[prost(int32, tag = "5")]
    pub uid: i32,
    #[prost(int32, tag = "6")]
    pub gid: i32,
    /// Where `data` goes: a large file comes in several calls.
    #[prost(int64, tag = "7")]
    pub offset: i64,
    #[prost(bytes = "vec", tag = "8")]
    pub data: Vec<u8>,
}

/// Mounts a tmpfs anew with another size.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UpdateEphemeralMountsRequest {
    #[prost(message, repeated, tag = "1")]
    pub storages: Vec<Storage>,
}

/// Unmounts what the host has removed from the share.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveStaleVirtiofsShareMountsRequest {}

/// Swap on a block device, by PCI path.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddSwapRequest {
    /// Slot and function on each bridge on the way.
    #[prost(uint32, repeated, tag = "1")]
    pub pci_path: Vec<u32>,
}

/// Swap on a block device, by node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AddSwapPathRequest {
    #[prost(string, tag = "1")]
    pub path: String,
}

/// How full a volume is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeStatsRequest {
    #[prost(string, tag = "1")]
    pub volume_guest_path: String,
}

/// A volume has grown.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResizeVolumeRequest {
    #[prost(string, tag = "1")]
    pub volume_guest_path: String,
    /// Bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
}
