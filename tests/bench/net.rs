//! The network of a guest, between network namespaces of this host: one TCP flow each way, and connections
//! one after the other, through smol-net and through others who do the same. The guest's kernel is this
//! host's: so this is what the stacks cost, without a machine's vsock.

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../../crates/smol-net/tests/namespaces/world.rs"]
mod world;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use smol_tests::host::Host;
use world::{Namespace, SERVER, World};

use crate::Times;

/// Bytes of a flow.
const VOLUME: usize = 2 << 30;
/// Connections that are made.
const CONNECTIONS: usize = 2000;
const MS: f64 = 1000.0;

/// Prints the figures and returns them.
///
/// # Panics
/// If it is not root, or passt or slirp4netns is missing.
pub fn measure(_: &Host) -> Value {
    assert!(world::possible(), "network namespaces cannot be made here");
    println!("\nthe network of a guest: a flow out, a flow in, connections (median time of one)");
    let world = World::new();
    let direct = figures("the host itself", &world, &world.host);

    let network = world.open_network();
    let ours = figures("smol-net", &world, &world.guest);
    network.report();
    let whole = ["out", "in"].map(|way| !ours[way].is_null());
    assert_eq!(whole, [true; 2], "a flow through smol-net broke off");

    // pasta takes its addresses from the interface that the default route names.
    world
        .host
        .ip(&format!("route add default via {SERVER} dev out"));
    let other = |name: &str, program: &'static str, arguments: &str| {
        let guest = Namespace::new();
        let named = Named::new(&guest);
        let arguments = arguments.replace("NETNS", &named.path());
        let _running = world.host.program(program, &arguments);
        wait_for_route(&guest);
        figures(name, &world, &guest)
    };
    let passt = other(
        "passt (pasta)",
        "pasta",
        "--foreground --config-net --ipv4-only --no-map-gw --runas 0 --netns NETNS",
    );
    let slirp = other(
        "slirp4netns",
        "slirp4netns",
        "--configure --mtu=65520 --netns-type=path NETNS tap0",
    );
    json!({"direct": direct, "smolNet": ours, "passt": passt, "slirp4netns": slirp})
}

/// A name of a namespace among files: pasta may not open those of other processes.
struct Named(String);

impl Named {
    fn new(namespace: &Namespace) -> Self {
        let named = Named(format!("smol-bench-{}", namespace.thread()));
        named.ip("attach", &[&namespace.thread()]);
        named
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    fn ip(&self, command: &str, more: &[&str]) {
        let mut ip = Command::new("ip");
        ip.args(["netns", command, &self.0]).args(more);
        assert!(ip.status().expect("iproute2").success(), "{ip:?}");
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.ip("delete", &[]);
    }
}

/// Waits until there is a way out of a namespace.
fn wait_for_route(namespace: &Namespace) {
    let to: SocketAddr = format!("{SERVER}:9").parse().expect("an address");
    let begin = Instant::now();
    let is_there = move || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.connect(to).is_ok()
    };
    while !namespace.run(is_there) {
        assert!(begin.elapsed() < Duration::from_secs(30), "no way out");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Measures from this namespace to a server of the world.
fn figures(name: &str, world: &World, from: &Namespace) -> Value {
    let out = flow(world, from, true);
    let back = flow(world, from, false);
    let connect = connections(world, from);
    let shown = |rate: Option<f64>| match rate {
        Some(rate) => format!("{rate:>6.1} Gbit/s"),
        None => format!("{:>13}", "broke off"),
    };
    println!(
        "  {name:<16} {} out  {} in  {}",
        shown(out),
        shown(back),
        connect.show()
    );
    json!({"out": out, "in": back, "connect": connect})
}

/// Gbit/s of one flow; `None` if it broke off.
fn flow(world: &World, from: &Namespace, out: bool) -> Option<f64> {
    let listener = world.servers.listen(&format!("{SERVER}:0"));
    let client = from.connect(listener.local_addr().expect("it is bound"));
    let client = client.expect("the server is there");
    let (server, _) = listener.accept().expect("a connection");
    let (mut writer, mut reader) = if out {
        (client, server)
    } else {
        (server, client)
    };
    let begin = Instant::now();
    let writing = thread::spawn(move || {
        let piece = vec![7; 256 << 10];
        for _ in 0..VOLUME / piece.len() {
            writer.write_all(&piece)?;
        }
        writer.shutdown(Shutdown::Write)?;
        // Until the other side has everything.
        writer.read(&mut [0])
    });
    let (mut buffer, mut total) = (vec![0; 256 << 10], 0);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => total += n,
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    drop(reader);
    let _ = writing.join().expect("it does not panic");
    (total == VOLUME).then_some(total as f64 * 8.0 / 1e9 / seconds)
}

/// The time until a connection stands and has carried a byte both ways.
fn connections(world: &World, from: &Namespace) -> Times {
    let listener = world.servers.listen(&format!("{SERVER}:0"));
    let to = listener.local_addr().expect("it is bound");
    thread::spawn(move || echo(&listener));
    let made = move || {
        let times = (0..CONNECTIONS).map(|_| {
            let begin = Instant::now();
            let mut stream = TcpStream::connect(to).expect("the server is there");
            stream.write_all(b"x").expect("an open connection");
            stream.read_exact(&mut [0]).expect("the byte comes back");
            begin.elapsed().as_secs_f64() * MS
        });
        times.collect()
    };
    Times::of(from.run(made))
}

fn echo(listener: &TcpListener) {
    for _ in 0..CONNECTIONS {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a byte");
        stream.write_all(&byte).expect("an open connection");
    }
}
