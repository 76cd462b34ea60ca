//! SIGINT and SIGTERM as a flag to check and a descriptor to wait for, so that who has started
//! processes or made temporary files can clean up before the program ends.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use crate::{ExitKind, Failure};

/// A handle on "the user wants us to stop". Clones share one state.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Set at the first signal; arms the immediate exit at the next SIGINT.
    set: Arc<AtomicBool>,
    /// Number of the last signal, 0 before any.
    signal: Arc<AtomicUsize>,
    /// Readable, and left so, once a signal came.
    read: OwnedFd,
    write: OwnedFd,
}

impl Interrupt {
    /// Catches SIGINT and SIGTERM from here on. The first one sets the flag and makes the
    /// descriptor readable; a SIGINT after that ends the process at once with code 130.
    ///
    /// Call once, early in `main`.
    pub fn install() -> io::Result<Self> {
        let interrupt = Self::detached()?;
        let shared = &interrupt.0;
        // Handlers run in the order of registration: the exit must see the flag of an *earlier* signal.
        flag::register_conditional_shutdown(
            SIGINT,
            ExitKind::Interrupted.code().into(),
            shared.set.clone(),
        )?;
        for signal in [SIGINT, SIGTERM] {
            flag::register_usize(signal, shared.signal.clone(), signal as usize)?;
            flag::register(signal, shared.set.clone())?;
            low_level::pipe::register(signal, shared.write.try_clone()?)?;
        }
        Ok(interrupt)
    }

    /// Returns one that only [`trigger`](Self::trigger) sets: for tests and for library use.
    pub fn detached() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Shared {
            set: Arc::new(AtomicBool::new(false)),
            signal: Arc::new(AtomicUsize::new(0)),
            read,
            write,
        })))
    }

    /// Does what a SIGTERM does.
    pub fn trigger(&self) {
        self.0.signal.store(SIGTERM as usize, Ordering::SeqCst);
        self.0.set.store(true, Ordering::SeqCst);
        // A full pipe is readable, which is all that is wanted.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0.write, b"x"));
    }

    /// Returns whether a signal came.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::SeqCst)
    }

    /// Returns an error of kind [`ExitKind::Interrupted`] or [`ExitKind::Terminated`] once a signal
    /// came. To be called between steps of long work.
    pub fn check(&self) -> Result<(), Failure> {
        if !self.is_set() {
            return Ok(());
        }
        Err(match self.0.signal.load(Ordering::SeqCst) as i32 {
            SIGTERM => Failure::new(ExitKind::Terminated, "stopped by SIGTERM"),
            _ => Failure::new(ExitKind::Interrupted, "interrupted"),
        })
    }

    /// Returns whether to go on, for work that is asked so between its steps.
    pub fn go_on(&self) -> ControlFlow<()> {
        match self.is_set() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Waits until a signal comes, at most as long as `timeout` (`None`: for ever). Returns
    /// whether one came.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&self.0.read, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            // The handler of one of our own signals may have broken the call off.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(self.is_set()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The descriptor to poll for input along with others; nothing must read from it.
impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.read.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_sets_the_flag_and_wakes_every_waiter() {
        let interrupt = Interrupt::install().unwrap();
        assert!(!interrupt.wait(Some(Duration::ZERO)).unwrap());
        assert!(interrupt.check().is_ok());
        let waiter = std::thread::spawn({
            let interrupt = interrupt.clone();
            move || interrupt.wait(Some(smol_testing::LIMIT)).unwrap()
        });
        low_level::raise(SIGTERM).unwrap();
        assert!(waiter.join().unwrap());
        assert!(interrupt.is_set());
        // The descriptor stays readable: a second waiter does not hang.
        assert!(interrupt.wait(None).unwrap());
        assert_eq!(
            interrupt.check().unwrap_err().to_string(),
            "stopped by SIGTERM"
        );
    }

    #[test]
    fn a_detached_interrupt_is_set_by_its_trigger() {
        let interrupt = Interrupt::detached().unwrap();
        assert!(!interrupt.wait(Some(Duration::from_millis(1))).unwrap());
        interrupt.clone().trigger();
        assert!(interrupt.wait(None).unwrap());
    }
}
