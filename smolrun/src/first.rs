//! The first start of a bundle on this host: the machine runs while it is being unpacked.
//!
//! ```text
//! stream  the frames of the working set, in its order; then the images into the cache
//! pager   the frames of whatever else is touched, when it is
//! ```
//! A page is given to the guest out of a verified frame or not at all: who touches one that is not
//! there waits. A frame that is not what the page index says stops the machine, with that reason.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context as _;
use smol_bundle::{Bundle, FrameMap, FrameReader, ImageKind};
use smol_cli::{ErrorExt, ExitKind, Interrupt, Progress};
use smol_machine::beside;
use smol_machine::demand::{Area, Demand};
use smol_machine::{Stop, StopHandle};

use crate::materialise;

/// How long a machine may take to stop after a page could not be had. It may be held up inside
/// the kernel, waiting for that page; then the process ends, and the machine with it.
const LAST_RESORT: Duration = Duration::from_millis(500);

/// A machine whose pages come out of its bundle.
pub struct FirstStart {
    shared: Arc<Shared>,
    unpacking: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
    cache: PathBuf,
    interrupt: Interrupt,
}

struct Shared {
    bundle: Bundle,
    demand: Demand,
    memory: Image,
    rootfs: Image,
    handle: OnceLock<StopHandle>,
    /// The instance's folder.
    folder: OnceLock<PathBuf>,
    broken: Mutex<Option<anyhow::Error>>,
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
    /// Room for the machine of this bundle; `None` where memory cannot be filled on demand.
    pub fn room(bundle: &Bundle) -> Option<Demand> {
        let size = |kind| bundle.image_size(kind).unwrap_or(0);
        Demand::new(size(ImageKind::Memory), size(ImageKind::Rootfs)).ok()
    }

    /// A start in this room.
    pub fn new(bundle: Bundle, demand: Demand, cache: &Path, interrupt: &Interrupt) -> Self {
        let shared = Shared {
            memory: Image::new(&bundle, ImageKind::Memory, Area::Memory),
            rootfs: Image::new(&bundle, ImageKind::Rootfs, Area::Rootfs),
            bundle,
            demand,
            handle: OnceLock::new(),
            folder: OnceLock::new(),
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
    pub fn demand(&self) -> &Demand {
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

    /// What must be removed if the process has to end before the instance does.
    pub fn belongs_to(&self, folder: &Path) {
        let _ = self.shared.folder.set(folder.to_owned());
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
        let threads = "cannot start the threads that unpack the bundle";
        beside::spawn("pager", answer).context(threads)?;
        let unpacking = beside::spawn("unpack", unpack).context(threads)?;
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
        if let Some(folder) = self.folder.get() {
            // If that fails, the next one who looks removes it.
            let _ = std::fs::remove_dir_all(folder);
        }
        eprint!("{text}");
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

    /// Brings the working set, frame by frame.
    fn stream(&self) -> anyhow::Result<()> {
        let mut reader = FrameReader::new(&self.bundle)?;
        for image in [&self.memory, &self.rootfs] {
            let index = self.bundle.index().image(image.kind);
            for run in index.map_or(&[][..], |image| image.working_set()) {
                for page in run.first..run.first + run.pages {
                    if self.demand.has_ended() {
                        return Ok(());
                    }
                    self.bring(image, page, &mut reader)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a page where it belongs, and with it all that is in the same frame; unless somebody
    /// else is about to.
    fn bring(&self, image: &Image, page: u32, reader: &mut FrameReader) -> anyhow::Result<()> {
        let memory = "cannot put a page into the machine's memory";
        let Some(piece) = self.bundle.piece(image.kind, page) else {
            return self.demand.zero(image.area, page, 1).context(memory);
        };
        let at = image.map.find(&piece).context("a page without a frame")?;
        if image.taken[at].swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let frame = match reader.read(piece.source, piece.frame as usize) {
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
        for piece in image.map.pieces(at) {
            self.demand
                .fill(image.area, piece.page, piece.of(frame))
                .context(memory)?;
        }
        Ok(())
    }
}
