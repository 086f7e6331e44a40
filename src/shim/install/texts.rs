//! Files that are ours alone: the default configuration, the unit, the drop-in for CRI-O.

use std::path::Path;

use crate::config::docs;

pub const DEFAULTS: &str = "/usr/share/kata-containers/defaults/configuration.toml";
pub const UNIT: &str = "/etc/systemd/system/osc-image.service";
/// Enables the unit.
pub const WANTS: &str = "/etc/systemd/system/multi-user.target.wants/osc-image.service";
pub const CRIO: &str = "/etc/crio/crio.conf.d/50-osc.conf";

/// Any of these says that CRI-O is here.
pub const CRIO_SIGNS: [&str; 4] = ["/etc/crio", "/usr/bin/crio", "/usr/local/bin/crio", "/usr/libexec/crio"];

/// The built-in defaults as a file, every key with what it does.
pub fn defaults() -> String {
    docs::default_file()
}

/// The unit of the source tree, with this prefix.
pub fn unit(bin: &Path) -> String {
    include_str!("../../../scripts/systemd/osc-image.service").replace("/usr/local/bin", &bin.to_string_lossy())
}

/// Handlers `kata` and `kata-remote`, as CRI-O wants a VM's runtime described.
pub fn crio(bin: &Path) -> String {
    let mut text = String::from("# Written by osc install.\n");
    for name in ["kata", "kata-remote"] {
        let path = bin.join(format!("containerd-shim-{name}-v2"));
        text.push_str(&format!("[crio.runtime.runtimes.{name}]\n"));
        text.push_str(&format!("runtime_path = {:?}\n", path.to_string_lossy()));
        text.push_str("runtime_type = \"vm\"\nruntime_root = \"/run/kata\"\nprivileged_without_host_devices = true\n");
    }
    text
}
