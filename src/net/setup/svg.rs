//! The same picture as a file: namespaces as boxes, devices inside, redirections as arrows.

use super::view::{Device, View};

const WIDTH: usize = 250;
const GAP: usize = 150;
const MARGIN: usize = 24;
const LINE: usize = 18;

pub fn draw(view: &View) -> String {
    let mut body = String::new();
    let mut y = MARGIN + 2 * LINE;
    for d in &view.devices {
        let target = d.redirect.first().and_then(|to| view.device(to));
        if target.is_some_and(|to| d.ours && to.redirect.contains(&d.name)) {
            continue;
        }
        let mut height = device(&mut body, d, MARGIN * 2, y);
        if let Some(to) = target {
            height = height.max(device(&mut body, to, MARGIN * 2 + WIDTH + GAP, y));
            arrow(&mut body, y + 20, true, d.redirected);
            if to.redirect.contains(&d.name) {
                arrow(&mut body, y + 50, false, to.redirected);
            }
        }
        y += height + MARGIN;
    }
    for route in &view.routes {
        text(&mut body, MARGIN * 2, y + LINE, route, "route");
        y += LINE;
    }
    let (width, height) = (2 * WIDTH + GAP + 4 * MARGIN, y + 2 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"monospace\" font-size=\"13\">\n"
    );
    out.push_str("<defs><marker id=\"tip\" viewBox=\"0 0 10 10\" refX=\"10\" refY=\"5\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 10 5 0 10z\"/></marker></defs>\n");
    out.push_str("<style>rect{fill:#fff;stroke:#333}.ns{fill:#f4f6fa;stroke:#8899bb}.ours{fill:#eaf6ea}.bad{fill:#fbe9e9}.name{font-weight:bold}line{stroke:#333}</style>\n");
    let (w, h) = (width - 2 * MARGIN, height - 2 * MARGIN);
    out.push_str(&format!("<rect class=\"ns\" x=\"{MARGIN}\" y=\"{MARGIN}\" width=\"{w}\" height=\"{h}\" rx=\"8\"/>\n"));
    text(&mut out, MARGIN * 2, MARGIN + LINE, &format!("network namespace {}", view.netns), "name");
    out + &body + "</svg>\n"
}

/// Answers its height.
fn device(out: &mut String, d: &Device, x: usize, y: usize) -> usize {
    let mut lines = vec![format!("{} MTU {}", d.mac, d.mtu)];
    lines.extend(d.addresses.iter().cloned());
    lines.extend(d.tunnel.clone());
    lines.extend((d.kind == "tun").then(|| if d.carrier { "a guest is attached" } else { "nobody is attached" }.to_owned()));
    let gone = d.redirect.iter().any(|to| to == super::view::GONE);
    lines.extend(gone.then(|| "redirects to a device that is gone".to_owned()));
    let class = if gone || !d.up {
        "bad"
    } else if d.ours {
        "ours"
    } else {
        "device"
    };
    let height = ((lines.len() + 1) * LINE + 12).max(3 * LINE + 16);
    out.push_str(&format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{WIDTH}\" height=\"{height}\" rx=\"5\"/>\n"));
    let kind = if d.kind.is_empty() { "device" } else { &d.kind };
    text(out, x + 10, y + LINE, &format!("{} ({kind}){}", d.name, if d.up { "" } else { ", down" }), "name");
    lines.iter().enumerate().for_each(|(n, l)| text(out, x + 10, y + (n + 2) * LINE, l, "line"));
    height
}

fn arrow(out: &mut String, y: usize, forth: bool, packets: u32) {
    let (left, right) = (MARGIN * 2 + WIDTH + 6, MARGIN * 2 + WIDTH + GAP - 6);
    let (from, to) = if forth { (left, right) } else { (right, left) };
    out.push_str(&format!("<line x1=\"{from}\" y1=\"{y}\" x2=\"{to}\" y2=\"{y}\" marker-end=\"url(#tip)\"/>\n"));
    text(out, left + 14, y - 4, &format!("{packets} packets"), "line");
}

fn text(out: &mut String, x: usize, y: usize, line: &str, class: &str) {
    let line = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    out.push_str(&format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{line}</text>\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_boxes_two_arrows_and_no_markup_from_a_name() {
        let text = draw(&super::super::picture::tests::view());
        assert_eq!(text.matches("<line ").count(), 2);
        assert_eq!(text.matches("<rect ").count(), 3);
        assert!(text.contains("/run/netns/&lt;x&gt;") && text.trim_end().ends_with("</svg>"), "{text}");
    }
}
