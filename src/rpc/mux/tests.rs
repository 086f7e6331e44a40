//! Two ends over a socketpair, and one end against raw bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// Longer than anything here takes; a test that hangs fails instead.
const HANG: Duration = Duration::from_secs(60);

fn pair() -> (Mux, Mux) {
    let (a, b) = UnixStream::pair().unwrap();
    (Mux::start(a.into(), Side::Host).unwrap(), Mux::start(b.into(), Side::Guest).unwrap())
}

/// A mux whose peer is this test.
fn raw(side: Side) -> (UnixStream, Mux) {
    let (a, b) = UnixStream::pair().unwrap();
    a.set_read_timeout(Some(HANG)).unwrap();
    (a, Mux::start(b.into(), side).unwrap())
}

fn connected(host: &Mux, guest: &Mux, port: u32) -> (MuxStream, MuxStream) {
    let ours = host.open(port).unwrap();
    let (at, theirs) = guest.accept().unwrap();
    assert_eq!((at, theirs.id()), (port, ours.id()));
    (ours, theirs)
}

/// Bytes that differ by stream and place.
fn pattern(seed: u32, length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)).to_le_bytes()[2]).collect()
}

#[test]
fn bytes_and_ends_arrive_in_both_directions() {
    let (host, guest) = pair();
    let (mut ours, mut theirs) = connected(&host, &guest, 1027);
    ours.write_all(b"question").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    theirs.write_all(b"answer").unwrap();
    drop(theirs);
    text.clear();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    assert_eq!(ours.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn both_sides_open_and_numbers_do_not_meet() {
    let (host, guest) = pair();
    let ours: Vec<_> = (0..3).map(|_| host.open(1).unwrap()).collect();
    let theirs: Vec<_> = (0..3).map(|_| guest.open(2).unwrap()).collect();
    assert_eq!(ours.iter().map(|s| s.id()).collect::<Vec<_>>(), [1, 3, 5]);
    assert_eq!(theirs.iter().map(|s| s.id()).collect::<Vec<_>>(), [2, 4, 6]);
    assert_eq!((0..3).map(|_| host.accept().unwrap().1.id()).collect::<Vec<_>>(), [2, 4, 6]);
}

#[test]
fn a_hundred_streams_carry_random_sizes_intact_both_ways() {
    let (host, guest) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::scope(|echoes| {
                for _ in 0..100 {
                    let (port, mut stream) = guest.accept().unwrap();
                    echoes.spawn(move || {
                        let length = port as usize;
                        stream.clone().write_all(&pattern(stream.id(), length)).unwrap();
                        let mut got = Vec::new();
                        stream.read_to_end(&mut got).unwrap();
                        assert!(got == pattern(stream.id() + 1, length), "stream {} to the guest", stream.id());
                    });
                }
            });
        });
        for i in 0..100u32 {
            // From a byte to two windows, so that credit runs out on many of them.
            let length = (i * i * i + 1).min(2 * WINDOW as u32 + 7);
            let mut stream = host.open(length).unwrap();
            scope.spawn(move || {
                let (mut reader, id) = (stream.clone(), stream.id());
                let reading = thread::spawn(move || {
                    let mut got = vec![0; length as usize];
                    reader.read_exact(&mut got).unwrap();
                    got
                });
                for chunk in pattern(id + 1, length as usize).chunks(1 + (i as usize * 977) % 100_000) {
                    stream.write_all(chunk).unwrap();
                }
                stream.shutdown(Shutdown::Write).unwrap();
                assert!(reading.join().unwrap() == pattern(id, length as usize), "stream {id} to the host");
            });
        }
    });
}

#[test]
fn a_stalled_reader_holds_up_nobody() {
    let (host, guest) = pair();
    let (mut stalled, mut slow) = connected(&host, &guest, 1);
    let writer = thread::spawn(move || stalled.write_all(&pattern(1, 4 * WINDOW)));
    let (mut quick, mut other) = connected(&host, &guest, 2);
    for i in 0..1000u32 {
        quick.write_all(&i.to_be_bytes()).unwrap();
        let mut bytes = [0; 4];
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, i.to_be_bytes());
    }
    // And in bulk, through many windows.
    let bulk = thread::spawn(move || quick.write_all(&pattern(2, 8 * WINDOW)));
    let mut all = vec![0; 8 * WINDOW];
    other.read_exact(&mut all).unwrap();
    assert!(all == pattern(2, 8 * WINDOW));
    bulk.join().unwrap().unwrap();
    assert!(!writer.is_finished());
    all.truncate(4 * WINDOW);
    slow.read_exact(&mut all).unwrap();
    assert!(all == pattern(1, 4 * WINDOW));
    writer.join().unwrap().unwrap();
}

#[test]
fn a_short_frame_does_not_wait_for_all_bulk_writers() {
    let (host, guest) = pair();
    let (mut ping, mut pong) = connected(&host, &guest, 1);
    thread::scope(|scope| {
        let mut bulk = Vec::new();
        for _ in 0..8 {
            let (mut from, mut to) = connected(&host, &guest, 2);
            bulk.push(from.clone());
            scope.spawn(move || while from.write_all(&[7; MAX_DATA]).is_ok() {});
            scope.spawn(move || io::copy(&mut to, &mut io::sink()));
        }
        scope.spawn(move || while pong.read_exact(&mut [0]).is_ok() && pong.write_all(b"y").is_ok() {});
        let mut took: Vec<Duration> = (0..300)
            .map(|_| {
                let asked = Instant::now();
                ping.write_all(b"x").unwrap();
                ping.read_exact(&mut [0]).unwrap();
                asked.elapsed()
            })
            .collect();
        bulk.iter().for_each(|s| s.shutdown(Shutdown::Both).unwrap());
        ping.shutdown(Shutdown::Both).unwrap();
        took.sort();
        assert!(took[took.len() * 9 / 10] < Duration::from_millis(100), "9 of 10 round trips: {:?}", took[took.len() * 9 / 10]);
    });
}

#[test]
fn dropping_a_stream_delivers_what_was_written_and_stops_its_writer() {
    let (host, guest) = pair();
    let (mut ours, mut theirs) = connected(&host, &guest, 9);
    theirs.write_all(&pattern(3, 1000)).unwrap();
    drop(theirs);
    let mut got = Vec::new();
    ours.read_to_end(&mut got).unwrap();
    assert_eq!(got, pattern(3, 1000));
    let e = ours.write_all(&vec![0; 2 * WINDOW]).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_clone_keeps_the_stream_and_the_last_one_ends_it() {
    let (host, guest) = pair();
    let (ours, mut theirs) = connected(&host, &guest, 9);
    let mut other = ours.clone();
    drop(ours);
    other.write_all(b"still").unwrap();
    drop(other);
    let mut got = String::new();
    theirs.read_to_string(&mut got).unwrap();
    assert_eq!(got, "still");
    drop(theirs);
    let settled = Instant::now();
    while !guest.core.table().streams.is_empty() || !host.core.table().streams.is_empty() {
        assert!(settled.elapsed() < HANG);
    }
    assert_eq!((host.core.table().ours, guest.core.table().theirs), (0, 0));
}

#[test]
fn a_reset_stream_is_an_error_and_not_an_end() {
    let (host, guest) = pair();
    let (mut ours, mut theirs) = connected(&host, &guest, 4711);
    theirs.write_all(b"lost").unwrap();
    theirs.reset();
    let e = loop {
        match ours.read(&mut [0; 16]) {
            Ok(0) => panic!("an end"),
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(ours.write(b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(theirs.write(b"x").unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // The mux goes on.
    connected(&host, &guest, 1);
}

/// Wakes a thread blocked in each direction.
#[test]
fn our_own_shutdown_wakes_readers_and_writers() {
    let (host, guest) = pair();
    let (ours, _theirs) = connected(&host, &guest, 1);
    let (mut reader, mut writer) = (ours.clone(), ours.clone());
    let (done, ended) = mpsc::channel();
    let told = done.clone();
    thread::spawn(move || told.send(reader.read(&mut [0]).map_err(|e| e.kind())));
    thread::spawn(move || done.send(writer.write_all(&vec![0; 2 * WINDOW]).map(|()| 1).map_err(|e| e.kind())));
    while host.core.table().streams[&1].credit_left() > 0 {
        thread::yield_now();
    }
    ours.shutdown(Shutdown::Both).unwrap();
    let mut results: Vec<_> = (0..2).map(|_| ended.recv_timeout(HANG).unwrap()).collect();
    results.sort_by_key(|r| r.is_err());
    assert_eq!(results, [Ok(0), Err(io::ErrorKind::BrokenPipe)]);
}

#[test]
fn the_channels_end_ends_everything_with_an_error() {
    let (host, guest) = pair();
    let (mut ours, mut theirs) = connected(&host, &guest, 9);
    ours.write_all(b"last").unwrap();
    let mut got = [0; 4];
    theirs.read_exact(&mut got).unwrap();
    let waiting = thread::spawn(move || theirs.read(&mut [0]).unwrap_err().kind());
    drop(host);
    assert_eq!(waiting.join().unwrap(), io::ErrorKind::ConnectionAborted);
    assert_eq!(ours.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert_eq!(ours.write(&[0]).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(guest.accept().is_none());
    assert_eq!(guest.open(1).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
}

fn frame(id: u32, kind: u8, argument: u32, payload: &[u8]) -> Vec<u8> {
    [&header(id, kind, argument), payload].concat()
}

fn data(id: u32, payload: &[u8]) -> Vec<u8> {
    frame(id, kind::DATA, payload.len() as u32, payload)
}

#[test]
fn the_bytes_on_the_channel_are_as_documented() {
    let (mut peer, host) = raw(Side::Host);
    let mut stream = host.open(0x0102_0304).unwrap();
    stream.write_all(b"hi").unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    let mut got = vec![0; 5 * HEADER + 2];
    drop(host.open(7).unwrap());
    peer.read_exact(&mut got).unwrap();
    let expected = [
        &[0, 0, 0, 1, 1, 0, 0, 0, 1, 2, 3, 4][..],
        &[0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 2, b'h', b'i'],
        &[0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 3, 1, 0, 0, 0, 0, 0, 0, 7],
    ];
    assert_eq!(got, expected.concat());
}

/// Frames may arrive in any pieces: the guest's device gives 4096 bytes at a time, and fewer.
#[test]
fn frames_arrive_in_any_pieces() {
    for piece in [1, 5, 11, 13, 4096, 100_000] {
        let (mut peer, guest) = raw(Side::Guest);
        let payload = pattern(1, 3 * MAX_DATA);
        let mut bytes = frame(1, kind::OPEN, 5, &[]);
        for part in payload.chunks(MAX_DATA - 1) {
            bytes.extend(data(1, part));
        }
        bytes.extend(frame(1, kind::FIN, 0, &[]));
        thread::spawn(move || {
            bytes.chunks(piece).for_each(|p| peer.write_all(p).unwrap());
            peer
        });
        let mut got = Vec::new();
        guest.accept().unwrap().1.read_to_end(&mut got).unwrap();
        assert!(got == payload, "pieces of {piece}");
    }
}

#[test]
fn a_peer_that_breaks_a_rule_ends_the_mux() {
    let open = || frame(1, kind::OPEN, 7, &[]);
    let full: Vec<u8> = std::iter::repeat_n(data(1, &[0; MAX_DATA]), WINDOW / MAX_DATA).flatten().collect();
    let cases = [
        ("a number that is ours", frame(2, kind::OPEN, 7, &[])),
        ("number 0", frame(0, kind::OPEN, 7, &[])),
        ("opened twice", [open(), open()].concat()),
        ("an unknown kind", frame(1, 9, 0, &[])),
        ("kind 0", frame(1, 0, 0, &[])),
        ("padding", vec![0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 7]),
        ("a payload that is too long", frame(1, kind::DATA, MAX_DATA as u32 + 1, &[])),
        ("beyond its credit", [open(), full, data(1, b"x")].concat()),
        ("after its end", [open(), frame(1, kind::FIN, 0, &[]), data(1, b"x")].concat()),
        ("too much credit", [open(), frame(1, kind::CREDIT, u32::MAX, &[])].concat()),
        ("cut short", open()[..5].to_vec()),
    ];
    for (what, bytes) in cases {
        let (mut peer, guest) = raw(Side::Guest);
        peer.write_all(&bytes).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        // The peer sees the end: nobody is left waiting.
        peer.read_to_end(&mut Vec::new()).unwrap();
        while guest.accept().is_some() {}
        let why = guest.core.table().ended.clone().unwrap();
        assert!(why != "its other end was closed", "{what}: {why}");
    }
}

#[test]
fn a_peer_cannot_open_streams_without_end() {
    let (mut peer, guest) = raw(Side::Guest);
    let sent = thread::spawn(move || (1..).step_by(2).take_while(|&id| peer.write_all(&frame(id, kind::OPEN, 1, &[])).is_ok()).count());
    assert!(sent.join().unwrap() >= MOST_STREAMS);
    let waited = Instant::now();
    while guest.core.table().ended.is_none() {
        assert!(waited.elapsed() < HANG);
    }
    assert!(guest.core.table().ended.as_ref().unwrap().contains("more than"));
}

#[test]
fn what_comes_for_a_stream_that_is_gone_is_dropped() {
    let (mut peer, guest) = raw(Side::Guest);
    let kinds = [data(1, b"late"), frame(1, kind::CREDIT, 9, &[]), frame(1, kind::FIN, 0, &[]), frame(1, kind::RESET, 0, &[])];
    peer.write_all(&[kinds.concat(), frame(3, kind::OPEN, 8, &[])].concat()).unwrap();
    assert_eq!(guest.accept().unwrap().0, 8);
}

/// What a stream holds is bounded by its window, however small the frames that filled it.
#[test]
fn tiny_frames_cost_no_more_memory_than_large_ones() {
    let (mut peer, guest) = raw(Side::Guest);
    peer.write_all(&frame(1, kind::OPEN, 1, &[])).unwrap();
    let (_, mut stream) = guest.accept().unwrap();
    peer.write_all(&data(1, b"x").repeat(WINDOW)).unwrap();
    peer.write_all(&frame(1, kind::FIN, 0, &[])).unwrap();
    let held = loop {
        let table = guest.core.table();
        if let Some(held) = table.streams[&1].held_at_end() {
            break held;
        }
    };
    assert!(held <= 2 * WINDOW, "{held} bytes");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), WINDOW);
}

/// Streams are opened, used and ended by many threads at once, in every way there is.
#[test]
fn churn_leaves_nothing_behind() {
    let (host, guest) = pair();
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Some((port, mut stream)) = guest.accept() {
                match port % 4 {
                    0 => drop(stream),
                    1 => stream.reset(),
                    2 => drop(io::copy(&mut stream, &mut io::sink())),
                    _ => {
                        let _ = stream.write_all(&[1; 10_000]);
                    }
                }
            }
        });
        let workers: Vec<_> = (0..8u32)
            .map(|worker| {
                let host = &host;
                scope.spawn(move || {
                    for i in 0..200 {
                        let mut stream = host.open(worker + i).unwrap();
                        let _ = stream.write_all(&[0; 3000]);
                        let _ = stream.shutdown(Shutdown::Write);
                        let _ = io::copy(&mut stream, &mut io::sink());
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|w| w.join().unwrap());
        assert!(host.core.table().streams.is_empty());
        let waited = Instant::now();
        while !guest.core.table().streams.is_empty() {
            assert!(waited.elapsed() < HANG);
            thread::yield_now();
        }
        host.close();
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_end_in_an_error_or_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        throw(&bytes);
    }

    /// Well-formed frames in an order that makes no sense.
    #[test]
    fn any_frames_end_in_an_error_or_are_taken(
        frames in proptest::collection::vec((0u32..6, 0u8..8, prop_oneof![0u32..100, any::<u32>()], 0usize..200), 0..40),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(|&(id, kind, argument, length)| {
            if kind == kind::DATA { data(id, &vec![0; length]) } else { frame(id, kind, argument, &[]) }
        }).collect();
        throw(&bytes);
    }
}

/// Whatever comes, the mux is over soon after its peer is.
fn throw(bytes: &[u8]) {
    let (mut peer, guest) = raw(Side::Guest);
    let _ = peer.write_all(bytes);
    let _ = peer.shutdown(Shutdown::Write);
    let mut kept = Vec::new();
    while let Some(next) = guest.accept() {
        kept.push(next);
    }
    // Frames that were fine are followed by the end of the channel.
    for (_, stream) in &mut kept {
        let _ = stream.read_to_end(&mut Vec::new());
        assert!(stream.write(b"x").is_err());
    }
}

/// MB/s of 64 KiB blocks.
fn rate(mut from: impl Write + Send, mut to: impl Read) -> f64 {
    const TOTAL: usize = 256 << 20;
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(move || (0..TOTAL / MAX_DATA).for_each(|_| from.write_all(&[5; MAX_DATA]).unwrap()));
        let (mut block, mut left) = (vec![0; MAX_DATA], TOTAL);
        while left > 0 {
            left -= to.read(&mut block).unwrap();
        }
    });
    TOTAL as f64 / 1e6 / began.elapsed().as_secs_f64()
}

/// A stream of the mux moves a fair part of what its channel moves by itself: two copies more and a thread. (3 GB/s of 4.5 here.)
#[test]
fn throughput_is_of_the_channels_order() {
    let (host, guest) = pair();
    let (ours, theirs) = connected(&host, &guest, 1);
    let (a, b) = UnixStream::pair().unwrap();
    let raw = rate(a, b);
    let (down, up) = (rate(ours.clone(), theirs.clone()), rate(theirs, ours));
    eprintln!("64 KiB blocks over a socketpair: raw {raw:.0} MB/s, a stream {down:.0} and {up:.0} MB/s");
    assert!(down.min(up) > raw / 10.0, "raw {raw:.0} MB/s, a stream {down:.0} and {up:.0} MB/s");
}
