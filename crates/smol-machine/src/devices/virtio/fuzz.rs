//! Hostile guests: registers, rings and packets full of noise must neither panic nor hang.
//!
//! The noise is biased towards what gets past the first check, and a function of a seed that a
//! failure names.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::console::Console;
use super::pmem::Pmem;
use super::rng::Rng;
use super::testing::{Board, Driver, RAM, STATUS, board, ram};
use super::vsock::packet::{HEADER, HOST_CID, Header};
use super::vsock::{StreamSink, Vsock, VsockHandle};
use super::{Mem, MmioTransport, TransportState};

const SEEDS: u64 = 6;
const STEPS: u32 = 1500;
const CID: u64 = 3;

/// A stream of noise.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(
            blake3::Hasher::new()
                .update(&seed.to_le_bytes())
                .finalize_xof(),
        )
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill(&mut bytes);
        bytes
    }

    fn below(&mut self, n: u64) -> u64 {
        u64::from_le_bytes(self.bytes()) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Small, near a power of two, or anything.
    fn number(&mut self) -> u32 {
        match self.below(4) {
            0 | 1 => self.below(16) as u32,
            2 => (1u32 << self.below(32))
                .wrapping_add(self.below(3) as u32)
                .wrapping_sub(1),
            _ => u32::from_le_bytes(self.bytes()),
        }
    }

    /// Mostly in RAM.
    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => u64::from_le_bytes(self.bytes()),
            1 => RAM as u64 - self.below(64),
            _ => self.below(RAM as u64),
        }
    }
}

struct Anything;

impl StreamSink for Anything {
    fn open(&mut self, port: u32, _: u64) -> bool {
        port < 8
    }
    fn data(&mut self, _: u32, _: u64, bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
    fn close(&mut self, _: u32, _: u64) {}
}

fn live() -> Vsock {
    let (device, handle) = Vsock::live(CID, None).unwrap();
    for port in 0..8 {
        listen(&handle, port);
    }
    device
}

/// Some streams are closed at once, some echo for a while.
fn listen(handle: &VsockHandle, port: u32) {
    let again = handle.clone();
    handle.listen(port, move |stream| {
        listen(&again, port);
        if port.is_multiple_of(2) {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
}

type Plug = fn(&Mem) -> Board;

const DEVICES: [Plug; 5] = [
    |mem| board(Console::new(Box::new(std::io::sink())), mem),
    |mem| board(Pmem::new(1 << 32, 2 << 20), mem),
    |mem| board(Rng::seeded(&[0; 32]), mem),
    |mem| board(Vsock::for_build(CID, Box::new(Anything)), mem),
    |mem| board(live(), mem),
];

/// Runs `attack` for each device and seed, each within a minute.
fn assault(devices: &[Plug], attack: fn(Board, Mem, &mut Dice)) {
    for (which, &plug) in devices.iter().enumerate() {
        for seed in 0..SEEDS {
            let (done, wait) = channel();
            let thread = thread::spawn(move || {
                let mem = ram();
                attack(plug(&mem), mem, &mut Dice::new(seed));
                let _ = done.send(());
            });
            let end = wait.recv_timeout(Duration::from_secs(60));
            assert_ne!(
                end,
                Err(RecvTimeoutError::Timeout),
                "device {which}, seed {seed} hangs"
            );
            assert!(thread.join().is_ok(), "device {which}, seed {seed} panics");
        }
    }
}

fn poke(transport: &MmioTransport, dice: &mut Dice) {
    const REGISTERS: [u64; 17] = [
        0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x44, 0x50, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94,
        0xa0, 0xa4,
    ];
    let offset = if dice.one_in(8) {
        dice.below(0x1000)
    } else {
        dice.pick(&REGISTERS)
    };
    let value = match offset {
        STATUS => dice.pick(&[0, 1, 3, 3, 11, 11, 15, 15, 15, 15, 15, 0xff]),
        0x24 if !dice.one_in(8) => 1,
        0x20 | 0x44 if !dice.one_in(4) => 1,
        0x30 | 0x50 => dice.below(4) as u32,
        0x38 if !dice.one_in(4) => 8,
        0x84 | 0x94 | 0xa4 if !dice.one_in(8) => 0,
        0x80 | 0x90 | 0xa0 => dice.address() as u32 & !0xfff,
        _ => dice.number(),
    };
    match dice.below(10) {
        0 => transport.write(offset, &dice.bytes::<8>()[..dice.below(9) as usize]),
        1 => transport.read(offset, &mut vec![0; dice.below(9) as usize]),
        _ => transport.write(offset, &value.to_le_bytes()),
    }
}

#[test]
fn noise_in_the_registers() {
    assault(&DEVICES, |(transport, _), mem, dice| {
        for _ in 0..STEPS {
            let noise = dice.bytes::<16>();
            mem.write_slice(&noise, GuestAddress(dice.below(1 << 16) & !0xf))
                .unwrap();
            poke(&transport, dice);
        }
        transport.pause();
        let state = transport.save();
        let _ = transport.restore(&state);
        transport.resume();
    });
}

fn scribble(driver: &mut Driver, dice: &mut Dice) {
    let queue = dice.below(driver.rings.len() as u64) as usize;
    let size = driver.rings[queue].size;
    for _ in 0..dice.below(6) {
        let index = dice.below(size.into()) as u16;
        let flags = dice.pick(&[0, 1, 1, 2, 2, 3, 3, 4, 0xffff]);
        let len = dice.pick(&[0, 1, 4, 44, 4140, 65536, u32::MAX]);
        let next = dice.below(u64::from(size) + 2) as u16;
        let address = if dice.one_in(4) {
            // Over its own rings.
            driver.rings[queue].desc + dice.below(0xa000)
        } else {
            dice.address()
        };
        driver.descriptor(queue, index, address, len, flags, next);
        driver.offer(queue, index);
    }
    driver.kick(queue);
}

#[test]
fn noise_in_the_rings() {
    assault(&DEVICES, |board, mem, dice| {
        let mut driver = Driver::on(board, mem, u64::MAX);
        for _ in 0..STEPS {
            scribble(&mut driver, dice);
            if driver.transport.fault().is_some() {
                driver.transport.write(STATUS, &[0; 4]);
                driver.set_up(u64::MAX);
            }
        }
    });
}

/// Well-formed chains with packets that only just make sense.
#[test]
fn noise_in_the_packets() {
    assault(&DEVICES[3..], |board, mem, dice| {
        let mut driver = Driver::on(board, mem, u64::MAX);
        for _ in 0..STEPS {
            while driver.completed(0).is_some() {}
            while driver.completed(1).is_some() {}
            if !dice.one_in(3) && driver.free(0) > 0 {
                driver.add(0, &[], &[(HEADER + 2000) as u32]);
                driver.kick(0);
            }
            let data = vec![7; dice.pick(&[0, 0, 1, 100, 5000, 60_000])];
            let header = Header {
                src_cid: if dice.one_in(20) { 2 } else { CID },
                dst_cid: if dice.one_in(20) { 1 } else { HOST_CID },
                src_port: dice.below(4) as u32,
                dst_port: dice.below(10) as u32,
                len: data.len() as u32,
                kind: if dice.one_in(20) { 2 } else { 1 },
                op: dice.below(9) as u16,
                flags: dice.below(4) as u32,
                buf_alloc: dice.number(),
                fwd_cnt: dice.number(),
            };
            if driver.free(1) >= 2 {
                driver.add(1, &[&header.to_bytes(), &data], &[]);
                driver.kick(1);
            }
            if dice.one_in(300) {
                driver.transport.write(STATUS, &[0; 4]);
                driver.set_up(u64::MAX);
            }
        }
        assert_eq!(
            driver.transport.fault(),
            None,
            "odd packets are no reason to stop"
        );
    });
}

/// States with noise in their numbers are refused, or lead to nothing worse than a fault.
#[test]
fn noise_in_the_state() {
    assault(&DEVICES, |board, mem, dice| {
        let driver = Driver::on(board, mem, u64::MAX);
        driver.transport.pause();
        let good = serde_json::to_value(driver.transport.save()).unwrap();
        for _ in 0..100 {
            let mut state = good.clone();
            for _ in 0..=dice.below(3) {
                bend(&mut state, dice);
            }
            let Ok(state) = serde_json::from_value::<TransportState>(state) else {
                continue;
            };
            if driver.transport.restore(&state).is_ok() {
                driver.transport.resume();
                for queue in 0..3 {
                    driver.kick(queue);
                }
                driver.transport.pause();
            }
        }
    });
}

/// Changes one number somewhere.
fn bend(value: &mut serde_json::Value, dice: &mut Dice) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let at = dice.below(map.len() as u64) as usize;
            bend(map.values_mut().nth(at).unwrap(), dice);
        }
        Value::Array(list) => {
            let at = dice.below(list.len() as u64) as usize;
            bend(&mut list[at], dice);
        }
        Value::Number(_) => {
            let number = if dice.one_in(2) {
                dice.address()
            } else {
                dice.number().into()
            };
            *value = number.into();
        }
        Value::Bool(flag) => *flag = !*flag,
        _ => {}
    }
}
