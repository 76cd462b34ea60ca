//! Guests that take over the process that builds them: a smolbuild with a deliberate hole does what the
//! guest prints while it boots. What the guest wants succeeds without confinement, and fails or kills
//! with it. Without /dev/kvm there is nothing to test.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use smol_machine::cpu::Level;
use smol_machine::probe;
use smol_sandbox::Mode;
use smol_testing::backdoor::{self, End, Host};
use smol_testing::kernel::kernel;
use smol_testing::left_out;
use smolbuild::boot::process::COMMAND;
use smolbuild::boot::{BootJob, Purpose, Service};

/// Has the program boot a machine, as a build does, whose guest makes this attempt.
fn boot(program: &Path, attempt: &str, sandbox: Mode) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("out")).unwrap();
    let command = format!("backdoor {attempt}\n");
    fs::write(at("kernel"), kernel(&[&command], true)).unwrap();
    let job = BootJob {
        kernel: at("kernel"),
        initramfs: None,
        rootfs: None,
        cmdline: String::new(),
        cpu: Level::V2,
        memory: 32 << 20,
        vcpus: 1,
        epoch: 1_767_225_600,
        seed: "00".repeat(32),
        kernel_seed: "00".repeat(32),
        purpose: Purpose::Freeze {
            ready_line: None,
            requests: false,
            service: Service::default(),
        },
        watchdog: 600,
        limit: 600,
        sandbox,
        out: at("out"),
    };
    fs::write(at("job"), serde_json::to_vec(&job).unwrap()).unwrap();
    let mut process = Command::new(program);
    process.arg(COMMAND).arg(at("job")).output().unwrap()
}

fn can_boot() -> bool {
    match probe::open(Path::new(probe::DEVICE)) {
        Ok(_) => true,
        Err(missing) => {
            left_out(missing);
            false
        }
    }
}

#[test]
fn a_guest_that_has_taken_over_the_process_of_its_build_gets_nothing_of_the_host() {
    if let Some(missing) = smol_sandbox::missing() {
        return left_out(missing);
    }
    if !can_boot() {
        return;
    }
    let used = Path::new(env!("CARGO_BIN_EXE_smolbuild"));
    let program = backdoor::program("smolbuild", used);
    let host = Host::new();
    for (what, end) in host.attempts() {
        for (sandbox, end) in [(Mode::On, end), (Mode::Off, End::Done)] {
            let output = boot(&program, &what, sandbox);
            assert_eq!(End::of(&what, &output), end, "{what}, {sandbox:?}");
        }
    }
}

#[test]
fn the_smolbuild_that_is_used_has_no_back_door() {
    if !can_boot() {
        return;
    }
    let used = Path::new(env!("CARGO_BIN_EXE_smolbuild"));
    let output = boot(used, "read /etc/passwd", Mode::Off);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("backdoor read /etc/passwd"), "{said}");
    assert!(!said.contains("done"), "{said}");
}
