//! Installs into temporary roots; the binary is a few bytes.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use toml::de::DeTable;

use super::containerd::{self, DROP_IN, MAIN, Plan, plan};
use super::*;

/// A node with the given files.
struct Root(tempfile::TempDir);

impl Root {
    fn new(files: &[(&str, &str)]) -> Root {
        let root = Root(tempfile::tempdir().unwrap());
        files.iter().for_each(|(path, text)| root.write(path, text));
        root
    }

    /// One with systemd, containerd 1.6 and CRI-O.
    fn full() -> Root {
        let root = Root::new(&[(MAIN, DEBIAN), ("/etc/crio/crio.conf", "")]);
        root.dir("/etc/systemd/system");
        root
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(&path[1..])
    }

    fn dir(&self, path: &str) {
        std::fs::create_dir_all(self.at(path)).unwrap();
    }

    fn write(&self, path: &str, text: &str) {
        std::fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        std::fs::write(self.at(path), text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn to(&self) -> Where {
        Where { prefix: "/usr/local".into(), root: self.0.path().into(), dry_run: false }
    }

    fn install(&self, program: &str) -> Report {
        Install { to: self.to(), manager: vec![], cluster: ToCluster::default() }.apply(program.into()).unwrap()
    }

    fn uninstall(&self) -> Report {
        Uninstall { to: self.to() }.apply().unwrap()
    }

    /// Everything that is there: contents of files, targets of links, directories.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        let mut todo = vec![self.0.path().to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                let what = if kind.is_symlink() {
                    format!("-> {}", std::fs::read_link(&path).unwrap().display())
                } else if kind.is_dir() {
                    todo.push(path.clone());
                    "dir".into()
                } else {
                    String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
                };
                all.insert(path.strip_prefix(self.0.path()).unwrap().into(), what);
            }
        }
        all
    }
}

fn of(report: &Report, path: &str) -> Done {
    report.done.iter().find(|(_, p)| p == Path::new(path)).unwrap_or_else(|| panic!("{path} in {report:?}")).0
}

/// As Debian's containerd package has it.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

#[test]
fn what_is_put_where() {
    let root = Root::full();
    let report = root.install("v1");
    let program = root.at("/usr/local/bin/osc");
    assert_eq!((root.read("/usr/local/bin/osc").as_str(), program.metadata().unwrap().permissions().mode() & 0o777), ("v1", 0o755));
    for name in ["containerd-shim-kata-v2", "containerd-shim-kata-remote-v2"] {
        assert_eq!(std::fs::read_link(root.at("/usr/local/bin").join(name)).unwrap(), Path::new("osc"));
    }
    for name in ["init", "osc-container"] {
        assert!(!root.at("/usr/local/bin").join(name).exists());
    }
    assert!(root.read(texts::UNIT).contains("ExecStart=/usr/local/bin/osc image build"));
    assert!(root.at(texts::WANTS).exists());
    let crio = root.read(texts::CRIO);
    for part in [
        "[crio.runtime.runtimes.kata]\nruntime_path = \"/usr/local/bin/containerd-shim-kata-v2\"\nruntime_type = \"vm\"",
        "[crio.runtime.runtimes.kata-remote]\nruntime_path = \"/usr/local/bin/containerd-shim-kata-remote-v2\"",
        "runtime_root = \"/run/kata\"\nprivileged_without_host_devices = true",
    ] {
        assert!(crio.contains(part), "{part} in {crio}");
    }
    let main = root.read(MAIN);
    assert!(main.starts_with(DEBIAN) && main.contains("runtimes.kata]\n  runtime_type = \"io.containerd.kata.v2\""), "{main}");
    assert_eq!(report.next, ["systemctl daemon-reload", "systemctl restart containerd", "systemctl restart crio"]);
    assert_eq!(report.notes, Vec::<String>::new());
}

#[test]
fn again_changes_nothing_and_a_new_version_replaces() {
    let root = Root::full();
    root.install("v1");
    let before = root.tree();
    let inode = root.at("/usr/local/bin/osc").metadata().unwrap().ino();
    let report = root.install("v1");
    assert!(report.done.iter().all(|(d, _)| *d == Done::Unchanged), "{report:?}");
    assert_eq!(root.tree(), before);
    // Whoever runs the old one keeps it.
    let mut old = std::fs::File::open(root.at("/usr/local/bin/osc")).unwrap();
    assert_eq!(of(&root.install("v2"), "/usr/local/bin/osc"), Done::Put);
    assert_eq!(root.read("/usr/local/bin/osc"), "v2");
    assert_ne!(root.at("/usr/local/bin/osc").metadata().unwrap().ino(), inode);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut old, &mut text).unwrap();
    assert_eq!(text, "v1");
}

#[test]
fn uninstall_leaves_the_node_as_it_was() {
    for root in [Root::full(), Root::new(&[]), Root::new(&[(MAIN, "version = 2")])] {
        let before = root.tree();
        root.install("v1");
        root.install("v2");
        assert_ne!(root.tree(), before);
        let report = root.uninstall();
        assert!(report.done.iter().all(|(d, _)| *d == Done::Removed), "{report:?}");
        assert_eq!(root.tree(), before);
        assert_eq!(root.uninstall().notes, ["nothing is installed"]);
        assert_eq!(root.tree(), before);
    }
}

#[test]
fn what_was_edited_stays() {
    let root = Root::full();
    root.install("v1");
    root.write(texts::DEFAULTS, "[runtime]\nenable_debug = true\n");
    root.write(MAIN, &root.read(MAIN).replace("pod_annotations", "#pod_annotations"));
    std::fs::remove_file(root.at(texts::CRIO)).unwrap();
    let report = root.install("v2");
    assert_eq!(of(&report, texts::DEFAULTS), Done::Kept);
    assert_eq!(of(&report, MAIN), Done::Kept);
    assert_eq!(of(&report, texts::CRIO), Done::Put);
    let edited = root.read(MAIN);
    let report = root.uninstall();
    assert_eq!((of(&report, texts::DEFAULTS), of(&report, MAIN)), (Done::Kept, Done::Kept));
    assert_eq!(root.read(texts::DEFAULTS), "[runtime]\nenable_debug = true\n");
    assert_eq!(root.read(MAIN), edited);
    assert!(!root.at("/usr/local/bin/osc").exists() && !root.at(manifest::PATH).exists());
}

#[test]
fn what_is_somebody_elses_is_never_touched() {
    let root = Root::full();
    root.write("/usr/local/bin/containerd-shim-kata-v2", "Kata's own");
    root.write(texts::DEFAULTS, "# the distribution's\n");
    let before = root.tree();
    let e = Install { to: root.to(), manager: vec![], cluster: ToCluster::default() }.apply(b"v1".to_vec()).unwrap_err();
    assert_eq!(e.code, Code::AlreadyExists);
    assert!(e.cause.contains("/usr/local/bin/containerd-shim-kata-v2") && e.way_out.contains("--prefix"), "{e}");
    assert_eq!(root.tree(), before);
    let elsewhere = Install { to: Where { prefix: "/opt/osc".into(), ..root.to() }, manager: vec![], cluster: ToCluster::default() };
    assert_eq!(of(&elsewhere.apply(b"v1".to_vec()).unwrap(), texts::DEFAULTS), Done::Kept);
    assert!(root.read(MAIN).contains("runtime_path = \"/opt/osc/bin/containerd-shim-kata-v2\""));
    assert!(root.read(texts::UNIT).contains("ExecStart=/opt/osc/bin/osc image"));
    root.uninstall();
    assert_eq!(root.tree(), before);
}

#[test]
fn another_prefix_moves_it() {
    let root = Root::full();
    root.install("v1");
    let moved = Install { to: Where { prefix: "/opt/osc".into(), ..root.to() }, manager: vec![], cluster: ToCluster::default() };
    assert_eq!(of(&moved.apply(b"v1".to_vec()).unwrap(), "/usr/local/bin/osc"), Done::Removed);
    assert!(root.at("/opt/osc/bin/osc").exists() && !root.at("/usr/local/bin/containerd-shim-kata-v2").is_symlink());
}

#[test]
fn a_dry_run_changes_nothing() {
    let root = Root::full();
    let dry = || Where { dry_run: true, ..root.to() };
    let before = root.tree();
    let report = Install { to: dry(), manager: vec![], cluster: ToCluster::default() }.apply(b"v1".to_vec()).unwrap();
    assert_eq!(of(&report, "/usr/local/bin/osc"), Done::Put);
    assert_eq!(root.tree(), before);
    root.install("v1");
    let before = root.tree();
    assert_eq!(of(&Uninstall { to: dry() }.apply().unwrap(), "/usr/local/bin/osc"), Done::Removed);
    assert_eq!(root.tree(), before);
}

#[test]
fn managers_that_are_not_here() {
    let root = Root::new(&[]);
    let report = root.install("v1");
    assert!(report.notes.len() == 3 && report.notes[1].contains("no containerd") && report.notes[2].contains("no CRI-O"), "{report:?}");
    let all = Install { to: root.to(), manager: vec!["containerd".into(), "crio".into()], cluster: ToCluster::default() }
        .apply(b"v1".to_vec())
        .unwrap();
    assert_eq!((of(&all, MAIN), of(&all, texts::CRIO)), (Done::Put, Done::Put));
    assert!(root.read(MAIN).starts_with("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\n"));
}

#[test]
fn links_in_the_root_lead_nowhere_else() {
    let root = Root::new(&[]);
    let outside = tempfile::tempdir().unwrap();
    root.dir("/real/crio");
    root.dir("/etc");
    std::os::unix::fs::symlink("/real/crio", root.at("/etc/crio")).unwrap();
    std::os::unix::fs::symlink(outside.path(), root.at("/usr")).unwrap();
    let e = Install { to: root.to(), manager: vec![], cluster: ToCluster::default() }.apply(b"v1".to_vec()).map(|_| ()).unwrap_err();
    assert!(e.cause.contains("/usr"), "{e}");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    std::fs::remove_file(root.at("/usr")).unwrap();
    root.install("v1");
    assert!(root.at("/real/crio/crio.conf.d/50-osc.conf").exists());
}

#[test]
fn a_main_file_behind_a_link_keeps_its_link_and_its_mode() {
    let root = Root::new(&[("/data/containerd.toml", DEBIAN)]);
    root.dir("/etc/containerd");
    std::os::unix::fs::symlink("/data/containerd.toml", root.at(MAIN)).unwrap();
    std::fs::set_permissions(root.at("/data/containerd.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    root.install("v1");
    assert!(root.at(MAIN).is_symlink() && root.read("/data/containerd.toml").contains("runtimes.kata]"));
    assert_eq!(root.at("/data/containerd.toml").metadata().unwrap().mode() & 0o777, 0o600);
    root.uninstall();
    assert_eq!(root.read("/data/containerd.toml"), DEBIAN);
}

#[test]
fn prefixes_that_make_no_sense() {
    let root = Root::full();
    for prefix in ["usr", "/usr/../etc", ""] {
        let e = Install { to: Where { prefix: prefix.into(), ..root.to() }, manager: vec![], cluster: ToCluster::default() }
            .apply(vec![])
            .unwrap_err();
        assert_eq!(e.code, Code::InvalidArgument, "{prefix}");
    }
    let e = Uninstall { to: Where { root: "/nonexistent".into(), ..root.to() } }.apply().unwrap_err();
    assert!(e.cause.contains("/nonexistent"), "{e}");
}

#[test]
fn containerds_config_versions() {
    let bin = Path::new("/usr/local/bin");
    let block = |main: &str| match plan(Some(main), bin) {
        Plan::Block(text) => text,
        other => panic!("{other:?}"),
    };
    assert!(block("").contains("[plugins.cri.containerd.runtimes.kata]"));
    assert!(block("version = 2\n").contains("[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata-remote]"));
    assert!(block("version = 3\n").contains("[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata]"));
    // containerd 1.x would let a drop-in replace the whole plugin's section.
    let imports = "imports = [\"/etc/containerd/conf.d/*.toml\"]\n";
    assert!(block(&format!("version = 2\n{imports}")).contains("runtimes.kata]"));
    match plan(Some(&format!("version = 3\n{imports}")), bin) {
        Plan::DropIn(text) => assert!(text.starts_with("version = 3\n[plugins.\"io.containerd.cri.v1.runtime\""), "{text}"),
        other => panic!("{other:?}"),
    }
    let root = Root::new(&[(MAIN, &format!("version = 3\n{imports}"))]);
    assert_eq!(of(&root.install("v1"), DROP_IN), Done::Put);
    assert_eq!(root.read(MAIN), format!("version = 3\n{imports}"));
    let root = Root::new(&[(MAIN, &format!("version = 2\n{imports}"))]);
    assert!(root.install("v1").notes.iter().any(|n| n.contains("imports files")));
}

#[test]
fn handlers_that_are_there_already() {
    let kata = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n";
    let bin = Path::new("/usr/local/bin");
    match plan(Some(kata), bin) {
        Plan::Block(text) => assert!(text.contains("runtimes.kata-remote]") && !text.contains("runtimes.kata]"), "{text}"),
        other => panic!("{other:?}"),
    }
    let both = format!("{kata}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata-remote]\n");
    assert_eq!(plan(Some(&both), bin), Plan::Already);
    // Where a table cannot be added, somebody is told what to add.
    let inline = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ncontainerd = { snapshotter = \"overlayfs\" }\n";
    let broken = "version = \n";
    for main in [inline, broken] {
        match plan(Some(main), bin) {
            Plan::Tell { add, .. } => assert!(add.contains("runtimes.kata]\n  runtime_type"), "{add}"),
            other => panic!("{other:?}"),
        }
        let root = Root::new(&[(MAIN, main)]);
        let report = root.install("v1");
        assert!(report.notes.iter().any(|n| n.contains("add to it:\n[plugins.")), "{report:?}");
        assert_eq!(root.read(MAIN), main);
    }
}

#[test]
fn a_block_comes_and_goes_without_a_trace() {
    for main in ["version = 2", "version = 2\n", "version = 2\n\n# end", ""] {
        let Plan::Block(block) = plan(Some(main), Path::new("/usr/local/bin")) else { panic!("{main}") };
        let with = containerd::with_block(main, &block);
        assert_eq!(containerd::block_of(&with), Some(block.as_str()));
        assert_eq!(containerd::with_block(&with, &block), with);
        assert_eq!(containerd::without_block(&with), main);
        let more = format!("{with}[debug]\nlevel = \"info\"\n");
        assert_eq!(containerd::without_block(&more), format!("{main}[debug]\nlevel = \"info\"\n"));
    }
}

/// The real thing, where it is: our tables must not cost it anything else.
#[test]
fn containerd_reads_it() {
    let program = Path::new("/usr/bin/containerd");
    if !program.exists() {
        eprintln!("skipped: no containerd here");
        return;
    }
    let root = Root::full();
    root.install("v1");
    let (out, theirs) = crate::process::pipe().unwrap();
    let main = root.at(MAIN);
    let child = crate::process::Spawn::new(program).arg("-c").arg(&main).args(["config", "dump"]).fd(theirs, 1).start().unwrap();
    let text = std::io::read_to_string(out).unwrap();
    child.wait().unwrap();
    let dump = DeTable::parse(&text).unwrap();
    let cri = dump.get_ref()["plugins"].get_ref().get("io.containerd.grpc.v1.cri").unwrap().get_ref();
    let get =
        |path: &[&str]| path.iter().try_fold(cri, |at, part| at.get(*part).map(|v| v.get_ref())).map(|v| v.as_str().unwrap().to_owned());
    assert_eq!(get(&["containerd", "runtimes", "kata", "runtime_type"]).as_deref(), Some("io.containerd.kata.v2"));
    assert_eq!(get(&["containerd", "runtimes", "runc", "runtime_type"]).as_deref(), Some("io.containerd.runc.v2"));
    assert_eq!(get(&["cni", "bin_dir"]).as_deref(), Some("/usr/lib/cni"));
}

#[test]
fn the_default_file_changes_nothing() {
    use crate::config::Config;
    use crate::config::file::assemble;
    let root = Root::full();
    root.install("v1");
    for shim in names().filter(|n| n.starts_with("containerd-shim")) {
        let read = assemble(Some(&root.at(texts::DEFAULTS)), shim);
        assert_eq!((read.errors, &read.config.warnings, read.notes), (vec![], &vec![], vec![]));
        let bare = |c: Config| format!("{:?}", Config { origins: Default::default(), file: None, ..c });
        assert_eq!(bare(read.config), bare(assemble(None, shim).config), "{shim}");
        // Nor does it when every line counts.
        let text = root
            .read(texts::DEFAULTS)
            .replace("\n#", "\n")
            .lines()
            .filter(|l| l.contains(" = ") || l.starts_with('['))
            .map(|l| format!("{l}\n"))
            .collect::<String>();
        root.write("/all.toml", &text);
        let read = assemble(Some(&root.at("/all.toml")), shim);
        assert_eq!((read.errors, &read.config.warnings, read.notes), (vec![], &vec![], vec![]), "{text}");
        assert_eq!(bare(read.config), bare(assemble(None, shim).config), "{shim}");
    }
}
