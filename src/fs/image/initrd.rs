//! The initrd: a newc archive (the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`), the same bytes
//! for the same contents, whoever builds it, wherever and whenever.
//!
//! Packed by LZ4: three fifths of the size, for about 30 ms of a boot under TCG. The other compressions cost more.

use std::borrow::Cow;
use std::io::{self, Write};

use cpio::newc::{Builder, trailer};

use super::modules::Set;
use super::unpack::lz4_frame;

const DIR: u32 = 0o040755;
const FILE: u32 = 0o100644;
const PROGRAM: u32 = 0o100755;
const LINK: u32 = 0o120777;
const CHARACTER: u32 = 0o020600;

/// /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// Directories of the image, parents first.
const DIRS: [&str; 11] = ["dev", "etc", "lib", "lib/modules", "proc", "root", "run", "sbin", "sys", "tmp", "var"];

/// One entry of the archive.
struct Entry<'a> {
    name: String,
    mode: u32,
    data: Cow<'a, [u8]>,
    device: (u32, u32),
}

/// The initrd's bytes: `init` is the binary, `release` the text of /etc/osc-release.
pub fn initrd(init: &[u8], set: &Set, release: &str) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    archive(&mut raw, init, set, release)?;
    Ok(lz4_frame(&raw))
}

fn archive(out: &mut dyn Write, init: &[u8], set: &Set, release: &str) -> io::Result<()> {
    let mut entries = entries(init, set, release);
    // By name: every directory comes before what is in it.
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = out;
    for (i, e) in entries.iter().enumerate() {
        let links = if e.mode == DIR { 2 } else { 1 };
        let size = u32::try_from(e.data.len()).map_err(|_| io::Error::other(format!("{} is larger than an initrd can hold", e.name)))?;
        let builder =
            Builder::new(&e.name).ino(i as u32 + 1).mode(e.mode).nlink(links).mtime(0).rdev_major(e.device.0).rdev_minor(e.device.1);
        let mut writer = builder.write(out, size);
        writer.write_all(&e.data)?;
        out = writer.finish()?;
    }
    trailer(out)?.flush()
}

fn entries<'a>(init: &'a [u8], set: &'a Set, release: &'a str) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry> = DIRS.iter().map(|d| entry(d, DIR, &b""[..])).collect();
    entries.push(Entry { device: CONSOLE, ..entry("dev/console", CHARACTER, &b""[..]) });
    entries.push(entry("init", LINK, &b"sbin/init"[..]));
    entries.push(entry("sbin/init", PROGRAM, init));
    entries.push(entry("etc/osc-release", FILE, release.as_bytes()));
    let core: String = set.core.iter().map(|m| format!("{}\n", m.name)).collect();
    entries.push(entry("lib/modules/core", FILE, core.into_bytes()));
    entries.extend(set.core.iter().map(|m| entry(&format!("lib/modules/{}.ko", m.name), FILE, &m.data[..])));
    let demand: String =
        set.demand.iter().map(|(name, needs)| format!("{}\n", [&[format!("{name}:")], &needs[..]].concat().join(" "))).collect();
    entries.push(entry("lib/modules/demand", FILE, demand.into_bytes()));
    if !set.aliases.is_empty() {
        let alias: String = set.aliases.iter().map(|(pattern, name)| format!("{pattern} {name}\n")).collect();
        entries.push(entry("lib/modules/alias", FILE, alias.into_bytes()));
    }
    // What is loaded seldom is carried small.
    let packed = |data| lz4_flex::block::compress_prepend_size(data);
    entries.extend(set.demand_modules.iter().map(|m| entry(&format!("lib/modules/{}.ko.lz4", m.name), FILE, packed(&m.data))));
    entries
}

fn entry<'a>(name: &str, mode: u32, data: impl Into<Cow<'a, [u8]>>) -> Entry<'a> {
    Entry { name: name.into(), mode, data: data.into(), device: (0, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::image::modules::Module;
    use crate::fs::image::unpack::Packing;

    fn set() -> Set {
        Set {
            core: vec![Module { name: "virtio".into(), data: b"core".to_vec() }],
            demand: [("loop".to_string(), vec!["a".to_string(), "b".to_string()])].into(),
            demand_modules: vec![Module { name: "loop".into(), data: vec![1; 1000] }],
            ..Set::default()
        }
    }

    fn read(initrd: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let archive = Packing::Lz4.unpack(initrd, 1 << 30).unwrap();
        let mut found = Vec::new();
        let mut rest = &archive[..];
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            assert_eq!((reader.entry().mtime(), reader.entry().uid(), reader.entry().gid()), (0, 0, 0), "{name}");
            let mut data = Vec::new();
            io::Read::read_to_end(&mut reader, &mut data).unwrap();
            found.push((name, mode, data));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_layout_is_what_the_agent_reads() {
        let entries = read(&initrd(b"binary", &set(), "kernel=1.0\n").unwrap());
        let get = |name: &str| entries.iter().find(|e| e.0 == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!((get("init").1, get("init").2.as_slice()), (LINK, &b"sbin/init"[..]));
        assert_eq!((get("sbin/init").1, get("sbin/init").2.as_slice()), (PROGRAM, &b"binary"[..]));
        assert_eq!(get("lib/modules/core").2, b"virtio\n");
        assert_eq!(get("lib/modules/demand").2, b"loop: a b\n");
        assert_eq!(lz4_flex::block::decompress_size_prepended(&get("lib/modules/loop.ko.lz4").2).unwrap(), vec![1; 1000]);
        let position = |name: &str| entries.iter().position(|e| e.0 == name).unwrap();
        assert!(position("lib") < position("lib/modules") && position("lib/modules") < position("lib/modules/core"));
    }

    #[test]
    fn a_large_one_is_made_on_a_thread_of_ours() {
        const LARGE: usize = 10 << 20;
        let made = crate::thread::start("initrd", || initrd(&vec![7; LARGE], &set(), "kernel=1.0\n").unwrap());
        let entries = read(&made.join().unwrap());
        assert!(entries.iter().any(|e| e.0 == "sbin/init" && e.2.len() == LARGE));
    }
}
