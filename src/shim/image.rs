//! `osc image build|list|show`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::progress::Progress;
use crate::error::{Failure, Result, Stage};
use crate::fs::image::disk::{self, Format};
use crate::fs::image::{self, Stored, Want};
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
        /// Only if the cache has none, or a stale one
        #[arg(long, conflicts_with = "output")]
        if_needed: bool,
        /// A pod VM's whole disk instead (qcow2, raw or vhd), which boots by BIOS and UEFI; --output is then the file
        #[arg(long, value_name = "FORMAT", conflicts_with = "if_needed")]
        disk: Option<Format>,
    },
    /// List the images in the cache
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show what is in an image
    Show {
        /// Release of its kernel, or its key (default: the newest)
        release: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

impl Image {
    pub fn run(self) -> Result<()> {
        match self {
            Image::Build { kernel_release, modules_dir, output, if_needed, disk } => {
                let want = Want { kernel_release, modules_dir, output, force: !if_needed };
                match disk {
                    Some(format) => build_disk(&want, format),
                    None => build(want),
                }
            }
            Image::List { json } => list(json),
            Image::Show { release, json } => show(release.as_deref(), json),
        }
    }
}

fn build(want: Want) -> Result<()> {
    let start = Instant::now();
    let progress = Progress::new(std::io::stderr().is_terminal());
    let image = image::ensure(&want, &|what| progress.tell(what));
    progress.clear();
    let image = image?;
    let size = |p: &Path| std::fs::metadata(p).map(|m| m.len()).unwrap_or(0);
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "initrd  {:>9}  {}", kib(size(&image.initrd)), image.initrd.display());
    let _ = writeln!(out, "kernel  {:>9}  {}", kib(size(&image.kernel)), image.kernel.display());
    let _ = writeln!(out, "{} in {} ms", if image.built { "built" } else { "fresh: looked at" }, start.elapsed().as_millis());
    Ok(())
}

fn build_disk(want: &Want, format: Format) -> Result<()> {
    let start = Instant::now();
    let progress = Progress::new(std::io::stderr().is_terminal());
    let disk = disk::build(want, format, &|what| progress.tell(what));
    progress.clear();
    let disk = disk?;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "disk    {:>9}  {} (a VM sees {})", kib(disk.bytes), disk.path.display(), kib(disk.size));
    let _ = writeln!(out, "built in {} ms", start.elapsed().as_millis());
    Ok(())
}

fn list(json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if !json {
        let _ = writeln!(out, "{:<32} {:<16} {:>10} {:>7} {:>4}  {:<7} OSC", "KERNEL", "KEY", "INITRD", "MODULES", "VMS", "CURRENT");
    }
    for s in image::list() {
        let _ = if json {
            writeln!(out, "{}", told(&s))
        } else {
            let m = &s.manifest;
            let (modules, current) = (m.core.len() + m.demand.len(), if s.current { "yes" } else { "no" });
            let initrd = kib(m.initrd_bytes);
            writeln!(out, "{:<32} {:<16} {initrd:>10} {modules:>7} {:>4}  {current:<7} {}", m.release, m.key, s.vms, m.osc)
        };
    }
    Ok(())
}

/// The manifest, and what only the cache knows.
fn told(stored: &Stored) -> serde_json::Value {
    let mut value = serde_json::to_value(&stored.manifest).unwrap_or_default();
    value["dir"] = stored.dir.display().to_string().into();
    value["current"] = stored.current.into();
    value["vms"] = stored.vms.into();
    value
}

fn show(release: Option<&str>, json: bool) -> Result<()> {
    let chosen = image::list().into_iter().rfind(|s| release.map_or(s.current, |r| s.manifest.release == r || s.manifest.key == r));
    let Some(s) = chosen else {
        let cause = release.map_or("no image yet".into(), |r| format!("no image of kernel {r}"));
        return Err(Failure::new(Stage::Image, cause).code(Code::NotFound).way_out("osc image build makes one"));
    };
    let mut out = std::io::stdout().lock();
    let _ = if json { writeln!(out, "{:#}", told(&s)) } else { describe(&mut out, &s) };
    Ok(())
}

fn describe(out: &mut impl Write, s: &Stored) -> std::io::Result<()> {
    let m = &s.manifest;
    writeln!(out, "kernel    {} ({})", m.release, m.vmlinuz)?;
    writeln!(out, "key       {}{}", m.key, if s.current { " (current)" } else { "" })?;
    writeln!(out, "built by  osc {} in {} ms", m.osc, m.build_ms)?;
    writeln!(out, "initrd    {} ({})", s.dir.join(&m.initrd).display(), kib(m.initrd_bytes))?;
    writeln!(out, "sha256    {}", m.initrd_sha256)?;
    writeln!(out, "/sbin/init {}, vmlinux {}, running VMs {}", kib(m.binary_bytes), kib(m.vmlinux_bytes), s.vms)?;
    writeln!(out, "modules {}", if m.signed { "with their signatures, which this kernel forces" } else { "without signatures" })?;
    for (title, modules) in [("loaded at boot, in this order", &m.core), ("loaded when needed", &m.demand)] {
        writeln!(out, "{title}:")?;
        modules.iter().try_for_each(|size| writeln!(out, "  {:<34} {:>9}", size.name, kib(size.bytes)))?;
    }
    for (title, names) in [("built into the kernel", &m.builtin), ("not in this kernel", &m.missing)] {
        if !names.is_empty() {
            writeln!(out, "{title}: {}", names.join(", "))?;
        }
    }
    Ok(())
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes.div_ceil(1024))
}
