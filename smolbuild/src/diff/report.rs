//! A [`Report`] as text.

use std::fmt::Write as _;

use smol_cli::human::{self, one_line, printable};

use super::Report;
use super::files::{self, FileChange};
use super::images::ImageChange;
use super::memory::{Group, Memory, Place};
use super::summary::{self, Kind};
use super::values::Change;

/// Longest value that is shown whole, in characters.
const MAX_VALUE: usize = 100;

impl Report {
    /// The report for people: a line if the bundles are the same, else a heading for each section
    /// that differs and its first `limit` items (`None`: all, and of memory each page).
    pub fn text(&self, limit: Option<usize>) -> String {
        if self.is_same() {
            return format!("the same: {}\n", self.digests[0]);
        }
        let mut text = Text {
            out: String::new(),
            limit,
        };
        text.line(&format!("A {}\nB {}", self.digests[0], self.digests[1]));
        text.section(
            "manifest",
            self.manifest.len(),
            "value",
            &self.manifest,
            change,
        );
        for (name, image) in [
            ("kernel", &self.kernel),
            ("initramfs", &self.initramfs),
            ("rootfs", &self.rootfs),
        ] {
            if let Some(image) = image {
                text.image(name, image);
            }
        }
        text.section("state", self.state.len(), "value", &self.state, change);
        text.memory(&self.memory);
        if self.found_nothing() {
            text.line(
                "\nno value, file, state or page differs: they store the same in another order, or differ in the \
                 working set",
            );
        }
        text.out
    }

    /// Whether no section differs, although the digests do.
    fn found_nothing(&self) -> bool {
        let images = [&self.kernel, &self.initramfs, &self.rootfs];
        self.manifest.is_empty()
            && images.into_iter().all(Option::is_none)
            && self.state.is_empty()
            && self.memory.pages == 0
    }
}

struct Text {
    out: String,
    limit: Option<usize>,
}

impl Text {
    fn line(&mut self, line: &str) {
        // Names and values come out of bundles: they must not drive a terminal, nor make a line.
        self.out += &printable(line);
        self.out.push('\n');
    }

    fn section<T>(
        &mut self,
        name: &str,
        count: usize,
        unit: &str,
        items: &[T],
        show: impl Fn(&T) -> String,
    ) {
        if count > 0 {
            self.line(&format!("\n{name}: {}", counted(count as u64, unit)));
            self.items(items, show);
        }
    }

    fn items<T>(&mut self, items: &[T], show: impl Fn(&T) -> String) {
        let shown = self.limit.unwrap_or(usize::MAX).min(items.len());
        for item in &items[..shown] {
            self.line(&format!("  {}", one_line(&show(item))));
        }
        if shown < items.len() {
            self.line(&format!("  ... {} more (--all)", items.len() - shown));
        }
    }

    fn image(&mut self, name: &str, image: &ImageChange) {
        let [a, b] = image
            .sizes
            .map(|size| size.map_or("none".into(), human::bytes));
        let sizes = match image.sizes[0] == image.sizes[1] {
            true => String::new(),
            false => format!(", {a} -> {b}"),
        };
        let first = image
            .first_byte
            .map(|byte| format!(", from byte {byte} on"));
        let pages = counted(image.pages, "page");
        let first = first.unwrap_or_default();
        self.line(&format!("\n{name}: {pages}{first}{sizes}"));
        if let Some([a, b]) = &image.versions {
            let side =
                |version: &Option<String>| version.as_deref().map_or("unknown".into(), one_line);
            self.line(&format!("  - {}\n  + {}", side(a), side(b)));
        }
        if let Some(why) = &image.opaque {
            self.line(&format!("  the files cannot be listed: {}", one_line(why)));
        }
        if !image.files.is_empty() {
            let count = |kind| image.files.iter().filter(|file| file.kind == kind).count();
            let (added, removed) = (count(files::Kind::Added), count(files::Kind::Removed));
            let changed = count(files::Kind::Changed);
            self.line(&format!(
                "  files: {added} added, {removed} removed, {changed} changed"
            ));
            self.items(&image.files, file);
            if image.more_files > 0 {
                self.line(&format!("  and {} more files", image.more_files));
            }
        }
    }

    fn memory(&mut self, memory: &Memory) {
        if memory.pages == 0 {
            return;
        }
        let (pages, bytes) = (counted(memory.pages, "page"), counted(memory.bytes, "byte"));
        self.line(&format!("\nmemory: {pages}, {bytes}, by owner"));
        match self.limit {
            Some(_) => {
                self.items(&summary::kinds(memory), kind);
                self.line("  (which pages, and where: --all)");
            }
            None => memory.owners.iter().for_each(|owner| {
                self.line(&format!("  {}", one_line(&group(owner))));
                owner
                    .places
                    .iter()
                    .for_each(|at| self.line(&format!("      {}", one_line(&place(at)))));
            }),
        }
        for note in &memory.notes {
            self.line(&format!("  ({})", one_line(note)));
        }
    }
}

fn change(change: &Change) -> String {
    let path = &change.path;
    match (
        change.a.as_deref().map(short),
        change.b.as_deref().map(short),
    ) {
        (Some(a), Some(b)) => format!("{path}: {a} -> {b}"),
        (Some(a), None) => format!("{path}: - {a}"),
        (None, Some(b)) => format!("{path}: + {b}"),
        (None, None) => path.clone(),
    }
}

fn file(file: &FileChange) -> String {
    let sign = match file.kind {
        files::Kind::Added => '+',
        files::Kind::Removed => '-',
        files::Kind::Changed => '~',
    };
    let details: Vec<String> = file.details.iter().map(|detail| short(detail)).collect();
    match details.is_empty() {
        true => format!("{sign} {}", file.path),
        false => format!("{sign} {}: {}", file.path, details.join("; ")),
    }
}

fn kind(kind: &Kind) -> String {
    let pages = counted(kind.pages, "page");
    format!("{pages} of {}{}", kind.name, kind.remark())
}

fn group(group: &Group) -> String {
    let first = match (group.places.first().map(place), group.pages) {
        (None, _) => String::new(),
        (Some(first), 1) => format!(" at {first}"),
        (Some(first), _) => format!(", first at {first}"),
    };
    format!("{} of {}{first}", counted(group.pages, "page"), group.owner)
}

fn place(place: &Place) -> String {
    let mut text = match &place.place {
        Some(at) => format!("{at} (physical {:#x})", place.gpa),
        None => format!("physical {:#x}", place.gpa),
    };
    let _ = write!(text, ", {}", counted(place.bytes, "byte"));
    if let Some(other) = &place.owner_in_b {
        let _ = write!(text, "; in B of {other}");
    }
    text
}

fn counted(count: u64, unit: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{s}")
}

fn short(value: &str) -> String {
    match value.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!(
            "{}... ({} characters)",
            &value[..end],
            value.chars().count()
        ),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let place = |gpa| Place {
            gpa,
            bytes: 4,
            place: Some("0x5555".into()),
            owner_in_b: (gpa == 0).then(|| "free memory".into()),
        };
        let group = |owner: &str, places: Vec<Place>| Group {
            owner: owner.into(),
            pages: places.len() as u64,
            places,
        };
        Report {
            digests: ["sha256:a".into(), "sha256:b".into()],
            manifest: vec![Change::new("cpus", 1, 2)],
            kernel: None,
            initramfs: None,
            rootfs: Some(ImageChange {
                sizes: [Some(4096), Some(8192)],
                pages: 1,
                first_byte: Some(17),
                versions: None,
                files: vec![FileChange {
                    path: "/etc/motd\x1b[2J\nstate: 0 values".into(),
                    kind: files::Kind::Changed,
                    details: vec!["mode 644 -> 755".into()],
                }],
                more_files: 0,
                opaque: None,
            }),
            state: (0..3)
                .map(|n| Change::new(format!("n{n}"), 0, "x".repeat(200)))
                .collect(),
            memory: Memory {
                pages: 3,
                bytes: 12,
                owners: vec![
                    group("process sh (7), heap", vec![place(0), place(4096)]),
                    group("kernel: jiffies", vec![place(8192)]),
                ],
                notes: vec!["B: no table".into()],
            },
        }
    }

    #[test]
    fn a_report_names_the_first_of_everything() {
        let text = report().text(Some(2));
        for line in [
            "manifest: 1 value",
            "  cpus: 1 -> 2",
            "rootfs: 1 page, from byte 17 on, 4.0 KiB -> 8.0 KiB",
            "  files: 0 added, 0 removed, 1 changed",
            "state: 3 values",
            "  ... 1 more (--all)",
            "memory: 3 pages, 12 bytes, by owner",
            "  2 pages of process sh (7): heap",
            "  1 page of variables of the kernel: jiffies",
            "  (which pages, and where: --all)",
            "  (B: no table)",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line:?} is not in:\n{text}"
            );
        }
        assert!(!text.contains("\nstate: 0 values"), "{text}");
        assert!(!text.contains('\x1b') && text.contains("... (200 characters)"));
        assert!(!text.contains("kernel: 0"));
    }

    #[test]
    fn all_is_all_and_the_same_is_one_line() {
        let mut report = report();
        let text = report.text(None);
        assert!(
            !text.contains("more (--all)") && text.contains("n2: 0"),
            "{text}"
        );
        assert!(text.contains("      0x5555 (physical 0x1000)"), "{text}");
        let first = "2 pages of process sh (7), heap, first at 0x5555 (physical 0x0), 4 bytes; \
                     in B of free memory";
        assert!(text.contains(first), "{text}");
        report.digests[1] = report.digests[0].clone();
        assert_eq!(report.text(None), "the same: sha256:a\n");
    }
}
