//! Layers of images: what whiteouts remove, in whatever order a layer has them, and what awkward layers
//! become.
//!
//! In these tables `a/` is a directory, `a=x` a file with the content `x`, `a->b` a symbolic link, `a=>b`
//! a hard link. A directory has mode 0711, unless it is made because it is missing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use sha2::{Digest, Sha256};
use smol_rootfs::{Node, Tree, Watch};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::common::{am_root, assert_same, have, host_tree, listing, run};

/// Layers in files, and what becomes of them.
struct Image {
    scratch: TempDir,
    tree: Tree,
    layers: usize,
}

impl Image {
    fn new(layers: &[&[&str]]) -> Self {
        let mut image = Self {
            scratch: tempfile::tempdir().unwrap(),
            tree: Tree::new(),
            layers: 0,
        };
        for layer in layers {
            image.add(layer).unwrap();
        }
        image
    }

    fn add(&mut self, layer: &[&str]) -> anyhow::Result<()> {
        let path: PathBuf = self.scratch.path().join(format!("{}.tar", self.layers));
        self.layers += 1;
        fs::write(&path, archive(layer)).unwrap();
        self.tree.apply_layer(&path)
    }

    /// Its names but the root, as the tables have them.
    fn names(&self) -> Vec<String> {
        let names = self.tree.walk().skip(1).map(|(path, _, inode)| {
            let path = String::from_utf8(path).unwrap();
            match &inode.node {
                Node::Directory(_) if inode.meta.mode == 0o711 => format!("{path}/"),
                Node::Directory(_) => format!("{path}/ made"),
                Node::Symlink(target) => format!("{path}->{}", target.escape_ascii()),
                Node::File(data) => {
                    let mut content = Vec::new();
                    data.copy_to(&mut content).unwrap();
                    format!("{path}={}", content.escape_ascii())
                }
                other => panic!("{other:?}"),
            }
        });
        names.collect()
    }
}

fn archive(members: &[&str]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for member in members {
        let (name, kind, link, content) = if let Some((name, target)) = member.split_once("=>") {
            (name, EntryType::Link, target, "")
        } else if let Some((name, target)) = member.split_once("->") {
            (name, EntryType::Symlink, target, "")
        } else if let Some((name, content)) = member.split_once('=') {
            (name, EntryType::Regular, "", content)
        } else {
            assert!(member.ends_with('/'), "{member}");
            (*member, EntryType::Directory, "", "")
        };
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(if member.ends_with('/') { 0o711 } else { 0o644 });
        header.set_size(content.len() as u64);
        // Names are taken as they are: the builder would refuse hostile ones.
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

const BASE: &[&str] = &[
    "a/",
    "a/old=o",
    "a/sub/",
    "a/sub/deep=d",
    "bin/",
    "bin/sh=s",
    "target=T",
    "ldir->a",
    "hl1=h",
    "hl2=>hl1",
];

/// Names of the base that a case leaves alone are left out of its table.
fn over_base(layer: &[&str]) -> Vec<String> {
    let unchanged = Image::new(&[BASE]).names();
    let mut names = Image::new(&[BASE, layer]).names();
    names.retain(|name| !unchanged.contains(name));
    names
}

/// Names of the base that are gone, or are something else.
fn gone_from_base(layer: &[&str]) -> Vec<String> {
    let names = Image::new(&[BASE, layer]).names();
    let mut unchanged = Image::new(&[BASE]).names();
    unchanged.retain(|name| !names.contains(name));
    unchanged
}

/// What is awkward of a layer over [`BASE`], the layer, what is there then, what is gone.
type Case = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

const ALL_OF_A: &[&str] = &["a/", "a/old=o", "a/sub/", "a/sub/deep=d"];
const IN_A: &[&str] = &["a/old=o", "a/sub/", "a/sub/deep=d"];

const CASES: &[Case] = &[
    (
        "opaque behind",
        &["a/", "a/new=n", "a/.wh..wh..opq="],
        &["a/new=n"],
        IN_A,
    ),
    (
        "opaque in front",
        &["a/", "a/.wh..wh..opq=", "a/new=n"],
        &["a/new=n"],
        IN_A,
    ),
    (
        "added again, then whiteout",
        &["a/old=n", "a/.wh.old="],
        &["a/old=n"],
        &["a/old=o"],
    ),
    (
        "whiteout, then added again",
        &["a/.wh.old=", "a/old=n"],
        &["a/old=n"],
        &["a/old=o"],
    ),
    (
        "directory again",
        &[".wh.a=", "a/", "a/x=1"],
        &["a/x=1"],
        IN_A,
    ),
    (
        "directory again, before",
        &["a/", "a/x=1", ".wh.a="],
        &["a/x=1"],
        IN_A,
    ),
    (
        "not described again",
        &["a/x=1", ".wh.a="],
        &["a/ made", "a/x=1"],
        ALL_OF_A,
    ),
    (
        "in a directory below",
        &["a/sub/x=1", ".wh.a="],
        &["a/ made", "a/sub/ made", "a/sub/x=1"],
        ALL_OF_A,
    ),
    (
        "a whiteout that is a link",
        &[".wh.target=>bin/sh"],
        &[],
        &["target=T"],
    ),
    (
        "a whiteout that is a directory",
        &[".wh.target/"],
        &[],
        &["target=T"],
    ),
    ("through a link", &["ldir/.wh.old="], &[], &["a/old=o"]),
    ("a file through a link", &["ldir/n=1"], &["a/n=1"], &[]),
    (
        "a directory over a link",
        &["ldir/", "ldir/y=1", "ldir/.wh.old="],
        &["ldir/", "ldir/y=1"],
        &["ldir->a"],
    ),
    ("a file over a directory", &["a=f"], &["a=f"], ALL_OF_A),
    (
        "a directory over a file",
        &["target/", "target/z=1"],
        &["target/", "target/z=1"],
        &["target=T"],
    ),
    (
        "something below a file",
        &["target/z=1"],
        &["target/ made", "target/z=1"],
        &["target=T"],
    ),
    (
        "what aufs keeps",
        &[".wh..wh.plnk/", ".wh..wh.plnk/1.2=", ".wh..wh.aufs="],
        &[],
        &[],
    ),
    ("a link to a lower layer", &["new=>target"], &["new=T"], &[]),
    (
        "one of two names changed",
        &["hl1=n"],
        &["hl1=n"],
        &["hl1=h"],
    ),
    (
        "a link takes the place of its target",
        &["new=>target", ".wh.target="],
        &["new=T"],
        &["target=T"],
    ),
    (
        "no parents",
        &["q/r/s=1"],
        &["q/ made", "q/r/ made", "q/r/s=1"],
        &[],
    ),
    ("twice", &["d=1", "d=2"], &["d=2"], &[]),
    (
        "dots and slashes",
        &["./n/./b//c=1"],
        &["n/ made", "n/b/ made", "n/b/c=1"],
        &[],
    ),
    ("absolute", &["/n=1"], &["n=1"], &[]),
    (
        "nothing there",
        &[".wh.none=", "none/.wh.x=", "none/.wh..wh..opq="],
        &[],
        &[],
    ),
];

#[test]
fn awkward_layers_become_what_other_tools_make_of_them() {
    for (what, layer, there, gone) in CASES {
        assert_eq!(over_base(layer), *there, "{what}");
        assert_eq!(gone_from_base(layer), *gone, "{what}");
    }
}

/// An OCI layout of these layers in an empty folder (OCI image specification, image-layout.md), with the tag `t`.
fn layout(folder: &Path, layers: &[Vec<u8>]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = hex::encode(Sha256::digest(bytes));
        fs::write(blobs.join(&digest), bytes).unwrap();
        (format!("sha256:{digest}"), bytes.len())
    };
    let layers: Vec<_> = layers.iter().map(|layer| put(layer)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|(digest, _)| digest).collect();
    let descriptor = |kind: &str, (digest, size): &(String, usize)| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": digest, "size": size })
    };
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(config.to_string().as_bytes());
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor("layer.v1.tar", layer))
        .collect();
    let manifest = json!({
        "schemaVersion": 2, "config": descriptor("config.v1+json", &config), "layers": layers,
    });
    let mut manifest = descriptor("manifest.v1+json", &put(manifest.to_string().as_bytes()));
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "t" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

/// Where umoci 0.4 does something else. It fails below a file (0.5 does as we do); it shows what aufs keeps;
/// and whether a directory that is gone in the lower layers keeps their metadata depends on the order of
/// the layer.
const UMOCI_DIFFERS: [&str; 4] = [
    "something below a file",
    "what aufs keeps",
    "not described again",
    "in a directory below",
];

#[test]
fn umoci_unpacks_awkward_layers_to_the_same_trees() {
    if !have("umoci") || !am_root() {
        return;
    }
    for (what, layer, ..) in CASES {
        let image = Image::new(&[BASE, layer]);
        let at = |name: &str| image.scratch.path().join(name);
        if UMOCI_DIFFERS.contains(what) {
            continue;
        }
        layout(&at("layout"), &[BASE, layer].map(archive));
        assert_eq!(listing(&image.tree), umoci(image.scratch.path()), "{what}");
    }
}

/// What umoci makes of the layout in this folder.
fn umoci(folder: &Path) -> String {
    let mut umoci = Command::new("umoci");
    umoci.current_dir(folder);
    run(umoci.args(["unpack", "--image", "layout:t", "out"]));
    listing(&host_tree(&folder.join("out/rootfs")))
}

/// What we make of these layers, and what umoci does.
pub fn by_both(layers: &[Vec<u8>]) -> [String; 2] {
    let scratch = tempfile::tempdir().unwrap();
    layout(&scratch.path().join("layout"), layers);
    let mut tree = Tree::new();
    for layer in layers {
        let digest = hex::encode(Sha256::digest(layer));
        let blob = scratch.path().join("layout/blobs/sha256").join(digest);
        tree.apply_layer(&blob).unwrap();
    }
    [listing(&tree), umoci(scratch.path())]
}

/// The members of a layer, moved into a folder.
fn inside(folder: usize, layer: &[&str]) -> Vec<String> {
    let members = layer.iter().map(|member| match member.split_once("=>") {
        Some((name, target)) => format!("{folder}/{name}=>{folder}/{target}"),
        None => format!("{folder}/{member}"),
    });
    members.collect()
}

#[test]
fn umoci_unpacks_an_image_of_all_awkward_layers_to_the_same_tree() {
    if !have("umoci") || !am_root() {
        return;
    }
    let cases = CASES
        .iter()
        .filter(|(what, ..)| !UMOCI_DIFFERS.contains(what))
        .enumerate();
    let archive = |members: Vec<String>| {
        let members: Vec<&str> = members.iter().map(String::as_str).collect();
        archive(&members)
    };
    // One layer with the base of each case in a folder of its own, and one for each case.
    let lowest = cases.clone().flat_map(|(number, _)| inside(number, BASE));
    let mut layers = vec![archive(lowest.collect())];
    layers.extend(cases.map(|(number, (_, layer, ..))| archive(inside(number, layer))));
    assert!(layers.len() > 20, "{}", layers.len());
    let [ours, theirs] = by_both(&layers);
    assert_same(&ours, &theirs);
}

#[test]
fn an_opaque_root_leaves_the_layer_alone() {
    assert_eq!(
        Image::new(&[BASE, &["one=1", ".wh..wh..opq=", "two=2"]]).names(),
        ["one=1", "two=2"]
    );
}

#[test]
fn whiteouts_of_one_layer_do_not_hold_for_the_next() {
    let image = Image::new(&[
        BASE,
        &["a/.wh..wh..opq="],
        &["a/n=1"],
        &["a/m=2", ".wh.target="],
    ]);
    let names = image.names();
    assert_eq!(names[..3], ["a/", "a/m=2", "a/n=1"]);
    let image = Image::new(&[&["a/", "a/x=1"], &["a/y=2"], &[".wh.a="]]);
    assert_eq!(image.names(), [""; 0]);
}

#[test]
fn layers_that_mean_nothing_are_refused_and_named() {
    for (layer, expected) in [
        (&["a/.wh.="][..], "whiteout 'a/.wh.': it names nothing"),
        (&[".wh..="], "whiteout '.wh..': it names nothing"),
        (&["a/.wh...="], "whiteout 'a/.wh...': it names nothing"),
        (
            &["a/.wh.x/y=1"],
            "'a/.wh.x/y' is in '.wh.x', which can only be a whiteout",
        ),
        (
            &["early=>late", "late=1"],
            "hard link to 'late', which is not there",
        ),
        (
            &[".wh.target=", "l=>target"],
            "hard link to 'target', which is not there",
        ),
        (&["l=>a"], "hard link to 'a', which is a directory"),
        (&["../evil=1"], "has a '..' in its path"),
        (&["../.wh.evil="], "has a '..' in its path"),
        (
            &["out->../../tmp", "out/evil=1"],
            "a symbolic link in the path leads out of the tree",
        ),
        (
            &["out->../../tmp", "out/.wh.evil="],
            "a symbolic link in the path leads out of the tree",
        ),
    ] {
        let mut image = Image::new(&[BASE]);
        let error = format!("{:#}", image.add(layer).unwrap_err());
        assert!(
            error.contains(expected) && error.contains("1.tar"),
            "{layer:?}: {error}"
        );
    }
}

/// Numbers that look random, and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's constants for 64 bits; the upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit as u64) as usize
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for at in (1..list.len()).rev() {
            list.swap(at, self.below(at + 1));
        }
    }

    /// A layer without links in which no name comes twice, and nothing is below a file.
    fn layer(&mut self, content: &str) -> Vec<String> {
        let mut files = Vec::<String>::new();
        let mut members = Vec::new();
        for path in [
            "a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "b/a/a", "b/a/a/a",
        ] {
            if files
                .iter()
                .any(|file| path.starts_with(&format!("{file}/")))
            {
                continue;
            }
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            match self.below(7) {
                0 => members.push(format!("{path}/")),
                1 => {
                    files.push(path.to_owned());
                    members.push(format!("{path}={content}"));
                }
                2 => members.push(format!("{folder}/.wh.{name}=")),
                3 => members.extend([format!("{path}/"), format!("{folder}/.wh.{name}=")]),
                4 => members.extend([format!("{path}/"), format!("{path}/.wh..wh..opq=")]),
                _ => {}
            }
        }
        members
    }
}

#[test]
fn the_order_of_a_layer_does_not_matter() {
    let mut numbers = Numbers(1);
    let lines = |layer: &[String]| {
        layer
            .iter()
            .map(|l| l.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    for _ in 0..500 {
        let lower = ["1", "2"].map(|content| numbers.layer(content));
        let mut layer = numbers.layer("3");
        // Whiteouts first is what nobody doubts.
        layer.sort_by_key(|member| !member.contains(".wh."));
        let of = |layer: &[String]| {
            let [one, two] = &lower;
            let text = |layer: &[String]| layer.to_vec();
            let layers = [text(one), text(two), text(layer)];
            let layers = layers
                .each_ref()
                .map(|l| l.iter().map(String::as_str).collect::<Vec<_>>());
            Image::new(&layers.each_ref().map(Vec::as_slice)).names()
        };
        let expected = of(&layer);
        let first = lines(&layer);
        for _ in 0..3 {
            numbers.shuffle(&mut layer);
            assert_eq!(
                of(&layer),
                expected,
                "{lower:?}\n{first}\n{}",
                lines(&layer)
            );
        }
    }
}

#[test]
fn many_whiteouts_of_one_directory_cost_no_more_than_themselves() {
    const MANY: usize = 3000;
    let ticks = Arc::new(AtomicUsize::new(0));
    let counted = ticks.clone();
    let watch = Watch::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let mut layer: Vec<String> = (0..MANY).map(|n| format!("a/d{n}/f=1")).collect();
    layer.extend((0..MANY).flat_map(|_| ["a/.wh..wh..opq=".to_owned(), ".wh.a=".to_owned()]));
    let mut image = Image::new(&[]);
    image.tree = Tree::watched(watch);
    image.add(BASE).unwrap();
    image
        .add(&layer.iter().map(String::as_str).collect::<Vec<_>>())
        .unwrap();
    // One look is a few hundred steps.
    let looks = ticks.load(Ordering::Relaxed);
    assert!((10..1000).contains(&looks), "{looks}");
}
