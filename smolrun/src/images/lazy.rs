//! Lazy restore: at the first start of a bundle on this host, the machine runs while its images
//! are being unpacked (demand paging, as in a post-copy migration).
//!
//! ```text
//! pager    loads the frames of pages that are touched and missing
//! unpack   loads the frames of the working set, in its order; then unpacks into the cache
//! ```
//! The guest gets a page out of a verified frame or not at all: a thread that touches a missing
//! page waits until it is loaded.
//!
//! Without privileges only devices can be made to wait; a vCPU fails, and tries again when more
//! has been loaded ([`smol_machine::memory::lazy`]). The machine then begins to run when the working set
//! is loaded, and the `unpack` thread loads all other frames as well, before it unpacks.
//!
//! **Failure.** If a frame is not what the page index says, or cannot be read, the machine is
//! aborted, in this order:
//!
//! 1. The error is recorded; the first one counts.
//! 2. The machine is stopped by the function that [`LazyImages::stop_on_failure`] was given: its
//!    output is closed, and its vCPUs leave the guest for good.
//! 3. All missing pages become zeros. Whoever waits for one (a vCPU inside of KVM, the thread of
//!    a device, the main thread while it restores) goes on, and finds that the machine has stopped.
//! 4. The main thread takes the error from [`LazyImages::restore`] or [`LazyImages::finish`].
//!
//! So nothing waits for ever, and zeros in place of pages are seen neither by a guest that runs
//! nor by anybody outside.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use smol_bundle::{Bundle, FrameMap, FrameReader, ImageKind, Piece};
use smol_cli::{ErrorExt, ExitKind, Session};
use smol_machine::machine::{Hooks, Time};
use smol_machine::memory::lazy::{Area, LazyMemory};
use smol_machine::threads;
use smol_machine::{Machine, MachineState, hv};

use crate::images::bundle::{Has, absolute};
use crate::images::cache::{self, CachedImages};

/// How often it is checked whether the bundle is unpacked.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Number of zero pages in a row from which on the kernel is left to make them when they are
/// touched: a huge page of them.
const LONG_RUN: u32 = 512;

/// Most bytes of a root file system that are loaded lazily. They go into anonymous memory, beside the
/// guest's own, which its configuration bounds; whereas an unpacked root file system is mapped, and its
/// pages are the page cache's. A small bundle can hold a large one.
const MAX_LAZY_ROOTFS: u64 = 384 << 20;
/// Largest image that is loaded lazily: the map of its frames takes 112 MiB at worst.
const MAX_LAZY_IMAGE: u64 = 16 << 30;

const THREADS: &str = "cannot start the threads that unpack the bundle";
/// What failed when a page was loaded.
const MEMORY: &str = "cannot put a page into the machine's memory";

/// The images of a machine whose pages are loaded out of its bundle.
pub struct LazyImages {
    loader: Arc<Loader>,
    unpacking: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
    cache: PathBuf,
    /// Without its display: unpacking goes on while the machine runs.
    session: Session,
}

/// Loads pages; shared by its threads.
struct Loader {
    bundle: Bundle,
    demand: LazyMemory,
    memory: Image,
    rootfs: Image,
    /// Number of frames that are not loaded yet.
    missing: AtomicUsize,
    state: Mutex<State>,
}

/// Whether the machine was aborted, and how it is.
#[derive(Default)]
struct State {
    /// Stops the machine; once there is one that could run.
    stop: Option<Box<dyn FnOnce() + Send>>,
    failed: bool,
    /// Why, until the main thread takes it.
    error: Option<anyhow::Error>,
}

/// An image, and which of its frames a thread has taken on.
struct Image {
    kind: ImageKind,
    area: Area,
    map: FrameMap,
    taken: Vec<AtomicBool>,
}

impl Image {
    fn new(bundle: &Bundle, kind: ImageKind, area: Area) -> Self {
        let map = bundle.frame_map(kind);
        let taken = (0..map.frames()).map(|_| AtomicBool::new(false)).collect();
        Self {
            kind,
            area,
            map,
            taken,
        }
    }
}

/// Makes the memory for the machine of this bundle, to be filled on demand; `None` where that is
/// not possible, or would take too much memory.
pub fn memory_for(bundle: &Bundle) -> Option<LazyMemory> {
    if !is_small_enough(bundle) {
        return None;
    }
    let size = |kind| bundle.image_size(kind).unwrap_or(0);
    let (memory, rootfs) = (size(ImageKind::Memory), size(ImageKind::Rootfs));
    if let Ok(demand) = LazyMemory::new(memory, rootfs) {
        return Some(demand);
    }
    // A state that is damaged or unknown is reported where it is needed.
    let state = || MachineState::from_json(&bundle.state().ok()??).ok();
    let bears = hv::retries_failed_accesses() && state()?.tolerates_failed_accesses();
    bears.then(|| LazyMemory::in_user_mode(memory, rootfs).ok())?
}

fn is_small_enough(bundle: &Bundle) -> bool {
    let size = |kind| bundle.image_size(kind).unwrap_or(0);
    size(ImageKind::Memory).max(size(ImageKind::Rootfs)) <= MAX_LAZY_IMAGE
        && bundle.held_bytes(ImageKind::Rootfs) <= MAX_LAZY_ROOTFS
}

impl LazyImages {
    /// Makes the images of a bundle, to be loaded into `memory` and unpacked into the cache.
    pub fn new(bundle: Bundle, memory: LazyMemory, cache: &Path, session: &Session) -> Self {
        Self {
            loader: Arc::new(Loader::new(bundle, memory)),
            unpacking: Mutex::default(),
            cache: cache.to_owned(),
            session: session.silent(),
        }
    }

    /// Returns the bundle's file.
    pub fn bundle(&self) -> &Path {
        self.loader.bundle.path()
    }

    /// Returns the folder that the bundle is unpacked into.
    pub fn cache(&self) -> PathBuf {
        cache::root(&self.cache)
    }

    /// Reads the machine state, verified.
    ///
    /// # Errors
    /// If it is not what the manifest says.
    pub fn state(&self) -> anyhow::Result<Vec<u8>> {
        let state = self.loader.bundle.state().kind(ExitKind::Verification)?;
        state.context("the bundle holds no machine state")
    }

    /// Starts to load pages, and restores the machine in this state. The inner error is the
    /// hypervisor's.
    ///
    /// # Errors
    /// If a page could not be had meanwhile, or there can be no more threads.
    pub fn restore(
        &self,
        state: &MachineState,
        hooks: Hooks,
    ) -> anyhow::Result<smol_machine::Result<Machine>> {
        self.start_threads()?;
        let machine = Machine::restore_lazy(&self.loader.demand, state, hooks, Time::Live);
        // If it was aborted, what the hypervisor was given may have been zeros.
        match self.loader.take_error() {
            Some(error) => Err(error),
            None => Ok(machine),
        }
    }

    fn start_threads(&self) -> anyhow::Result<()> {
        let loader = self.loader.clone();
        let serve = move || loader.abort_on_error(loader.serve_touches());
        let loader = self.loader.clone();
        let (cache, session) = (self.cache.clone(), self.session.clone());
        let unpack = move || {
            loader.abort_on_error(loader.load_ahead());
            if loader.lock().failed {
                return Ok(());
            }
            cache::unpack(&loader.bundle, &cache, &session).map(drop)
        };
        threads::spawn("pager", serve).context(THREADS)?;
        let unpacking = threads::spawn("unpack", unpack).context(THREADS)?;
        *self.unpacking() = Some(unpacking);
        Ok(())
    }

    fn unpacking(&self) -> MutexGuard<'_, Option<JoinHandle<anyhow::Result<()>>>> {
        self.unpacking
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `stop` called if a page cannot be had, from another thread, or at once if that is so
    /// already. It must close the machine's output, and return when no vCPU will execute the guest
    /// again: after it, missing pages become zeros.
    pub fn stop_on_failure(&self, stop: impl FnOnce() + Send + 'static) {
        let mut state = self.loader.lock();
        match state.failed {
            true => {
                drop(state);
                stop();
            }
            false => state.stop = Some(Box::new(stop)),
        }
    }

    /// Ends lazy loading and unpacks the bundle, for a machine that is not restored after all.
    ///
    /// # Errors
    /// As [`cache::unpack`].
    pub fn unpack(&self) -> anyhow::Result<CachedImages> {
        self.loader.demand.end();
        // A thread that unpacks too could begin anew when this has ended, and be stopped in the middle with
        // its process.
        self.await_unpacking();
        let bundle = &self.loader.bundle;
        let (folder, in_use) = cache::unpack(bundle, &self.cache, &self.session)?;
        Ok(CachedImages::new(
            absolute(&folder)?,
            Has::of(bundle),
            Some(in_use),
        ))
    }

    /// Waits until the bundle is unpacked, unless a signal wants an end; `None` then, or if that was not
    /// begun.
    fn await_unpacking(&self) -> Option<anyhow::Result<()>> {
        let thread = self.unpacking().take()?;
        while !thread.is_finished() && !self.session.interrupt.is_set() {
            thread::sleep(POLL_INTERVAL);
        }
        (!self.session.interrupt.is_set()).then(|| thread.join().ok())?
    }

    /// Ends lazy loading for a machine that has stopped. Waits until the bundle is unpacked, unless
    /// a signal wants an end; that it could not be unpacked is told to `note`.
    ///
    /// # Errors
    /// The one that aborted the machine, if a page could not be had.
    pub fn finish(self, note: impl Fn(&str)) -> anyhow::Result<()> {
        self.loader.demand.end();
        let unpacked = self.await_unpacking();
        if let Some(error) = self.loader.take_error() {
            return Err(error);
        }
        if let Some(Err(error)) = unpacked {
            note(&format!(
                "the bundle was not unpacked for later starts: {error:#}"
            ));
        }
        Ok(())
    }
}

impl Loader {
    fn new(bundle: Bundle, demand: LazyMemory) -> Self {
        let memory = Image::new(&bundle, ImageKind::Memory, Area::Memory);
        let rootfs = Image::new(&bundle, ImageKind::Rootfs, Area::Rootfs);
        Self {
            missing: AtomicUsize::new(memory.map.frames() + rootfs.map.frames()),
            memory,
            rootfs,
            bundle,
            demand,
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_error(&self) -> Option<anyhow::Error> {
        self.lock().error.take()
    }

    /// Aborts the machine for an error, in the order that the module's comment gives.
    fn abort_on_error(&self, outcome: anyhow::Result<()>) {
        let Err(error) = outcome else {
            return;
        };
        let stop = {
            let mut state = self.lock();
            if state.failed {
                return;
            }
            state.failed = true;
            state.error = Some(error);
            state.stop.take()
        };
        if let Some(stop) = stop {
            stop();
        }
        for image in [&self.memory, &self.rootfs] {
            let pages = self.pages(image);
            // It fails for what is not mapped only, and all of this is.
            let _ = self.demand.release(image.area, 0, pages);
        }
        self.demand.end();
    }

    /// Number of pages of an image.
    fn pages(&self, image: &Image) -> u32 {
        let index = self.bundle.index().image(image.kind);
        index.map_or(0, |image| image.pages())
    }

    /// Loads the pages that are touched and missing, until the machine has ended.
    fn serve_touches(&self) -> anyhow::Result<()> {
        let mut reader = FrameReader::new(&self.bundle)?;
        while let Some((area, page)) = self.demand.next().context("userfaultfd")? {
            let image = match area {
                Area::Memory => &self.memory,
                Area::Rootfs => &self.rootfs,
            };
            self.load(image, page, &mut reader)?;
        }
        Ok(())
    }

    /// Loads the working set, frame by frame; where vCPUs cannot wait, all other frames as well.
    fn load_ahead(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut reader = FrameReader::new(&self.bundle)?;
        let images = [&self.memory, &self.rootfs];
        if !self.demand.is_in_user_mode() {
            self.load_working_set(&self.memory, &mut reader)?;
            return self.load_working_set(&self.rootfs, &mut reader);
        }
        // The guest takes fresh memory from pages of zeros, so they must be there from the start.
        for image in images {
            self.make_zero_pages(image)?;
        }
        // The vCPUs wait for the working set, so there are CPUs for both images.
        let loader = self.clone();
        let rootfs = threads::spawn("rootfs", move || {
            let mut reader = FrameReader::new(&loader.bundle)?;
            loader.load_working_set(&loader.rootfs, &mut reader)
        });
        let rootfs = rootfs.context(THREADS)?;
        self.load_working_set(&self.memory, &mut reader)?;
        rootfs.join().ok().context("a thread has died")??;
        self.demand.open();
        for image in images {
            for at in 0..image.map.frames() {
                if self.demand.has_ended() {
                    return Ok(());
                }
                self.load_frame(image, at, &mut reader)?;
            }
        }
        Ok(())
    }

    fn load_working_set(&self, image: &Image, reader: &mut FrameReader) -> anyhow::Result<()> {
        let index = self.bundle.index().image(image.kind);
        for run in index.map_or(&[][..], |image| image.working_set()) {
            for page in run.first..run.first + run.pages {
                if self.demand.has_ended() {
                    return Ok(());
                }
                self.load(image, page, reader)?;
            }
        }
        Ok(())
    }

    /// Makes all pages of an image that are in no frame: they are zeros.
    fn make_zero_pages(&self, image: &Image) -> anyhow::Result<()> {
        let all = self.pages(image);
        let pieces = self.bundle.index().pieces(image.kind, 0, all);
        let held = pieces.iter().map(|piece| (piece.page, piece.pages));
        let mut next = 0;
        for (first, pages) in held.chain([(all, 0)]) {
            let zeros = first.saturating_sub(next);
            let released =
                zeros >= LONG_RUN && self.demand.release(image.area, next, zeros).is_ok();
            if zeros > 0 && !released {
                self.demand.zero(image.area, next, zeros).context(MEMORY)?;
            }
            next = first + pages;
        }
        Ok(())
    }

    /// Loads a page, and with it all that is in the same frame, unless another thread does.
    fn load(&self, image: &Image, page: u32, reader: &mut FrameReader) -> anyhow::Result<()> {
        let Some(piece) = self.bundle.piece(image.kind, page) else {
            return match self.demand.is_in_user_mode() {
                // These were made before the machine began to run, which wakes whoever waits for one.
                true => Ok(()),
                false => self.demand.zero(image.area, page, 1).context(MEMORY),
            };
        };
        let at = image.map.find(&piece).context("a page without a frame")?;
        self.load_frame(image, at, reader)
    }

    /// Loads all pages of a frame, unless another thread does.
    fn load_frame(&self, image: &Image, at: usize, reader: &mut FrameReader) -> anyhow::Result<()> {
        if image.taken[at].swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let pieces = image.map.pieces(at);
        let Piece { source, frame, .. } = pieces[0];
        let frame = match reader.read(source, frame as usize) {
            Ok(frame) => frame,
            Err(error) => {
                let kind = match error.is_verification_failure() {
                    true => ExitKind::Verification,
                    false => ExitKind::Failed,
                };
                return Err(error)
                    .context("the machine was stopped: it needs a page that cannot be read")
                    .kind(kind);
            }
        };
        for piece in pieces {
            self.demand
                .fill(image.area, piece.page, piece.of(frame))
                .context(MEMORY)?;
        }
        self.demand.arrived();
        if self.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.demand.complete();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sample;
    use smol_testing::left_out;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc::channel;

    /// The page of the sample's memory whose frame is damaged.
    const PAGE: u32 = 1;

    type MakeMemory = fn(u64, u64) -> smol_machine::Result<LazyMemory>;
    /// With touches of the kernel, and without.
    const MODES: [MakeMemory; 2] = [LazyMemory::new, LazyMemory::in_user_mode];

    /// Images of a bundle that was damaged after it was opened; `None`, with a word, where
    /// userfaultfd is not permitted.
    fn damaged(sample: &Sample, cache: &Path, make: MakeMemory) -> Option<LazyImages> {
        let bundle = sample.open();
        let size = |kind| bundle.image_size(kind).unwrap();
        let demand = make(size(ImageKind::Memory), size(ImageKind::Rootfs));
        let demand = demand.map_err(left_out).ok()?;
        let blob = bundle.layout().into_iter();
        let mut blob = blob.filter(|blob| blob.media_type == ImageKind::Memory.media_type());
        let blob = blob.next().unwrap();
        let file = File::options().write(true).open(&sample.bundle).unwrap();
        let garbage = vec![0xa5; blob.size as usize];
        file.write_all_at(&garbage, blob.offset).unwrap();
        let session = Session::detached().unwrap();
        Some(LazyImages::new(bundle, demand, cache, &session))
    }

    fn read(images: &LazyImages, page: u32) -> u8 {
        let mut bytes = [9; smol_machine::memory::PAGE];
        let contents = images.loader.demand.contents();
        contents.read(Area::Memory, page, &mut bytes).unwrap();
        bytes[0]
    }

    fn assert_failed(images: LazyImages) {
        let error = images.finish(|note| panic!("{note}")).unwrap_err();
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Verification);
        let text = format!("{error:#}");
        let wanted = "the machine was stopped: it needs a page that cannot be read";
        assert!(text.starts_with(wanted), "{text}");
    }

    #[test]
    fn a_root_file_system_that_is_larger_than_the_bound_is_not_loaded_into_memory() {
        let size = MAX_LAZY_ROOTFS + (2 << 20);
        let sample = Sample::with_rootfs(size, 0);
        let bundle = sample.open();
        assert!(bundle.file_size() < 4 << 20, "a small file");
        assert_eq!(bundle.held_bytes(ImageKind::Rootfs), size);
        assert!(memory_for(&bundle).is_none());
        // Pages of zeros take no memory.
        let sample = Sample::with_rootfs(size, size - (2 << 20));
        let bundle = sample.open();
        assert_eq!(bundle.held_bytes(ImageKind::Rootfs), 2 << 20);
        assert!(is_small_enough(&bundle));
    }

    #[test]
    fn a_damaged_frame_stops_the_machine_before_whoever_waits_for_its_page_goes_on() {
        MODES.into_iter().for_each(stops_before_it_resolves);
    }

    fn stops_before_it_resolves(make: MakeMemory) {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let Some(images) = damaged(&sample, cache.path(), make) else {
            return;
        };
        let (stopping, stopped) = channel();
        let (reached, touched) = channel();
        let images = Arc::new(images);
        images.stop_on_failure({
            let images = Arc::downgrade(&images);
            move || {
                // Whoever waits for the page still waits.
                let early = touched.recv_timeout(Duration::from_millis(50)).is_ok();
                let failed = images.upgrade().is_some_and(|i| i.loader.lock().failed);
                stopping.send((early, failed)).unwrap();
            }
        });
        let reader = thread::spawn({
            let images = images.clone();
            move || {
                let byte = read(&images, PAGE);
                let _ = reached.send(());
                byte
            }
        });
        images.start_threads().unwrap();
        assert_eq!(stopped.recv().unwrap(), (false, true));
        assert_eq!(reader.join().unwrap(), 0);
        // Later touches do not wait either.
        assert_eq!(read(&images, 200), 0);
        assert_failed(Arc::into_inner(images).unwrap());
        let left = std::fs::read_dir(cache.path().join("bundles"));
        assert_eq!(left.map_or(0, Iterator::count), 0);
    }

    #[test]
    fn a_machine_that_comes_after_the_failure_is_stopped_at_once() {
        MODES.into_iter().for_each(stops_at_once);
    }

    fn stops_at_once(make: MakeMemory) {
        let (sample, cache) = (Sample::new(), tempfile::tempdir().unwrap());
        let Some(images) = damaged(&sample, cache.path(), make) else {
            return;
        };
        images.start_threads().unwrap();
        assert_eq!(read(&images, PAGE), 0);
        let (stopping, stopped) = channel();
        images.stop_on_failure(move || stopping.send(()).unwrap());
        stopped.recv().unwrap();
        assert_failed(images);
    }
}
