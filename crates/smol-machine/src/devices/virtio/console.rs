//! virtio-console (section 5.3) with one port and no features: hvc0.
//!
//! Output goes to a writer on the vCPU thread. Input comes through a [`ConsoleInput`] and only in
//! a live machine: while building, nothing reaches the guest at a time of the host's choosing.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{DeviceState, Fault, Mem, StateError, VirtQueue, VirtioDevice, Waker};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Linux puts a page into each entry of the receive queue: few entries keep the snapshot small.
const QUEUE_SIZES: [u16; 2] = [16, 16];

/// Bytes of input that wait for the guest; more are refused.
pub const MAX_INPUT: usize = 64 << 10;

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    waker: Option<Waker>,
}

fn lock(input: &Mutex<Input>) -> MutexGuard<'_, Input> {
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device.
pub struct Console {
    /// `None` once writing has failed: output is then lost, the guest runs on.
    output: Option<Box<dyn Write + Send>>,
    input: Arc<Mutex<Input>>,
}

/// Types into the console of a live machine.
#[derive(Clone)]
pub struct ConsoleInput(Arc<Mutex<Input>>);

impl ConsoleInput {
    /// Queues `bytes` for the guest and returns how many were taken: fewer than offered when
    /// [`MAX_INPUT`] bytes wait already. Not to be called from the console's own output writer.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let (taken, waker) = {
            let mut input = lock(&self.0);
            let taken = bytes.len().min(MAX_INPUT - input.bytes.len());
            input.bytes.extend(&bytes[..taken]);
            (taken, input.waker.clone())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        taken
    }
}

impl Console {
    /// Returns a console that writes what the guest prints to `output`, unbuffered and as it comes.
    pub fn new(output: Box<dyn Write + Send>) -> Self {
        Self {
            output: Some(output),
            input: Arc::default(),
        }
    }

    /// Returns a handle for input.
    pub fn input(&self) -> ConsoleInput {
        ConsoleInput(self.input.clone())
    }

    fn transmit(&mut self, queue: &mut VirtQueue, mem: &Mem) -> Result<(), Fault> {
        let mut buf = [0; 4096];
        while let Some(mut chain) = queue.pop(mem)? {
            loop {
                let n = chain.read(&mut buf);
                if n == 0 {
                    break;
                }
                if let Some(output) = &mut self.output
                    && output
                        .write_all(&buf[..n])
                        .and_then(|()| output.flush())
                        .is_err()
                {
                    self.output = None;
                }
            }
            queue.complete(mem, chain)?;
        }
        Ok(())
    }

    fn receive(&mut self, queue: &mut VirtQueue, mem: &Mem) -> Result<(), Fault> {
        let mut input = lock(&self.input);
        while !input.bytes.is_empty() {
            let Some(mut chain) = queue.pop(mem)? else {
                break;
            };
            let n = chain.write(input.bytes.make_contiguous());
            if n == 0 {
                return Err(Fault::Request(
                    "a receive buffer of the console has no room",
                ));
            }
            input.bytes.drain(..n);
            queue.complete(mem, chain)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    /// `cols`, `rows`, `max_nr_ports`, `emerg_wr`: all zero, as none of their features is offered.
    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn attach(&mut self, waker: Waker) {
        lock(&self.input).waker = Some(waker);
    }

    fn notify(&mut self, index: usize, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        match index {
            RECEIVE => self.receive(&mut queues[RECEIVE], mem),
            _ => self.transmit(&mut queues[TRANSMIT], mem),
        }
    }

    fn service(&mut self, queues: &mut [VirtQueue], mem: &Mem) -> Result<(), Fault> {
        self.receive(&mut queues[RECEIVE], mem)
    }

    fn reset(&mut self) {
        lock(&self.input).bytes.clear();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console {}
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        match state {
            DeviceState::Console {} => Ok(()),
            other => Err(other.mismatch("console")),
        }
    }
}
