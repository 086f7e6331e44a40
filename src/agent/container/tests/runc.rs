//! The same bundles under runc and here: what a probe in the container sees must be the same.

use std::time::Instant;

use serde_json::{Value, json};

use super::bundles::{Bundle, bundles};
use super::{Bench, Outcome, output, with_bench};
use crate::agent::stdio::Given;
use crate::process::{Ended, Spawn};

const RUNC: &str = "/usr/sbin/runc";

/// Lays `patch` over `base`: objects by key, `+name` appends to the list `name`, null takes away (RFC 7396 but for the `+`).
fn patched(base: &mut Value, patch: &Value) {
    let (Some(base), Some(patch)) = (base.as_object_mut(), patch.as_object()) else { return };
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix('+') {
            let list = base.entry(list).or_insert(json!([]));
            if list.is_null() {
                *list = json!([]);
            }
            list.as_array_mut().unwrap().extend(value.as_array().unwrap().iter().cloned());
        } else if value.is_null() {
            base.remove(key);
        } else if value.is_object() {
            let inner = base.entry(key).or_insert(json!({}));
            if !inner.is_object() {
                *inner = json!({});
            }
            patched(inner, value);
        } else {
            base.insert(key.clone(), value.clone());
        }
    }
}

fn config(bench: &Bench, base: &Value, bundle: &Bundle) -> Value {
    let mut config = base.clone();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/sh", "-c", bundle.probe]);
    config["linux"]["cgroupsPath"] = json!(format!("/{}", bench.id()));
    let text = bundle.patch.replace("$B", &bench.dir.path().to_string_lossy()).replace("$ID", &bench.id());
    patched(&mut config, &serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", bundle.name)));
    config
}

fn run_runc(bench: &Bench, config: &Value) -> Outcome {
    std::fs::write(bench.path("config.json"), config.to_string()).unwrap();
    let (outputs, Given::Pipes([stdin, stdout, stderr])) = output() else { panic!() };
    let spawn = Spawn::new(RUNC)
        .arg("--root")
        .arg(bench.path("state"))
        .args(["run", "--bundle"])
        .arg(bench.dir.path())
        .arg(bench.id())
        .fd(stdin, 0)
        .fd(stdout, 1)
        .fd(stderr, 2);
    let ended = bench.env.reaper.spawn(spawn).unwrap().wait();
    let (stdout, stderr) = outputs();
    let is_log = |l: &&str| l.starts_with("time=\"");
    // What runc finds out after it has said that the container runs.
    let late = |l: &&str| l.starts_with("exec /") || l.starts_with("error running hook");
    let error = stderr.lines().find(|l| is_log(l) && l.contains("level=error") || late(l)).map(str::to_owned);
    let own = stderr.lines().filter(|l| !is_log(l)).map(|l| format!("{l}\n")).collect();
    Outcome { ended: error.map_or(Ok(ended.status()), Err), stdout, stderr: own }
}

/// What the two may differ in by nature.
fn normal(bench: &Bench, text: &str) -> String {
    text.replace(&*bench.dir.path().to_string_lossy(), "$B")
}

fn base(bench: &Bench) -> Value {
    let spec = Spawn::new(RUNC).args(["spec", "--bundle"]).arg(bench.dir.path());
    assert_eq!(bench.env.reaper.spawn(spec).unwrap().wait(), Ended::Exited(0));
    serde_json::from_slice(&std::fs::read(bench.path("config.json")).unwrap()).unwrap()
}

/// None where they are the same.
fn difference(bench: &Bench, base: &Value, bundle: &Bundle) -> Option<String> {
    let config = config(bench, base, bundle);
    if let Some(expected) = &bundle.expected {
        bench.fresh();
        let ours = bench.run(&bench.spec(&config));
        let got = format!("{}{}{}", ours.stdout, ours.stderr, ours.ended.as_ref().err().map(|e| format!("{e}\n")).unwrap_or_default());
        let got = normal(bench, &got);
        return (got.trim_end() != expected.trim_end())
            .then(|| format!("{}: {:?}\n{}", bundle.name, ours.ended, differing(expected, &got)));
    }
    bench.fresh();
    let theirs = run_runc(bench, &config);
    let left_by_runc = tree(bench);
    bench.fresh();
    let ours = bench.run(&bench.spec(&config));
    let left_by_us = tree(bench);
    let whole = |o: &Outcome| normal(bench, &format!("{}\n{}", o.stdout, o.stderr));
    let (theirs_out, ours_out) = (whole(&theirs), whole(&ours));
    let same = match (&theirs.ended, &ours.ended) {
        (Ok(a), Ok(b)) => a == b && theirs_out == ours_out && left_by_runc == left_by_us,
        (Err(_), Err(_)) => true,
        _ => false,
    };
    if std::env::var_os("OSC_TEST_SHOW").is_some() {
        println!("{}: runc {:?}, osc {:?}\n{ours_out}", bundle.name, theirs.ended, ours.ended);
    }
    (!same).then(|| {
        let lines = differing(&theirs_out, &ours_out) + &differing(&left_by_runc, &left_by_us);
        format!("{}: runc {:?}, osc {:?}\n{lines}", bundle.name, theirs.ended, ours.ended)
    })
}

/// What was made in the root and stays.
fn tree(bench: &Bench) -> String {
    let (outputs, Given::Pipes([stdin, stdout, stderr])) = output() else { panic!() };
    let script = format!("cd {}/rootfs && find . -path ./bin -prune -o -printf '%M %U %G %p %l\\n' | sort -k4", bench.dir.path().display());
    let spawn = Spawn::new("/bin/sh").arg("-c").arg(script).fd(stdin, 0).fd(stdout, 1).fd(stderr, 2);
    assert_eq!(bench.env.reaper.spawn(spawn).unwrap().wait(), Ended::Exited(0));
    outputs().0
}

/// `-` runc has, `+` we have; lines in another order alone are told apart as such.
fn differing(theirs: &str, ours: &str) -> String {
    if theirs == ours {
        return String::new();
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (theirs.lines().collect(), ours.lines().collect());
    let minus = a.iter().filter(|l| !b.contains(l)).map(|l| format!("  - {l}\n"));
    let plus = b.iter().filter(|l| !a.contains(l)).map(|l| format!("  + {l}\n"));
    let text: String = minus.chain(plus).collect();
    if text.is_empty() { format!("  the same lines in another order:\n{theirs}\n  ---\n{ours}\n") } else { text }
}

#[test]
fn bundles_look_the_same_as_under_runc() {
    if !std::path::Path::new(RUNC).exists() {
        return println!("SKIP bundles_look_the_same_as_under_runc: no {RUNC}");
    }
    with_bench("runc::bundles_look_the_same_as_under_runc", |bench| {
        let base = base(bench);
        let only = std::env::var("OSC_TEST_BUNDLE").unwrap_or_default();
        let start = Instant::now();
        let chosen: Vec<_> = bundles().into_iter().filter(|b| b.name.contains(&only)).collect();
        let differing: Vec<String> = chosen.iter().filter_map(|b| difference(bench, &base, b)).collect();
        println!("{} same, {} differ, {:?}", chosen.len() - differing.len(), differing.len(), start.elapsed());
        assert!(differing.is_empty(), "\n{}", differing.join("\n"));
    });
}
