//! Layers that were made to do harm, and damaged ones: nothing outside the root changes, whatever they hold.

use proptest::prelude::*;

use std::os::unix::fs::symlink;

use super::*;

/// What must be refused, naming layer and entry.
fn escapes(host: &Host, layer: Tar, entry: &str) {
    match host.apply(layer).unwrap_err() {
        ImageError::Escape { layer, entry: e } => assert_eq!((layer.as_str(), e.as_str()), ("test", entry)),
        other => panic!("{entry}: {other}"),
    }
}

#[test]
fn what_climbs_is_refused_and_named() {
    let host = Host::new();
    escapes(&host, Tar::new().file("../outside/new", "x"), "../outside/new");
    escapes(&host, Tar::new().file("../outside/secret", "x"), "../outside/secret");
    escapes(&host, Tar::new().dir("a/../../outside/"), "a/../../outside/");
    escapes(&host, Tar::new().file("../outside/.wh.secret", ""), "../outside/.wh.secret");
    escapes(&host, Tar::new().file("../outside/.wh..wh..opq", ""), "../outside/.wh..wh..opq");
    escapes(&host, Tar::new().symlink("../outside/link", "x"), "../outside/link");
    escapes(&host, Tar::new().hard_link("stolen", "../outside/secret"), "stolen");
    escapes(&host, Tar::new().hard_link("../outside/stolen", "x"), "../outside/stolen");
    escapes(&host, Tar::new().member(b'3', "../outside/null", "", b"", |_| ()), "../outside/null");
    escapes(&host, Tar::new().member(b'6', "..", "", b"", |_| ()), "..");
    escapes(&host, Tar::new().pax(&[("path", b"../outside/secret")]).file("innocent", "x"), "../outside/secret");
    assert_eq!(host.list(), Vec::<String>::new());
}

#[test]
fn a_link_that_climbs_is_a_link_but_leads_nowhere() {
    let host = Host::new();
    let up = || Tar::new().symlink("up", "../outside");
    escapes(&host, up().file("up/new", "x"), "up/new");
    escapes(&host, up().file("up/.wh.secret", ""), "up/.wh.secret");
    escapes(&host, up().file("up/.wh..wh..opq", ""), "up/.wh..wh..opq");
    escapes(&host, up().hard_link("stolen", "up/secret"), "stolen");
    escapes(&host, up().dir("up/made/"), "up/made/");
    escapes(&host, up().symlink("second", "up/deeper").file("second/new", "x"), "second/new");
    // From a layer below it is no different.
    host.layers([Tar::new().dir("d/").symlink("d/up", "../../outside")]);
    escapes(&host, Tar::new().file("d/up/secret", "x"), "d/up/secret");
    // The link itself may be replaced, described, and be the target of a hard link: none of it follows it.
    host.layers([Tar::new().hard_link("hard", "up").member(b'2', "up", "../outside/secret", b"", |h| h.set_uid(7)).file("up", "mine")]);
    assert_eq!(host.read("up"), "mine");
}

#[test]
fn an_absolute_link_leads_into_the_image() {
    let host = Host::new();
    let outside = host.dir.path().join("outside").to_string_lossy().into_owned();
    host.layers([Tar::new().symlink("link", &outside).file("link/secret", "the image's").file("link/.wh.other", "")]);
    assert_eq!(host.read(&format!("{}/secret", outside.trim_start_matches('/'))), "the image's");
    // A file through a link to a file: the link is replaced, not followed.
    host.layers([Tar::new().symlink("to-secret", &format!("{outside}/secret")).file("to-secret", "mine")]);
    assert_eq!(host.read("to-secret"), "mine");
    host.layers([Tar::new().symlink("root", "/").file("root/through", "x")]);
    assert_eq!(host.read("through"), "x");
    // One that is on the host already, in a root that was not empty.
    symlink(&outside, host.at("planted")).unwrap();
    host.layers([Tar::new().file("planted/.wh.secret", "").file("planted/new", "")]);
    let e = host.apply(Tar::new().symlink("p", "/proc/self/root").file("p/x", "")).map(|()| host.at("proc/self/root/x").exists());
    assert!(e.unwrap(), "a path of /proc is one of the image");
}

fn everything() -> Vec<u8> {
    Tar::new()
        .dir("d/")
        .file("d/f", &"text ".repeat(200))
        .pax(&[("path", b"d/long"), ("SCHILY.xattr.user.a", b"b")])
        .file("x", "y")
        .symlink("up", "../outside")
        .symlink("in", "/d")
        .hard_link("in/h", "d/f")
        .file("d/.wh.f", "")
        .file("in/.wh..wh..opq", "")
        .member(b'6', "pipe", "", b"", |_| ())
        .end()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_layer_cut_anywhere_neither_panics_nor_leaves_the_root(length in 0usize..9000, kind in 0..3) {
        let tar = everything();
        let blob = [tar.clone(), gzip(&tar), zstd(&tar)][kind as usize].clone();
        let host = Host::new();
        let _ = host.unpack(&blob[..length.min(blob.len())]);
    }

    #[test]
    fn nor_does_a_changed_one(changes in proptest::collection::vec((0usize..12_000, any::<u8>()), 1..30), kind in 0..3, fixed in any::<bool>()) {
        let change = |bytes: &mut Vec<u8>| changes.iter().for_each(|&(at, byte)| { let at = at % bytes.len(); bytes[at] = byte; });
        let mut tar = everything();
        if fixed {
            change(&mut tar);
            for block in tar.chunks_mut(512) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                // A good checksum lets changes through to what is behind it.
                if header.entry_type().as_byte() < 0x80 && !block.iter().all(|&b| b == 0) {
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        let mut blob = [tar.clone(), gzip(&tar), zstd(&tar)][kind as usize].clone();
        if !fixed {
            change(&mut blob);
        }
        let host = Host::new();
        let _ = host.unpack(&blob);
    }
}
