//! A namespace as a picture in a terminal: what is tied together stands side by side, arrows say what goes where.

use super::view::{Device, View};

/// Inner width of a box.
const WIDTH: usize = 30;

/// Between two boxes that are tied.
const GAP: usize = 14;

pub fn draw(view: &View) -> String {
    let mut out = format!("network namespace {}\n", view.netns);
    if view.devices.is_empty() {
        out.push_str("  (no device is up or has an address)\n");
    }
    for d in &view.devices {
        let target = d.redirect.first().and_then(|to| view.device(to));
        match target {
            Some(to) if d.ours && to.redirect.contains(&d.name) => {} // Drawn from its other side.
            Some(to) => out.push_str(&pair(d, to)),
            None => out.push_str(&lines(&boxed(d))),
        }
    }
    if !view.routes.is_empty() {
        out.push_str("routes\n");
        view.routes.iter().for_each(|r| out.push_str(&format!("  {r}\n")));
    }
    out
}

fn lines(rows: &[String]) -> String {
    rows.iter().map(|r| format!("  {r}\n")).collect()
}

fn pair(left: &Device, right: &Device) -> String {
    let (a, b) = (boxed(left), boxed(right));
    let blank = " ".repeat(WIDTH + 2);
    let forth = arrow(left.redirected, true);
    let back = if right.redirect.contains(&left.name) { arrow(right.redirected, false) } else { format!("{:^GAP$}", "no way back!") };
    let rows = (0..a.len().max(b.len())).map(|n| {
        let middle = match n {
            1 => forth.clone(),
            2 => back.clone(),
            _ => " ".repeat(GAP),
        };
        let row = format!("{}{middle}{}", a.get(n).unwrap_or(&blank), b.get(n).map_or("", String::as_str));
        row.trim_end().to_owned()
    });
    lines(&rows.collect::<Vec<_>>())
}

/// An arrow that carries the number of packets.
fn arrow(packets: u32, forth: bool) -> String {
    let number = format!("{packets}");
    let line = "─".repeat((GAP - 4usize).saturating_sub(number.len()).max(1));
    if forth { format!(" ─{number}{line}▶ ") } else { format!(" ◀{line}{number}─ ") }
}

/// The lines of a device's box.
fn boxed(d: &Device) -> Vec<String> {
    let mut inside = vec![format!("{} ({})", d.name, if d.kind.is_empty() { "device" } else { d.kind.as_str() })];
    inside.push(format!("{}  MTU {}", d.mac, d.mtu));
    let state = match (d.up, d.carrier, d.kind == "tun") {
        (false, ..) => "down",
        (true, true, true) => "up, a guest is attached",
        (true, false, true) => "up, nobody is attached",
        (true, true, false) => "up",
        (true, false, false) => "up, but no carrier",
    };
    inside.push(state.into());
    inside.extend(d.addresses.iter().cloned());
    inside.extend(d.tunnel.clone());
    if d.redirect.iter().any(|to| to == super::view::GONE) {
        inside.push("redirects to a device that is".into());
        inside.push("gone: osc netsetup undo".into());
    }
    if d.other_filters > 0 {
        inside.push(format!("{} other ingress filters", d.other_filters));
    }
    let edge = |left, right| format!("{left}{}{right}", "─".repeat(WIDTH));
    let text = |t: &String| format!("│{:<WIDTH$}│", t.chars().take(WIDTH).collect::<String>());
    std::iter::once(edge('┌', '┐')).chain(inside.iter().map(text)).chain([edge('└', '┘')]).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn device(name: &str, kind: &str, redirect: &[&str]) -> Device {
        Device {
            name: name.into(),
            kind: kind.into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            up: true,
            carrier: true,
            ours: kind == "tun",
            addresses: vec!["10.0.0.2/24".into()],
            tunnel: None,
            redirect: redirect.iter().map(|r| r.to_string()).collect(),
            redirected: 42,
            other_filters: 0,
            ingress_qdisc: !redirect.is_empty(),
        }
    }

    pub fn view() -> View {
        let devices = vec![device("eth0", "veth", &["tap0_kata"]), device("tap0_kata", "tun", &["eth0"])];
        View { netns: "/run/netns/<x>".into(), devices, routes: vec!["default via 10.0.0.1 dev eth0".into()] }
    }

    #[test]
    fn a_pair_stands_side_by_side_once() {
        let text = draw(&view());
        let row = text.lines().find(|l| l.contains("eth0 (veth)")).unwrap();
        assert!(row.contains("tap0_kata (tun)") && row.contains("─42─") && row.contains('▶'), "{text}");
        assert_eq!(text.matches("tap0_kata (tun)").count(), 1, "{text}");
        // Every line of the boxes is equally long.
        let widths: Vec<usize> = text.lines().filter(|l| l.starts_with("  ┌") || l.starts_with("  └")).map(|l| l.chars().count()).collect();
        assert!(widths.windows(2).all(|w| w[0] == w[1]), "{text}");
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut v = view();
        v.devices[1].redirect.clear();
        assert!(draw(&v).contains("no way back!"));
        v.devices = vec![device("eth0", "veth", &[super::super::view::GONE])];
        assert!(draw(&v).contains("netsetup undo"));
        v.devices.clear();
        assert!(draw(&v).contains("no device"));
    }
}
