//! What can be packed before the machine is frozen: the images that it boots from.
//!
//! The boot has one vCPU and waits a good deal. Meanwhile the images are compressed by background
//! threads of the lowest priority, which take the processor time that the boot leaves. On two cores,
//! with the machine in an emulated host, most frames are ready when it is frozen, and packing takes
//! some half of the time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use smol_bundle::{ImageKind, Prepared};
use smol_cli::Interrupt;

use crate::boot::Images;

/// Lowest priority of a thread: nice(2).
const LOWEST: i32 = 19;

/// The preparation of a bundle, while it goes on; it ends when this is dropped. No failure
/// of it is an error: the packer meets the same one and reports it.
pub struct Preparing {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Prepared>>,
}

impl Preparing {
    /// Begins to compress the images.
    pub fn begin(images: &Images, interrupt: &Interrupt) -> Self {
        let images: Vec<(ImageKind, PathBuf)> = [
            (ImageKind::Kernel, Some(&images.kernel)),
            (ImageKind::Initramfs, images.initramfs.as_ref()),
            (ImageKind::Rootfs, images.rootfs.as_ref()),
        ]
        .into_iter()
        .filter_map(|(kind, path)| Some((kind, path?.clone())))
        .collect();
        let ended = Arc::<AtomicBool>::default();
        let go_on = {
            let (ended, interrupt) = (ended.clone(), interrupt.clone());
            move || !ended.load(Ordering::Relaxed) && !interrupt.is_set()
        };
        let thread = thread::Builder::new()
            .name("prepare".into())
            .spawn(move || prepare(&images, &go_on));
        Self {
            ended,
            thread: thread.ok(),
        }
    }

    /// Ends it, within the time that a frame takes, and returns what is ready.
    pub fn end(mut self) -> Prepared {
        self.finish()
    }

    fn finish(&mut self) -> Prepared {
        self.ended.store(true, Ordering::Relaxed);
        let prepared = self.thread.take().and_then(|thread| thread.join().ok());
        prepared.unwrap_or_default()
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.finish();
    }
}

fn prepare(images: &[(ImageKind, PathBuf)], go_on: &(dyn Fn() -> bool + Sync)) -> Prepared {
    // On Linux this is about the calling thread, and those that it starts have the same
    // (setpriority(2), "C library/kernel differences").
    if rustix::process::setpriority_process(None, LOWEST).is_err() {
        return Prepared::default();
    }
    let images: Vec<_> = images.iter().map(|(k, p)| (*k, p.as_path())).collect();
    Prepared::of(&images, go_on)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(folder: &std::path::Path, mib: usize) -> Images {
        let (kernel, rootfs) = (folder.join("kernel"), folder.join("rootfs"));
        std::fs::write(&kernel, b"a kernel").unwrap();
        // Not to be compressed, and no page like another.
        let mut bytes = vec![0; mib << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        std::fs::write(&rootfs, bytes).unwrap();
        Images {
            kernel,
            initramfs: None,
            rootfs: Some(rootfs),
        }
    }

    #[test]
    fn the_lowest_priority_is_that_of_the_thread_and_not_of_the_program() {
        let before = rustix::process::getpriority_process(None).unwrap();
        let interrupt = Interrupt::detached().unwrap();
        let folder = tempfile::tempdir().unwrap();
        Preparing::begin(&images(folder.path(), 1), &interrupt).end();
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), before);
        thread::spawn(|| {
            prepare(&[], &|| true);
            let inherited = thread::spawn(|| rustix::process::getpriority_process(None));
            assert_eq!(inherited.join().unwrap().unwrap(), LOWEST);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_interrupt_ends_it_by_itself() {
        let interrupt = Interrupt::detached().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut preparing = Preparing::begin(&images(folder.path(), 64), &interrupt);
        interrupt.trigger();
        preparing.thread.take().unwrap().join().unwrap();
    }

    #[test]
    fn images_that_cannot_be_read_are_the_packers_business() {
        let gone = Images {
            kernel: "/no-such-file".into(),
            initramfs: None,
            rootfs: None,
        };
        let interrupt = Interrupt::detached().unwrap();
        assert_eq!(Preparing::begin(&gone, &interrupt).end().used(), 0);
    }
}
