//! The first start of a bundle on this host: the machine runs while it is being unpacked.
//!
//! ```text
//! stream  the frames of the working set, in its order; then the images into the cache
//! pager   the frames of whatever else is touched, when it is
//! ```
//! A page is given to the guest out of a verified frame or not at all: who touches one that is not
//! there waits. A frame that is not what the page index says stops the machine, with that reason.
//!
//! Without privileges, only devices can be made to wait; a vCPU fails, and tries again when more has
//! come ([`smol_machine::memory::lazy`]). The machine then begins to run when the working set is there,
//! and the stream brings everything else as well, before the images go into the cache.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use smol_bundle::{Bundle, FrameMap, FrameReader, ImageKind, Piece};
use smol_cli::{ErrorExt, ExitKind, Interrupt, Progress};
use smol_machine::memory::lazy::{Area, LazyMemory};
use smol_machine::threads;
use smol_machine::{MachineState, Stop, StopHandle, hv};

use crate::materialise;
use crate::report::Report;

/// How long a machine may take to stop after a page could not be had. It may be held up inside
/// the kernel, waiting for that page; then the process ends, and the machine with it.
const LAST_RESORT: Duration = Duration::from_millis(500);
/// Pages of zeros in a row, from which on the kernel is left to make them when they are touched:
/// a huge page of them.
const LONG: u32 = 512;

const THREADS: &str = "cannot start the threads that unpack the bundle";
/// What failed when a page was brought.
const MEMORY: &str = "cannot put a page into the machine's memory";

/// A machine whose pages come out of its bundle.
pub struct FirstStart {
    shared: Arc<Shared>,
    unpacking: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
    cache: PathBuf,
    interrupt: Interrupt,
}

struct Shared {
    bundle: Bundle,
    demand: LazyMemory,
    memory: Image,
    rootfs: Image,
    /// Frames that are not there yet.
    missing: AtomicUsize,
    handle: OnceLock<StopHandle>,
    owner: OnceLock<Owner>,
    broken: Mutex<Option<anyhow::Error>>,
}

/// Whom the machine belongs to.
struct Owner {
    /// The instance's folder.
    folder: PathBuf,
    report: Arc<dyn Report>,
}

/// Which frames of an image somebody has taken on.
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

impl FirstStart {
    /// A start of this bundle, which is to be unpacked into the cache. Where memory cannot be filled
    /// on demand, it is unpacked now, and `None` is returned.
    ///
    /// # Errors
    /// As [`materialise::images`].
    pub fn begin(
        bundle: Bundle,
        cache: &Path,
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Option<Self>> {
        if let Some(room) = Self::room(&bundle) {
            return Ok(Some(Self::new(bundle, room, cache, interrupt)));
        }
        materialise::images(&bundle, cache, progress, interrupt)?;
        Ok(None)
    }

    /// Room for the machine of this bundle; `None` where its memory cannot be filled on demand.
    pub fn room(bundle: &Bundle) -> Option<LazyMemory> {
        let size = |kind| bundle.image_size(kind).unwrap_or(0);
        let (memory, rootfs) = (size(ImageKind::Memory), size(ImageKind::Rootfs));
        if let Ok(demand) = LazyMemory::new(memory, rootfs) {
            return Some(demand);
        }
        // A state that is damaged or unknown is told where it is needed.
        let state = || MachineState::from_json(&bundle.state().ok()??).ok();
        let bears = hv::retries_failed_accesses() && state()?.tolerates_failed_accesses();
        bears.then(|| LazyMemory::in_user_mode(memory, rootfs).ok())?
    }

    fn new(bundle: Bundle, demand: LazyMemory, cache: &Path, interrupt: &Interrupt) -> Self {
        let memory = Image::new(&bundle, ImageKind::Memory, Area::Memory);
        let rootfs = Image::new(&bundle, ImageKind::Rootfs, Area::Rootfs);
        let shared = Shared {
            missing: AtomicUsize::new(memory.map.frames() + rootfs.map.frames()),
            memory,
            rootfs,
            bundle,
            demand,
            handle: OnceLock::new(),
            owner: OnceLock::new(),
            broken: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            unpacking: Mutex::default(),
            cache: cache.to_owned(),
            interrupt: interrupt.clone(),
        }
    }

    /// The machine's memory.
    pub fn demand(&self) -> &LazyMemory {
        &self.shared.demand
    }

    /// The machine state, verified.
    ///
    /// # Errors
    /// If it is not what the manifest says.
    pub fn state(&self) -> anyhow::Result<Vec<u8>> {
        let state = self.shared.bundle.state().kind(ExitKind::Verification)?;
        state.context("the bundle holds no machine state")
    }

    /// What must be removed, and who must be told, if the process has to end before the instance
    /// does.
    pub fn belongs_to(&self, folder: &Path, report: Arc<dyn Report>) {
        let folder = folder.to_owned();
        let _ = self.shared.owner.set(Owner { folder, report });
    }

    /// Begins to give the machine its pages.
    ///
    /// # Errors
    /// If there can be no more threads.
    pub fn serve(&self) -> anyhow::Result<()> {
        let shared = self.shared.clone();
        let answer = move || {
            let outcome = shared.answer();
            shared.judge(outcome);
        };
        let shared = self.shared.clone();
        let (cache, interrupt) = (self.cache.clone(), self.interrupt.clone());
        let unpack = move || {
            let outcome = shared.stream();
            shared.judge(outcome);
            materialise::images(&shared.bundle, &cache, &Progress::silent(), &interrupt).map(drop)
        };
        threads::spawn("pager", answer).context(THREADS)?;
        let unpacking = threads::spawn("unpack", unpack).context(THREADS)?;
        *self
            .unpacking
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(unpacking);
        Ok(())
    }

    /// From here on the machine can be stopped.
    pub fn attach(&self, handle: StopHandle) {
        if self.shared.broken().is_some() {
            handle.request(Stop::Requested);
        }
        let _ = self.shared.handle.set(handle);
    }

    /// Unpacks the bundle, for a machine that is not restored after all.
    ///
    /// # Errors
    /// As [`materialise::images`].
    pub fn unpack(&self) -> anyhow::Result<()> {
        let progress = Progress::silent();
        materialise::images(&self.shared.bundle, &self.cache, &progress, &self.interrupt).map(drop)
    }

    /// The machine has ended. Waits until the bundle is unpacked, unless a signal wants an end.
    ///
    /// # Errors
    /// The one that ended the machine, if a page could not be had; that it could not be unpacked
    /// is told to `note`.
    pub fn finish(self, note: impl Fn(&str)) -> anyhow::Result<()> {
        self.shared.demand.end();
        if let Some(error) = self.shared.broken().take() {
            return Err(error);
        }
        let unpacking = self
            .unpacking
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(unpacking) = unpacking else {
            return Ok(());
        };
        while !unpacking.is_finished() && !self.interrupt.is_set() {
            thread::sleep(Duration::from_millis(1));
        }
        if !self.interrupt.is_set()
            && let Ok(Err(error)) = unpacking.join()
        {
            note(&format!(
                "the bundle was not unpacked for later starts: {error:#}"
            ));
        }
        Ok(())
    }
}

impl Shared {
    fn broken(&self) -> std::sync::MutexGuard<'_, Option<anyhow::Error>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the machine for an error.
    fn judge(&self, outcome: anyhow::Result<()>) {
        let Err(error) = outcome else {
            return;
        };
        let text = smol_cli::error::render(&error, false);
        let code = smol_cli::exit_kind(&error).code();
        self.broken().get_or_insert(error);
        if let Some(handle) = self.handle.get() {
            handle.request(Stop::Requested);
        }
        thread::sleep(LAST_RESORT);
        match self.owner.get() {
            Some(owner) => {
                // If that fails, the next one who looks removes it.
                let _ = std::fs::remove_dir_all(&owner.folder);
                owner.report.lost(code, &text);
            }
            None => eprint!("{text}"),
        }
        std::process::exit(code.into());
    }

    /// Serves whatever is touched, until the machine has ended.
    fn answer(&self) -> anyhow::Result<()> {
        let mut reader = FrameReader::new(&self.bundle)?;
        while let Some((area, page)) = self.demand.next().context("userfaultfd")? {
            let image = match area {
                Area::Memory => &self.memory,
                Area::Rootfs => &self.rootfs,
            };
            self.bring(image, page, &mut reader)?;
        }
        Ok(())
    }

    /// Brings the working set, frame by frame; where vCPUs cannot wait, the rest as well.
    fn stream(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut reader = FrameReader::new(&self.bundle)?;
        let images = [&self.memory, &self.rootfs];
        if !self.demand.is_in_user_mode() {
            self.stream_working_set(&self.memory, &mut reader)?;
            return self.stream_working_set(&self.rootfs, &mut reader);
        }
        // Fresh memory of the guest is zeros: of that there must be enough from the beginning.
        for image in images {
            self.make_zeros(image)?;
        }
        // The vCPUs wait for it, so there are CPUs for both images.
        let shared = self.clone();
        let rootfs = threads::spawn("rootfs", move || {
            let mut reader = FrameReader::new(&shared.bundle)?;
            shared.stream_working_set(&shared.rootfs, &mut reader)
        });
        let rootfs = rootfs.context(THREADS)?;
        self.stream_working_set(&self.memory, &mut reader)?;
        rootfs.join().ok().context("a thread has died")??;
        self.demand.open();
        for image in images {
            for at in 0..image.map.frames() {
                if self.demand.has_ended() {
                    return Ok(());
                }
                self.bring_frame(image, at, &mut reader)?;
            }
        }
        Ok(())
    }

    fn stream_working_set(&self, image: &Image, reader: &mut FrameReader) -> anyhow::Result<()> {
        let index = self.bundle.index().image(image.kind);
        for run in index.map_or(&[][..], |image| image.working_set()) {
            for page in run.first..run.first + run.pages {
                if self.demand.has_ended() {
                    return Ok(());
                }
                self.bring(image, page, reader)?;
            }
        }
        Ok(())
    }

    /// Makes all pages of an image there that no frame holds.
    fn make_zeros(&self, image: &Image) -> anyhow::Result<()> {
        let Some(index) = self.bundle.index().image(image.kind) else {
            return Ok(());
        };
        let all = index.pages();
        let pieces = self.bundle.index().pieces(image.kind, 0, all);
        let held = pieces.iter().map(|piece| (piece.page, piece.pages));
        let mut next = 0;
        for (first, pages) in held.chain([(all, 0)]) {
            let zeros = first.saturating_sub(next);
            let released = zeros >= LONG && self.demand.release(image.area, next, zeros).is_ok();
            if zeros > 0 && !released {
                self.demand.zero(image.area, next, zeros).context(MEMORY)?;
            }
            next = first + pages;
        }
        Ok(())
    }

    /// Puts a page where it belongs, and with it all that is in the same frame; unless somebody
    /// else is about to.
    fn bring(&self, image: &Image, page: u32, reader: &mut FrameReader) -> anyhow::Result<()> {
        let Some(piece) = self.bundle.piece(image.kind, page) else {
            return match self.demand.is_in_user_mode() {
                // They are made before the machine begins to run, and who waits for one is woken.
                true => Ok(()),
                false => self.demand.zero(image.area, page, 1).context(MEMORY),
            };
        };
        let at = image.map.find(&piece).context("a page without a frame")?;
        self.bring_frame(image, at, reader)
    }

    /// Puts all that is in a frame where it belongs, unless somebody else is about to.
    fn bring_frame(
        &self,
        image: &Image,
        at: usize,
        reader: &mut FrameReader,
    ) -> anyhow::Result<()> {
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
                    .context("the machine was stopped: it needs a page that cannot be had")
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
