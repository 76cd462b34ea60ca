//! Each virtio device, as a hostile driver meets it: registers, rings, chains, save and restore.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use smol_machine::devices::virtio::console::{Console, ConsoleInput};
use smol_machine::devices::virtio::pmem::Pmem;
use smol_machine::devices::virtio::rng::Rng;
use smol_machine::devices::virtio::vsock::packet::{HEADER, HOST_CID, Header, MAX_DATA};
use smol_machine::devices::virtio::vsock::{StreamSink, Vsock, VsockHandle};
use smol_machine::devices::virtio::{IrqLine, Mem, MmioTransport, TransportState, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Numbers;

/// RAM: two pieces with a hole between.
const RAM: u64 = 512 << 10;
const ISLAND: u64 = 1 << 20;
const ISLAND_LEN: usize = 64 << 10;
/// Where queues lie: descriptors, the available ring, the used ring.
const QUEUES: u64 = 0x1000;
const QUEUE_LEN: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x2_0000;
const CID: u64 = 3;
/// Things that a driver does in one run.
const STEPS: usize = 400;

/// Registers (virtio 1.2, section 4.2.2).
mod reg {
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub const QUEUE_SEL: u64 = 0x30;
    pub const QUEUE_NUM_MAX: u64 = 0x34;
    pub const QUEUE_NUM: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const NOTIFY: u64 = 0x50;
    pub const STATUS: u64 = 0x70;
}

const NEEDS_RESET: u32 = 64;

/// virtio-console: what it prints was offered by the driver. See [`drive`].
pub fn console(data: &[u8]) -> bool {
    let printed = Arc::new(AtomicUsize::new(0));
    let device = Console::new(Box::new(Count(printed.clone())));
    let input = device.input();
    let rig = drive(device, Outside::Console(input), data);
    // Each notification serves at most 2^14 chains of at most 1 MiB; the numbers of a run are small.
    assert!(printed.load(Ordering::SeqCst) <= (rig.steps + 1) << 34);
    rig.steps > 0
}

/// virtio-pmem. See [`drive`].
pub fn pmem(data: &[u8]) -> bool {
    drive(Pmem::new(1 << 32, 2 << 20), Outside::Nothing, data).steps > 0
}

/// virtio-rng. See [`drive`].
pub fn rng(data: &[u8]) -> bool {
    drive(Rng::seeded(&[1; 32]), Outside::Nothing, data).steps > 0
}

/// virtio-vsock of a machine that is built: what the guest finds in its memory at the end is a
/// function of what it did. See [`drive`].
pub fn vsock_build(data: &[u8]) -> bool {
    let run = || {
        let sink = Box::new(Echo::default());
        let rig = drive(Vsock::for_build(CID, sink), Outside::Nothing, data);
        let mut ram = vec![0; RAM as usize];
        rig.mem.read_slice(&mut ram, GuestAddress(0)).expect("RAM");
        blake3::hash(&ram)
    };
    assert_eq!(run(), run(), "a build can be repeated");
    data.len() > 1
}

/// virtio-vsock of a live machine, with listeners that echo, hang up or stay silent, and a host that
/// connects. See [`drive`].
pub fn vsock_live(data: &[u8]) -> bool {
    let (device, handle) = Vsock::live(CID, None).expect("sockets and a thread");
    let streams: Streams = Arc::default();
    for port in 0..8 {
        listen(&handle, port, &streams);
    }
    drive(device, Outside::Vsock(handle, streams), data).steps > 0
}

/// A listener takes one connection; this one then listens again.
fn listen(handle: &VsockHandle, port: u32, streams: &Streams) {
    let (again, kept) = (handle.clone(), streams.clone());
    handle.listen(port, move |stream: UnixStream| {
        listen(&again, port, &kept);
        let mut streams = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !port.is_multiple_of(3) && streams.len() < 64 && stream.set_nonblocking(true).is_ok() {
            streams.push(stream);
        }
    });
}

/// The packets of a vsock, well-formed but for what they say: a byte for each field that matters.
///
/// Holds: none of them makes the device fail, and what the guest is sent comes from the host.
pub fn vsock_packets(data: &[u8]) -> bool {
    let device = Vsock::for_build(CID, Box::new(Echo::default()));
    let mut rig = Rig::new(device, Outside::Nothing);
    rig.set_up();
    let mut numbers = Numbers::new(data);
    for _ in 0..STEPS {
        if numbers.is_empty() {
            break;
        }
        rig.receive_buffer(4140);
        rig.packet(&mut numbers);
        rig.received();
    }
    assert_eq!(
        rig.transport.fault(),
        None,
        "odd packets are no reason to stop"
    );
    rig.seen[0] > 0
}

struct Count(Arc<AtomicUsize>);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.fetch_add(bytes.len(), Ordering::SeqCst);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Echoes, and checks the order in which it is called.
#[derive(Default)]
struct Echo(std::collections::BTreeSet<u64>);

impl StreamSink for Echo {
    fn open(&mut self, port: u32, stream: u64) -> bool {
        let open = port < 8;
        assert!(!open || self.0.insert(stream), "a number is given once");
        open
    }
    fn data(&mut self, _: u32, stream: u64, bytes: &[u8]) -> Vec<u8> {
        assert!(self.0.contains(&stream) && bytes.len() <= MAX_DATA);
        bytes.to_vec()
    }
    fn close(&mut self, _: u32, stream: u64) {
        assert!(self.0.remove(&stream), "what is open is closed, once");
    }
}

type Streams = Arc<Mutex<Vec<UnixStream>>>;

/// What is on the other side of a device.
enum Outside {
    Nothing,
    Console(ConsoleInput),
    Vsock(VsockHandle, Streams),
}

impl Outside {
    fn act(&self, numbers: &mut Numbers<'_>) {
        match self {
            Outside::Nothing => {}
            Outside::Console(input) => {
                let bytes = numbers.bytes(9);
                assert!(input.push(bytes) <= bytes.len());
            }
            Outside::Vsock(handle, streams) => {
                let mut streams = streams.lock().unwrap_or_else(PoisonError::into_inner);
                match numbers.below(4) {
                    0 => {
                        let port = numbers.u8().into();
                        streams.extend(handle.connect_timeout(port, Duration::ZERO).ok());
                    }
                    1 => drop(streams.pop()),
                    _ => {
                        let mut bytes = [0; 4096];
                        for stream in streams.iter_mut() {
                            let n = stream.read(&mut bytes).unwrap_or(0);
                            let _ = stream.write(&bytes[..n]);
                        }
                    }
                }
            }
        }
    }
}

/// Drives a device by an input: each step a register, a ring, memory, something from outside, or a
/// snapshot.
///
/// Holds: a device that has failed says so, and works again after a reset; a saved state is
/// restored as the same; a state that is not one of this device changes nothing.
fn drive(device: impl VirtioDevice + 'static, outside: Outside, data: &[u8]) -> Rig {
    let mut rig = Rig::new(device, outside);
    let mut numbers = Numbers::new(data);
    if numbers.u8() != 0 {
        rig.set_up();
    }
    while !numbers.is_empty() && rig.steps < STEPS {
        rig.step(&mut numbers);
        // A thread of the device may make it fail at any time, so the failure comes first.
        let failed = rig.transport.fault().is_some();
        let shown = rig.get(reg::STATUS) & NEEDS_RESET != 0;
        assert!(shown || !failed, "a failure is shown");
        rig.steps += 1;
    }
    rig.set(reg::STATUS, 0);
    assert_eq!(rig.get(reg::STATUS), 0, "a reset is a reset");
    assert_eq!(rig.transport.fault(), None);
    rig.set_up();
    rig
}

struct Level;

impl IrqLine for Level {
    fn set(&self, _: bool) {}
}

/// A device and its driver.
struct Rig {
    transport: Arc<MmioTransport>,
    mem: Mem,
    outside: Outside,
    steps: usize,
    /// By queue: what was made available, and what was seen as used.
    available: [u16; 4],
    seen: [u16; 4],
}

impl Rig {
    fn new(device: impl VirtioDevice + 'static, outside: Outside) -> Self {
        let pieces = [
            (GuestAddress(0), RAM as usize),
            (GuestAddress(ISLAND), ISLAND_LEN),
        ];
        let mem = Mem::from_ranges(&pieces).expect("a little RAM");
        Rig {
            transport: MmioTransport::new(Box::new(device), mem.clone(), Box::new(Level)),
            mem,
            outside,
            steps: 0,
            available: [0; 4],
            seen: [0; 4],
        }
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    /// What an honest driver does.
    fn set_up(&mut self) {
        self.set(reg::STATUS, 0);
        self.set(reg::STATUS, 3);
        for half in 0..2 {
            self.set(reg::DEVICE_FEATURES_SEL, half);
            self.set(reg::DRIVER_FEATURES_SEL, half);
            self.set(reg::DRIVER_FEATURES, self.get(reg::DEVICE_FEATURES));
        }
        self.set(reg::STATUS, 11);
        assert_eq!(
            self.get(reg::STATUS),
            11,
            "the device accepts its own features"
        );
        for queue in 0..4 {
            self.set(reg::QUEUE_SEL, queue);
            let size = self.get(reg::QUEUE_NUM_MAX);
            if size == 0 {
                break;
            }
            let at = QUEUES + u64::from(queue) * QUEUE_LEN;
            let zeros = [0; QUEUE_LEN as usize];
            self.mem.write_slice(&zeros, GuestAddress(at)).expect("RAM");
            self.set(reg::QUEUE_NUM, size);
            for (register, address) in [(0x80, at), (0x90, at + AVAIL), (0xa0, at + USED)] {
                self.set(register, address as u32);
                self.set(register + 4, 0);
            }
            self.set(reg::QUEUE_READY, 1);
            assert_eq!(self.get(reg::QUEUE_READY), 1);
        }
        (self.available, self.seen) = ([0; 4], [0; 4]);
        self.set(reg::STATUS, 15);
    }

    fn step(&mut self, numbers: &mut Numbers<'_>) {
        match numbers.below(12) {
            0 => self.register(numbers),
            1 => {
                let (offset, bytes) = (numbers.u16().into(), numbers.bytes(8));
                self.transport.write(offset, bytes);
            }
            2 => {
                let mut bytes = vec![0; numbers.below(9)];
                self.transport.read(numbers.u16().into(), &mut bytes);
            }
            3 => self.memory(numbers),
            4 | 5 => self.descriptors(numbers),
            6 => self.receive_buffer(numbers.pick(&[0, 1, 44, 45, 100, 4140, 4140])),
            7 => self.packet(numbers),
            8 => self.outside.act(numbers),
            9 => self.snapshot(),
            10 => self.bend(numbers),
            _ => match numbers.below(4) {
                0 => self.set_up(),
                1 => self.received(),
                _ => self.set(reg::NOTIFY, numbers.below(5) as u32),
            },
        }
    }

    fn register(&self, numbers: &mut Numbers<'_>) {
        const REGISTERS: [u64; 16] = [
            0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0,
            0xa4, 0x100,
        ];
        let offset = numbers.pick(&REGISTERS);
        self.set(offset, numbers.number() as u32);
    }

    fn memory(&self, numbers: &mut Numbers<'_>) {
        let at = numbers.number() % RAM;
        let bytes = numbers.bytes(32);
        let _ = self.mem.write(bytes, GuestAddress(at));
    }

    /// An address, mostly in RAM; at times over a queue's own rings.
    fn address(numbers: &mut Numbers<'_>) -> u64 {
        match numbers.below(6) {
            0 => numbers.u64(),
            1 => RAM - u64::from(numbers.u8() & 63),
            2 => ISLAND + u64::from(numbers.u16()),
            3 => QUEUES + u64::from(numbers.u16()),
            _ => BUFFERS + u64::from(numbers.u16()),
        }
    }

    fn descriptor(&self, queue: usize, index: u16, descriptor: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = descriptor;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = QUEUES + queue as u64 * QUEUE_LEN + 16 * u64::from(index);
        self.mem.write_slice(&bytes, GuestAddress(at)).expect("RAM");
    }

    fn offer(&mut self, queue: usize, head: u16) {
        let at = QUEUES + queue as u64 * QUEUE_LEN + AVAIL;
        let size = self.size(queue);
        let entry = at + 4 + 2 * u64::from(self.available[queue] % size);
        self.mem.write_obj(head, GuestAddress(entry)).expect("RAM");
        self.available[queue] = self.available[queue].wrapping_add(1);
        let index = self.available[queue];
        self.mem
            .write_obj(index, GuestAddress(at + 2))
            .expect("RAM");
    }

    fn size(&self, queue: usize) -> u16 {
        self.set(reg::QUEUE_SEL, queue as u32);
        (self.get(reg::QUEUE_NUM_MAX) as u16).max(1)
    }

    /// Descriptors of any kind, the last of them offered.
    fn descriptors(&mut self, numbers: &mut Numbers<'_>) {
        let queue = numbers.below(3);
        let mut head = 0;
        for _ in 0..=numbers.below(5) {
            head = u16::from(numbers.u8()) % 256;
            let len = numbers.number() as u32;
            let flags = numbers.pick(&[0, 1, 1, 2, 2, 3, 3, 4, 0xffff]);
            let next = u16::from(numbers.u8());
            self.descriptor(queue, head, (Self::address(numbers), len, flags, next));
        }
        self.offer(queue, head);
        self.set(reg::NOTIFY, queue as u32);
    }

    /// A buffer for the device to write into.
    fn receive_buffer(&mut self, len: u32) {
        if self.available[0].wrapping_sub(self.seen[0]) >= 60 {
            return; // each is in use
        }
        let slot = self.available[0] % 64;
        let at = BUFFERS + u64::from(slot) * 0x1100;
        self.descriptor(0, slot, (at, len, 2, 0));
        self.offer(0, slot);
        self.set(reg::NOTIFY, 0);
    }

    /// A packet of the guest (section 5.10.6), with its data.
    fn packet(&mut self, numbers: &mut Numbers<'_>) {
        let data = numbers.pick(&[0, 0, 1, 100, 4000, 30_000]);
        let odd = numbers.u8();
        let header = Header {
            src_cid: if odd & 15 == 1 { 2 } else { CID },
            dst_cid: if odd & 15 == 2 { 1 } else { HOST_CID },
            src_port: numbers.below(4) as u32,
            dst_port: numbers.below(10) as u32,
            len: data,
            kind: if odd & 15 == 3 { 2 } else { 1 },
            op: numbers.below(9) as u16,
            flags: (odd >> 4 & 3).into(),
            buf_alloc: numbers.number() as u32,
            fwd_cnt: numbers.number() as u32,
        };
        let at = BUFFERS + 0x5_0000;
        self.mem
            .write_slice(&header.to_bytes(), GuestAddress(at))
            .expect("RAM");
        self.descriptor(1, 126, (at, HEADER as u32, 1, 127));
        self.descriptor(1, 127, (BUFFERS, data, 0, 0));
        self.offer(1, 126);
        self.set(reg::NOTIFY, 1);
    }

    /// Looks at what the device has put into the buffers of [`Rig::receive_buffer`].
    fn received(&mut self) {
        let at = QUEUES + USED;
        let index: u16 = self.mem.read_obj(GuestAddress(at + 2)).expect("RAM");
        let size = self.size(0);
        while self.seen[0] != index && index.wrapping_sub(self.seen[0]) <= size {
            let entry = at + 4 + 8 * u64::from(self.seen[0] % size);
            let [head, len]: [u32; 2] = self.mem.read_obj(GuestAddress(entry)).expect("RAM");
            self.seen[0] = self.seen[0].wrapping_add(1);
            if head < 64 && len >= HEADER as u32 && self.get(0x08) == 19 && self.steps == 0 {
                let mut bytes = [0; HEADER];
                let at = GuestAddress(BUFFERS + u64::from(head) * 0x1100);
                self.mem.read_slice(&mut bytes, at).expect("RAM");
                let header = Header::from_bytes(&bytes);
                assert_eq!((header.len as usize) + HEADER, len as usize);
                assert_eq!(header.dst_cid, CID, "it is for the guest");
            }
        }
        self.seen[0] = index;
    }

    fn snapshot(&self) {
        self.transport.pause();
        let state = self.transport.save();
        if self.transport.restore(&state).is_ok() {
            let again = self.transport.save();
            assert_eq!(again, state, "a state is restored as the same");
        }
        self.transport.resume();
    }

    /// A saved state with a number changed somewhere.
    fn bend(&self, numbers: &mut Numbers<'_>) {
        self.transport.pause();
        let before = self.transport.save();
        let mut state = serde_json::to_value(&before).expect("plain data");
        bend(&mut state, numbers);
        if let Ok(state) = serde_json::from_value::<TransportState>(state)
            && self.transport.restore(&state).is_err()
        {
            assert_eq!(
                self.transport.save(),
                before,
                "what is refused changes nothing"
            );
        }
        self.transport.resume();
    }
}

/// Changes one number somewhere.
pub fn bend(value: &mut serde_json::Value, numbers: &mut Numbers<'_>) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let at = numbers.below(map.len());
            map.values_mut()
                .skip(at)
                .take(1)
                .for_each(|value| bend(value, numbers));
        }
        Value::Array(list) => {
            let at = numbers.below(list.len());
            list.iter_mut()
                .skip(at)
                .take(1)
                .for_each(|value| bend(value, numbers));
        }
        Value::Number(_) => *value = numbers.number().into(),
        Value::Bool(flag) => *flag = !*flag,
        Value::Null => *value = 0.into(),
        Value::String(text) => text.truncate(numbers.below(text.len() + 1)),
    }
}

/// Steps of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let steps: Vec<u8> = (0..12)
        .flat_map(|step| [step, 1, 2, 3, 4, 5, 6, 7, 8])
        .collect();
    let traffic = [6u8, 5, 7, 2, 0, 1, 1, 1, 3, 40, 8].repeat(10);
    let save = [9u8, 10, 8, 0, 3, 9, 6, 3, 7, 1, 0, 1].repeat(6);
    vec![
        [&[1], &steps[..]].concat(),
        [&[0], &steps[..]].concat(),
        [&[1], &traffic[..]].concat(),
        [&[1], &save[..]].concat(),
    ]
}

/// Connections opened, used and closed.
pub fn packet_seeds() -> Vec<Vec<u8>> {
    // Data, what is odd, ports, operation, credit: each a byte or two.
    let packet = |op: u8, data: u8| [data, 0, 1, 2, op, 0xfc, 0];
    let life = [(1, 0), (5, 3), (5, 4), (7, 0), (4, 0), (3, 0)].map(|(op, data)| packet(op, data));
    vec![life.concat(), [life.concat(), life.concat()].concat()]
}
