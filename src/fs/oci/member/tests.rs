use super::super::testing::Tar;
use super::*;
use proptest::prelude::*;

/// All members with their data, holes left out.
fn read(bytes: &[u8]) -> io::Result<Vec<(Member, Vec<u8>)>> {
    let mut members = Members::new(bytes);
    let mut all = Vec::new();
    while let Some(member) = members.next()? {
        let mut data = Vec::new();
        members.read_to_end(&mut data)?;
        all.push((member, data));
    }
    Ok(all)
}

fn one(bytes: &[u8]) -> Member {
    read(bytes).unwrap().remove(0).0
}

fn error(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let long = format!("{}/name", "d".repeat(150));
    let target = "t".repeat(300);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o4755);
    header.set_uid(70_000);
    header.set_size(5);
    builder.append_data(&mut header, &long, &b"hello"[..]).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", &target).unwrap();
    let all = read(&builder.into_inner().unwrap()).unwrap();
    assert_eq!((all[0].0.path.as_slice(), all[0].1.as_slice()), (long.as_bytes(), &b"hello"[..]));
    assert_eq!((all[0].0.mode, all[0].0.uid, all[0].0.kind), (0o4755, 70_000, Kind::File));
    assert_eq!((all[1].0.kind, all[1].0.link.as_slice()), (Kind::Symlink, target.as_bytes()));
}

#[test]
fn a_pax_header_counts_for_the_next_member_only() {
    let long = format!("{}/x", "é".repeat(200));
    let time: (&str, &[u8]) = ("mtime", b"-1.5");
    let bytes = Tar::new()
        .pax(&[("path", long.as_bytes()), ("uid", b"4000000000"), time, ("SCHILY.xattr.user.a", b"\n\0\n")])
        .file("short", "1")
        .file("next", "2")
        .end();
    let all = read(&bytes).unwrap();
    assert_eq!((all[0].0.path.as_slice(), all[0].0.uid), (long.as_bytes(), 4_000_000_000));
    assert_eq!(all[0].0.mtime, Time { seconds: -2, nanoseconds: 500_000_000 });
    assert_eq!(all[0].0.xattrs, [(b"user.a".to_vec(), b"\n\0\n".to_vec())]);
    assert_eq!((all[1].0.path.as_slice(), all[1].0.uid, all[1].0.xattrs.len()), (&b"next"[..], 0, 0));
}

#[test]
fn types_without_data_have_none_whatever_their_size_says() {
    let bytes = Tar::new().member(b'2', "link", "to", b"", |h| h.set_size(1 << 40)).file("after", "x").end();
    let all = read(&bytes).unwrap();
    assert_eq!((all[0].0.kind, all[1].0.path.as_slice()), (Kind::Symlink, &b"after"[..]));
    assert_eq!(one(&Tar::new().member(0, "old/", "", b"", |_| ()).end()).kind, Kind::Directory);
}

#[test]
fn the_pieces_of_an_old_sparse_file() {
    let bytes = Tar::new()
        .member(b'S', "sparse", "", b"headtail", |h| {
            let gnu = h.as_gnu_mut().unwrap();
            gnu.set_real_size(1 << 30);
            for (slot, (offset, length)) in gnu.sparse.iter_mut().zip([(0, 4), (1 << 20, 4), (1 << 30, 0)]) {
                slot.set_offset(offset);
                slot.set_length(length);
            }
        })
        .file("after", "x")
        .end();
    let all = read(&bytes).unwrap();
    let extents = [Extent { offset: 0, length: 4 }, Extent { offset: 1 << 20, length: 4 }, Extent { offset: 1 << 30, length: 0 }];
    assert_eq!((all[0].0.size, all[0].0.extents.as_slice(), all[0].1.as_slice()), (1 << 30, &extents[..], &b"headtail"[..]));
    assert!(!all[0].0.is_plain() && all[1].0.is_plain());
}

#[test]
fn the_three_kinds_of_pax_sparse_files() {
    let pieces = [Extent { offset: 10, length: 2 }, Extent { offset: 100, length: 3 }];
    let number = |key, value| (key, value);
    let first = Tar::new().pax(&[
        number("GNU.sparse.size", &b"200"[..]),
        number("GNU.sparse.offset", b"10"),
        number("GNU.sparse.numbytes", b"2"),
        number("GNU.sparse.offset", b"100"),
        number("GNU.sparse.numbytes", b"3"),
    ]);
    let second = Tar::new().pax(&[("GNU.sparse.size", b"200"), ("GNU.sparse.map", b"10,2,100,3"), ("GNU.sparse.name", b"a")]);
    for (tar, name) in [(first, "a"), (second, "GNUSparseFile.0/a")] {
        let (member, data) = read(&tar.file(name, "abcde").end()).unwrap().remove(0);
        assert_eq!((member.path.as_slice(), member.size, member.extents.as_slice()), (&b"a"[..], 200, &pieces[..]));
        assert_eq!(data, b"abcde");
    }
    let map = format!("{:\0<512}abcde", "2\n10\n2\n100\n3\n");
    let major: (&str, &[u8]) = ("GNU.sparse.major", b"1");
    let third = Tar::new().pax(&[major, ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"200"), ("GNU.sparse.name", b"a")]);
    let (member, data) = read(&third.file("GNUSparseFile.0/a", &map).file("b", "x").end()).unwrap().remove(0);
    assert_eq!((member.path.as_slice(), member.size, member.extents.as_slice()), (&b"a"[..], 200, &pieces[..]));
    assert_eq!(data, b"abcde");
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    let sparse = |map: &str, size: &str| {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        Tar::new().pax(&records).file("a", "abcde").end()
    };
    for (map, size) in [("0,3,2,2", "9"), ("0,5", "4"), ("0,4", "9"), ("5,5,0,0", "20"), ("0,5,9", "20"), ("18446744073709551615,5", "20")]
    {
        assert!(read(&sparse(map, size)).is_err(), "{map} {size}");
    }
    let endless = |map: &str| Tar::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")]).file("a", map).end();
    assert!(error(&endless("99999999999\n")).contains("cut short"));
    assert!(error(&endless(&format!("{:\0<512}", "99999999999\n"))).contains("pieces"));
}

#[test]
fn what_would_fill_the_memory_is_refused() {
    for kind in [b'x', b'L', b'K', b'g'] {
        let bytes = Tar::new().member(kind, "large", "", b"", |h| h.set_size(1 << 40)).end();
        assert!(error(&bytes).contains("an extension header of 1099511627776 bytes"), "{}", kind as char);
    }
}

#[test]
fn what_is_cut_short_is_told() {
    let whole = Tar::new().file("a", &"x".repeat(700)).pax(&[("uid", b"1")]).file("b", "y").end();
    // In a header, in data, behind an extension header.
    for length in [300, 600, 1536 + 200, 1536 + 512 + 3, 1536 + 1024] {
        assert!(error(&whole[..length]).contains("cut short"), "{length}");
    }
    // Without the padding of the last member and the two blocks of zeros it is whole.
    assert_eq!(read(&whole[..1536 + 1024 + 512 + 1]).unwrap().len(), 2);
    assert_eq!(read(&whole[..512 + 700]).unwrap().len(), 1);
    assert!(read(b"").unwrap().is_empty());
}

#[test]
fn a_header_is_checked() {
    let mut bytes = Tar::new().file("a", "x").end();
    bytes[0] = b'b';
    assert_eq!(error(&bytes), "a header's checksum is wrong");
    let bad = Tar::new().member(b'0', "a", "", b"", |h| h.as_old_mut().uid = *b"zzzzzzz\0").end();
    assert!(error(&bad).contains("is no number"));
}

#[test]
fn numbers_of_headers() {
    assert_eq!(field(b"0000644\0").unwrap(), 0o644);
    assert_eq!(field(b"   644 \0").unwrap(), 0o644);
    assert_eq!(field(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
    assert_eq!(field(b"\x80\0\0\0\0\0\x01\0").unwrap(), 256);
    assert_eq!(field(b"\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
    assert!(field(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
    assert!(field(b"0000988\0").is_err());
}

proptest! {
    #[test]
    fn bytes_of_any_kind_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    #[test]
    fn nor_does_an_archive_with_changed_bytes(changes in proptest::collection::vec((0usize..6000, any::<u8>()), 1..40), fixed in any::<bool>()) {
        let mut bytes = Tar::new()
            .pax(&[("path", b"some/where"), ("GNU.sparse.size", b"50"), ("GNU.sparse.map", b"1,2,10,3")])
            .file("a", "abcde")
            .member(b'S', "s", "", b"abc", |h| h.as_gnu_mut().unwrap().set_real_size(3))
            .member(b'L', "l", "", b"long/name", |_| ())
            .symlink("b", "c")
            .end();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if fixed {
            // A good checksum lets changes through to the fields behind it.
            for block in bytes.chunks_mut(512).filter(|b| b.len() == 512) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = read(&bytes);
    }
}
