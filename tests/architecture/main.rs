//! The invariants of ARCHITECTURE.md that can be read off the sources, and the facts that the
//! documents repeat: a change that breaks one must change the document too.
//!
//! They use the standard library only.
//!
//! | module | what it looks at |
//! |---|---|
//! | this one | dependencies |
//! | `sources` | modules: what stands in them, how long they are, whom they import |
//! | `documents` | what the documents say of the sources, and their links |
//! | `tree` | reading all of these |

mod documents;
mod sources;
mod tree;

use std::collections::BTreeSet;

use tree::{all_dependencies, direct_dependencies, lock_file, read};

/// Which of our crates each crate may depend on, directly. What is not here depends on none.
const OUR_CRATES: &[(&str, &[&str])] = &[
    ("smol-bundle", &[]),
    ("smol-cli", &[]),
    ("smol-guest", &["smol-protocol"]),
    ("smol-machine", &[]),
    ("smol-net", &["smol-protocol"]),
    ("smol-protocol", &[]),
    ("smol-registry", &[]),
    ("smol-rootfs", &[]),
    // What tests share. No other may depend on it but for its tests.
    ("smol-testing", &[]),
    ("smol-trust", &["smol-bundle", "smol-cli"]),
    ("smol-sandbox", &["smol-cli"]),
    ("smol-host", &["smol-cli", "smol-machine", "smol-sandbox"]),
    // Its digests are those of a bundle: both are of OCI.
    ("smol-image", &["smol-bundle", "smol-rootfs"]),
    (
        "smolbuild",
        &[
            "smol-bundle",
            "smol-cli",
            "smol-host",
            "smol-image",
            "smol-machine",
            "smol-net",
            "smol-protocol",
            "smol-registry",
            "smol-rootfs",
            "smol-sandbox",
            "smol-trust",
        ],
    ),
    (
        "smolrun",
        &[
            "smol-bundle",
            "smol-cli",
            "smol-host",
            "smol-machine",
            "smol-protocol",
            "smol-sandbox",
            "smol-trust",
        ],
    ),
];

/// Crates that talk to hypervisors or are parts of machines: not for smol-bundle.
const HYPERVISOR_CRATES: &[&str] = &[
    "applevisor",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-memory",
    "vmm-sys-util",
];

/// Crates that speak network protocols: smol-registry alone uses them.
const NETWORK_CRATES: &[&str] = &[
    "hickory-resolver",
    "hyper",
    "oci-client",
    "reqwest",
    "rustls",
    "tokio",
];

/// Crates that nothing of ours is linked with: programs are static, and one client is enough.
const FOREIGN_CRATES: &[&str] = &[
    "aws-lc-sys",
    "curl",
    "native-tls",
    "openssl",
    "openssl-sys",
    "ureq",
];

/// What is not linked with a network client, at any depth.
const CRATES_WITHOUT_NETWORK: &[&str] = &[
    "smol-bundle",
    "smol-guest",
    "smol-machine",
    "smol-protocol",
    "smol-rootfs",
    "smolrun",
];

#[test]
fn each_crate_depends_on_those_of_ours_that_it_may_know() {
    for (name, allowed) in OUR_CRATES {
        let ours: BTreeSet<String> = direct_dependencies(name)
            .into_iter()
            .filter(|d| d.starts_with("smol") && d != "smoltcp")
            .collect();
        let allowed: BTreeSet<String> = allowed.iter().map(|d| (*d).to_owned()).collect();
        assert_eq!(ours, allowed, "dependencies of {name}");
    }
}

#[test]
fn every_crate_of_the_workspace_is_judged_here() {
    let manifest = read("Cargo.toml");
    let members = manifest
        .split("members = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("a list of members");
    let members: BTreeSet<&str> = members
        .split('"')
        .skip(1)
        .step_by(2)
        .map(|path| path.rsplit('/').next().expect("never empty"))
        .collect();
    let judged: BTreeSet<&str> = OUR_CRATES
        .iter()
        .map(|(name, _)| *name)
        .chain(["fuzz", "tests", "xtask"])
        .collect();
    assert_eq!(members, judged);
}

#[test]
fn the_runner_does_not_contain_the_builder() {
    let all = all_dependencies("smolrun");
    assert!(!all.contains("smolbuild"), "smolrun depends on smolbuild");
    assert!(all.contains("smol-bundle"), "the lock file was misread");
}

#[test]
fn the_bundle_format_knows_no_hypervisor() {
    let all = all_dependencies("smol-bundle");
    assert!(all.contains("zstd"), "the lock file was misread");
    for foreign in HYPERVISOR_CRATES {
        assert!(!all.contains(*foreign), "smol-bundle depends on {foreign}");
    }
}

#[test]
fn the_machine_knows_no_smolfile_and_no_bundle() {
    let all = all_dependencies("smol-machine");
    assert!(all.contains("kvm-ioctls"), "the lock file was misread");
    for foreign in ["ed25519-dalek", "tar", "toml", "zstd"] {
        assert!(!all.contains(foreign), "smol-machine depends on {foreign}");
    }
}

#[test]
fn the_registry_client_alone_uses_crates_that_speak_network_protocols() {
    for (name, _) in OUR_CRATES {
        let direct = direct_dependencies(name);
        for network in NETWORK_CRATES.iter().filter(|_| *name != "smol-registry") {
            assert!(!direct.contains(*network), "{name} depends on {network}");
        }
    }
    let all = all_dependencies("smol-registry");
    for network in NETWORK_CRATES {
        assert!(all.contains(*network), "smol-registry lacks {network}");
    }
}

/// Crates that make packets: smol-net alone uses them.
const PACKET_CRATES: &[&str] = &["pnet", "smoltcp"];

#[test]
fn the_network_of_guests_alone_has_a_stack_of_its_own_and_it_has_no_client() {
    for (name, _) in OUR_CRATES.iter().filter(|(name, _)| *name != "smol-net") {
        let direct = direct_dependencies(name);
        for stack in PACKET_CRATES {
            assert!(!direct.contains(*stack), "{name} depends on {stack}");
        }
    }
    let all = all_dependencies("smol-net");
    assert!(all.contains("smoltcp"), "the lock file was misread");
    for client in NETWORK_CRATES.iter().chain(FOREIGN_CRATES) {
        assert!(!all.contains(*client), "smol-net depends on {client}");
    }
}

#[test]
fn nothing_is_linked_with_a_second_tls_or_http_client() {
    let lock = lock_file();
    assert!(lock.contains_key("clap"), "the lock file was misread");
    for foreign in FOREIGN_CRATES {
        assert!(!lock.contains_key(*foreign), "{foreign} is in Cargo.lock");
    }
}

#[test]
fn no_network_client_is_in_what_machines_bundles_and_guests_are_made_of() {
    for name in CRATES_WITHOUT_NETWORK {
        let all = all_dependencies(name);
        assert!(!all.is_empty(), "the lock file was misread");
        for foreign in NETWORK_CRATES.iter().chain(&["smol-net", "smol-registry"]) {
            assert!(!all.contains(*foreign), "{name} depends on {foreign}");
        }
    }
}
