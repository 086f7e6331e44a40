//! `osc image build|list|show`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::error::{Failure, Result, Stage};
use crate::fs::image::{self, Want};
use crate::rpc::Code;

#[derive(clap::Subcommand, Debug)]
pub enum Image {
    /// Build the guest image of a kernel, even if there is one
    Build {
        /// Release of the kernel (default: this host's own)
        #[arg(long, value_name = "R")]
        kernel_release: Option<String>,
        /// Directory of the kernel's modules, with modules.dep
        #[arg(long, value_name = "D")]
        modules_dir: Option<PathBuf>,
        /// Where to put it (default: the cache that every start looks in)
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
        /// Only if it is missing or stale
        #[arg(long)]
        if_needed: bool,
    },
    /// List the images in the cache
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what is in an image
    Show {
        /// Release of its kernel (default: the newest)
        release: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Image {
    pub fn run(self) -> Result<()> {
        match self {
            Image::Build { kernel_release, modules_dir, output, if_needed } => {
                build(Want { kernel_release, modules_dir, output, force: !if_needed })
            }
            Image::List { json } => list(json),
            Image::Show { release, json } => show(release.as_deref(), json),
        }
    }
}

fn build(want: Want) -> Result<()> {
    let start = Instant::now();
    let image = image::ensure(&want, &|_| ())?;
    let size = |p: &std::path::Path| std::fs::metadata(p).map(|m| m.len()).unwrap_or(0);
    println!("initrd  {:>9}  {}", kib(size(&image.initrd)), image.initrd.display());
    println!("kernel  {:>9}  {}", kib(size(&image.kernel)), image.kernel.display());
    println!("{} in {} ms", if image.built { "built" } else { "fresh: looked at" }, start.elapsed().as_millis());
    Ok(())
}

fn list(json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !json {
        let _ = writeln!(out, "{:<32} {:>10} {:>8} {:>8}  PATH", "KERNEL", "INITRD", "MODULES", "BUILD");
    }
    for (dir, m) in image::list() {
        let _ = if json {
            writeln!(out, "{}", serde_json::to_string(&m).unwrap_or_default())
        } else {
            let modules = m.core.len() + m.demand.len();
            writeln!(out, "{:<32} {:>10} {:>8} {:>5} ms  {}", m.release, kib(m.initrd_bytes), modules, m.build_ms, dir.display())
        };
    }
    Ok(())
}

fn show(release: Option<&str>, json: bool) -> Result<()> {
    let Some((dir, m)) = image::show(release) else {
        let cause = release.map(|r| format!("no image of kernel {r}")).unwrap_or_else(|| "no image yet".into());
        return Err(Failure::new(Stage::Image, cause).code(Code::NotFound).way_out("osc image build makes one"));
    };
    let mut out = std::io::stdout().lock();
    if json {
        let _ = writeln!(out, "{}", serde_json::to_string_pretty(&m).unwrap_or_default());
        return Ok(());
    }
    let _ = writeln!(
        out,
        "kernel   {}\nbuilt by osc {}\ninitrd   {} ({})",
        m.release,
        m.osc,
        dir.join(&m.initrd).display(),
        kib(m.initrd_bytes)
    );
    let _ = writeln!(out, "sha256   {}\nbinary   {}\nvmlinux  {}", m.initrd_sha256, kib(m.binary_bytes), kib(m.vmlinux_bytes));
    for (title, modules) in [("loaded at boot, in this order", &m.core), ("loaded when needed", &m.demand)] {
        let _ = writeln!(out, "{title}:");
        for (name, bytes) in modules {
            let _ = writeln!(out, "  {:<28} {:>9}", name, kib(*bytes));
        }
    }
    Ok(())
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
