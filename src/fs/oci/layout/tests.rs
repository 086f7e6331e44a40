use std::fs;

use proptest::prelude::*;
use serde_json::json;

use super::super::codec::digest;
use super::super::testing::{Layout, Tar, gzip, listing, zstd};
use super::*;

/// Two layers, as (diff, blob).
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let first = Tar::new().file("a", "1").file("b", "2").end();
    let second = Tar::new().file(".wh.a", "").file("c", "3").end();
    vec![(first.clone(), gzip(&first)), (second.clone(), zstd(&second))]
}

fn layout() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout(dir.path());
    layout.index(&[layout.image("amd64", &layers())]);
    dir
}

/// Unpacks; answers what is there.
fn unpacked(image: &Image) -> Result<Vec<String>, ImageError> {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let told = std::cell::RefCell::new(Vec::new());
    let result = image.unpack(&root, &|what| told.borrow_mut().push(what.to_owned()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was made beside the root");
    result?;
    assert_eq!(told.borrow().len(), image.layers.len());
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o755);
    Ok(listing(&root))
}

/// Opens and unpacks; answers why that fails.
fn error(path: &Path) -> String {
    let result = Image::open(path).and_then(|image| unpacked(&image));
    result.unwrap_err().to_string()
}

fn descriptor(of: &serde_json::Value, more: serde_json::Value) -> serde_json::Value {
    let mut all = of.clone();
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    all
}

#[test]
fn a_layout_as_directory_and_as_archive_however_compressed() {
    let dir = layout();
    assert_eq!(unpacked(&Image::open(dir.path()).unwrap()).unwrap(), ["b", "c"]);
    let archive = Layout(dir.path()).archive();
    for bytes in [archive.clone(), gzip(&archive), zstd(&archive)] {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let image = Image::open(file.path()).unwrap();
        assert_eq!(image.config.process(&[]).args, ["amd64"]);
        assert_eq!(unpacked(&image).unwrap(), ["b", "c"]);
        assert_eq!(unpacked(&Image::read("-", &bytes[..]).unwrap()).unwrap(), ["b", "c"]);
    }
}

#[test]
fn of_several_architectures_this_machines_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout(dir.path());
    let platform = |architecture: &str, os: &str| json!({"platform": {"architecture": architecture, "os": os}});
    let here = layout.image("amd64", &layers());
    let newer = descriptor(&here, json!({"platform": {"architecture": "amd64", "os": "linux", "variant": "v3"}, "digest": digest(b"v3")}));
    let inner = json!({"manifests": [
        descriptor(&layout.image("arm64", &[]), platform("arm64", "linux")),
        newer,
        descriptor(&here, platform("amd64", "linux")),
        descriptor(&layout.blob(b"{}"), platform("unknown", "unknown")),
    ]});
    layout.index(&[layout.blob(inner.to_string().as_bytes())]);
    assert_eq!(unpacked(&Image::open(dir.path()).unwrap()).unwrap(), ["b", "c"]);

    layout.index(&[descriptor(&here, platform("arm64", "linux")), descriptor(&here, platform("amd64", "windows"))]);
    let e = error(dir.path());
    assert!(e.contains("nothing for linux/amd64, only: linux/arm64, windows/amd64"), "{e}");
    // Without a platform in the index the configuration says it.
    layout.index(&[layout.image("riscv64", &[])]);
    assert!(error(dir.path()).contains("it is for linux/riscv64, this machine is linux/amd64"));
}

#[test]
fn several_images_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout(dir.path());
    let (one, other) = (layout.image("amd64", &layers()), layout.image("amd64", &layers()[..1]));
    let called = |of, name| descriptor(of, json!({"annotations": {"org.opencontainers.image.ref.name": name}}));
    layout.index(&[called(&one, "one:1"), called(&other, "other:2")]);
    let e = error(dir.path());
    assert!(e.contains("several images (one:1, other:2): save one"), "{e}");
    // Twice the same under two names, and a signature, is one.
    let signature = descriptor(&other, json!({"artifactType": "application/vnd.example.signature"}));
    layout.index(&[called(&one, "one:1"), called(&one, "one:latest"), signature]);
    assert!(Image::open(dir.path()).is_ok());
    layout.index(&[]);
    assert!(error(dir.path()).contains("it holds no image"));
}

/// `docker save` as it was: manifest.json, a configuration by its digest, a directory per layer, repeated ones as links.
fn saved(change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let layers = layers();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["saved"]},
        "rootfs": {"diff_ids": [digest(&layers[0].0), digest(&layers[1].0), digest(&layers[0].0)]}})
    .to_string();
    let name = format!("{}.json", digest(config.as_bytes()).trim_start_matches("sha256:"));
    let mut manifest =
        json!([{"Config": name, "RepoTags": ["busybox:1"], "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"]}]);
    change(&mut manifest);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Tar::new()
        .dir("one/")
        .file("one/layer.tar", &text(&layers[0].0))
        .file("two/layer.tar", &text(&layers[1].0))
        .symlink("three/layer.tar", "../one/layer.tar")
        .file(&name, &config)
        .file("manifest.json", &manifest.to_string())
        .end()
}

#[test]
fn docker_save() {
    for bytes in [saved(|_| ()), gzip(&saved(|_| ()))] {
        let image = Image::read("-", &bytes[..]).unwrap();
        assert_eq!(image.config.process(&[]).args, ["saved"]);
        assert_eq!(unpacked(&image).unwrap(), ["a", "b", "c"]);
    }
    let text = |bytes: Vec<u8>| Image::read("-", &bytes[..]).and_then(|i| unpacked(&i)).unwrap_err().to_string();
    let two = text(saved(|m| {
        let mut second = m[0].clone();
        second["RepoTags"] = json!(["alpine:2"]);
        m.as_array_mut().unwrap().push(second);
    }));
    assert!(two.contains("several images (busybox:1, alpine:2)"), "{two}");
    let swapped = text(saved(|m| m[0]["Layers"].as_array_mut().unwrap().swap(0, 1)));
    assert!(swapped.contains("layer two/layer.tar: its contents are sha256:"), "{swapped}");
    let missing = text(saved(|m| m[0]["Layers"][1] = json!("four/layer.tar")));
    assert!(missing.contains("four/layer.tar") && missing.contains("not found"), "{missing}");
    let fewer = text(saved(|m| drop(m[0]["Layers"].as_array_mut().unwrap().pop())));
    assert!(fewer.contains("names 3 layers and its manifest 2"), "{fewer}");
    let climbs = text(saved(|m| m[0]["Config"] = json!("../../etc/passwd")));
    assert!(climbs.contains("leads out of the image"), "{climbs}");
}

#[test]
fn changed_and_missing_blobs_are_told() {
    let dir = layout();
    let blobs = dir.path().join("blobs/sha256");
    let files: Vec<_> = fs::read_dir(&blobs).unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(files.len(), 4);
    for file in files {
        let good = fs::read(&file).unwrap();
        let hex = file.file_name().unwrap().to_string_lossy().into_owned();
        let mut changed = good.clone();
        // The last byte is the gzip's length, the zstd's data, the JSON's brace.
        *changed.last_mut().unwrap() ^= 1;
        fs::write(&file, &changed).unwrap();
        let e = error(dir.path());
        assert!(e.contains(&hex), "{hex}: {e}");
        fs::write(&file, &good[..good.len() - 3]).unwrap();
        let e = error(dir.path());
        assert!(e.contains(&hex) && (e.contains("its manifest says") || e.contains("its digest is")), "{hex}: {e}");
        fs::remove_file(&file).unwrap();
        let e = error(dir.path());
        assert!(e.contains(&hex), "{hex}: {e}");
        fs::write(&file, &good).unwrap();
    }
    assert!(Image::open(dir.path()).is_ok());
}

#[test]
fn what_is_no_image_is_told() {
    let dir = tempfile::tempdir().unwrap();
    assert!(error(dir.path()).contains("neither index.json nor manifest.json"));
    assert!(error(&dir.path().join("missing")).contains("missing"));
    let layout = Layout(dir.path());
    layout.index(&[json!({"digest": "sha256:../../../etc/passwd", "size": 1})]);
    assert!(error(dir.path()).contains("is not a sha256"));
    let empty = layout.blob(b"{}");
    layout.index(std::slice::from_ref(&empty));
    assert!(error(dir.path()).contains("no config and layers"));
    let chart = json!({"config": layout.blob(br#"{"name": "chart"}"#), "layers": [layout.blob(b"x")]}).to_string();
    layout.index(&[layout.blob(chart.as_bytes())]);
    assert!(error(dir.path()).contains("no container image"));
    let mut round = json!({"manifests": [empty]});
    for _ in 0..6 {
        round = json!({"manifests": [layout.blob(round.to_string().as_bytes())]});
    }
    layout.index(&[layout.blob(round.to_string().as_bytes())]);
    assert!(error(dir.path()).contains("no config and layers"));
    fs::write(dir.path().join("index.json"), "{").unwrap();
    assert!(error(dir.path()).contains("index.json"));
    let file = dir.path().join("text");
    fs::write(&file, "just some text\n".repeat(100)).unwrap();
    assert!(error(&file).contains("checksum"));
    fs::write(&file, Tar::new().file("../index.json", "{}").end()).unwrap();
    assert!(error(&file).contains("leads out of the root"));
}

#[test]
fn an_archive_that_is_cut_short_is_told() {
    let archive = Layout(layout().path()).archive();
    let index = archive.windows(10).rposition(|w| w == b"index.json").unwrap();
    for bytes in [archive[..index + 512 + 10].to_vec(), archive[..700].to_vec(), gzip(&archive)[..500].to_vec()] {
        let result = Image::read("-", &bytes[..]).and_then(|i| unpacked(&i));
        assert!(matches!(result.unwrap_err(), ImageError::Damaged { .. } | ImageError::Format { .. }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_archive_cut_or_changed_anywhere_never_panics(cut in 0usize..30_000, changes in proptest::collection::vec((0usize..30_000, any::<u8>()), 0..20)) {
        let mut bytes = saved(|_| ());
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut);
        let _ = Image::read("-", &bytes[..]).and_then(|i| unpacked(&i));
    }
}
