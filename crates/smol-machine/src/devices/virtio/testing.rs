//! A driver for tests, over real RAM and the transport's own registers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::mmio::{IrqLine, MmioTransport};
use super::{Mem, VirtioDevice};

pub const RAM: usize = 64 << 20;
/// Each queue has a MiB for its rings, then one buffer per descriptor.
const QUEUE_AREA: u64 = 16 << 20;
const BUFFER: u64 = 0x11000;

pub const STATUS: u64 = 0x70;
pub const NEEDS_RESET: u32 = 64;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// An interrupt line that counts its rising edges.
#[derive(Default)]
pub struct Line {
    level: AtomicU32,
    edges: AtomicU32,
}

impl Line {
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst) != 0
    }

    pub fn edges(&self) -> u32 {
        self.edges.load(Ordering::SeqCst)
    }
}

struct Wire(Arc<Line>);

impl IrqLine for Wire {
    fn set(&self, asserted: bool) {
        let before = self.0.level.swap(asserted.into(), Ordering::SeqCst);
        if asserted && before == 0 {
            self.0.edges.fetch_add(1, Ordering::SeqCst);
        }
    }
}

pub fn ram() -> Mem {
    Mem::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

/// A device's transport and its interrupt line.
pub type Board = (Arc<MmioTransport>, Arc<Line>);

/// A device in the machine of a test.
pub fn board(device: impl VirtioDevice + 'static, mem: &Mem) -> Board {
    let line = Arc::new(Line::default());
    let transport = MmioTransport::new(Box::new(device), mem.clone(), Box::new(Wire(line.clone())));
    (transport, line)
}

/// A descriptor ring as a driver keeps it.
#[derive(Clone)]
pub struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    next_avail: u16,
    next_used: u16,
    free: Vec<u16>,
}

impl Ring {
    fn new(index: u64, size: u16) -> Self {
        let base = 0x10_0000 + index * QUEUE_AREA;
        Self {
            size,
            desc: base,
            avail: base + 0x4000,
            used: base + 0x8000,
            next_avail: 0,
            next_used: 0,
            free: (0..size).rev().collect(),
        }
    }

    fn buffer(&self, desc: u16) -> u64 {
        self.desc + 0x10_0000 + u64::from(desc) * BUFFER
    }
}

/// A driver of one device, set up and running. It survives the device: [`Driver::move_to`].
pub struct Driver {
    pub transport: Arc<MmioTransport>,
    pub line: Arc<Line>,
    pub mem: Mem,
    pub rings: Vec<Ring>,
}

impl Driver {
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::with_features(device, u64::MAX)
    }

    /// A driver that accepts what is offered of `features`.
    pub fn with_features(device: impl VirtioDevice + 'static, features: u64) -> Self {
        let mem = ram();
        Self::on(board(device, &mem), mem, features)
    }

    /// A driver of a device that is on its board already.
    pub fn on((transport, line): Board, mem: Mem, features: u64) -> Self {
        let mut this = Self {
            transport,
            line,
            mem,
            rings: Vec::new(),
        };
        this.set_up(features);
        this
    }

    /// Sets the device up, which has just been reset, with fresh rings.
    pub fn set_up(&mut self, features: u64) {
        self.set(STATUS, 1);
        self.set(STATUS, 3);
        for half in 0..2 {
            self.set(0x14, half);
            self.set(0x24, half);
            self.set(0x20, self.get(0x10) & (features >> (32 * half)) as u32);
        }
        self.set(STATUS, 11);
        assert_eq!(self.get(STATUS), 11, "the device accepts its own features");
        self.rings.clear();
        for index in 0.. {
            self.set(0x30, index);
            let size = self.get(0x34);
            if size == 0 {
                break;
            }
            let ring = Ring::new(index.into(), size as u16);
            self.mem
                .write_slice(&[0; 0xc000], GuestAddress(ring.desc))
                .unwrap();
            self.set(0x38, size);
            for (register, address) in [(0x80, ring.desc), (0x90, ring.avail), (0xa0, ring.used)] {
                self.set(register, address as u32);
                self.set(register + 4, (address >> 32) as u32);
            }
            self.set(0x44, 1);
            assert_eq!(self.get(0x44), 1);
            self.rings.push(ring);
        }
        self.set(STATUS, 15);
    }

    /// The same guest on another machine: its RAM is taken along, its device is `device`.
    pub fn move_to(&self, device: impl VirtioDevice + 'static) -> Self {
        let (transport, line) = board(device, &self.mem);
        transport.restore(&self.transport.save()).unwrap();
        Self {
            transport,
            line,
            mem: self.mem.clone(),
            rings: self.rings.clone(),
        }
    }

    pub fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// Adds a chain of `readable` buffers and of `writable` ones; returns its head.
    pub fn add(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let free = &mut self.rings[queue].free;
        let count = readable.len() + writable.len();
        let descs: Vec<u16> = (0..count).map(|_| free.pop().unwrap()).collect();
        for (i, &desc) in descs.iter().enumerate() {
            let address = self.rings[queue].buffer(desc);
            let (len, mut flags) = match readable.get(i) {
                Some(data) => {
                    self.mem.write_slice(data, GuestAddress(address)).unwrap();
                    (data.len() as u32, 0)
                }
                None => (writable[i - readable.len()], WRITE),
            };
            let next = descs.get(i + 1).copied();
            flags |= if next.is_some() { NEXT } else { 0 };
            self.descriptor(queue, desc, address, len, flags, next.unwrap_or(0));
        }
        self.offer(queue, descs[0]);
        descs[0]
    }

    /// Writes a descriptor as given, however wrong.
    pub fn descriptor(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = Vec::new();
        bytes.extend(addr.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = self.rings[queue].desc + 16 * u64::from(index);
        self.mem.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.avail + 4 + 2 * u64::from(ring.next_avail % ring.size);
        self.mem.write_obj(head, GuestAddress(entry)).unwrap();
        ring.next_avail = ring.next_avail.wrapping_add(1);
        let index = GuestAddress(ring.avail + 2);
        self.mem
            .store(ring.next_avail, index, Ordering::SeqCst)
            .unwrap();
    }

    /// Notifies, whether or not the device wants it.
    pub fn kick(&self, queue: usize) {
        self.set(0x50, queue as u32);
    }

    /// Notifies if the device wants to hear of the last `added` chains (section 2.7.10).
    pub fn kick_if_wanted(&self, queue: usize, added: u16) -> bool {
        let ring = &self.rings[queue];
        let event = GuestAddress(ring.used + 4 + 8 * u64::from(ring.size));
        let event: u16 = self.mem.load(event, Ordering::SeqCst).unwrap();
        let wanted = ring.next_avail.wrapping_sub(event).wrapping_sub(1) < added;
        if wanted {
            self.kick(queue);
        }
        wanted
    }

    /// The next completed chain: what was written to it, by the length that the device reported.
    /// Its descriptors are free again.
    pub fn completed(&mut self, queue: usize) -> Option<Vec<u8>> {
        let ring = &mut self.rings[queue];
        let index: u16 = self
            .mem
            .load(GuestAddress(ring.used + 2), Ordering::SeqCst)
            .unwrap();
        if index == ring.next_used {
            return None;
        }
        let entry = GuestAddress(ring.used + 4 + 8 * u64::from(ring.next_used % ring.size));
        let [head, mut len]: [u32; 2] = self.mem.read_obj(entry).unwrap();
        ring.next_used = ring.next_used.wrapping_add(1);
        // used_event: interrupt at the next one.
        let event = GuestAddress(ring.avail + 4 + 2 * u64::from(ring.size));
        self.mem
            .store(ring.next_used, event, Ordering::SeqCst)
            .unwrap();
        let mut out = Vec::new();
        let mut desc = head as u16;
        loop {
            let at = ring.desc + 16 * u64::from(desc);
            let addr: u64 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let size: u32 = self.mem.read_obj(GuestAddress(at + 8)).unwrap();
            let flags: u16 = self.mem.read_obj(GuestAddress(at + 12)).unwrap();
            if flags & WRITE != 0 {
                let n = size.min(len);
                let mut part = vec![0; n as usize];
                self.mem.read_slice(&mut part, GuestAddress(addr)).unwrap();
                out.extend(part);
                len -= n;
            }
            ring.free.push(desc);
            if flags & NEXT == 0 {
                break;
            }
            desc = self.mem.read_obj(GuestAddress(at + 14)).unwrap();
        }
        assert_eq!(len, 0, "no more was written than there was room for");
        Some(out)
    }

    /// Descriptors that are not in use.
    pub fn free(&self, queue: usize) -> usize {
        self.rings[queue].free.len()
    }
}
