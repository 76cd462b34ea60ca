//! The shelf of kernels: what is found, swept, waited for.

use std::sync::mpsc;
use std::time::Instant;

use smol_cli::Mode;

use super::recipe::tests::{KERNEL_TOML, recipe};
use super::*;

fn job<'a>(shelf: &Path, stage: &'a Stage, interrupt: &'a Interrupt) -> Job<'a> {
    Job {
        recipe: recipe(KERNEL_TOML, &["0001-a.patch", "0002-b.patch"]).unwrap(),
        toolchain: Toolchain { gcc: "gcc 12".into(), ld: "ld 2.40".into() },
        source: "linux-source-6.1 6.1.2-1".into(),
        source_sha256: "bb".into(),
        shelf: shelf.to_owned(),
        stage,
        interrupt,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_stored_kernel_is_found_again_until_an_input_changes_or_its_bytes_do() {
    let shelf = tempfile::tempdir().unwrap();
    let (stage, interrupt) = (Progress::new(Mode::Plain).stage("kernel", ""), Interrupt::detached().unwrap());
    let mut job = job(shelf.path(), &stage, &interrupt);
    assert!(job.cached().is_none());
    let vmlinux = shelf.path().join("built");
    fs::write(&vmlinux, "\x7fELF").unwrap();
    let stored = job.store(&vmlinux).unwrap();
    assert_eq!(names(stored.parent().unwrap()), [INFO, VMLINUX]);
    assert_eq!(job.cached(), Some(stored.clone()));
    job.source_sha256 = "cc".into();
    assert!(job.cached().is_none());
    job.source_sha256 = "bb".into();
    fs::write(&stored, "\x7fELG").unwrap();
    assert!(job.cached().is_none());
    fs::write(&vmlinux, "\x7fELF").unwrap();
    job.store(&vmlinux).unwrap();
    assert_eq!(job.cached(), Some(stored));
}

#[test]
fn what_killed_builds_left_is_swept_and_the_rest_stays() {
    let shelf = tempfile::tempdir().unwrap();
    for folder in ["build-x1/work/linux", "0123abcd"] {
        fs::create_dir_all(shelf.path().join(folder)).unwrap();
    }
    fs::write(shelf.path().join("build-x1/work/linux/Makefile"), "").unwrap();
    fs::write(shelf.path().join("failed-0123.log"), "").unwrap();
    sweep(shelf.path());
    assert_eq!(names(shelf.path()), ["0123abcd", "failed-0123.log"]);
}

#[test]
fn a_second_build_waits_for_the_first_and_can_be_interrupted() {
    let shelf = tempfile::tempdir().unwrap();
    let stage = Progress::new(Mode::Plain).stage("kernel", "");
    let first = lock(shelf.path(), &stage, &Interrupt::detached().unwrap()).unwrap();
    let interrupted = Interrupt::detached().unwrap();
    interrupted.trigger();
    let error = lock(shelf.path(), &stage, &interrupted).unwrap_err();
    assert_eq!(smol_cli::exit_kind(&error), ExitKind::Terminated);

    let (sender, receiver) = mpsc::channel();
    let folder = shelf.path().to_owned();
    let second = std::thread::spawn(move || {
        let lock = lock(&folder, &stage, &Interrupt::detached().unwrap());
        sender.send(Instant::now()).unwrap();
        lock.map(drop)
    });
    assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err(), "it did not wait");
    drop(first);
    receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    second.join().unwrap().unwrap();
}

#[test]
fn the_log_of_a_failed_build_is_kept_and_named() {
    let shelf = tempfile::tempdir().unwrap();
    let (stage, interrupt) = (Progress::new(Mode::Plain).stage("kernel", ""), Interrupt::detached().unwrap());
    let log = shelf.path().join("log");
    fs::write(&log, "  CC      init/main.o\n").unwrap();
    let error = job(shelf.path(), &stage, &interrupt).keep_log(&log, anyhow::anyhow!("cannot compile the kernel"));
    let kept = names(shelf.path());
    assert!(kept[0].starts_with("failed-") && kept[0].ends_with(".log"), "{kept:?}");
    assert!(smol_cli::error::render(&error, false).contains(&kept[0]));
}

#[test]
fn a_source_tarball_that_does_not_exist_is_an_error_of_usage() {
    let cache = tempfile::tempdir().unwrap();
    let request = Request { recipe: "smol-6.1", source: Some(Path::new("/nonexistent/linux.tar.xz")), rebuild: false };
    let error = obtain(&request, cache.path(), &Progress::new(Mode::Plain), &Interrupt::detached().unwrap()).unwrap_err();
    assert_eq!(smol_cli::exit_kind(&error), ExitKind::Usage);
    assert!(format!("{error:#}").contains("/nonexistent/linux.tar.xz"), "{error:#}");
}
