//! Images page by page: which differ. What the page indexes prove to be equal is not read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use smol_bundle::{Bundle, Content, Extent, ImageKind};
use smol_cli::Interrupt;

use crate::error::ResultExt;

/// Bytes in a page.
pub const PAGE: usize = smol_bundle::limits::PAGE_SIZE;
/// Pages that are compared at a time.
const PIECE: u32 = 256;

/// One of the two bundles, with a folder for its images.
pub struct Side<'b> {
    /// The bundle.
    pub bundle: &'b Bundle,
    folder: PathBuf,
}

impl<'b> Side<'b> {
    /// A bundle whose images go into `folder`.
    pub fn new(bundle: &'b Bundle, folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.to_owned();
        Ok(Side { bundle, folder })
    }

    /// An image as a file, verified frame by frame while it is written.
    ///
    /// # Errors
    /// A frame that does not verify, a full disk, the interrupt.
    pub fn image(&self, kind: ImageKind, interrupt: &Interrupt) -> Result<(PathBuf, File)> {
        let path = self.folder.join(kind.name());
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let go_on = &mut |_, _| interrupt.go_on();
        let extracted = self.bundle.extract_while(kind, &file, threads, go_on);
        interrupt.check()?;
        extracted.classify()?;
        Ok((path, file))
    }

    fn extents(&self, kind: ImageKind) -> &[Extent] {
        self.bundle
            .index()
            .image(kind)
            .map_or(&[], |image| image.extents())
    }
}

/// Whether the page indexes say that an image is the same in both bundles: equal frames by their
/// hash, at equal places.
pub fn provably_same(a: &Bundle, b: &Bundle, kind: ImageKind) -> bool {
    let same = |kind| a.index().image(kind) == b.index().image(kind);
    match kind {
        // Its pages may be those of the others.
        ImageKind::Memory => ImageKind::ALL.into_iter().all(same),
        kind => same(kind),
    }
}

/// Which pages differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differing {
    /// Their numbers, ascending.
    pub pages: Vec<u32>,
}

/// Compares the images in `files` page by page, as far as the shorter one goes; the pages that only
/// one has differ.
///
/// # Errors
/// Files that cannot be read, and an interrupt.
pub fn differing(
    (a, x): (&Side<'_>, &File),
    (b, y): (&Side<'_>, &File),
    kind: ImageKind,
    interrupt: &Interrupt,
) -> Result<Differing> {
    let rootfs = provably_same(a.bundle, b.bundle, ImageKind::Rootfs);
    let equal = |x: Content, y: Content| match (x, y) {
        (Content::Zero, Content::Zero) => true,
        (Content::Same { image, page }, y) => {
            image == ImageKind::Rootfs && rootfs && y == Content::Same { image, page }
        }
        _ => false,
    };
    let mut pages = Vec::new();
    let (mut left, mut right) = (
        vec![0; PIECE as usize * PAGE],
        vec![0; PIECE as usize * PAGE],
    );
    for run in runs(a.extents(kind), b.extents(kind)) {
        let (Some(content_a), Some(content_b)) = (run.a, run.b) else {
            pages.extend(run.first..run.first + run.pages);
            continue;
        };
        if equal(content_a, content_b) {
            continue;
        }
        for first in (run.first..run.first + run.pages).step_by(PIECE as usize) {
            interrupt.check()?;
            let count = PIECE.min(run.first + run.pages - first) as usize;
            read(x, first, &mut left[..count * PAGE])?;
            read(y, first, &mut right[..count * PAGE])?;
            let pairs = left.chunks(PAGE).zip(right.chunks(PAGE)).take(count);
            let numbered = (first..).zip(pairs);
            pages.extend(numbered.filter(|(_, (x, y))| x != y).map(|(page, _)| page));
        }
    }
    Ok(Differing { pages })
}

/// Reads pages of an image; what lies beyond its end is zero.
pub fn read(file: &File, first: u32, out: &mut [u8]) -> Result<()> {
    let (mut offset, mut rest) = (u64::from(first) * PAGE as u64, out);
    while !rest.is_empty() {
        let count = file
            .read_at(rest, offset)
            .context("cannot read an unpacked image")?;
        if count == 0 {
            rest.fill(0);
            break;
        }
        (offset, rest) = (offset + count as u64, &mut rest[count..]);
    }
    Ok(())
}

/// Pages that have one kind of content in each image; `None` beyond its end.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    first: u32,
    pages: u32,
    a: Option<Content>,
    b: Option<Content>,
}

/// Both lists of extents, each without gaps, cut at the borders of either.
fn runs(a: &[Extent], b: &[Extent]) -> impl Iterator<Item = Run> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut first = 0;
    std::iter::from_fn(move || {
        let (content_a, content_b) = (content(&mut a, first), content(&mut b, first));
        let end = |extent: Option<&&Extent>| extent.map(|e| e.first_page + e.pages);
        let ends = [end(a.peek()), end(b.peek())];
        let end = ends.into_iter().flatten().min()?;
        let run = Run {
            first,
            pages: end - first,
            a: content_a,
            b: content_b,
        };
        first = end;
        Some(run)
    })
}

/// What is at `page`, which is never less than at the last call.
fn content<'e>(
    extents: &mut std::iter::Peekable<impl Iterator<Item = &'e Extent>>,
    page: u32,
) -> Option<Content> {
    while extents
        .next_if(|e| e.first_page + e.pages <= page)
        .is_some()
    {}
    let extent = extents.peek()?;
    let skip = page - extent.first_page;
    Some(match extent.content {
        Content::Zero => Content::Zero,
        Content::Stored { slot } => Content::Stored { slot: slot + skip },
        Content::Same { image, page } => Content::Same {
            image,
            page: page + skip,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_the_borders_of_both_images() {
        let extent = |first_page, pages, content| Extent {
            first_page,
            pages,
            content,
        };
        let same = |page| Content::Same {
            image: ImageKind::Rootfs,
            page,
        };
        let a = [extent(0, 10, Content::Zero), extent(10, 5, same(100))];
        let b = [extent(0, 12, same(98)), extent(12, 1, Content::Zero)];
        let run = |first, pages, a, b| Run { first, pages, a, b };
        assert_eq!(
            runs(&a, &b).collect::<Vec<_>>(),
            [
                run(0, 10, Some(Content::Zero), Some(same(98))),
                run(10, 2, Some(same(100)), Some(same(108))),
                run(12, 1, Some(same(102)), Some(Content::Zero)),
                run(13, 2, Some(same(103)), None),
            ]
        );
    }
}
