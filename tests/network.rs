//! `--network user` and `--publish`, through QEMU's user-mode network; `--network none`.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use common::{Background, Rootfs, can_run_vms, run, until};

#[test]
fn a_command_reaches_the_hosts_loopback_and_knows_its_name_server() {
    if !can_run_vms("user network") {
        return;
    }
    let root = Rootfs::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"from the host\n").unwrap());
    let script = format!("cat /etc/resolv.conf; nc 10.0.2.2 {port}");
    let out = run(["run", "--rootfs", &root.arg(), "--network", "user", "--", "sh", "-c", &script]);
    assert_eq!(out.stdout, "nameserver 10.0.2.3\nfrom the host\n", "{}", out.stderr);
    server.join().unwrap();
}

#[test]
fn a_published_port_reaches_the_command_and_none_has_no_network() {
    if !can_run_vms("published port") {
        return;
    }
    let root = Rootfs::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("{port}:80");
    let extra = ["--rootfs", &root.arg(), "--network", "user", "--publish", &publish];
    let b = Background::start("publish", &extra, &["sh", "-c", "while :; do echo served | nc -l -p 80; done"]);
    // QEMU accepts before the guest does: an answer is the proof.
    let answer = until("an answer through the published port", || {
        let mut text = String::new();
        TcpStream::connect(("127.0.0.1", port)).ok()?.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(answer, "served\n");
    drop(b);
    let out = run(["run", "--rootfs", &root.arg(), "--network", "none", "--", "ls", "/sys/class/net"]);
    assert_eq!(out.stdout, "lo\n", "{}", out.stderr);
}
