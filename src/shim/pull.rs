//! `osc pull`: an image from a registry, into a store of images or straight into a directory.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use super::progress::Progress;
use crate::error::{At, Failure, Result, Stage};
use crate::fs::oci::Image;
use crate::fs::oci::registry::{self, Access, Client, Content, Reference};
use crate::rpc::Code;

/// Prints the image's name with its digest.
#[derive(clap::Args, Debug)]
pub struct Pull {
    /// [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    image: String,
    /// OCI layout to put it into (default: this host's store, /var/cache/osc/images)
    #[arg(long, value_name = "LAYOUT")]
    output: Option<PathBuf>,
    /// Unpack it into a new or empty directory, layer by layer as they come, and keep nothing else
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    unpack: Option<PathBuf>,
    #[command(flatten)]
    access: Access,
}

impl Pull {
    pub fn run(self) -> Result<()> {
        let progress = Progress::new(std::io::stderr().is_terminal());
        let pulled = self.pull(&|what| progress.tell(what));
        progress.clear();
        println!("{}", pulled?);
        Ok(())
    }

    fn pull(&self, progress: &(dyn Fn(&str) + Sync)) -> Result<String> {
        let client = Client::new(Reference::parse(&self.image)?, &self.access)?;
        let place = self.unpack.as_deref().map(Fresh::make).transpose()?;
        progress("asking for the image");
        let image = client.resolve()?;
        match place {
            Some(place) => {
                registry::unpack(&client, &image, &place.dir, progress)?;
                place.keep();
            }
            None => Content::open(self.output.as_deref())?.pull(&client, &image, progress)?,
        }
        Ok(format!("{}/{}@{}", client.image.registry, client.image.repository, image.digest))
    }
}

/// The image called `name`, from this host's store; pulled first where it is not there.
pub fn stored(name: &str, progress: &(dyn Fn(&str) + Sync)) -> Result<Image> {
    let reference = Reference::parse(name)?;
    let (whole, content) = (reference.to_string(), Content::open(None)?);
    if let Some(image) = content.image(&whole)? {
        return Ok(image);
    }
    let client = Client::new(reference, &Access::default())?;
    progress("asking for the image");
    content.pull(&client, &client.resolve()?, progress)?;
    content.image(&whole)?.ok_or_else(|| Failure::new(Stage::Image, format!("image {whole}: it was pulled, and is gone again")))
}

/// A directory to be filled, empty again if that fails.
struct Fresh {
    dir: PathBuf,
    /// It was not there.
    made: bool,
    kept: bool,
}

impl Fresh {
    fn make(dir: &Path) -> Result<Fresh> {
        let (what, taken) = (|| format!("--unpack {}", dir.display()), "it is not empty");
        let made = match std::fs::create_dir(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if std::fs::read_dir(dir).at(Stage::Request, what)?.next().is_some() {
                    let failure = Failure::new(Stage::Request, format!("{}: {taken}", what())).code(Code::InvalidArgument);
                    return Err(failure.way_out("name a directory that is not there yet"));
                }
                false
            }
            Err(e) => return Err(e).at(Stage::Request, what),
        };
        Ok(Fresh { dir: dir.into(), made, kept: false })
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let path = entry.path();
            let removed = if path.is_dir() && !path.is_symlink() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(e) = removed {
                log::warn!("{}: {e}", path.display());
            }
        }
        if self.made {
            let _ = std::fs::remove_dir(&self.dir);
        }
    }
}
