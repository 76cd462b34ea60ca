//! Locks as text and as values.

use proptest::prelude::*;
use smol_cli::ExitKind;

use super::*;

fn digest(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

fn pin(name: &str, version: &str) -> PackagePin {
    PackagePin {
        name: name.into(),
        version: version.into(),
        arch: "amd64".into(),
        sha256: digest(7),
    }
}

fn entry(path: &str, node: CopiedNode) -> CopiedEntry {
    CopiedEntry {
        path: path.into(),
        node,
    }
}

fn file(n: u8) -> CopiedNode {
    CopiedNode::File {
        mode: 0o644,
        sha256: digest(n),
    }
}

/// A lock with one of everything.
fn full() -> Lock {
    Lock {
        kernel: Some(Kernel {
            recipe: "smol-6.1".into(),
            recipe_sha256: digest(1),
            source: "linux-source-6.1 6.1.192-2".into(),
            source_sha256: digest(2),
            package_sha256: Some(digest(3)),
            gcc: "gcc (Debian 12.2.0-14) 12.2.0".into(),
            ld: "GNU ld \"2.40\"".into(),
        }),
        debian: Some(Debian {
            suite: "bookworm".into(),
            requested: vec!["redis-server".into()],
            packages: vec![
                pin("bash", "5.2.15-2+b13"),
                pin("redis-server", "5:7.0.15-1~deb12u4"),
            ],
            install_only: Some(vec![pin("passwd", "1:4.13+dfsg1-1+deb12u1")]),
        }),
        files: [
            (Role::Kernel, "guest.elf", 4),
            (Role::Base, "base.smolmachine", 10),
        ]
        .map(|(role, path, n)| InputFile {
            role,
            path: path.into(),
            sha256: digest(n),
        })
        .into(),
        copies: vec![
            CopySource {
                src: "app.conf".into(),
                contents: vec![entry(".", file(5))],
            },
            CopySource {
                src: "app".into(),
                contents: vec![
                    entry("lib", CopiedNode::Directory),
                    entry("lib/a\u{fc}\n", file(6)),
                    entry("lib/same", CopiedNode::HardLink("lib/a\u{fc}\n".into())),
                    entry("link", CopiedNode::Symlink("/etc/\\x".into())),
                    entry("pipe", CopiedNode::Special("pipe".into())),
                ],
            },
        ],
        ..Lock::of_epoch(1_767_225_600)
    }
}

fn parse(text: &str) -> Result<Lock, String> {
    Lock::parse(text.as_bytes(), "Smolfile.lock").map_err(|failure| {
        let error = failure.into();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
        smol_cli::error::render(&error, false)
    })
}

#[test]
fn a_lock_survives_its_text_and_the_text_is_canonical() {
    for lock in [full(), Lock::of_epoch(0)] {
        let text = lock.to_text();
        let read = parse(&text).unwrap();
        assert_eq!(read, lock);
        assert_eq!(read.to_text(), text);
    }
    // However it is laid out, the same lock is the same text.
    let text = full().to_text();
    let other = text
        .replace(" = ", "=")
        .replace(",\n]", "\n]")
        .replace('#', "\n#");
    assert_ne!(other, text);
    assert_eq!(parse(&other).unwrap().to_text(), text);
}

#[test]
fn the_text_of_a_lock_is_pinned() {
    let lock = Lock {
        builder: Builder {
            smolbuild: "1.2.3".into(),
            ..full().builder
        },
        ..full()
    };
    let expected = format!(
        r#"# Every input of the machine, by digest. Written by smolbuild; `smolbuild lock` renews it.
version = 1

[builder]
smolbuild = "1.2.3"
bundle-format = 1
guest-sha256 = "{}"
epoch = 1767225600

[kernel]
recipe = "smol-6.1"
recipe-sha256 = "{}"
source = "linux-source-6.1 6.1.192-2"
source-sha256 = "{}"
package-sha256 = "{}"
gcc = "gcc (Debian 12.2.0-14) 12.2.0"
ld = "GNU ld \"2.40\""

[debian]
suite = "bookworm"
requested = ["redis-server"]
packages = [
    {{ name = "bash", version = "5.2.15-2+b13", arch = "amd64", sha256 = "{seven}" }},
    {{ name = "redis-server", version = "5:7.0.15-1~deb12u4", arch = "amd64", sha256 = "{seven}" }},
]
install-only = [
    {{ name = "passwd", version = "1:4.13+dfsg1-1+deb12u1", arch = "amd64", sha256 = "{seven}" }},
]

[[file]]
role = "kernel"
path = "guest.elf"
sha256 = "{}"

[[file]]
role = "base"
path = "base.smolmachine"
sha256 = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"

[[copy]]
src = "app.conf"
contents = [
    {{ path = ".", mode = "0644", sha256 = "{}" }},
]

[[copy]]
src = "app"
contents = [
    {{ path = "lib", kind = "folder" }},
    {{ path = "lib/aü\u000A", mode = "0644", sha256 = "{}" }},
    {{ path = "lib/same", kind = "hardlink", target = "lib/aü\u000A" }},
    {{ path = "link", kind = "symlink", target = "/etc/\\x" }},
    {{ path = "pipe", kind = "special", target = "pipe" }},
]
"#,
        digest(0),
        digest(1),
        digest(2),
        digest(3),
        digest(4),
        digest(5),
        digest(6),
        seven = digest(7),
    );
    assert_eq!(lock.to_text(), expected);
}

#[test]
fn a_lock_that_is_none_is_refused_with_place_cause_and_what_to_do() {
    let error = parse(&full().to_text().replace("suite", "sweet")).unwrap_err();
    assert!(
        error.starts_with("error: Smolfile.lock cannot be used as a lock file:"),
        "{error}"
    );
    for part in [
        "line 20",
        "sweet",
        "hint: `smolbuild lock` writes a new one",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = parse("version = 2\n[weather]\n").unwrap_err();
    assert!(
        error.contains("of version 2, and this smolbuild knows version 1"),
        "{error}"
    );
    for (text, part) in [
        ("", "version"),
        ("version = 1", "builder"),
        ("version = -1", "-1"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let error = Lock::parse(b"version = 1\n# \xff", "x")
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 2 is not UTF-8"), "{error}");
    let error = parse(&"#".repeat(MAX_SIZE + 1)).unwrap_err();
    assert!(error.contains("longer than 16 MiB"), "{error}");
}

#[test]
fn hostile_values_are_refused_by_name() {
    let long = digest(7);
    for (from, to, part) in [
        (long.as_str(), "abcd", "SHA-256"),
        (long.as_str(), &"G".repeat(64), "SHA-256"),
        ("\"bash\"", "\"--option\"", "--option"),
        ("\"bash\"", "\"bash; reboot\"", "bash; reboot"),
        ("5.2.15-2+b13", "$(reboot)", "$(reboot)"),
        ("\"amd64\"", "\"amd 64\"", "amd 64"),
        ("\"bookworm\"", "\"-bookworm\"", "-bookworm"),
        ("guest.elf", "../guest.elf", "../guest.elf"),
        ("app.conf", "/etc/passwd", "/etc/passwd"),
        ("\"lib/same\"", "\"../same\"", "leads elsewhere"),
        ("\"lib/same\"", "\"lib//same\"", "leads elsewhere"),
        ("\"lib/same\"", "\"lib/./same\"", "leads elsewhere"),
        (
            "\"lib/same\"",
            "\"other/same\"",
            "is in no folder of the list",
        ),
        ("\"lib/same\"", "\"lib/a\"", "is not in its place"),
        (
            "\"pipe\", kind",
            "\"link/pipe\", kind",
            "is in no folder of the list",
        ),
        (
            "\"hardlink\", target = \"lib/aü",
            "\"hardlink\", target = \"lib/u",
            "not a file listed before it",
        ),
        (
            "\"hardlink\", target = \"lib/aü\\u000A\"",
            "\"hardlink\", target = \"lib\"",
            "not a file listed before it",
        ),
        ("\"folder\"", "\"door\"", "neither a file"),
        ("mode = \"0644\"", "mode = \"4755\"", "neither a file"),
        (
            "kind = \"folder\"",
            "kind = \"folder\", target = \"x\"",
            "neither a file",
        ),
        (
            "\".\", mode = \"0644\", sha256",
            "\".\", kind = \"folder\", sha256",
            "neither a file",
        ),
        ("smol-6.1\"", "smol\\n6.1\"", "one line"),
        ("{ name = \"bash\"", "{ name = \"zsh\"", "not sorted"),
        (
            "{ name = \"passwd\"",
            "{ name = \"bash\"",
            "bash is in the packages of [debian], and in install-only",
        ),
        ("\"passwd\"", "\"$(reboot)\"", "$(reboot)"),
        ("epoch = 1767225600", "epoch = 17672256000", "u32"),
        ("role = \"kernel\"", "role = \"colonel\"", "colonel"),
    ] {
        let text = full().to_text();
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let error = parse(&changed).unwrap_err();
        assert!(error.contains(part), "{from} -> {to}: {error}");
    }
}

#[test]
fn a_lock_without_packages_for_the_installation_alone_is_one_and_none_of_them_is_another() {
    let mut lock = full();
    for install_only in [None, Some(Vec::new())] {
        lock.debian.as_mut().unwrap().install_only = install_only;
        assert_eq!(parse(&lock.to_text()).unwrap(), lock);
    }
    let mut unsorted = lock;
    let twice = vec![pin("passwd", "1"), pin("passwd", "1")];
    unsorted.debian.as_mut().unwrap().install_only = Some(twice);
    let error = parse(&unsorted.to_text()).unwrap_err();
    assert!(
        error.contains("the install-only of [debian] are not sorted"),
        "{error}"
    );
}

#[test]
fn what_runs_with_a_network_have_made_is_compared_by_their_place() {
    let run = |key: u8, layer: u8| LockedRun {
        key: digest(key),
        layer: format!("sha256:{}", digest(layer)).parse().unwrap(),
    };
    let told = |old: &[LockedRun], new: &[LockedRun]| {
        let [old, new] = [old, new].map(|runs| Lock {
            runs: runs.to_vec(),
            ..full()
        });
        differences(&old, &new)
    };
    let both = [run(1, 2), run(3, 4)];
    assert_eq!(told(&both, &both), [""; 0]);
    assert_eq!(
        told(&both, &[run(1, 2), run(3, 5)]),
        ["[[run]] with a network, number 2: it has made other files: 040404040404 -> 050505050505"]
    );
    // One step that is another one is one line, and not one that is gone and one that is new.
    let changed = "its command, or something before it, has changed";
    assert_eq!(
        told(&both, &[run(6, 2), run(7, 4)]),
        [1, 2].map(|n| format!("[[run]] with a network, number {n}: {changed}"))
    );
    assert_eq!(
        told(&both, &[]),
        [1, 2].map(|n| format!(
            "[[run]] with a network, number {n}: not locked any more: it is gone, or is to run again"
        ))
    );
    assert_eq!(
        told(&both[..1], &both),
        ["[[run]] with a network, number 2: new"]
    );
}

#[test]
fn every_input_that_differs_is_told_by_its_name() {
    let told = |change: fn(&mut Lock)| {
        let mut new = full();
        change(&mut new);
        differences(&full(), &new)
    };
    assert_eq!(told(|_| {}), [""; 0]);
    assert_eq!(told(|l| l.builder.smolbuild = "9".into()).len(), 1);
    assert_eq!(
        told(|l| l.builder.guest_sha256 = digest(9)),
        ["smol-guest: 000000000000 -> 090909090909"]
    );
    assert_eq!(told(|l| l.builder.epoch = 1), ["epoch: 1767225600 -> 1"]);
    assert_eq!(
        told(|l| l.kernel.as_mut().unwrap().recipe_sha256 = digest(9)),
        ["kernel recipe smol-6.1: 010101010101 -> 090909090909"]
    );
    assert_eq!(
        told(|l| l.kernel.as_mut().unwrap().gcc = "gcc 13".into()),
        ["gcc: gcc (Debian 12.2.0-14) 12.2.0 -> gcc 13"]
    );
    assert_eq!(
        told(|l| l.kernel.as_mut().unwrap().source = "linux-source-6.1 6.1.200-1".into()),
        ["kernel source: linux-source-6.1 6.1.192-2 -> linux-source-6.1 6.1.200-1"]
    );
    assert_eq!(told(|l| l.kernel = None), ["the kernel recipe is gone"]);
    assert_eq!(
        told(|l| l.debian.as_mut().unwrap().requested.push("curl".into())),
        ["[rootfs] packages: curl is new"]
    );
    assert_eq!(
        told(|l| l.debian.as_mut().unwrap().install_only = Some(vec![pin("passwd", "2")])),
        ["package for the installation alone passwd: 1:4.13+dfsg1-1+deb12u1 -> 2"]
    );
    assert_eq!(
        told(|l| l.debian.as_mut().unwrap().install_only = None),
        ["packages for the installation alone are gone"]
    );
    assert_eq!(
        told(|l| l.debian.as_mut().unwrap().suite = "trixie".into()),
        ["Debian release: bookworm -> trixie"]
    );
    assert_eq!(
        told(|l| {
            let packages = &mut l.debian.as_mut().unwrap().packages;
            packages[0].version = "5.3".into();
            packages[1].sha256 = digest(8);
            packages.push(pin("zsh", "5.9"));
        }),
        [
            "package bash: 5.2.15-2+b13 -> 5.3",
            "package redis-server 5:7.0.15-1~deb12u4: 070707070707 -> 080808080808",
            "package zsh: nothing -> 5.9",
        ]
    );
    assert_eq!(
        told(|l| l.files[0].sha256 = digest(9)),
        ["[kernel] path \"guest.elf\" changed"]
    );
    assert_eq!(
        told(|l| l.files[1].sha256 = digest(9)),
        ["[base] bundle \"base.smolmachine\" changed"]
    );
    assert_eq!(
        told(|l| l.copies[0].contents[0].node = file(9)),
        ["[[copy]] \"app.conf\" changed"]
    );
    assert_eq!(
        told(|l| {
            l.copies[1].contents.pop();
            l.copies[1]
                .contents
                .push(entry("zoo", CopiedNode::Directory));
        }),
        [
            "[[copy]] \"app/pipe\" is gone",
            "[[copy]] \"app/zoo\" is new"
        ]
    );
    assert_eq!(
        told(|l| l.copies.reverse()),
        ["the [[copy]] entries are others, or in another order"]
    );
}

/// Pieces that mean something in a lock, to be put where they do not belong.
const PIECES: &[&str] = &[
    "",
    "\"",
    "=",
    "[",
    "]",
    "{",
    "}",
    "\n",
    "0",
    "-1",
    "version = 1\n",
    "[[copy]]\n",
    "[debian]\n",
    "\\u0000",
    "..",
    "/",
    "kind = \"hardlink\"",
    "nan",
    "1979-05-27",
    "\u{202e}",
];

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic_and_what_it_takes_it_writes_again(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), 0..40usize, 0..PIECES.len()), 1..6)
    ) {
        let mut text = full().to_text();
        for (at, length, piece) in edits {
            let mut from = at.index(text.len());
            while !text.is_char_boundary(from) { from -= 1; }
            let mut to = (from + length).min(text.len());
            while !text.is_char_boundary(to) { to += 1; }
            text.replace_range(from..to, PIECES[piece]);
            if text.is_empty() { return Ok(()); }
        }
        if let Ok(lock) = parse(&text) {
            prop_assert_eq!(parse(&lock.to_text()).unwrap(), lock);
        }
    }

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Lock::parse(&bytes, "x").is_err());
    }
}

#[test]
fn the_base_of_a_lock_is_the_digest_of_a_bundle() {
    let base = full().base().unwrap();
    assert_eq!(base.to_string(), format!("sha256:{}", digest(10)));
    assert_eq!(Lock::of_epoch(0).base(), None);
}

#[test]
fn what_a_run_makes_anew_takes_its_place_and_what_follows_from_the_old_goes() {
    let layer = |text: &str| smol_bundle::Digest::of(text.as_bytes());
    let mut lock = Lock::of_epoch(0);
    let runs = |lock: &Lock| -> Vec<(String, smol_bundle::Digest)> {
        let runs = lock.runs.iter();
        runs.map(|run| (run.key.clone(), run.layer)).collect()
    };
    lock.pin_run("a".into(), layer("1"));
    lock.pin_run("b".into(), layer("2"));
    let both = [("a".to_owned(), layer("1")), ("b".to_owned(), layer("2"))];
    assert_eq!(runs(&lock), both);
    lock.pin_run("b".into(), layer("3"));
    assert_eq!(runs(&lock), [both[0].clone(), ("b".to_owned(), layer("3"))]);
    lock.pin_run("a".into(), layer("4"));
    assert_eq!(runs(&lock), [("a".to_owned(), layer("4"))]);
}
