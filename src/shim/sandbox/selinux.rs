//! The pod's SELinux label for what runs for it on the host: QEMU and virtiofsd.
//!
//! The manager writes it into the specification (`process.selinuxLabel`: `container_kvm_t` with the pod's categories). A
//! program takes the label that its parent's thread names in `/proc/thread-self/attr/exec` (setexeccon(3)). Mounts of the
//! manager bring theirs along as an option (`context=`); a guest has no policy.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

/// Where a kernel with SELinux shows its policy, and where a thread names the next program's label.
const ROOTS: [&str; 2] = ["/sys/fs/selinux", "/proc/thread-self/attr/exec"];

/// The label of whatever this thread executes; dropped, it is the thread's own again.
pub struct ExecLabel(Option<PathBuf>);

impl ExecLabel {
    /// Nothing where the kernel has no SELinux, or the pod no label.
    pub fn set(label: &str) -> Result<ExecLabel> {
        ExecLabel::set_at(ROOTS.map(Path::new), label)
    }

    fn set_at([policy, exec]: [&Path; 2], label: &str) -> Result<ExecLabel> {
        // Every selinuxfs has it.
        if label.is_empty() || !policy.join("enforce").exists() {
            return Ok(ExecLabel(None));
        }
        write(exec, label.as_bytes()).map_err(|e| {
            Failure::new(Stage::Request, format!("SELinux label {label} for QEMU and virtiofsd: {e}"))
                .code(Code::InvalidArgument)
                .way_out("give the pod a label that the host's policy has (container-selinux), or set disable_selinux = true")
        })?;
        Ok(ExecLabel(Some(exec.to_owned())))
    }
}

impl Drop for ExecLabel {
    fn drop(&mut self) {
        if let Some(exec) = &self.0 {
            if let Err(e) = write(exec, b"") {
                log::warn!("{}: the label of the thread's programs stays: {e}", exec.display());
            }
        }
    }
}

/// One write, also of nothing: that is what takes a label back.
fn write(exec: &Path, label: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).truncate(true).open(exec)?;
    match file.write(label)? {
        n if n == label.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LABEL: &str = "system_u:system_r:container_kvm_t:s0:c10,c20";

    #[test]
    fn a_label_is_set_where_selinuxfs_is_mounted_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let (policy, exec) = (dir.path().join("selinux"), dir.path().join("exec"));
        fs::create_dir(&policy).unwrap();
        fs::write(&exec, "").unwrap();
        let seen = || fs::read_to_string(&exec).unwrap();
        // A directory alone is what every kernel has.
        drop(ExecLabel::set_at([&policy, &exec], LABEL).unwrap());
        assert!(ExecLabel::set_at([&policy, &exec], LABEL).unwrap().0.is_none());
        fs::write(policy.join("enforce"), "1").unwrap();
        assert!(ExecLabel::set_at([&policy, &exec], "").unwrap().0.is_none());
        let set = ExecLabel::set_at([&policy, &exec], LABEL).unwrap();
        assert_eq!(seen(), LABEL);
        drop(set);
        assert_eq!(seen(), "");
        let e = ExecLabel::set_at([&policy, &dir.path().join("none")], LABEL).err().unwrap();
        assert!(e.to_string().contains(LABEL) && e.way_out.contains("disable_selinux"), "{e}");
    }

    #[test]
    fn a_label_with_categories_stays_one_option_of_a_mount() {
        let context = format!("context=\"{LABEL}\"");
        let options = crate::fs::options::Options::parse(&["lowerdir=/a:/b", &context, "ro"]);
        assert_eq!(options.data.join(","), format!("lowerdir=/a:/b,{context}"));
    }
}
