//! The transport and the simple devices, driven by registers and rings as a guest drives them.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use super::console::{Console, MAX_INPUT};
use super::pmem::Pmem;
use super::queue::MAX_CHAIN_BYTES;
use super::rng::Rng;
use super::testing::{Driver, NEEDS_RESET, RAM, STATUS, board, ram};
use super::{TransportState, VirtioDevice};

const VERSION_1: u64 = 1 << 32;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Screen {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn console() -> (Console, Screen) {
    let screen = Screen::default();
    (Console::new(Box::new(screen.clone())), screen)
}

fn seeded() -> Rng {
    Rng::seeded(&[7; 32])
}

#[test]
fn the_transport_says_what_it_is() {
    let driver = Driver::new(Pmem::new(1 << 32, 2 << 20));
    assert_eq!(driver.get(0x00), 0x7472_6976);
    assert_eq!(driver.get(0x04), 2);
    assert_eq!(driver.get(0x08), 27);
    assert_eq!(
        driver.get(0xb0),
        u32::MAX,
        "there is no shared memory region"
    );
    let mut config = [0; 20];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config[..8], (1u64 << 32).to_le_bytes());
    assert_eq!(config[8..16], (2u64 << 20).to_le_bytes());
    assert_eq!(
        config[16..],
        [0; 4],
        "beyond its end the configuration reads as zeros"
    );
}

#[test]
fn status_bits_are_only_taken_in_order() {
    let (transport, _) = board(seeded(), &ram());
    let get = || {
        let mut data = [0; 4];
        transport.read(STATUS, &mut data);
        u32::from_le_bytes(data)
    };
    let set = |register: u64, value: u32| transport.write(register, &value.to_le_bytes());
    set(STATUS, 1 | 4);
    assert_eq!(get(), 1, "no DRIVER_OK before FEATURES_OK");
    set(STATUS, 3);
    set(STATUS, 11);
    assert_eq!(get(), 3, "no FEATURES_OK without VERSION_1");
    set(0x24, 1);
    set(0x20, 1 | 1 << 4);
    set(STATUS, 11);
    assert_eq!(
        get(),
        3,
        "no FEATURES_OK with a feature that was not offered"
    );
    set(0x20, 1);
    set(STATUS, 11);
    assert_eq!(get(), 11);
    set(0x20, 0);
    set(STATUS, 1);
    assert_eq!(get(), 11, "bits go only by a reset");
    set(STATUS, 15);
    set(STATUS, 15 | NEEDS_RESET);
    assert_eq!(get(), 15, "a driver cannot set NEEDS_RESET");
    set(STATUS, 0);
    assert_eq!(get(), 0);
}

#[test]
fn a_reset_device_can_be_set_up_again() {
    let mut driver = Driver::new(seeded());
    driver.add(0, &[], &[8]);
    driver.kick(0);
    assert!(driver.line.level());
    driver.set(STATUS, 0);
    assert!(!driver.line.level());
    assert_eq!(driver.get(0x44), 0, "the queue is gone");
    driver.kick(0);
    assert_eq!(
        driver.get(STATUS),
        0,
        "a reset device ignores notifications"
    );
}

#[test]
fn an_interrupt_stays_asserted_until_it_is_acknowledged() {
    let mut driver = Driver::new(seeded());
    driver.add(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(driver.get(0x60), 1);
    assert!(driver.line.level());
    driver.set(0x64, 1);
    assert_eq!(driver.get(0x60), 0);
    assert!(!driver.line.level());
}

#[test]
fn a_driver_that_wants_no_interrupt_gets_none() {
    let mut driver = Driver::new(seeded());
    // used_event beyond what comes: interrupt only after the second completion.
    let event = driver.rings[0].avail + 4 + 2 * u64::from(driver.rings[0].size);
    driver.mem.write_obj(1u16, GuestAddress(event)).unwrap();
    driver.add(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(driver.line.edges(), 0);
    driver.add(0, &[], &[8]);
    driver.kick(0);
    assert_eq!(driver.line.edges(), 1);
}

#[test]
fn the_console_prints_what_the_guest_writes() {
    let (console, screen) = console();
    let mut driver = Driver::new(console);
    let long = vec![b'x'; 10_000];
    driver.add(1, &[b"hello ", b"world\n"], &[]);
    driver.add(1, &[&long], &[]);
    driver.kick(1);
    assert_eq!(screen.text(), [b"hello world\n", &long[..]].concat());
    assert_eq!(driver.completed(1), Some(vec![]));
    assert_eq!(driver.completed(1), Some(vec![]));
    assert!(driver.line.level());
}

#[test]
fn the_console_goes_on_when_its_output_has_failed() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut driver = Driver::new(Console::new(Box::new(Broken)));
    driver.add(1, &[b"lost"], &[]);
    driver.kick(1);
    assert!(driver.completed(1).is_some());
    assert_eq!(driver.get(STATUS), 15);
}

#[test]
fn console_input_waits_for_buffers_and_is_bounded() {
    let (console, _) = console();
    let input = console.input();
    let mut driver = Driver::new(console);
    assert_eq!(input.push(b"0123456789"), 10);
    driver.add(0, &[], &[4, 2]);
    driver.kick(0);
    assert_eq!(driver.completed(0).unwrap(), b"012345");
    driver.add(0, &[], &[100]);
    driver.kick(0);
    assert_eq!(driver.completed(0).unwrap(), b"6789");
    driver.add(0, &[], &[100]);
    driver.kick(0);
    assert_eq!(driver.completed(0), None);
    input.push(b"now");
    assert_eq!(
        driver.completed(0).unwrap(),
        b"now",
        "input does not wait for a notification"
    );
    assert_eq!(input.push(&vec![0; MAX_INPUT + 1]), MAX_INPUT);
    assert_eq!(input.push(b"more"), 0);
}

#[test]
fn a_flush_of_persistent_memory_succeeds_and_anything_else_fails() {
    let mut driver = Driver::new(Pmem::new(1 << 32, 2 << 20));
    driver.add(0, &[&0u32.to_le_bytes()], &[4]);
    driver.add(0, &[&9u32.to_le_bytes()], &[4]);
    driver.kick(0);
    assert_eq!(driver.completed(0).unwrap(), 0i32.to_le_bytes());
    assert_eq!(driver.completed(0).unwrap(), 1i32.to_le_bytes());
}

fn draw(driver: &mut Driver, len: u32) -> Vec<u8> {
    driver.add(0, &[], &[len]);
    driver.kick(0);
    driver.completed(0).unwrap()
}

#[test]
fn two_builds_draw_the_same_random_bytes_and_two_live_machines_do_not() {
    let (mut a, mut b) = (Driver::new(seeded()), Driver::new(seeded()));
    let first = draw(&mut a, 64);
    assert_eq!(first, draw(&mut b, 64));
    assert_eq!(draw(&mut a, 5000), draw(&mut b, 5000));
    assert_ne!(first, draw(&mut a, 64), "the stream goes on");
    assert_ne!(first, draw(&mut Driver::new(Rng::seeded(&[8; 32])), 64));
    let (mut a, mut b) = (Driver::new(Rng::host()), Driver::new(Rng::host()));
    assert_ne!(draw(&mut a, 64), draw(&mut b, 64));
}

#[test]
fn a_machine_restored_from_a_build_draws_from_the_host() {
    let mut build = Driver::new(seeded());
    draw(&mut build, 64);
    let mut live = build.move_to(Rng::host());
    live.transport.resume();
    assert_ne!(draw(&mut live, 64), draw(&mut build, 64));
}

#[test]
fn a_state_survives_json_and_a_restored_device_goes_on_where_it_was() {
    let (first, _) = console();
    let mut driver = Driver::new(first);
    for _ in 0..5 {
        driver.add(1, &[b"before"], &[]);
        driver.kick(1);
        driver.completed(1).unwrap();
    }
    driver.add(1, &[b"left behind; "], &[]); // and no notification yet
    let state = driver.transport.save();
    let json = serde_json::to_string(&state).unwrap();
    let again: TransportState = serde_json::from_str(&json).unwrap();
    assert_eq!(again, state);
    assert_eq!(serde_json::to_string(&again).unwrap(), json);

    let (second, screen) = console();
    let mut driver = driver.move_to(second);
    assert_eq!(driver.transport.save(), state);
    assert_eq!(
        driver.line.edges(),
        0,
        "the interrupt line waits for the resume"
    );
    driver.transport.resume();
    driver.add(1, &[b"after"], &[]);
    driver.kick(1);
    assert_eq!(screen.text(), b"left behind; after");
    assert!(driver.line.level());
}

#[test]
fn nothing_touches_a_paused_machine() {
    let (console, _) = console();
    let input = console.input();
    let mut driver = Driver::new(console);
    driver.add(0, &[], &[16]);
    driver.transport.pause();
    input.push(b"x");
    assert_eq!(driver.completed(0), None);
    driver.transport.resume();
    assert_eq!(driver.completed(0).unwrap(), b"x");
}

/// Whether `bend` makes a good state one that is refused, and leaves the transport alone.
#[track_caller]
fn refused(bend: impl FnOnce(&mut TransportState)) -> String {
    let mut state = Driver::new(console().0).transport.save();
    bend(&mut state);
    let (transport, _) = board(console().0, &ram());
    let before = transport.save();
    let error = transport.restore(&state).expect_err("the state is refused");
    assert_eq!(transport.save(), before);
    error.to_string()
}

#[test]
fn states_that_no_driver_can_bring_about_are_refused() {
    refused(|s| s.device_id = 27);
    refused(|s| s.status = 4);
    refused(|s| s.status |= 16);
    refused(|s| s.features |= 1 << 40);
    refused(|s| s.features &= !VERSION_1);
    refused(|s| s.interrupt_status = 4);
    refused(|s| s.queues.truncate(1));
    refused(|s| s.queues.push(s.queues[0].clone()));
    refused(|s| s.queues[0].size = 0);
    refused(|s| s.queues[0].size = 12);
    refused(|s| s.queues[0].size = 32);
    refused(|s| s.queues[0].event_idx = false);
    refused(|s| s.queues[0].desc += 8);
    refused(|s| s.queues[0].avail += 1);
    refused(|s| s.queues[0].used += 2);
    refused(|s| s.queues[0].avail = 0);
    refused(|s| s.queues[0].desc = RAM as u64 - 16);
    refused(|s| s.queues[1].used = u64::MAX - 3);
    refused(|s| s.device = Pmem::new(0, 0).save());
    assert!(refused(|s| s.queues[1].avail = RAM as u64).contains("virtio device 3"));
}

#[test]
fn persistent_memory_elsewhere_or_of_another_size_is_refused() {
    let state = Driver::new(Pmem::new(1 << 32, 4 << 20)).transport.save();
    for other in [Pmem::new(1 << 33, 4 << 20), Pmem::new(1 << 32, 2 << 20)] {
        board(other, &ram()).0.restore(&state).unwrap_err();
    }
}

#[test]
fn a_state_with_an_unknown_field_is_refused() {
    let state = Driver::new(seeded()).transport.save();
    let mut json = serde_json::to_value(&state).unwrap();
    json["device"]["position"] = 1.into();
    serde_json::from_value::<TransportState>(json).unwrap_err();
}

/// The device ends up wanting a reset, has said why, and works again after one.
#[track_caller]
fn fails(driver: &Driver) {
    assert_eq!(driver.get(STATUS), 15 | NEEDS_RESET);
    assert_eq!(driver.get(0x60) & 2, 2, "the driver is told");
    assert!(driver.line.level());
    assert!(driver.transport.fault().is_some());
    driver.kick(0);
    driver.set(STATUS, 0);
    assert_eq!(driver.get(STATUS), 0);
    assert_eq!(driver.transport.fault(), None);
    assert!(!driver.line.level());
}

/// One descriptor at index 0 is offered to the console's transmit queue.
fn transmit(addr: u64, len: u32, flags: u16, next: u16) -> Driver {
    let mut driver = Driver::new(console().0);
    driver.descriptor(1, 0, addr, len, flags, next);
    driver.offer(1, 0);
    driver.kick(1);
    driver
}

#[test]
fn a_chain_that_is_a_loop() {
    fails(&transmit(0, 16, NEXT, 0));
}

#[test]
fn a_chain_that_leaves_the_descriptor_table() {
    fails(&transmit(0, 16, NEXT, 999));
}

#[test]
fn a_buffer_outside_of_ram() {
    fails(&transmit(RAM as u64 - 8, 16, 0, 0));
    fails(&transmit(u64::MAX - 8, 16, 0, 0));
}

#[test]
fn a_buffer_of_four_gigabytes() {
    fails(&transmit(0, u32::MAX, 0, 0));
}

#[test]
fn a_chain_of_more_bytes_than_allowed() {
    fails(&transmit(0, MAX_CHAIN_BYTES as u32 + 1, 0, 0));
}

#[test]
fn an_indirect_table_that_is_too_long_or_nested() {
    fails(&transmit(0, 16 * 65536, INDIRECT, 0));
    fails(&transmit(0, 17, INDIRECT, 0));
    let mut driver = Driver::new(console().0);
    let table = driver.rings[1].desc + 16;
    driver.descriptor(1, 0, table, 16, INDIRECT, 0);
    driver.descriptor(1, 1, table, 16, INDIRECT, 0);
    driver.offer(1, 0);
    driver.kick(1);
    fails(&driver);
}

#[test]
fn a_readable_buffer_behind_a_writable_one() {
    let mut driver = Driver::new(Pmem::new(0, 0));
    driver.descriptor(0, 0, 0x1000, 4, WRITE | NEXT, 1);
    driver.descriptor(0, 1, 0x2000, 4, 0, 0);
    driver.offer(0, 0);
    driver.kick(0);
    fails(&driver);
}

#[test]
fn an_available_index_that_runs_ahead() {
    let driver = Driver::new(seeded());
    let index = driver.rings[0].avail + 2;
    driver.mem.write_obj(1000u16, GuestAddress(index)).unwrap();
    driver.kick(0);
    fails(&driver);
}

#[test]
fn a_head_outside_of_the_descriptor_table() {
    let mut driver = Driver::new(seeded());
    driver.offer(0, 0xffff);
    driver.kick(0);
    fails(&driver);
}

#[test]
fn requests_without_room_for_an_answer() {
    let mut driver = Driver::new(Pmem::new(0, 0));
    driver.add(0, &[&[0; 4]], &[3]);
    driver.kick(0);
    fails(&driver);
    let mut driver = Driver::new(seeded());
    driver.add(0, &[&[0; 4]], &[]);
    driver.kick(0);
    fails(&driver);
}

#[test]
fn rings_outside_of_ram() {
    for register in [0x80, 0x90, 0xa0] {
        let driver = Driver::new(console().0);
        driver.set(0x30, 0);
        driver.set(0x44, 0);
        driver.set(register, RAM as u32);
        driver.set(0x44, 1);
        assert_eq!(driver.get(0x44), 0);
        fails(&driver);
    }
}

/// A used ring over the available ring, one entry ahead: each completion is a new request.
#[test]
fn rings_that_feed_each_other_do_not_hang_the_machine() {
    let mut driver = Driver::with_features(seeded(), VERSION_1);
    let mut state = driver.transport.save();
    let queue = &mut state.queues[0];
    queue.used = queue.avail;
    queue.next_used = queue.next_avail.wrapping_add(1);
    for head in 0..8 {
        driver.descriptor(0, head, 0x1000, 1, WRITE, 0);
    }
    let (transport, line) = board(seeded(), &driver.mem);
    transport.restore(&state).unwrap();
    (driver.transport, driver.line) = (transport, line);
    driver.transport.resume();
    driver.offer(0, 0);
    driver.kick(0);
    fails(&driver);
}
