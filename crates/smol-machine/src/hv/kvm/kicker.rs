//! Kicks by signal: one that arrives while a thread is in KVM_RUN ends the call.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::hv::Kicker;
use crate::{Error, Result};

/// A thread, until it ends.
type Thread = Arc<Mutex<Option<libc::pthread_t>>>;

/// Interrupts what the thread that made it has the kernel do for a vCPU.
#[derive(Clone, Debug)]
pub struct KvmKicker(Thread);

impl KvmKicker {
    /// Returns the kicker of the calling thread.
    pub(crate) fn of_this_thread() -> Result<Self> {
        /// Forgets the thread when it ends.
        struct Registration(Thread);
        impl Drop for Registration {
            fn drop(&mut self) {
                *lock(&self.0) = None;
            }
        }
        fn register() -> Registration {
            // SAFETY: no arguments, no failure.
            let thread = unsafe { libc::pthread_self() };
            Registration(Arc::new(Mutex::new(Some(thread))))
        }
        thread_local!(static THIS: Registration = register());
        install_handler()?;
        Ok(Self(THIS.with(|this| this.0.clone())))
    }
}

impl Kicker for KvmKicker {
    fn kick(&self) {
        if let Some(thread) = *lock(&self.0) {
            // SAFETY: the thread lives: at its end, before its id becomes invalid, it takes the
            // lock that is held here and removes the id.
            unsafe { libc::pthread_kill(thread, signal()) };
        }
    }
}

fn lock(thread: &Thread) -> std::sync::MutexGuard<'_, Option<libc::pthread_t>> {
    thread.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The signal only has to interrupt KVM_RUN, so its handler does nothing.
fn install_handler() -> Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static OUTCOME: OnceLock<Result<(), i32>> = OnceLock::new();
    OUTCOME
        .get_or_init(|| {
            vmm_sys_util::signal::register_signal_handler(signal(), nothing).map_err(|e| e.errno())
        })
        .map_err(|errno| Error::Hypervisor {
            call: "sigaction",
            source: std::io::Error::from_raw_os_error(errno),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_interrupts_a_system_call_of_its_thread_and_outlives_the_thread_in_vain() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let blocked = std::thread::spawn(move || {
            sender.send(KvmKicker::of_this_thread().unwrap()).unwrap();
            rustix::io::read(&reader, &mut [0; 1])
        });
        let kicker = receiver.recv().unwrap();
        while !blocked.is_finished() {
            kicker.kick();
            // Signals are queued: kicks without a pause can keep the thread in their handler for ever.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert_eq!(blocked.join().unwrap(), Err(rustix::io::Errno::INTR));
        kicker.kick();
        drop(writer);
    }
}
