//! `osc pull` and `osc run IMAGE` against a real registry, and against one that misbehaves.

mod common;
#[path = "common/registry.rs"]
mod registry;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::containerd::{Containerd, can_run_containerd};
use common::{assert_clean, can_run_vms, command, name, run, until};
use registry::{Action, Front, Pushed, Registry, Tar, can_run_registry, described, first, image, noise, push, second};
use serde_json::json;

/// `secret`, as htpasswd has it (bcrypt).
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

fn refused(what: &str, args: &[&str], parts: &[&str]) {
    let out = run([&["pull"], args].concat());
    assert_eq!(out.status, 125, "{what}: {} {}", out.stdout, out.stderr);
    for part in parts {
        assert!(out.stderr.contains(part), "{what}: {part:?} in {}", out.stderr);
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64_STANDARD.encode(der))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_image_is_what_containerd_makes_of_it() {
    if !can_run_registry("an_image_is_what_containerd_makes_of_it") || !can_run_containerd("an_image_is_what_containerd_makes_of_it") {
        return;
    }
    let (registry, containerd, dir) = (Registry::start(), Containerd::start(), tempfile::tempdir().unwrap());
    let digest = registry.push("test/layers", &image());
    let (image, ours, theirs) = (registry.image("test/layers:latest"), dir.path().join("ours"), dir.path().join("theirs"));
    let out = run(["pull", &image, "--unpack", text(&ours)]);
    assert_eq!((out.status, out.stdout), (0, format!("{}@{digest}\n", registry.image("test/layers"))), "{}", out.stderr);

    let pulled = containerd.ctr(["images", "pull", "--plain-http", &image]);
    assert_eq!(pulled.status, 0, "{}", pulled.stderr);
    fs::create_dir(&theirs).unwrap();
    let mounted = containerd.ctr(["images", "mount", &image, text(&theirs)]);
    assert_eq!(mounted.status, 0, "{}", mounted.stderr);
    let expected = described(&theirs);
    let unmounted = containerd.ctr(["images", "unmount", text(&theirs)]);
    let found = described(&ours);
    let differ: Vec<_> = expected.iter().zip(&found).filter(|(e, f)| e != f).collect();
    assert!(differ.is_empty() && expected.len() == found.len(), "{} and {} entries: {differ:#?}", expected.len(), found.len());
    assert!(found.iter().any(|l| l.starts_with("data/capable") && l.contains("security.capability")), "{found:#?}");
    assert!(found.iter().any(|l| l.starts_with("data/opaque/new")) && !found.iter().any(|l| l.starts_with("data/opaque/old")));
    assert_eq!(unmounted.status, 0, "{}", unmounted.stderr);

    // By its digest, and as a layout that others read.
    let layout = dir.path().join("layout");
    let by_digest = format!("{}@{digest}", registry.image("test/layers"));
    let out = run(["pull", &by_digest, "--output", text(&layout)]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert_eq!(fs::metadata(&layout).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(fs::read_dir(layout.join("partial")).unwrap().next().is_none());
    if can_run_vms("a pulled layout") {
        let name = name("layout");
        let out = run(["run", "--name", &name, "--image", text(&layout)]);
        assert_eq!((out.status, out.stdout.as_str()), (0, "from the third layer\n0\n"), "{}", out.stderr);
        assert_clean(&name);
    }
}

#[test]
fn a_name_before_the_command_is_pulled_and_run() {
    if !can_run_registry("a_name_is_run") || !can_run_vms("a_name_is_run") {
        return;
    }
    let mut registry = Registry::start();
    registry.push("test/run", &image());
    let image = registry.image("test/run");
    let name = name("pulled");
    let out = run(["run", "--name", &name, &image]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "from the third layer\n0\n"), "{}", out.stderr);
    // It is here now.
    registry.kill();
    let out = run(["run", "--name", &name, &image, "--", "sh", "-c", "echo $FROM"]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "image\n"), "{}", out.stderr);
    assert_clean(&name);
    let out = run(["run", "--name", &name, &registry.image("test/other"), "--", "true"]);
    assert!(out.status == 125 && out.stderr.contains("test/other") && out.stderr.contains("refused"), "{}", out.stderr);
    assert_clean(&name);
}

#[test]
fn a_pull_goes_on_after_its_registry_was_killed() {
    if !can_run_registry("a_pull_goes_on") {
        return;
    }
    const LENGTH: usize = 24 << 20;
    let (mut registry, dir) = (Registry::start(), tempfile::tempdir().unwrap());
    let layer = Pushed::plain(Tar::new().file("noise", &noise(LENGTH, 1)).end());
    let hex = registry::digest(&layer.blob).trim_start_matches("sha256:").to_owned();
    registry.push("test/large", &[layer]);
    // No request for the layer's first half gets more than a third of it.
    let part = hex.clone();
    let front = Front::start(&registry, move |head| {
        let range =
            head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let stalls = head.contains(&part) && range.unwrap_or(0) < LENGTH / 2;
        if stalls { Action::Stall(LENGTH as u64 / 3) } else { Action::Forward }
    });
    let layout = dir.path().join("layout");
    let partial = layout.join("partial").join(&hex);
    let far = |at_least: u64| until("a part of the layer", || fs::metadata(&partial).ok().filter(|m| m.len() > at_least));
    let begin = || command(["pull", &front.image("test/large"), "--output", text(&layout)]).spawn().unwrap();

    // The registry goes and comes back: the same process goes on.
    let child = begin();
    far(LENGTH as u64 / 4);
    registry.kill();
    registry.restart();
    let first = front.sent();
    // It is stalled a second time, and this time both go.
    until("the second request", || (front.requests().iter().filter(|r| r.contains(&hex)).count() >= 2).then_some(()));
    far(LENGTH as u64 / 2);
    let mut child = child;
    child.kill().unwrap();
    child.wait().unwrap();
    registry.kill();
    registry.restart();
    let out = run(["pull", &front.image("test/large"), "--output", text(&layout)]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(first > LENGTH as u64 / 4);
    // Nothing but what was on its way came twice.
    assert!(front.sent() < LENGTH as u64 * 5 / 4, "{} bytes for {LENGTH}", front.sent());
    assert!(!partial.exists());
    let root = dir.path().join("root");
    assert_eq!(run(["pull", &front.image("test/large"), "--unpack", text(&root)]).status, 0);
    assert_eq!(fs::read(root.join("noise")).unwrap(), noise(LENGTH, 1));
}

#[test]
fn pull_secrets_and_tokens_are_met() {
    if !can_run_registry("pull_secrets_and_tokens") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let htpasswd = dir.path().join("htpasswd");
    fs::write(&htpasswd, HTPASSWD).unwrap();
    let auth = json!({"htpasswd": {"realm": "test", "path": htpasswd}});
    let registry = Registry::with(&format!("127.0.0.1:{}", registry::free_port()), json!({}), auth, None);
    let basic = "Basic dXNlcjpzZWNyZXQ=";
    push(&format!("http://{}", registry.address), Some(basic), "test/private", &image());
    let secret = |file: &str, host: &str, auth: &str| {
        let path = dir.path().join(file);
        fs::write(&path, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
        path
    };
    let (right, wrong) = (secret("right", &registry.address, "dXNlcjpzZWNyZXQ="), secret("wrong", &registry.address, "dXNlcjp3cm9uZw=="));
    let root = dir.path().join("root");
    let image = registry.image("test/private");
    let pull = |image: &str, auth: &Path| run(["pull", image, "--unpack", text(&root), "--auth", text(auth)]);
    refused("without a secret", &[&image, "--unpack", text(&root)], &["wants a password", "--auth"]);
    refused("a wrong one", &[&image, "--unpack", text(&root), "--auth", text(&wrong)], &["refuses", "401"]);
    assert!(!root.exists());
    let out = pull(&image, &right);
    assert_eq!(out.status, 0, "{}", out.stderr);
    fs::remove_dir_all(&root).unwrap();

    // Tokens: a server of ours gives one for the password, and what is before the registry wants it.
    let open = Registry::start();
    open.push("test/token", &[Pushed::gzip(second())]);
    let me = std::sync::Arc::new(std::sync::OnceLock::<String>::new());
    let own = me.clone();
    let front = Front::start(&open, move |head| {
        let address = own.get().unwrap();
        let has = |text: &str| head.lines().any(|l| l.eq_ignore_ascii_case(text));
        if head.starts_with("GET /token?") {
            let right = has("authorization: Basic dXNlcjpzZWNyZXQ=")
                && head.contains("scope=repository%3Atest%2Ftoken%3Apull")
                && head.contains("service=the%20registry");
            let body = if right { "{\"access_token\":\"t0k3n\",\"expires_in\":60}" } else { "{\"details\":\"wrong password\"}" };
            let status = if right { "200 OK" } else { "401 Unauthorized" };
            // The body goes where the end of the headers would.
            return Action::Answer(format!("{status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()));
        }
        if has("authorization: Bearer t0k3n") {
            return Action::Forward;
        }
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"the registry\",scope=\"repository:test/token:pull\"");
        Action::Answer(format!("401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n"))
    });
    me.set(front.address.clone()).unwrap();
    let image = front.image("test/token");
    let out = pull(&image, &secret("token", &front.address, "dXNlcjpzZWNyZXQ="));
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert_eq!(front.requests().iter().filter(|r| r.starts_with("GET /token?")).count(), 1, "{:?}", front.requests());
    fs::remove_dir_all(&root).unwrap();
    refused(
        "a wrong password for a token",
        &[&image, "--unpack", text(&root), "--auth", text(&wrong)],
        &["token server", "wrong password"],
    );
    assert!(!root.exists());
}

#[test]
fn whatever_goes_wrong_is_told_and_leaves_nothing() {
    if !can_run_registry("whatever_goes_wrong") {
        return;
    }
    let (registry, dir) = (Registry::start(), tempfile::tempdir().unwrap());
    let layer = Pushed::gzip(second());
    registry.push("test/image", std::slice::from_ref(&layer));
    let (root, layout) = (dir.path().join("root"), dir.path().join("layout"));
    let blobs = |head: &str| head.contains("/blobs/");
    let both = |what: &str, image: &str, parts: &[&str]| {
        refused(what, &[image, "--unpack", text(&root)], parts);
        assert!(!root.exists(), "{what}");
        refused(what, &[image, "--output", text(&layout)], parts);
        assert!(fs::read_dir(layout.join("partial")).is_ok_and(|mut d| d.next().is_none()) || !layout.exists(), "{what}");
        let _ = fs::remove_dir_all(&layout);
    };
    both("an unknown image", &registry.image("test/none"), &["has no manifests/latest", "check the name"]);
    both("an unknown tag", &registry.image("test/image:v9"), &["has no manifests/v9"]);
    both("nobody there", &format!("127.0.0.1:{}/x", registry::free_port()), &["refused", "check the network"]);

    let busy = Front::start(&registry, |_| Action::Answer("429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\n".into()));
    both("a registry that is busy", &busy.image("test/image"), &["too many requests", "3600 s"]);
    let (hex, length) = (registry::digest(&layer.blob).trim_start_matches("sha256:").to_owned(), layer.blob.len());
    let (cut_hex, changed_hex) = (hex.clone(), hex);
    let cut = Front::start(&registry, move |head| match head.contains(&cut_hex) {
        true => Action::Answer(format!("200 OK\r\nContent-Length: {length}\r\n")),
        false => Action::Forward,
    });
    refused("a layer that is cut again and again", &[&cut.image("test/image"), "--unpack", text(&root)], &["breaks off at byte 0"]);
    assert!(!root.exists());
    let changed = Front::start(&registry, move |head| if blobs(head) { Action::Change } else { Action::Forward });
    both("changed blobs", &changed.image("test/image"), &["sha256:", "fetch it again"]);
    let changed = Front::start(&registry, move |head| if head.contains(&changed_hex) { Action::Change } else { Action::Forward });
    both("a changed layer", &changed.image("test/image"), &["layer sha256:", "fetch it again"]);
    let page = "HTTP/1.1 200 OK";
    let other = Front::start(&registry, move |_| {
        Action::Answer(format!("200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}", page.len()))
    });
    both("a server that is no registry", &other.image("test/image"), &["its manifest"]);

    // Busy only for a while.
    let times = AtomicU32::new(0);
    let patient = Front::start(&registry, move |_| match times.fetch_add(1, Ordering::Relaxed) {
        0..2 => Action::Answer("429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n".into()),
        2..4 => Action::Answer("503 Busy\r\nContent-Length: 0\r\n".into()),
        _ => Action::Forward,
    });
    let out = run(["pull", &patient.image("test/image"), "--unpack", text(&root)]);
    assert_eq!(out.status, 0, "{}", out.stderr);
    refused("a directory in use", &[&registry.image("test/image"), "--unpack", text(&root)], &["not empty"]);
    fs::remove_dir_all(&root).unwrap();

    let mut climbing = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    let path = b"../../osc-climbed";
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_size(0);
    header.set_cksum();
    climbing.append(&header, &b""[..]).unwrap();
    registry.push("test/climbs", &[Pushed::gzip(climbing.into_inner().unwrap())]);
    refused("a layer that climbs", &[&registry.image("test/climbs"), "--unpack", text(&root)], &["leads out of the root", "do not use"]);
    assert!(!root.exists() && !dir.path().parent().unwrap().join("osc-climbed").exists());

    // A disk of 4 MiB.
    let small = dir.path().join("small");
    fs::create_dir(&small).unwrap();
    rustix::mount::mount("small", &small, "tmpfs", rustix::mount::MountFlags::empty(), c"size=4m").unwrap();
    registry.push("test/large", &[Pushed::gzip(Tar::new().file("noise", &noise(8 << 20, 2)).end())]);
    let image = registry.image("test/large");
    refused("a layer for a store", &[&image, "--output", text(&small.join("layout"))], &["bytes, and", "free space"]);
    assert!(fs::read_dir(small.join("layout/partial")).unwrap().next().is_none());
    fs::remove_dir_all(small.join("layout")).unwrap();
    refused("a layer for a root", &[&image, "--unpack", text(&small.join("root"))], &["noise", "free space"]);
    assert!(fs::read_dir(&small).unwrap().next().is_none());
    rustix::mount::unmount(&small, rustix::mount::UnmountFlags::empty()).unwrap();
}

#[test]
fn mirrors_certificates_and_proxies_are_used() {
    if !can_run_registry("mirrors_certificates_and_proxies") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let pull = |args: &[&str], proxy: Option<&str>| {
        let _ = fs::remove_dir_all(&root);
        let mut command = command([&["pull", "--unpack", text(&root)], args].concat());
        if let Some(proxy) = proxy {
            command.env("HTTP_PROXY", proxy).env("NO_PROXY", "elsewhere.test");
        }
        common::finish(command.spawn().unwrap())
    };
    let registry = Registry::start();
    registry.push("test/image", &[Pushed::gzip(second())]);

    // A mirror of a registry that is not there.
    let front = Front::start(&registry, |_| Action::Forward);
    let hosts = dir.path().join("hosts");
    fs::create_dir_all(hosts.join("registry.test")).unwrap();
    fs::write(hosts.join("registry.test/hosts.toml"), format!("[host.\"http://{}\"]\n", front.address)).unwrap();
    let out = pull(&["registry.test/test/image", "--hosts", text(&hosts)], None);
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(front.requests().iter().all(|r| r.contains("ns=registry.test")), "{:?}", front.requests());

    let proxy =
        Front::start(&registry, |head| if head.starts_with("CONNECT registry.test:5000 ") { Action::Tunnel } else { Action::Forward });
    let out = pull(&["registry.test:5000/test/image", "--plain-http"], Some(&format!("http://{}", proxy.address)));
    assert_eq!(out.status, 0, "{}", out.stderr);
    assert!(!proxy.requests().is_empty());

    // TLS, by a certificate that nobody else vouches for.
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let (ca_file, certificate, private) = (dir.path().join("ca.pem"), dir.path().join("leaf.pem"), dir.path().join("key.pem"));
    fs::write(&ca_file, pem("CERTIFICATE", ca.der())).unwrap();
    fs::write(&certificate, pem("CERTIFICATE", leaf.der())).unwrap();
    fs::write(&private, pem("PRIVATE KEY", &key.serialize_der())).unwrap();
    let port = registry::free_port();
    let tls = json!({"tls": {"certificate": certificate, "key": private}});
    let mut secure = Registry::with(&format!("127.0.0.1:{port}"), tls, json!({}), None);
    // Filled through the one that speaks HTTP: they have the same files.
    let copied = std::process::Command::new("cp").arg("-a").arg(registry.dir.path().join("data")).arg(secure.dir.path()).status().unwrap();
    assert!(copied.success());
    let image = format!("localhost:{port}/test/image");
    let out = pull(&[&image, "--ca", text(&ca_file)], None);
    assert_eq!(out.status, 0, "{}", out.stderr);
    let out = pull(&[&image], None);
    assert!(out.status == 125 && out.stderr.contains("ertificate") && out.stderr.contains("--ca"), "{}", out.stderr);
    assert!(!root.exists());
    secure.kill();
}

/// How a pull ended, and the most memory that it was seen to have, KiB.
fn peak_of(args: &[&str]) -> (i32, u64) {
    let mut child = command([&["pull"], args].concat()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    // Its own, not its parent's before the exec: that is what getrusage would tell.
    let ended = until("the pull", || {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let seen = text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        if text.starts_with("Name:\tosc\n") {
            peak = seen.unwrap_or(0).max(peak);
        }
        child.try_wait().unwrap()
    });
    (ended.code().unwrap(), peak)
}

#[test]
fn a_pull_needs_little_memory_whatever_its_size() {
    if !can_run_registry("a_pull_needs_little_memory") {
        return;
    }
    const MOST_KIB: u64 = 32 << 10;
    let (registry, dir) = (Registry::start(), tempfile::tempdir().unwrap());
    let half = noise(96 << 20, 3);
    registry.push("test/large", &[Pushed::gzip(Tar::new().file("noise", &half).file("zeros", &vec![0; 64 << 20]).end())]);
    for place in ["--unpack", "--output"] {
        let at = dir.path().join(place.trim_start_matches('-'));
        let (status, peak) = peak_of(&[&registry.image("test/large"), place, text(&at)]);
        println!("{place}: {peak} KiB at most");
        assert!(status == 0 && (1..=MOST_KIB).contains(&peak), "{place}: status {status}, {peak} KiB");
    }
}

/// The shortest of three times that `act` takes, seconds; `reset` comes before each.
fn shortest(reset: impl Fn(), act: impl Fn()) -> f64 {
    let times = (0..3).map(|_| {
        reset();
        let start = std::time::Instant::now();
        act();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

#[test]
fn many_files_come_as_fast_as_tar_unpacks_them() {
    if !can_run_registry("many_files") || !can_run_containerd("many_files") {
        return;
    }
    const LEAST: f64 = 0.8;
    let all = common::all();
    let (registry, containerd, dir) = (Registry::start(), Containerd::start(), tempfile::tempdir().unwrap());
    let data = noise(8 << 10, 4);
    let mut tar = Tar::new();
    for n in 0..if all { 50_000 } else { 2_000 } {
        if n % 500 == 0 {
            tar = tar.dir(&format!("many/{}", n / 500));
        }
        let text = [&data[..n * 37 % 4096], vec![n as u8; n * 91 % 4096].as_slice()].concat();
        tar = tar.file(&format!("many/{}/{n}", n / 500), &text);
    }
    let layers = [Pushed::gzip(first()), Pushed::gzip(tar.end()), Pushed::gzip(second())];
    registry.push("test/many", &layers);
    let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
    let image = registry.image("test/many:latest");
    let files: Vec<_> = (0..layers.len()).map(|n| dir.path().join(format!("{n}.tar.gz"))).collect();
    files.iter().zip(&layers).for_each(|(f, l)| fs::write(f, &l.blob).unwrap());
    let tar = shortest(
        || {
            let _ = fs::remove_dir_all(&plain);
            fs::create_dir(&plain).unwrap();
        },
        || {
            for file in &files {
                let status = std::process::Command::new("tar").args(["--xattrs", "-xzf", text(file), "-C", text(&plain)]).status();
                assert!(status.unwrap().success());
            }
        },
    );
    let pull = shortest(|| drop(fs::remove_dir_all(&ours)), || assert_eq!(run(["pull", &image, "--unpack", text(&ours)]).status, 0));
    println!("tar {tar:.2} s, pull {pull:.2} s: {:.0} % of its throughput", tar / pull * 100.0);
    assert!(!all || tar / pull >= LEAST, "tar {tar:.2} s, pull {pull:.2} s");
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    assert_eq!(containerd.ctr(["images", "pull", "--plain-http", &image]).status, 0);
    assert_eq!(containerd.ctr(["images", "mount", &image, text(&theirs)]).status, 0);
    let (expected, found) = (described(&theirs), described(&ours));
    containerd.ctr(["images", "unmount", text(&theirs)]);
    let differ: Vec<_> = expected.iter().zip(&found).filter(|(e, f)| e != f).take(5).collect();
    assert!(differ.is_empty() && expected.len() == found.len(), "{} and {} entries: {differ:#?}", expected.len(), found.len());
}
