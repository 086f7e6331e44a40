//! Files in both dialects, annotations, and the table itself.

mod annotations;
mod commands;
mod files;
mod rows;

use std::path::{Path, PathBuf};

use super::file::{Assembled, assemble};

/// A directory with a configuration.toml, and drop-ins.
struct Files(tempfile::TempDir);

impl Files {
    fn new(main: &str) -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        std::fs::write(files.main(), main).unwrap();
        files
    }

    fn main(&self) -> PathBuf {
        self.0.path().join("configuration.toml")
    }

    fn drop_in(self, name: &str, text: &str) -> Files {
        let dir = self.0.path().join(super::file::DROP_INS);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
        self
    }

    fn read(&self) -> Assembled {
        assemble(Some(&self.main()), "containerd-shim-kata-v2")
    }
}

/// What a text amounts to.
fn of(text: &str) -> Assembled {
    Files::new(text).read()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
