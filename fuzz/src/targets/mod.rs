//! The table of targets.
//!
//! | module | what is read |
//! |---|---|
//! | [`bundle`] | bundles and their parts |
//! | [`rootfs`] | archives, layers, images, ignore files |
//! | [`devices`] | registers, rings and packets of a guest's driver |
//! | [`machine`] | a machine's state, kernels |
//! | [`network`] | packets of a guest, DNS, the proxy, rules |
//! | [`protocol`] | the wires between guest, host and emulated host; control requests |
//! | [`builder`] | Smolfiles, Dockerfiles, locks, memory that is looked into |
//! | [`image`] | container images: names, documents, archives |
//! | [`registry`] | what registries answer, and their configuration |
//! | [`samples`] | what several of them begin with |

pub mod builder;
pub mod bundle;
pub mod devices;
pub mod image;
pub mod machine;
pub mod network;
pub mod protocol;
pub mod registry;
pub mod rootfs;
pub mod samples;

use serde::Serialize;

/// A reader of hostile bytes, and how it is fuzzed.
#[derive(Clone, Serialize)]
pub struct Target {
    /// Name, as on the command line and of its folders.
    pub name: &'static str,
    /// Feeds the reader. Panics if something does not hold. Returns whether the reader has accepted
    /// anything.
    #[serde(skip)]
    pub run: fn(&[u8]) -> bool,
    /// Makes the seeds of the corpus, from valid samples: the first of them is accepted.
    #[serde(skip)]
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longest input, bytes.
    pub max_len: usize,
    /// Most bytes that it may have on the heap at a time, harness included.
    pub heap: usize,
    /// Mutations in a test run.
    #[serde(skip)]
    pub mutations: usize,
    /// Words that mean something to it.
    pub words: &'static [&'static str],
    /// The modules that read the bytes, from the top of the checkout.
    #[serde(skip)]
    pub covers: &'static [&'static str],
}

const MIB: usize = 1 << 20;
const LIMIT: usize = crate::memory::LIMIT;

/// Words of the JSON of bundles and protocols.
const JSON: &[&str] = &[
    "null",
    "true",
    "-1",
    "18446744073709551616",
    "1e99",
    "\"\\u0000\"",
    "{}",
    "[]",
    "sha256:",
    "application/vnd.smol.machine.v2",
    "\"version\":",
    "\"size\":",
    "\"stop\"",
    "\"grace_ms\":",
];
/// Words of tar headers.
const TAR: &[&str] = &[
    "ustar\u{0}00",
    "ustar  \u{0}",
    "././@LongLink",
    "../",
    "/",
    ".wh.",
    ".wh..wh..opq",
    "path=",
    "linkpath=",
    "size=",
    "SCHILY.xattr.user.x=",
    "SCHILY.xattr.security.capability=",
    "GNU.sparse.",
    "mtime=-1",
    "uid=4294967296",
    "30 ",
];

/// A target that takes little memory.
const fn small(
    name: &'static str,
    run: fn(&[u8]) -> bool,
    seeds: fn() -> Vec<Vec<u8>>,
    covers: &'static [&'static str],
) -> Target {
    Target {
        name,
        run,
        seeds,
        max_len: 64 << 10,
        heap: 64 * MIB,
        mutations: 4000,
        words: &[],
        covers,
    }
}

impl Target {
    /// A target whose input may be large, and make much of little.
    const fn large(mut self) -> Self {
        self.max_len = 2 * MIB;
        self.heap = LIMIT;
        self.mutations = 300;
        self
    }

    const fn words(mut self, words: &'static [&'static str]) -> Self {
        self.words = words;
        self
    }
}

/// All targets.
pub const TARGETS: &[Target] = &[
    small(
        "bundle",
        bundle::bundle,
        bundle::bundle_seeds,
        &[
            "crates/smol-bundle/src/read/structure.rs",
            "crates/smol-bundle/src/read/extract.rs",
            "crates/smol-bundle/src/read/verify.rs",
        ],
    )
    .large()
    .words(JSON),
    small(
        "bundle-archive",
        bundle::archive,
        bundle::archive_seeds,
        &[
            "crates/smol-bundle/src/read/archive.rs",
            "crates/smol-bundle/src/format/archive.rs",
            "crates/smol-bundle/src/read/bundle.rs",
        ],
    )
    .large()
    .words(JSON),
    small(
        "page-index",
        bundle::index,
        bundle::index_seeds,
        &["crates/smol-bundle/src/format/index/codec.rs"],
    ),
    small(
        "frame",
        bundle::frame,
        bundle::frame_seeds,
        &["crates/smol-bundle/src/format/frame.rs"],
    ),
    small(
        "documents",
        bundle::documents,
        bundle::document_seeds,
        &[
            "crates/smol-bundle/src/format/json.rs",
            "crates/smol-bundle/src/format/config.rs",
            "crates/smol-bundle/src/format/oci.rs",
            "crates/smol-bundle/src/format/signature.rs",
        ],
    )
    .words(JSON),
    small(
        "keys",
        bundle::keys,
        bundle::key_seeds,
        &[
            "crates/smol-bundle/src/format/key.rs",
            "crates/smol-bundle/src/format/digest.rs",
            "crates/smol-trust/src/keys.rs",
        ],
    ),
    small(
        "tar",
        rootfs::tar,
        rootfs::tar_seeds,
        &[
            "crates/smol-rootfs/src/tar.rs",
            "crates/smol-rootfs/src/tree.rs",
            "crates/smol-rootfs/src/path.rs",
        ],
    )
    .large()
    .words(TAR),
    small(
        "compressed",
        rootfs::compressed,
        rootfs::compressed_seeds,
        &[
            "crates/smol-rootfs/src/compression.rs",
            "crates/smol-rootfs/src/unpack.rs",
        ],
    ),
    small(
        "layers",
        rootfs::layers,
        rootfs::layer_seeds,
        &["crates/smol-rootfs/src/layer.rs"],
    )
    .large()
    .words(TAR),
    small(
        "overlay",
        rootfs::overlay,
        rootfs::overlay_seeds,
        &["crates/smol-rootfs/src/layer.rs"],
    )
    .large()
    .words(TAR),
    small(
        "erofs",
        rootfs::erofs,
        rootfs::erofs_seeds,
        &[
            "crates/smol-rootfs/src/erofs/read.rs",
            "crates/smol-rootfs/src/erofs/format.rs",
        ],
    )
    .large(),
    small(
        "cpio",
        rootfs::cpio,
        rootfs::cpio_seeds,
        &["crates/smol-rootfs/src/cpio/read.rs"],
    )
    .large(),
    small(
        "ignore",
        rootfs::ignore,
        rootfs::ignore_seeds,
        &["crates/smol-rootfs/src/ignore.rs"],
    ),
    small(
        "console",
        devices::console,
        devices::seeds,
        &[
            "crates/smol-machine/src/devices/virtio/console.rs",
            "crates/smol-machine/src/devices/virtio/mmio.rs",
            "crates/smol-machine/src/devices/virtio/queue.rs",
            "crates/smol-machine/src/devices/virtio/state.rs",
        ],
    ),
    small(
        "pmem",
        devices::pmem,
        devices::seeds,
        &["crates/smol-machine/src/devices/virtio/pmem.rs"],
    ),
    small(
        "rng",
        devices::rng,
        devices::seeds,
        &["crates/smol-machine/src/devices/virtio/rng.rs"],
    ),
    small(
        "vsock-build",
        devices::vsock_build,
        devices::seeds,
        &[
            "crates/smol-machine/src/devices/virtio/vsock/mod.rs",
            "crates/smol-machine/src/devices/virtio/vsock/sink.rs",
        ],
    ),
    small(
        "vsock-live",
        devices::vsock_live,
        devices::seeds,
        &["crates/smol-machine/src/devices/virtio/vsock/unix.rs"],
    ),
    small(
        "vsock-packets",
        devices::vsock_packets,
        devices::packet_seeds,
        &[
            "crates/smol-machine/src/devices/virtio/vsock/packet.rs",
            "crates/smol-machine/src/devices/virtio/vsock/mux.rs",
            "crates/smol-machine/src/devices/virtio/vsock/connection.rs",
        ],
    ),
    small(
        "machine-state",
        machine::state,
        machine::state_seeds,
        &[
            "crates/smol-machine/src/machine/state.rs",
            "crates/smol-machine/src/arch/x86_64/state.rs",
            "crates/smol-machine/src/hv/kvm/x86_64/convert.rs",
            "crates/smol-machine/src/hv/kvm/x86_64/fpu.rs",
            "crates/smol-machine/src/devices/bus.rs",
            "crates/smol-machine/src/paravirt/registers.rs",
        ],
    )
    .words(JSON),
    small(
        "kernel",
        machine::kernel,
        machine::kernel_seeds,
        &[
            "crates/smol-machine/src/arch/x86_64/boot/mod.rs",
            "crates/smol-machine/src/arch/x86_64/boot/note.rs",
            "crates/smol-machine/src/arch/x86_64/boot/relocate.rs",
        ],
    ),
    small(
        "guest-events",
        protocol::guest_events,
        protocol::event_seeds,
        &[
            "crates/smol-protocol/src/lines.rs",
            "crates/smol-protocol/src/lib.rs",
            "smolbuild/src/boot/streams.rs",
        ],
    )
    .words(JSON),
    small(
        "boot-messages",
        protocol::boot_messages,
        protocol::message_seeds,
        &["smolbuild/src/boot/process.rs"],
    )
    .words(JSON),
    small(
        "guest-log",
        protocol::guest_log,
        protocol::log_seeds,
        &["crates/smol-protocol/src/log.rs"],
    ),
    small(
        "guest-requests",
        protocol::guest_requests,
        protocol::request_seeds,
        &["crates/smol-protocol/src/identity.rs"],
    )
    .words(JSON),
    small(
        "guest-config",
        protocol::guest_config,
        protocol::config_seeds,
        &["crates/smol-protocol/src/check.rs"],
    )
    .words(JSON),
    small(
        "guest-files",
        protocol::guest_files,
        protocol::file_seeds,
        &[
            "crates/smol-guest/src/init/probes/http.rs",
            "crates/smol-guest/src/init/users.rs",
        ],
    ),
    small(
        "wire",
        protocol::wire,
        protocol::wire_seeds,
        &["crates/smol-host/src/emulated/wire.rs"],
    ),
    small(
        "control",
        protocol::control,
        protocol::control_seeds,
        &[
            "smolrun/src/host/control.rs",
            "smolrun/src/host/messages.rs",
            "smolrun/src/host/instance/record.rs",
            "smolrun/src/run/request.rs",
        ],
    )
    .words(JSON),
    small(
        "control-answer",
        protocol::control_answer,
        protocol::answer_seeds,
        &["smolrun/src/host/control.rs"],
    )
    .words(JSON),
    small(
        "smolfile",
        builder::smolfile,
        builder::smolfile_seeds,
        &[
            "smolbuild/src/smolfile/mod.rs",
            "smolbuild/src/smolfile/table.rs",
            "smolbuild/src/smolfile/parse.rs",
            "smolbuild/src/smolfile/diagnostic.rs",
            "smolbuild/src/smolfile/values.rs",
        ],
    )
    .words(builder::WORDS),
    small(
        "lock",
        builder::lock_file,
        builder::lock_seeds,
        &["smolbuild/src/lock/text.rs", "smolbuild/src/lock/rules.rs"],
    )
    .words(builder::WORDS),
    small(
        "dockerfile",
        builder::dockerfile,
        builder::dockerfile_seeds,
        &[
            "smolbuild/src/init/dockerfile/mod.rs",
            "smolbuild/src/init/dockerfile/read.rs",
            "smolbuild/src/init/dockerfile/words.rs",
            "smolbuild/src/init/dockerfile/taken.rs",
            "smolbuild/src/init/dockerfile/copy.rs",
            "smolbuild/src/init/dockerfile/run.rs",
            "smolbuild/src/init/dockerfile/health.rs",
            "smolbuild/src/init/dockerfile/network.rs",
        ],
    )
    .words(builder::DOCKERFILE_WORDS),
    small(
        "kallsyms",
        builder::kallsyms,
        builder::kallsyms_seeds,
        &["smolbuild/src/diff/guest/kallsyms.rs"],
    )
    .large(),
    small(
        "guest-memory",
        builder::guest_memory,
        builder::memory_seeds,
        &[
            "smolbuild/src/diff/guest/ram.rs",
            "smolbuild/src/diff/guest/owner.rs",
            "smolbuild/src/diff/guest/layout.rs",
            "smolbuild/src/diff/guest/tasks.rs",
            "smolbuild/src/diff/guest/names.rs",
        ],
    )
    .large(),
    small(
        "image-reference",
        image::reference,
        image::reference_seeds,
        &["crates/smol-image/src/reference.rs"],
    )
    .words(image::WORDS),
    small(
        "image-document",
        image::document,
        image::document_seeds,
        &[
            "crates/smol-image/src/manifest.rs",
            "crates/smol-image/src/config.rs",
            "crates/smol-image/src/index.rs",
            "crates/smol-image/src/platform.rs",
        ],
    )
    .words(image::WORDS),
    small(
        "image-archive",
        image::archive,
        image::archive_seeds,
        &["crates/smol-image/src/store.rs"],
    )
    .words(image::WORDS),
    small(
        "reference",
        registry::reference,
        registry::reference_seeds,
        &["crates/smol-registry/src/reference.rs"],
    )
    .words(registry::WORDS),
    small(
        "file-url",
        registry::file_url,
        registry::file_url_seeds,
        &["crates/smol-registry/src/file_url.rs"],
    )
    .words(registry::WORDS),
    small(
        "registry-headers",
        registry::headers,
        registry::header_seeds,
        &["crates/smol-registry/src/range.rs"],
    )
    .words(registry::WORDS),
    small(
        "registry-answers",
        registry::answers,
        registry::answer_seeds,
        &[
            "crates/smol-registry/src/auth.rs",
            "crates/smol-registry/src/error.rs",
            "crates/smol-registry/src/credentials/helper.rs",
        ],
    )
    .words(registry::WORDS),
    small(
        "registry-credentials",
        registry::credentials,
        registry::credential_seeds,
        &["crates/smol-registry/src/credentials/file.rs"],
    )
    .words(registry::WORDS),
    small(
        "registry-mirrors",
        registry::mirrors,
        registry::mirror_seeds,
        &["crates/smol-registry/src/mirrors.rs"],
    )
    .words(registry::WORDS),
    small(
        "net-packets",
        network::packets,
        network::packet_seeds,
        &[
            "crates/smol-net/src/conn.rs",
            "crates/smol-net/src/engine.rs",
            "crates/smol-net/src/exchange.rs",
            "crates/smol-net/src/flow.rs",
            "crates/smol-net/src/packet.rs",
            "crates/smol-net/src/dns/stream.rs",
        ],
    ),
    small(
        "net-stream",
        network::stream,
        network::stream_seeds,
        &["crates/smol-protocol/src/net.rs"],
    ),
    small(
        "net-dns",
        network::dns,
        network::dns_seeds,
        &["crates/smol-net/src/dns/message.rs"],
    ),
    small(
        "net-rule",
        network::rule,
        network::rule_seeds,
        &["crates/smol-net/src/policy/rule.rs"],
    )
    .words(network::WORDS),
    small(
        "net-proxy",
        network::proxy,
        network::proxy_seeds,
        &[
            "crates/smol-net/src/proxy/head.rs",
            "crates/smol-net/src/proxy/body.rs",
        ],
    )
    .words(network::WORDS),
    small(
        "net-upstream",
        network::upstream,
        network::upstream_seeds,
        &["crates/smol-net/src/upstream.rs"],
    )
    .words(network::WORDS),
];

/// Returns the target with this name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Returns the table, for `cargo xtask fuzz`.
pub fn to_json() -> String {
    serde_json::to_string(TARGETS).expect("plain data")
}
