//! Three network namespaces: of a guest, with the TUN interface that smol-guest makes in it; of a host,
//! which serves its network; and of the world, in which servers are. They are namespaces of threads of this
//! process: a socket stays in the one that it was made in, whoever uses it.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::thread::UnshareFlags;
use smol_net::{Policy, Report, Stop, Upstream, serve};
use smol_sandbox::{Filter, Mode};
use smol_testing::{LIMIT, left_out};

/// Addresses of the world.
pub const SERVER: &str = "198.51.100.2";
pub const OTHER: &str = "198.51.100.3";
pub const SERVER_V6: &str = "2001:db8:1::2";
/// The address of its DNS server, which is the host's.
pub const DNS: &str = "198.51.100.53";
/// The host's addresses.
pub const HOST: &str = "198.51.100.1";
pub const HOST_V6: &str = "2001:db8:1::1";
/// An address that the host has a route to, and at which nobody is.
pub const DEAD: &str = "198.51.100.99";
pub const DEAD_V6: &str = "2001:db8:dead::1";
/// A private address of the world.
pub const PRIVATE: &str = "10.7.0.2";

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Namespace {
    jobs: Sender<Job>,
    thread: rustix::process::Pid,
}

#[allow(dead_code, reason = "the benchmark and the tests use different parts")]
impl Namespace {
    /// A fresh one, whose loopback is up.
    pub fn new() -> Self {
        let (jobs, queue) = channel::<Job>();
        let (ready, is_ready) = channel();
        thread::spawn(move || {
            // SAFETY: only CLONE_FILES could take descriptors away from other threads.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
            ready.send(rustix::thread::gettid()).expect("is waited for");
            queue.into_iter().for_each(|job| job());
        });
        let thread = is_ready.recv().expect("the thread has a namespace");
        let namespace = Namespace { jobs, thread };
        namespace.ip("link set lo up");
        namespace
    }

    /// The number of its thread.
    pub fn thread(&self) -> String {
        self.thread.as_raw_nonzero().to_string()
    }

    /// Runs this in it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, is_done) = channel();
        let job = move || {
            let _ = done.send(job());
        };
        self.jobs.send(Box::new(job)).expect("the thread lives");
        is_done.recv().expect("the job did not panic")
    }

    /// Runs this in it on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        self.run(move || thread::spawn(job))
    }

    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let shown = arguments.join(" ");
        let done = self.run(move || Command::new("ip").args(arguments).status());
        assert!(done.expect("iproute2").success(), "ip {shown}");
    }

    /// Starts a program in it, which ends with the returned value.
    pub fn program(&self, name: &'static str, arguments: &str) -> Program {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let child = self.run(move || {
            let mut command = Command::new(name);
            command.args(arguments).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn()
        });
        Program(child.unwrap_or_else(|e| panic!("{name}: {e}")))
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        let at: SocketAddr = address.parse().unwrap();
        self.run(move || TcpListener::bind(at)).unwrap()
    }

    pub fn udp(&self, address: &str) -> UdpSocket {
        let at: SocketAddr = address.parse().unwrap();
        let socket = self.run(move || UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    pub fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.run(move || TcpStream::connect(to))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        Ok(stream)
    }
}

/// A program that runs.
pub struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The three namespaces.
pub struct World {
    pub guest: Namespace,
    pub host: Namespace,
    pub servers: Namespace,
}

/// Whether namespaces can be made here; says why not.
pub fn possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        left_out("network namespaces take root");
        return false;
    }
    for program in ["ip", "dnsmasq", "tinyproxy"] {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| fs::exists(format!("{folder}/{program}")).unwrap_or(false));
        if !found {
            left_out(format!("there is no {program}"));
            return false;
        }
    }
    if !fs::exists("/dev/net/tun").unwrap_or(false) {
        left_out("there is no /dev/net/tun");
        return false;
    }
    true
}

impl World {
    pub fn new() -> Self {
        let (guest, host, servers) = (Namespace::new(), Namespace::new(), Namespace::new());
        let there = servers.thread.as_raw_nonzero();
        host.ip(&format!(
            "link add out type veth peer name in netns {there}"
        ));
        // Fresh addresses of IPv6 are used at once.
        for (namespace, link, addresses) in [
            (&host, "out", &[HOST, HOST_V6, "10.7.0.1"][..]),
            (
                &servers,
                "in",
                &[SERVER, OTHER, DNS, SERVER_V6, PRIVATE][..],
            ),
        ] {
            for address in addresses {
                let v6 = address.parse::<IpAddr>().unwrap().is_ipv6();
                let rest = if v6 { "64 nodad" } else { "24" };
                let (bits, nodad) = rest.split_once(' ').unwrap_or((rest, ""));
                let command = format!("addr add {address}/{bits} dev {link} {nodad}");
                namespace.ip(command.trim_end());
            }
            namespace.ip(&format!("link set {link} up"));
        }
        host.run(|| fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"))
            .unwrap();
        // Nobody answers for these: packets are lost on the way.
        host.ip("route add blackhole 203.0.113.0/24");
        World {
            guest,
            host,
            servers,
        }
    }

    /// Gives the guest its network.
    pub fn network(&self, policy: Policy, upstream: Upstream) -> Network {
        let (ours, guests) = UnixStream::pair().unwrap();
        self.guest
            .run(move || smol_guest::init::tun::start(OwnedFd::from(guests)))
            .expect("a TUN interface");
        let stop = Stop::new().unwrap();
        let handle = stop.clone();
        let serving = self.host.spawn(move || {
            // As it is served by smolbuild.
            Filter::Network.restrict_thread(Mode::On).expect("seccomp");
            serve(ours, &policy, &upstream, &handle)
        });
        Network { stop, serving }
    }

    /// The same with a policy of everything, and the world's DNS server.
    pub fn open_network(&self) -> Network {
        self.network(Policy::all(), with_dns())
    }

    /// Starts the DNS server, with these options of dnsmasq.
    pub fn dns(&self, options: &str) -> Program {
        let fixed = format!(
            "--keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --no-daemon \
             --bind-interfaces --listen-address={DNS} --pid-file= --user=root --cache-size=0 {options}"
        );
        let words: Vec<&str> = fixed.split_ascii_whitespace().collect();
        let program = self.servers.program("dnsmasq", &words.join(" "));
        self.wait_for(&format!("{DNS}:53"));
        program
    }

    /// Waits until somebody listens at this address of the world.
    pub fn wait_for(&self, address: &str) {
        let at: SocketAddr = address.parse().unwrap();
        let begin = std::time::Instant::now();
        while self.servers.run(move || TcpStream::connect(at)).is_err() {
            assert!(begin.elapsed() < LIMIT, "nobody listens at {address}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The world's DNS server, and no proxies.
pub fn with_dns() -> Upstream {
    Upstream {
        servers: vec![format!("{DNS}:53").parse().unwrap()],
        ..Upstream::default()
    }
}

#[allow(dead_code, reason = "the benchmark and the tests use different parts")]
/// What a socket receives. With a limit of time, the kernel does not go on after an interruption itself.
pub fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

#[allow(dead_code, reason = "the benchmark and the tests use different parts")]
pub fn rules(rules: &[&str]) -> Vec<smol_net::Rule> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

/// A network that is being served.
pub struct Network {
    stop: Stop,
    serving: JoinHandle<Result<Report, smol_net::Error>>,
}

impl Network {
    /// Ends it.
    pub fn report(self) -> Report {
        self.stop.stop();
        self.serving.join().unwrap().unwrap()
    }
}

/// The targets of what was refused.
pub fn refused(report: &Report) -> Vec<&str> {
    report
        .refused
        .iter()
        .map(|refusal| refusal.target.as_str())
        .collect()
}
