//! What is done to files, the same by the do-nothing guest's `init` and in a container: the host has laid out a tree
//! ([`lay_out`]), each step is timed, and `name seconds` is printed for each.
#![allow(dead_code)] // The host lays out, the guest runs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

pub const STEPS: [&str; 5] = ["sequential read", "sequential write", "random read", "metadata", "walk"];

const LARGE: usize = 64 << 20;
const BLOCK: usize = 128 << 10;
const PAGE: usize = 4 << 10;
const READS: u64 = 2000;
const MADE: usize = 400;
const DIRECTORIES: usize = 50;
const FILES: usize = 40;

/// On the host.
pub fn lay_out(dir: &Path) -> io::Result<()> {
    for name in ["large", "random"] {
        let mut file = File::create(dir.join(name))?;
        for n in 0..LARGE / BLOCK {
            file.write_all(&[n as u8; BLOCK])?;
        }
    }
    for d in 0..DIRECTORIES {
        let sub = dir.join("tree").join(d.to_string());
        fs::create_dir_all(&sub)?;
        (0..FILES).try_for_each(|f| fs::write(sub.join(f.to_string()), "x"))?;
    }
    Ok(())
}

/// Does all of it; nothing that is read was read before.
pub fn run(dir: &Path, out: &mut dyn Write) -> io::Result<()> {
    let steps: [fn(&Path) -> io::Result<()>; STEPS.len()] = [read, write, random, metadata, walk];
    for (name, step) in STEPS.iter().zip(steps) {
        let begun = Instant::now();
        step(dir)?;
        writeln!(out, "{name} {}", begun.elapsed().as_secs_f64())?;
    }
    writeln!(out, "end")
}

fn read(dir: &Path) -> io::Result<()> {
    let (mut file, mut block) = (File::open(dir.join("large"))?, vec![0; BLOCK]);
    while file.read(&mut block)? > 0 {}
    Ok(())
}

fn write(dir: &Path) -> io::Result<()> {
    let (mut file, block) = (File::create(dir.join("new"))?, vec![7; BLOCK]);
    (0..LARGE / 2 / BLOCK).try_for_each(|_| file.write_all(&block))?;
    file.sync_all()
}

fn random(dir: &Path) -> io::Result<()> {
    let (file, mut page, mut seed) = (File::open(dir.join("random"))?, vec![0; PAGE], 1u64);
    for _ in 0..READS {
        // Knuth's MMIX.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.read_exact_at(&mut page, (seed >> 33) % ((LARGE / PAGE) as u64) * PAGE as u64)?;
    }
    Ok(())
}

fn metadata(dir: &Path) -> io::Result<()> {
    let made = dir.join("made");
    fs::create_dir(&made)?;
    for n in 0..MADE {
        let (a, b) = (made.join(n.to_string()), made.join(format!("{n}.renamed")));
        fs::write(&a, "x")?;
        fs::rename(&a, &b)?;
        fs::metadata(&b)?;
        fs::remove_file(&b)?;
    }
    fs::remove_dir(&made)
}

/// As `git status` does it: every file is looked at, none is read.
fn walk(dir: &Path) -> io::Result<()> {
    let mut seen = 0;
    for sub in fs::read_dir(dir.join("tree"))? {
        for entry in fs::read_dir(sub?.path())? {
            fs::symlink_metadata(entry?.path())?;
            seen += 1;
        }
    }
    if seen == DIRECTORIES * FILES { Ok(()) } else { Err(io::Error::other(format!("{seen} files"))) }
}
