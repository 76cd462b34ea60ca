//! The page index against itself: what is encoded is what is parsed, and what breaks a rule is
//! refused with the rule.

use super::*;
use Content::{Same, Stored, Zero};
use ImageKind::{Kernel, Memory, Rootfs};

/// kernel: 3 stored pages in frames of 2 and 1. rootfs: zero, 2 stored.
/// memory: zero ×4, a stored page, it again, both rootfs pages, the kernel's last two, stored.
fn sample() -> PageIndex {
    let mut kernel = Image::new(Kernel, 2 * 4096 + 1);
    kernel.push_frame(100, 2, [1; 32]);
    kernel.push_frame(50, 1, [2; 32]);
    kernel.push_pages(3, Stored { slot: 0 });
    let mut rootfs = Image::new(Rootfs, 3 * 4096);
    rootfs.push_frame(60, 2, [3; 32]);
    rootfs.push_pages(1, Zero);
    rootfs.push_pages(2, Stored { slot: 0 });
    let mut memory = Image::new(Memory, 11 * 4096);
    memory.push_frame(70, 2, [4; 32]);
    memory.push_pages(4, Zero);
    memory.push_pages(1, Stored { slot: 0 });
    memory.push_pages(
        1,
        Same {
            image: Memory,
            page: 4,
        },
    );
    memory.push_pages(
        2,
        Same {
            image: Rootfs,
            page: 1,
        },
    );
    memory.push_pages(
        2,
        Same {
            image: Kernel,
            page: 1,
        },
    );
    memory.push_pages(1, Stored { slot: 1 });
    PageIndex::new(vec![kernel, rootfs, memory])
}

fn run(first: u32, pages: u32, written: bool) -> Run {
    Run {
        first,
        pages,
        written,
    }
}

fn image(index: &mut PageIndex, kind: ImageKind) -> &mut Image {
    index.images.iter_mut().find(|i| i.kind == kind).unwrap()
}

fn refusal(change: impl FnOnce(&mut PageIndex)) -> String {
    let mut index = sample();
    change(&mut index);
    PageIndex::parse(&index.encode())
        .expect_err("must be refused")
        .reason
}

#[test]
fn what_is_encoded_is_what_is_parsed() {
    let index = sample();
    assert_eq!(PageIndex::parse(&index.encode()).unwrap(), index);
}

#[test]
fn a_working_set_is_joined_and_counts_each_page_once() {
    let read = |first, pages| run(first, pages, false);
    let written = |first, pages| run(first, pages, true);
    let mut index = sample();
    image(&mut index, Memory).set_working_set(&[
        read(8, 1),
        read(9, 1),
        written(2, 3),
        written(8, 3),
        read(5, 1),
        read(11, 7),
        read(u32::MAX, u32::MAX),
    ]);
    let memory = index.image(Memory).unwrap();
    let joined = [read(8, 2), written(2, 3), written(10, 1), read(5, 1)];
    assert_eq!(memory.working_set(), joined);
    assert_eq!(PageIndex::parse(&index.encode()).unwrap(), index);
    assert_eq!(index.stats().images[2].working_set, 7);
}

#[test]
fn a_working_set_that_is_none_is_refused() {
    let many: Vec<_> = (0..12).map(|n| (n * 2 % 11, 1)).collect();
    type Runs<'a> = &'a [(u32, u32)];
    let cases: [(ImageKind, Runs, &str); 7] = [
        (Memory, &[(3, 0)], "run 0 is malformed"),
        (Memory, &[(11, 1)], "run 0 is malformed"),
        (Memory, &[(1, u32::MAX)], "run 0 is malformed"),
        (Memory, &[(1, 2), (3, 1)], "run 1 is malformed"),
        (Memory, &[(5, 2), (1, 1), (6, 1)], "a page twice"),
        (Memory, &many, "runs than its 11 pages"),
        (Kernel, &[(0, 1)], "kernel has a working set"),
    ];
    for (kind, runs, wanted) in cases {
        let set = runs.iter().map(|&(first, pages)| run(first, pages, false));
        let why = refusal(|index| image(index, kind).working_set = set.collect());
        assert!(why.contains(wanted), "{why}");
    }
}

#[test]
fn only_memory_is_written_and_a_run_is_of_a_known_kind() {
    let mut index = sample();
    image(&mut index, Memory).working_set = vec![run(1, 1, false), run(2, 1, true)];
    let bytes = index.encode();
    assert_eq!(PageIndex::parse(&bytes).unwrap(), index);
    for (at, byte) in [(4, 2), (3, 1), (1, 1)] {
        let mut bytes = bytes.clone();
        let at = bytes.len() - at;
        bytes[at] = byte;
        let why = PageIndex::parse(&bytes).unwrap_err().reason;
        assert!(why.contains("memory run 1 is malformed"), "{why}");
    }
    let why = refusal(|index| image(index, Rootfs).working_set = vec![run(1, 1, true)]);
    assert!(why.contains("rootfs run 0 is malformed"), "{why}");
}

#[test]
fn runs_that_continue_each_other_are_one_extent() {
    let mut image = Image::new(Memory, 6 * 4096);
    for slot in [0, 1, 3, 4] {
        image.push_pages(1, Stored { slot });
    }
    image.push_pages(1, Zero);
    image.push_pages(1, Zero);
    let runs: Vec<_> = image
        .extents()
        .iter()
        .map(|e| (e.first_page, e.pages))
        .collect();
    assert_eq!(runs, [(0, 2), (2, 2), (4, 2)]);
}

#[test]
fn pieces_end_at_the_borders_of_frames_and_follow_references() {
    let piece = |source, frame, page_in_frame, page, pages| Piece {
        source,
        frame,
        page_in_frame,
        page,
        pages,
    };
    let index = sample();
    assert_eq!(
        index.pieces(Kernel, 0, 3),
        [piece(Kernel, 0, 0, 0, 2), piece(Kernel, 1, 0, 2, 1)]
    );
    let all = [
        piece(Memory, 0, 0, 4, 1),
        piece(Memory, 0, 0, 5, 1),
        piece(Rootfs, 0, 0, 6, 2),
        piece(Kernel, 0, 1, 8, 1),
        piece(Kernel, 1, 0, 9, 1),
        piece(Memory, 0, 1, 10, 1),
    ];
    assert_eq!(index.pieces(Memory, 0, 11), all);
    assert_eq!(
        index.pieces(Memory, 7, 2),
        [piece(Rootfs, 0, 1, 7, 1), all[3]]
    );
    assert_eq!(index.pieces(Memory, 0, 4), []);
    assert_eq!(index.pieces(Memory, 11, 0), []);
}

#[test]
fn the_statistics_count_every_page_once() {
    let stats = sample().stats();
    let memory = stats.images[2];
    assert_eq!(
        (
            memory.zero,
            memory.duplicate,
            memory.in_rootfs,
            memory.in_boot,
            memory.stored
        ),
        (4, 1, 2, 2, 2)
    );
    for i in &stats.images {
        assert_eq!(
            i.pages,
            i.zero + i.duplicate + i.in_rootfs + i.in_boot + i.stored
        );
    }
    assert_eq!((memory.raw_bytes, memory.compressed_bytes), (8192, 70));
}

#[test]
fn a_blob_of_another_length_is_refused_before_the_tables_are_read() {
    let bytes = sample().encode();
    for len in 0..bytes.len() {
        assert!(PageIndex::parse(&bytes[..len]).is_err(), "{len}");
    }
    assert!(PageIndex::parse(&[&bytes[..], &[0]].concat()).is_err());
    let mut huge = bytes.clone();
    huge[24 + 8..24 + 16].copy_from_slice(&(64u64 << 30).to_le_bytes()); // size
    huge[24 + 24..24 + 28].copy_from_slice(&(1u32 << 24).to_le_bytes()); // frames
    assert!(
        PageIndex::parse(&huge)
            .unwrap_err()
            .reason
            .contains("blob of")
    );
}

#[test]
fn a_newer_version_is_named() {
    let mut bytes = sample().encode();
    bytes[8] = 4;
    assert_eq!(PageIndex::parse(&bytes).unwrap_err().newer, Some(4));
    bytes[8] = 2;
    let older = PageIndex::parse(&bytes).unwrap_err();
    assert_eq!(older.newer, None);
    assert!(older.reason.contains("build the bundle again"));
}

#[test]
fn a_parent_is_refused_by_this_version() {
    let mut bytes = sample().encode();
    bytes[20] = 1;
    assert!(
        PageIndex::parse(&bytes)
            .unwrap_err()
            .reason
            .contains("parent")
    );
}

#[test]
fn cyclic_chained_and_dangling_references_are_refused() {
    let point = |to: Content| {
        refusal(|i| {
            let extent = &mut image(i, Memory).extents[2];
            assert!(matches!(extent.content, Same { image: Memory, .. }));
            extent.content = to;
        })
    };
    let not_stored = "refers to pages that are not stored";
    assert!(
        point(Same {
            image: Memory,
            page: 5
        })
        .contains(not_stored),
        "itself"
    );
    assert!(
        point(Same {
            image: Memory,
            page: 8
        })
        .contains(not_stored),
        "a reference"
    );
    assert!(
        point(Same {
            image: Memory,
            page: 0
        })
        .contains(not_stored),
        "a zero page"
    );
    assert!(
        point(Same {
            image: Memory,
            page: 11
        })
        .contains("beyond the end")
    );
    assert!(
        point(Same {
            image: Memory,
            page: u32::MAX
        })
        .contains("beyond the end")
    );
    assert!(
        point(Same {
            image: ImageKind::Initramfs,
            page: 0
        })
        .contains("absent")
    );
    assert!(
        point(Stored { slot: 0 }).contains("exactly once"),
        "a stored page used twice"
    );
    let run = refusal(|i| {
        image(i, Memory).extents[3].content = Same {
            image: Rootfs,
            page: 0,
        }
    });
    assert!(run.contains(not_stored), "a run that begins outside");
    let run = refusal(|i| {
        image(i, Memory).extents[4].content = Same {
            image: Kernel,
            page: 2,
        }
    });
    assert!(run.contains("beyond the end"), "a run that ends outside");
}

#[test]
fn only_memory_may_refer_to_other_images() {
    let reason = refusal(|i| {
        image(i, Rootfs).extents[0].content = Same {
            image: Kernel,
            page: 0,
        };
    });
    assert!(reason.contains("another image"), "{reason}");
}

#[test]
fn every_stored_page_has_exactly_one_place() {
    assert!(refusal(|i| image(i, Kernel).extents[0].content = Stored { slot: 1 }).contains("once"));
    let orphan = refusal(|i| image(i, Memory).extents[5].content = Zero);
    assert!(orphan.contains("once"), "{orphan}");
    let more = refusal(|i| image(i, Rootfs).push_frame(10, 2, [0; 32]));
    assert!(more.contains("more pages than the image"), "{more}");
}

#[test]
fn sizes_and_counts_that_lie_are_refused() {
    assert!(refusal(|i| image(i, Rootfs).size = 0).contains("bytes"));
    assert!(refusal(|i| image(i, Rootfs).size = (64 << 30) + 1).contains("limit"));
    assert!(refusal(|i| image(i, Rootfs).size = 4 * 4096).contains("cover 3 of 4"));
    assert!(refusal(|i| image(i, Rootfs).size = 2 * 4096).contains("2 pages"));
    assert!(refusal(|i| image(i, Rootfs).frames[0].pages = 0).contains("0 pages"));
    assert!(refusal(|i| image(i, Rootfs).frames[0].pages = 513).contains("513 pages"));
    assert!(refusal(|i| image(i, Rootfs).frames[0].len = 0).contains("0 bytes"));
    assert!(refusal(|i| image(i, Rootfs).frames[0].len = 2 * 4096 + 8193).contains("16385 bytes"));
    assert!(refusal(|i| image(i, Memory).extents[0].pages = u32::MAX).contains("pages"));
}

#[test]
fn one_map_has_one_encoding() {
    let split = refusal(|i| {
        let extents = &mut image(i, Memory).extents;
        extents[0].pages = 3;
        extents.insert(
            1,
            Extent {
                first_page: 3,
                pages: 1,
                content: Zero,
            },
        );
    });
    assert!(split.contains("belongs to the one before"), "{split}");
    assert!(refusal(|i| i.images.swap(0, 1)).contains("out of order"));
    assert!(refusal(|i| drop(i.images.remove(0))).contains("no kernel"));
    let bytes = sample().encode();
    let extent = 24 + 3 * 32 + 2 * 40; // the kernel's only one
    for at in [20, 24 + 1, extent + 5, extent + 6, extent + 7] {
        let mut changed = bytes.clone();
        changed[at] = 1;
        assert!(
            PageIndex::parse(&changed).is_err(),
            "a reserved byte at {at}"
        );
    }
}
