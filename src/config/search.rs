//! Which file is the configuration.

use std::path::{Path, PathBuf};

use crate::error::{Failure, Result, Stage};
use crate::rpc::Code;

/// Where Kata's packages, Red Hat's and ours put it; the first that is there counts.
pub const PLACES: [&str; 7] = [
    "/etc/kata-containers",
    "/etc/kata-containers/runtime-rs",
    "/usr/share/kata-containers/defaults",
    "/usr/share/defaults/kata-containers",
    "/usr/share/defaults/kata-containers/runtime-rs",
    "/opt/kata/share/defaults/kata-containers",
    "/opt/kata/share/defaults/kata-containers/runtime-rs",
];

pub const FILE: &str = "configuration.toml";

/// Kata's environment variable.
pub const VARIABLE: &str = "KATA_CONF_FILE";

/// Who names `given`.
const GIVEN: &str = "the manager's ConfigPath, or the command line,";

/// The main file: `given` (the manager's ConfigPath), else `KATA_CONF_FILE`, else the first of [`PLACES`] that has one.
pub fn find(given: Option<&Path>) -> Result<Option<PathBuf>> {
    let variable = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    among(given, variable.as_deref(), Path::new("/"))
}

fn among(given: Option<&Path>, variable: Option<&Path>, root: &Path) -> Result<Option<PathBuf>> {
    let named = given.filter(|p| !p.as_os_str().is_empty()).map(|p| (p, GIVEN)).or(variable.map(|p| (p, VARIABLE)));
    if let Some((path, who)) = named {
        return match path.metadata() {
            Ok(_) => Ok(Some(path.to_owned())),
            Err(e) => Err(Failure::new(Stage::Request, format!("configuration {}: {e}", path.display()))
                .code(Code::InvalidArgument)
                .way_out(format!("{who} names it: write it, or name none"))),
        };
    }
    Ok(PLACES.iter().map(|place| root.join(&place[1..]).join(FILE)).find(|p| p.exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_then_the_environment_then_the_places_in_order() {
        let root = tempfile::tempdir().unwrap();
        let place = |i: usize| root.path().join(&PLACES[i][1..]);
        assert_eq!(among(None, None, root.path()).unwrap(), None);
        for i in [4, 2, 0] {
            std::fs::create_dir_all(place(i)).unwrap();
            std::fs::write(place(i).join(FILE), "").unwrap();
            assert_eq!(among(None, None, root.path()).unwrap(), Some(place(i).join(FILE)));
        }
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        std::fs::write(&a, "").unwrap();
        assert_eq!(among(None, Some(&a), root.path()).unwrap(), Some(a.clone()));
        let e = among(Some(&b), Some(&a), root.path()).unwrap_err();
        assert!(e.cause.contains("b: No such file") && e.way_out.contains("ConfigPath"), "{e}");
        assert_eq!(among(Some(Path::new("")), Some(&a), root.path()).unwrap(), Some(a));
    }
}
