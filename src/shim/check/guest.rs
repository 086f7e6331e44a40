//! What runs inside: the guest kernel and the image made for it.

use std::path::Path;

use super::{Finding, Fix, fail, ok, warn};
use crate::fs::image::{self, ImageError, Kernel, Stored, Want};

/// The guest kernel that would be used, or why there is none.
pub struct Found(Result<Kernel, ImageError>);

impl Found {
    pub fn look() -> Found {
        Found(image::find(None))
    }

    /// The kernel's configuration file.
    pub fn config(&self) -> Option<&Path> {
        self.0.as_ref().ok().and_then(|k| k.config.as_deref())
    }

    pub fn checks(&self) -> Vec<Finding> {
        match &self.0 {
            Ok(kernel) => {
                let fresh = image::fresh(&Want::default()).map(|i| i.map(|i| i.initrd));
                let same: Vec<Stored> = image::list().into_iter().filter(|s| s.manifest.release == kernel.release).collect();
                vec![found(kernel), state(fresh.map_err(|e| e.to_string()), same.len())]
            }
            Err(e) => vec![fail("kernel", e.to_string()).fix(Fix::kernel()), warn("image", "none can be built without a kernel")],
        }
    }
}

fn found(kernel: &Kernel) -> Finding {
    let running = rustix::system::uname().release().to_string_lossy().into_owned();
    let whose = if running == kernel.release { "this host's own" } else { "not this host's own, which has no modules" };
    ok("kernel", format!("{} ({whose}; {})", kernel.release, kernel.vmlinuz.display()))
}

/// `fresh` is the image that the next start would use, `others` counts those of the same kernel.
fn state(fresh: Result<Option<std::path::PathBuf>, String>, others: usize) -> Finding {
    match fresh {
        Ok(Some(initrd)) => ok("image", initrd.display().to_string()),
        Ok(None) if others == 0 => warn("image", "none yet: the first start builds it").fix(Some(Fix::image())),
        Ok(None) => warn("image", "stale, made for another kernel or osc: the next start builds it").fix(Some(Fix::image())),
        Err(e) => fail("image", e),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn an_image_is_there_stale_or_missing() {
        assert_eq!(state(Ok(Some("/x/initrd".into())), 1).detail, "/x/initrd");
        for (others, part) in [(0, "none yet"), (2, "stale")] {
            let f = state(Ok(None), others);
            assert!(f.status == Status::Warn && f.detail.contains(part) && f.fix.is_some(), "{f:?}");
        }
        assert_eq!(state(Err("unreadable".into()), 0).status, Status::Fail);
    }
}
