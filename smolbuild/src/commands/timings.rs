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
.cached { background: #94a3b8 }
.p1 { padding-left: 1.8rem } .p2 { padding-left: 3rem }
.stack { display: flex; height: 1rem; border-radius: 2px; overflow: hidden }
.stack div { min-width: 0 }
.c0 { background: #3b82f6 } .c1 { background: #f59e0b } .c2 { background: #10b981 }
.c3 { background: #8b5cf6 } .c4 { background: #cbd5e1 }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin: 0 .3rem 0 1rem }
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
        let end = self.laps.iter().map(end_of).max().unwrap_or_default();
        let _ = writeln!(html, "<h2>Time: {}</h2>\n<table>", human::duration(end));
        for lap in self.laps {
            stage(html, lap, 0, end);
        }
        html.push_str("</table>\n");
    }

    fn bytes(&self, html: &mut String) {
        let images: u64 = self.images.iter().map(|image| image.compressed_bytes).sum();
        let share = |bytes: u64| 100.0 * bytes as f64 / self.file_size.max(1) as f64;
        let _ = writeln!(
            html,
            "<h2>Bytes: {}</h2>\n<table>\n<tr><th>part<th class=n>size<th class=n>stored\
             <th class=n>in the bundle<th class=n>of it<th class=w>",
            human::bytes(self.file_size)
        );
        let mut row = |name: &str, [size, stored]: [String; 2], bytes: u64| {
            let width = share(bytes).clamp(LEAST, 100.0);
            let _ = writeln!(
                html,
                "<tr><td>{name}<td class=n>{size}<td class=n>{stored}<td class=n>{}\
                 <td class=n>{:.1}%<td class=w><div class=bar style=\"width:{width:.2}%\"></div>",
                human::bytes(bytes),
                share(bytes),
            );
        };
        for image in self.images {
            let sizes = [image.size, image.raw_bytes].map(human::bytes);
            row(image.kind.name(), sizes, image.compressed_bytes);
        }
        // The machine's state, the page index, manifests, lock and Smolfile.
        let rest = self.file_size.saturating_sub(images);
        row("all else", [String::new(), String::new()], rest);
        html.push_str("</table>\n");
        self.pages(html);
    }

    /// What became of the pages of each image: those that are stored are compressed.
    fn pages(&self, html: &mut String) {
        html.push_str("<h2>Pages</h2>\n<p>");
        for (n, (name, _)) in PAGES.iter().enumerate() {
            let _ = write!(html, "<span class=\"key c{n}\"></span>{name}");
        }
        html.push_str("\n<table>\n<tr><th>part<th class=n>pages");
        for (name, _) in PAGES {
            let _ = write!(html, "<th class=n>{name}");
        }
        html.push_str("<th class=n>compressed to<th class=w>\n");
        for image in self.images {
            let _ = write!(
                html,
                "<tr><td>{}<td class=n>{}",
                image.kind.name(),
                image.pages
            );
            let counts = PAGES.map(|(_, count)| count(image));
            for count in counts {
                let _ = write!(html, "<td class=n>{count}");
            }
            let ratio = match image.raw_bytes {
                0 => String::new(),
                raw => format!("{:.0}%", 100.0 * image.compressed_bytes as f64 / raw as f64),
            };
            let _ = write!(html, "<td class=n>{ratio}<td class=w><div class=stack>");
            for (n, count) in counts.into_iter().enumerate() {
                let width = 100.0 * count as f64 / image.pages.max(1) as f64;
                let _ = write!(html, "<div class=c{n} style=\"width:{width:.2}%\"></div>");
            }
            html.push_str("</div>\n");
        }
        html.push_str("</table>\n");
    }
}

/// What becomes of a page, and how many there are of it in an image: together these are all.
type PageKind = (&'static str, fn(&ImageStats) -> u64);
const PAGES: [PageKind; 5] = [
    ("stored", |image| image.stored),
    ("equal to another one", |image| image.duplicate),
    ("in the root file system", |image| image.in_rootfs),
    ("in kernel or initramfs", |image| image.in_boot),
    ("zero", |image| image.zero),
];

/// When a stage and the last of its parts ended.
fn end_of(lap: &Lap) -> Duration {
    let parts = lap.children.iter().map(end_of);
    parts.fold(lap.start + lap.duration, Duration::max)
}

/// The row of a stage, `depth` levels down, and those of its parts; `end` is the end of all.
fn stage(html: &mut String, lap: &Lap, depth: usize, end: Duration) {
    let share = |time: Duration| 100.0 * time.as_secs_f64() / end.as_secs_f64().max(1e-9);
    let (from, width) = (share(lap.start), share(lap.duration).max(LEAST));
    let (class, mark) = match (lap.finished, lap.cached) {
        (false, _) => ("bar cut", " (not finished)"),
        (true, true) => ("bar cached", " (cached)"),
        (true, false) => ("bar", ""),
    };
    let indent = match depth {
        0 => String::new(),
        depth => format!(" class=p{}", depth.min(2)),
    };
    let _ = writeln!(
        html,
        "<tr><td{indent}>{}{mark}<td class=n>{}<td class=w><div class=\"{class}\" \
         style=\"margin-left:{from:.2}%;width:{width:.2}%\"></div>",
        escape(&lap.name),
        human::duration(lap.duration),
    );
    for part in &lap.children {
        stage(html, part, depth + 1, end);
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
            ..Lap::default()
        }
    }

    #[test]
    fn a_page_has_a_bar_for_each_stage_and_its_parts_and_for_each_image() {
        let mut laps = [lap("rootfs", 0, 1000, true), lap("boot", 1000, 3000, true)];
        laps[0].children = vec![Lap {
            cached: true,
            ..lap("<layer>", 500, 200, true)
        }];
        let image = ImageStats {
            kind: ImageKind::Memory,
            size: 4 << 20,
            pages: 1024,
            zero: 512,
            duplicate: 256,
            in_rootfs: 128,
            in_boot: 118,
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
            "<tr><td class=p1>&lt;layer&gt; (cached)<td class=n>200 ms<td class=w><div class=\"bar cached\" style=\"margin-left:12.50%;width:5.00%\">",
            "<tr><td>memory<td class=n>4.0 MiB<td class=n>40.0 KiB<td class=n>25 B<td class=n>25.0%",
            "<tr><td>all else<td class=n><td class=n><td class=n>75 B<td class=n>75.0%<td class=w><div class=bar style=\"width:75.00%\">",
            "<tr><td>memory<td class=n>1024<td class=n>10<td class=n>256<td class=n>128<td class=n>118<td class=n>512<td class=n>0%<td class=w><div class=stack><div class=c0 style=\"width:0.98%\"></div><div class=c1 style=\"width:25.00%\"></div>",
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
