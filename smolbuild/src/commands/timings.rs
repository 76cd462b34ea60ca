//! `--timings`: a page that shows how long each stage took, and what the bytes of the bundle are.

use std::fmt::Write as _;
use std::time::Duration;

use smol_bundle::ImageStats;
use smol_cli::human;
use smol_cli::progress::Lap;

/// Smallest width of a bar, percent: what is short is seen, too.
const LEAST: f64 = 0.2;

const HEAD: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<style>
:root { color-scheme: light dark; font: 14px/1.5 system-ui, sans-serif }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin-bottom: 2rem }
td, th { padding: .2rem .6rem; text-align: left; white-space: nowrap }
.n { text-align: right; font-variant-numeric: tabular-nums }
.w { width: 100%; padding: 0 }
.bar { height: 1rem; border-radius: 2px; background: #3b82f6 }
.cut { background: #dc2626 }
</style>
"#;

/// What a page is about.
pub struct Page<'a> {
    /// Name of the machine, if the Smolfile could be read.
    pub name: Option<&'a str>,
    /// What the build came to: the bundle's digest, or why there is none.
    pub outcome: &'a str,
    /// The stages.
    pub laps: &'a [Lap],
    /// The images, as they lie in the bundle; none if there is none.
    pub images: &'a [ImageStats],
    /// Size of the bundle, bytes.
    pub file_size: u64,
}

impl Page<'_> {
    /// Returns the page as HTML, which needs no other file.
    pub fn render(&self) -> String {
        let name = escape(self.name.unwrap_or("smolbuild"));
        let mut html = format!("{HEAD}<title>{name}: timings</title>\n</head>\n<body>\n");
        let _ = writeln!(html, "<h1>{name}</h1>\n<p>{}</p>", escape(self.outcome));
        self.stages(&mut html);
        if !self.images.is_empty() {
            self.bytes(&mut html);
        }
        html + "</body>\n</html>\n"
    }

    fn stages(&self, html: &mut String) {
        let end = self.laps.iter().map(|lap| lap.start + lap.duration).max();
        let end = end.unwrap_or_default();
        let share = |time: Duration| 100.0 * time.as_secs_f64() / end.as_secs_f64().max(1e-9);
        let _ = writeln!(html, "<h2>Time: {}</h2>\n<table>", human::duration(end));
        for lap in self.laps {
            let (from, width) = (share(lap.start), share(lap.duration).max(LEAST));
            let (class, mark) = match lap.finished {
                true => ("bar", ""),
                false => ("bar cut", " (not finished)"),
            };
            let _ = writeln!(
                html,
                "<tr><td>{}{mark}<td class=n>{}<td class=w><div class=\"{class}\" \
                 style=\"margin-left:{from:.2}%;width:{width:.2}%\"></div>",
                escape(&lap.name),
                human::duration(lap.duration),
            );
        }
        html.push_str("</table>\n");
    }

    fn bytes(&self, html: &mut String) {
        let images: u64 = self.images.iter().map(|image| image.compressed_bytes).sum();
        let share = |bytes: u64| 100.0 * bytes as f64 / self.file_size.max(1) as f64;
        let _ = writeln!(
            html,
            "<h2>Bytes: {}</h2>\n<table>\n<tr><th>part<th class=n>size<th class=n>pages \
             stored<th class=n>in the bundle<th class=w>",
            human::bytes(self.file_size)
        );
        let mut row = |name: &str, [size, pages]: [String; 2], bytes: u64| {
            let width = share(bytes).max(LEAST);
            let _ = writeln!(
                html,
                "<tr><td>{name}<td class=n>{size}<td class=n>{pages}<td class=n>{}<td class=w>\
                 <div class=bar style=\"width:{width:.2}%\"></div>",
                human::bytes(bytes),
            );
        };
        for image in self.images {
            let pages = format!("{} of {}", image.stored, image.pages);
            let size = human::bytes(image.size);
            row(image.kind.name(), [size, pages], image.compressed_bytes);
        }
        // The machine's state, the page index, manifests, lock and Smolfile.
        let rest = self.file_size.saturating_sub(images);
        row("all else", [String::new(), String::new()], rest);
        html.push_str("</table>\n");
    }
}

/// Text for HTML.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in human::one_line(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use smol_bundle::ImageKind;

    use super::*;

    fn lap(name: &str, start: u64, duration: u64, finished: bool) -> Lap {
        Lap {
            name: name.to_owned(),
            start: Duration::from_millis(start),
            duration: Duration::from_millis(duration),
            finished,
        }
    }

    #[test]
    fn a_page_has_a_bar_for_each_stage_and_for_each_image() {
        let laps = [lap("rootfs", 0, 1000, true), lap("boot", 1000, 3000, true)];
        let image = ImageStats {
            kind: ImageKind::Memory,
            size: 4 << 20,
            pages: 1024,
            zero: 1014,
            duplicate: 0,
            in_rootfs: 0,
            in_boot: 0,
            stored: 10,
            working_set: 0,
            frames: 1,
            raw_bytes: 40960,
            compressed_bytes: 25,
        };
        let page = Page {
            name: Some("web"),
            outcome: "sha256:12",
            laps: &laps,
            images: &[image],
            file_size: 100,
        };
        let html = page.render();
        for expected in [
            "<title>web: timings</title>",
            "<p>sha256:12</p>",
            "<tr><td>rootfs<td class=n>1.00 s<td class=w><div class=\"bar\" style=\"margin-left:0.00%;width:25.00%\">",
            "style=\"margin-left:25.00%;width:75.00%\">",
            "<tr><td>memory<td class=n>4.0 MiB<td class=n>10 of 1024<td class=n>25 B",
            "<tr><td>all else<td class=n><td class=n><td class=n>75 B<td class=w><div class=bar style=\"width:75.00%\">",
        ] {
            assert!(html.contains(expected), "{expected}\n{html}");
        }
        assert!(!html.contains("http"), "it needs nothing else: {html}");
    }

    #[test]
    fn a_build_that_failed_has_a_page_and_its_words_are_no_markup() {
        let laps = [lap("boot", 0, 0, false)];
        let page = Page {
            name: None,
            outcome: "a <script> & \"more\"\n",
            laps: &laps,
            images: &[],
            file_size: 0,
        };
        let html = page.render();
        assert!(
            html.contains("<p>a &lt;script&gt; &amp; &quot;more&quot;"),
            "{html}"
        );
        assert!(
            html.contains("<td>boot (not finished)<td class=n>"),
            "{html}"
        );
        assert!(
            html.contains("\"bar cut\"") && !html.contains("Bytes"),
            "{html}"
        );
    }
}
