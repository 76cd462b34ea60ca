//! What a cloned project and a stranger's bundle give the builder: Smolfile, lock, memory to look
//! into.

use std::collections::BTreeSet;

use smol_bundle::Digest;
use smol_cli::Interrupt;
use smol_image::{Healthcheck, RunConfig};
use smol_machine::state::MachineState;
use smolbuild::diff::guest::kallsyms::Kallsyms;
use smolbuild::diff::guest::owner::Owners;
use smolbuild::diff::guest::ram::Ram;
use smolbuild::input::Rootfs;
use smolbuild::lock::{
    self, Builder, CopiedEntry, CopiedNode, CopySource, Debian, InputFile, Kernel, Lock,
    LockedImage, LockedRun, Origin, PackagePin, Role,
};
use smolbuild::plan::Plan;
use smolbuild::smolfile::keys::KEYS;
use smolbuild::smolfile::{parse, render};
use smolbuild::source_dir::SourceDir;

use super::machine::sample_state;
use crate::input::{Numbers, expand, plan};

/// Pieces that mean something in a Smolfile or a lock.
pub const WORDS: &[&str] = &[
    "=",
    "\"",
    "'''",
    "\"\"\"",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    ",",
    ".",
    "\n",
    "#",
    "0",
    "-1",
    "1e9",
    "0o7",
    "nan",
    "true",
    "1979-05-27",
    "\\u0000",
    "\u{0}",
    "ä",
    "\u{2028}",
    "\r",
    "name",
    "[ready]",
    "[[copy]]",
    "ready.http",
    "warm_restore.http",
    "[[warm_restore]]",
    "\"/..\"",
    "18446744073709551616",
    "(?i",
    "tcp = 1\n",
    "tar = \"x\"\n",
    "99999999999999999999GiB",
    "[[debian.packages]]",
    "sha256:",
    "[[file]]",
    "contents",
    "install-only",
    "\u{1b}[31m",
];

/// The text of a Smolfile.
///
/// Holds: it is read, or every mistake is drawn, in less than 64 bytes for each of the text and some
/// for each mistake; what is accepted is something that the guest accepts.
pub fn smolfile(data: &[u8]) -> bool {
    let source = String::from_utf8_lossy(data);
    match parse(&source) {
        Ok(smolfile) => {
            let of_image = matches!(smolfile.rootfs(), Some(Rootfs::Image(_)));
            match Plan::resolve(&smolfile, &SourceDir::bare("."), empty_lock()) {
                Ok(plan) => assert_eq!(plan.guest.is_some(), plan.rootfs.is_some()),
                // What an image leaves out is known when it is there.
                Err(error) => assert!(
                    of_image,
                    "the guest accepts what the parser accepts: {error:#}"
                ),
            }
            true
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            assert!(render(&mistakes, "Smolfile", &source, true).contains("error"));
            for mistake in &mistakes {
                let told = mistake.mistake("Smolfile", &source);
                assert!(told.line >= 1 && told.column >= 1);
            }
            false
        }
    }
}

/// A Dockerfile, of which a Smolfile is made.
///
/// Holds: what is written has no mistakes, nothing in it or in a note drives a terminal, and no table is in it that
/// is not meant.
pub fn dockerfile(data: &[u8]) -> bool {
    let source = String::from_utf8_lossy(data);
    let Ok(draft) = smolbuild::init::dockerfile::smolfile("app", "Dockerfile", &source) else {
        return false;
    };
    let text = &draft.text;
    match parse(text) {
        Ok(smolfile) => assert!(matches!(smolfile.rootfs(), Some(Rootfs::Image(_)))),
        Err(mistakes) => panic!("{}", render(&mistakes, "Smolfile", text, false)),
    }
    let notes = draft.notes.iter().map(String::as_str);
    for shown in text.lines().chain(notes) {
        assert_eq!(smol_cli::human::one_line(shown), shown);
    }
    let known = [
        "[rootfs]",
        "[[copy]]",
        "[[fetch]]",
        "[[run]]",
        "[service]",
        "[service.env]",
        "[ready]",
    ];
    let mut headings = text.lines().filter(|line| line.starts_with('['));
    assert!(headings.all(|heading| known.contains(&heading)), "{text}");
    true
}

/// Words of Dockerfiles.
pub const DOCKERFILE_WORDS: &[&str] = &[
    "FROM ",
    "ARG ",
    "ENV ",
    "COPY ",
    "ADD ",
    "CMD ",
    "ENTRYPOINT ",
    "WORKDIR ",
    "USER ",
    "EXPOSE ",
    "HEALTHCHECK CMD ",
    "HEALTHCHECK --interval=",
    "1m30s",
    "--checksum=sha256:",
    "https://example.org/x",
    "--mount=type=cache",
    "--network=none",
    "#!/bin/sh\n",
    "'''",
    "curl ",
    "sh -c ",
    "STOPSIGNAL ",
    "RUN ",
    "VOLUME ",
    "SHELL ",
    "ONBUILD ",
    "scratch",
    " AS ",
    "--from=",
    "--chown=",
    "--chmod=",
    "--exclude=",
    "<<EOF\n",
    "EOF",
    "\\\n",
    "# escape=`\n",
    "$A",
    "${A:-",
    "${A:+",
    "}",
    "[\"",
    "\", \"",
    "\"]",
    "'",
    "\"",
    "*",
    "../",
    "\u{0}",
    "\u{1b}",
    "\u{202e}",
    "\u{85}",
    "\n[kernel]\n",
    "65535/udp",
    "1-99",
    "\r\n",
];

/// Dockerfiles with every instruction.
pub fn dockerfile_seeds() -> Vec<Vec<u8>> {
    let whole = r#"# syntax=docker/dockerfile:1
ARG TAG=12
FROM debian:${TAG} AS base
ARG DIR=/srv
ENV A=1 B="$A b" C='c'
WORKDIR $DIR/app
FROM base
RUN apt-get update \
    # more
    && apt-get install -y x
RUN --mount=type=cache,target=/x --network=none ["make"]
RUN <<EOF
#!/bin/sh
set -e
EOF
RUN cat <<-A <<'B' | sh -c 'curl x'
	a
	A
[kernel]
B
COPY --chown=app:app --chmod=0755 a b*.txt ./
COPY ["c d", "/e f"]
COPY <<-"END" /g
	text
	END
COPY --from=base /x /y
ADD https://example.org/x /x
ADD --checksum=sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 https://example.org/x /x
EXPOSE 80 443/tcp 53/udp 1-3
USER app
VOLUME /data
SHELL ["/bin/bash", "-c"]
STOPSIGNAL SIGQUIT
LABEL a=b
ONBUILD RUN x
HEALTHCHECK --interval=1s --timeout=1m30s --retries=3 CMD curl -f localhost || exit 1
ENTRYPOINT ["app"]
CMD exec app $A
"#;
    let scratch = "# escape=`\r\nfrom scratch\r\ncopy a`\r\n b /c/\r\ncmd [\"a\"]\r\n";
    let grows: String = (0..6)
        .map(|n| format!("ENV A{}={}\n", n + 1, format!("$A{n}").repeat(3)))
        .collect();
    let grows = format!("FROM x\nENV A0=aaaaaaaaa\n{grows}");
    [whole, scratch, &grows]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// The text of a lock.
///
/// Holds: what is accepted is written as it can be read again, and then as the same.
pub fn lock_file(data: &[u8]) -> bool {
    let Ok(read) = Lock::parse(data, "Smolfile.lock") else {
        return false;
    };
    let text = read.to_text();
    if text.len() <= lock::MAX_SIZE {
        let again = Lock::parse(text.as_bytes(), "Smolfile.lock").expect("we have written it");
        assert_eq!(again, read);
        assert_eq!(again.to_text(), text);
    }
    assert_eq!(lock::differences(&read, &read), Vec::<String>::new());
    true
}

fn nobody_stops() -> Interrupt {
    Interrupt::detached().expect("a pipe")
}

/// Memory of a kernel, by [`expand`], in which a table of symbols may be.
///
/// Holds: each symbol that is found is found again by its address.
pub fn kallsyms(data: &[u8]) -> bool {
    let bytes = expand(data, |_, _| {});
    let Some(symbols) = Kallsyms::find(&bytes, &nobody_stops()) else {
        return false;
    };
    assert!(!symbols.is_empty() && symbols.len() <= bytes.len());
    if let Some(address) = symbols.address("_text") {
        assert_eq!(symbols.at(address).map(|s| s.address), Some(address));
    }
    true
}

/// Where the page tables are, then a guest's memory, by [`expand`].
///
/// Holds: every page has an owner, in words.
pub fn guest_memory(data: &[u8]) -> bool {
    let mut numbers = Numbers::new(data);
    let mut state: MachineState = sample_state();
    state.vcpus[0].system.cr3 = u64::from(numbers.u8()) << 12;
    state.vcpus[0].system.gs.base = numbers.u64();
    let mut image = expand(numbers.rest(), |_, _| {});
    image.resize(image.len().next_multiple_of(4096), 0);
    let ram = Ram::new(&image, image.len() as u64);
    let pages = (image.len() / 4096) as u32;
    let wanted: BTreeSet<u64> = (0..pages).step_by(17).filter_map(|n| ram.gpa(n)).collect();
    let Some(owners) = Owners::learn(&ram, &state, &wanted, &nobody_stops()) else {
        return false;
    };
    for gpa in &wanted {
        assert!(!owners.of(*gpa, &[0, 8, 4095]).name.is_empty());
    }
    true
}

/// Smolfiles with every key.
pub fn smolfile_seeds() -> Vec<Vec<u8>> {
    let whole = r#"name = "web"
version = "1"
cpus = 2
memory = "256MiB"
ports = [80, 443]
[kernel]
recipe = "smol-6.1"
cmdline = "quiet"
[rootfs]
debian = { suite = "bookworm", packages = ["redis"] }
[[copy]]
src = "a/b"
dest = "/etc/b"
mode = 0o644
owner = "root:root"
exclude = ["*.log"]
[service]
cmd = ["app", "-v"]
env = { A = "b" }
user = "app"
workdir = "/srv"
[ready]
http = { port = 80, path = "/", status = [200], body = "ok" }
timeout = "5s"
interval = "10ms"
successes = 2
[[warm]]
cmd = "true"
timeout = "1s"
[[restore]]
cmd = "true"
[[warm_restore]]
http = { port = 80, path = "/", status = [200], body = "ok" }
timeout = "1s"
[[warm_restore]]
exec = "true"
[snapshot]
drop_caches = true
"#;
    let kernel =
        "name = \"k\"\nmemory = \"64MiB\"\n[kernel]\npath = \"vmlinux\"\n[ready]\nlog = \"up\"\n";
    let nested = [
        "a = ".to_owned() + &"[".repeat(3000),
        "[a".to_owned() + &".a".repeat(3000) + "]",
        "a".to_owned() + &"{a=".repeat(3000),
    ];
    let unknown: String = (0..500).map(|n| format!("k{n} = {n}\n")).collect();
    let keys: String = KEYS
        .iter()
        .map(|key| format!("{} = 0\n", key.name))
        .collect();
    let texts = [whole.to_owned(), kernel.to_owned(), unknown, keys];
    let texts = texts.into_iter().chain(nested);
    texts.map(String::into_bytes).collect()
}

/// A lock without inputs.
fn empty_lock() -> Lock {
    Lock {
        version: lock::VERSION,
        builder: Builder {
            smolbuild: "0.1.0".to_owned(),
            bundle_format: 1,
            guest_sha256: "0".repeat(64),
            epoch: 1_767_225_600,
        },
        kernel: None,
        debian: None,
        image: None,
        files: Vec::new(),
        copies: Vec::new(),
        runs: Vec::new(),
    }
}

/// A container image in a registry.
fn image_seed() -> LockedImage {
    LockedImage {
        origin: Some(Origin {
            reference: "docker.io/library/nginx:1.27".into(),
            manifest: Digest::of(b"manifest"),
        }),
        id: Digest::of(b"configuration"),
        variant: Some("v2".into()),
        diff_ids: vec![Digest::of(b"layer")],
        config: RunConfig {
            entrypoint: vec!["/docker-entrypoint.sh".into()],
            cmd: vec!["nginx".into(), "-g".into(), "daemon off;".into()],
            env: vec!["PATH=/usr/bin".into()],
            user: Some("101:101".into()),
            workdir: Some("/srv".into()),
            ports: vec!["80/tcp".into()],
            stop_signal: Some("SIGQUIT".into()),
            volumes: vec!["/data".into()],
            healthcheck: Some(Healthcheck {
                cmd: vec!["curl".into(), "\"\n".into()],
                start_period_ms: 5000,
            }),
        },
    }
}

fn kernel_seed(digest: impl Fn() -> String) -> Kernel {
    Kernel {
        recipe: "smol-6.1".into(),
        recipe_sha256: digest(),
        source: "linux-source-6.1 6.1.192-2".into(),
        source_sha256: digest(),
        package_sha256: Some(digest()),
        gcc: "gcc (Debian 12.2.0-14) 12.2.0".into(),
        ld: "GNU ld \"2.40\"".into(),
    }
}

/// A lock without inputs, and one with every kind of them.
pub fn lock_seeds() -> Vec<Vec<u8>> {
    let digest = || "0123456789abcdef".repeat(4);
    let pin = |name: &str| PackagePin {
        name: name.into(),
        version: "5:7.0.15-1~deb12u4".into(),
        arch: "amd64".into(),
        sha256: digest(),
    };
    let entry = |path: &str, node| CopiedEntry {
        path: path.into(),
        node,
    };
    let file = || CopiedNode::File {
        mode: 0o644,
        sha256: digest(),
    };
    let full = Lock {
        kernel: Some(kernel_seed(digest)),
        debian: Some(Debian {
            suite: "bookworm".into(),
            requested: vec!["redis-server".into()],
            packages: vec![pin("bash"), pin("redis-server")],
            install_only: Some(vec![pin("passwd")]),
        }),
        image: Some(image_seed()),
        files: vec![InputFile {
            role: Role::Base,
            path: "base.smolmachine".into(),
            sha256: digest(),
        }],
        copies: vec![
            CopySource {
                src: "app.conf".into(),
                contents: vec![entry(".", file())],
            },
            CopySource {
                src: "app".into(),
                contents: vec![
                    entry("lib", CopiedNode::Directory),
                    entry("lib/a\u{fc}\n", file()),
                    entry("lib/same", CopiedNode::HardLink("lib/a\u{fc}\n".into())),
                    entry("link", CopiedNode::Symlink("/etc/\\x".into())),
                    entry("pipe", CopiedNode::Special("pipe".into())),
                ],
            },
        ],
        runs: vec![LockedRun {
            key: digest(),
            layer: Digest::of(b"layer"),
        }],
        ..empty_lock()
    };
    [empty_lock(), full]
        .map(|lock| lock.to_text().into_bytes())
        .to_vec()
}

/// A table of symbols as the kernel's build writes it; tokens are letters.
fn symbols(count: usize) -> Vec<u8> {
    let mut bytes = vec![0xaa; 40];
    let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(8), 0);
    for n in 0..count as i32 {
        bytes.extend((if n < 4 { n * 8 } else { -1 - n * 16 }).to_le_bytes());
    }
    align(&mut bytes);
    bytes.extend(0xffff_ffff_8100_0000u64.to_le_bytes());
    bytes.extend((count as u64).to_le_bytes());
    let (begin, mut markers) = (bytes.len(), Vec::new());
    for n in 0..count {
        if n % 256 == 0 {
            markers.push((bytes.len() - begin) as u32);
        }
        let name = format!("Ts{n}");
        bytes.push(name.len() as u8);
        bytes.extend(name.bytes());
    }
    align(&mut bytes);
    markers
        .iter()
        .for_each(|marker| bytes.extend(marker.to_le_bytes()));
    align(&mut bytes);
    let (begin, mut starts) = (bytes.len(), Vec::new());
    for token in 0..=255u8 {
        starts.push((bytes.len() - begin) as u16);
        bytes.extend((32..127).contains(&token).then_some(token));
        bytes.push(0);
    }
    align(&mut bytes);
    starts
        .iter()
        .for_each(|start| bytes.extend(start.to_le_bytes()));
    bytes.resize(bytes.len().next_multiple_of(512), 0xaa);
    bytes
}

/// A table; and one with much before it.
pub fn kallsyms_seeds() -> Vec<Vec<u8>> {
    let table = symbols(600);
    let blocks = (table.len() / 512) as u8;
    vec![
        plan(&[], &table),
        plan(&[(0, 1, 2000), (0, blocks, 1)], &table),
        plan(&[(1, 4, 3000), (0, blocks, 1)], &table),
    ]
}

/// Memory with page tables: of the kernel and of a process.
pub fn memory_seeds() -> Vec<Vec<u8>> {
    let mut image = vec![0; 16 * 4096];
    let mut put = |at: usize, value: u64| image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    let page = |n: u64| n << 12 | 7;
    put(0x1000 + 511 * 8, page(2)); // top: the kernel's last 512 GiB
    put(0x2000 + 510 * 8, page(3));
    put(0x3000 + 8 * 8, page(4)); // 0xffffffff81000000
    (0..8).for_each(|n| put(0x4000 + n * 8, page(8 + n as u64)));
    put(0x1000, page(5)); // user space
    put(0x5000, page(6));
    put(0x6000, page(7));
    put(0x7000, page(9));
    let seed = |plan: Vec<u8>| [&[1][..], &0xffff_ffff_8100_0000u64.to_le_bytes(), &plan].concat();
    let circles = vec![1u8; 4096];
    vec![
        seed(plan(&[], &image)),
        seed(plan(&[(0, 128, 1), (8, 8, 600)], &image)),
        seed(plan(&[(0, 8, 800)], &circles)),
    ]
}
