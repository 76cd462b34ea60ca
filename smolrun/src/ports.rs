//! Forwarded ports: a TCP listener here for each, one vsock connection to the guest for each
//! connection it takes.
//!
//! ```text
//! client -- TCP --> listener .. vsock 1026 --> smol-guest -- TCP --> 127.0.0.1:port, the service
//! ```
//! Listeners are bound before the machine starts, so that a port that is taken is told at once;
//! connections that come before the service runs wait in the listener's queue.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smol_cli::{ErrorExt, ExitKind};
use smol_machine::devices::virtio::vsock::VsockHandle;
use smol_protocol::{FORWARD_PORT, ForwardReply, ForwardRequest, LineBuffer};

use crate::report::Report;

/// Connections at a time, of all ports together; more wait in the listeners' queues.
const MAX_CONNECTIONS: usize = 1024;
/// The forwarding threads copy through one buffer each.
const STACK: usize = 192 << 10;
const BUFFER: usize = 64 << 10;

/// A port of this host and the port of the guest that it leads to: `[ip:]host:guest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Address here; 127.0.0.1 unless told otherwise. Port 0: any free one.
    pub host: SocketAddr,
    /// Port in the guest.
    pub guest: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |what: &str, text: &str, least: u16| match text.parse::<u16>() {
            Ok(port) if port >= least && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => Err(format!("{text:?} is no {what} port: {least} to 65535")),
        };
        let (rest, guest) = text
            .rsplit_once(':')
            .ok_or("expected [ip:]host:guest, as in 8080:80, 0.0.0.0:8080:80 or [::1]:8080:80")?;
        let guest = port("guest", guest, 1)?;
        let (ip, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((ip, host)) => (parse_ip(ip)?, host),
        };
        Ok(Self {
            host: SocketAddr::new(ip, port("host", host, 0)?),
            guest,
        })
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let ip = match text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(inner) => inner.parse().map(IpAddr::V6).ok(),
        None => text.parse().map(IpAddr::V4).ok(),
    };
    ip.ok_or_else(|| format!("{text:?} is no IP address (IPv6 in brackets, as in [::1]:8080:80)"))
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.host, self.guest)
    }
}

/// A port that is ours.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// With the port number that we got.
    pub publish: Publish,
}

/// Binds all of them, or none.
///
/// # Errors
/// Which one is taken, or not ours to take, and what to do.
pub fn bind(ports: &[Publish]) -> anyhow::Result<Vec<Bound>> {
    ports.iter().map(bind_one).collect()
}

fn bind_one(publish: &Publish) -> anyhow::Result<Bound> {
    let Publish { host, guest } = *publish;
    let (ip, port) = (host.ip(), host.port());
    let bound = TcpListener::bind(host).and_then(|listener| Ok((listener.local_addr()?, listener)));
    let error = match bound {
        Ok((host, listener)) => {
            return Ok(Bound {
                listener,
                publish: Publish { host, guest },
            });
        }
        Err(error) => error,
    };
    let bracketed = if ip.is_ipv6() {
        format!("[{ip}]")
    } else {
        ip.to_string()
    };
    let (message, hint) = match error.kind() {
        ErrorKind::AddrInUse => (
            format!("port {port} on {ip} is already in use"),
            Some(format!(
                "choose another one: -p {bracketed}:PORT:{guest}, or 0 for any free one"
            )),
        ),
        ErrorKind::PermissionDenied => (
            format!("no permission to use port {port} on {ip}"),
            Some(format!(
                "ports below 1024 are for root: -p {bracketed}:PORT:{guest}"
            )),
        ),
        ErrorKind::AddrNotAvailable => (
            format!("{ip} is not an address of this host"),
            Some(format!(
                "-p 0.0.0.0:{port}:{guest} listens on all IPv4 addresses"
            )),
        ),
        _ => (format!("cannot listen on {host}"), None),
    };
    let error = anyhow::Error::from(error)
        .context(message)
        .kind(ExitKind::Failed);
    Err(match hint {
        Some(hint) => error.hint(hint),
        None => error,
    })
}

/// Takes connections from here on, on threads of their own, until the process ends.
///
/// # Errors
/// If a thread cannot be started.
pub fn serve(bound: Vec<Bound>, vsock: &VsockHandle, report: &Arc<dyn Report>) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    for Bound { listener, publish } in bound {
        let door = Door {
            vsock: vsock.clone(),
            report: report.clone(),
            guest: publish.guest,
            told: Once::new(),
        };
        let (door, open) = (Arc::new(door), open.clone());
        let thread = thread::Builder::new().name(format!("port {}", publish.host.port()));
        thread.spawn(move || accept(&listener, &door, &open))?;
    }
    Ok(())
}

/// Where the connections of one port go.
struct Door {
    vsock: VsockHandle,
    report: Arc<dyn Report>,
    guest: u16,
    /// A service that refuses is told once, not at every connection.
    told: Once,
}

fn accept(listener: &TcpListener, door: &Arc<Door>, open: &Arc<AtomicUsize>) {
    loop {
        let Ok((client, _)) = listener.accept() else {
            // Out of file descriptors, most likely: the client stays in the queue.
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        while open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            thread::sleep(Duration::from_millis(5));
        }
        let count = Count::one_more(open);
        let door = door.clone();
        let thread = thread::Builder::new()
            .name("forward".into())
            .stack_size(STACK);
        // Without a thread for it the connection is dropped, which tells the client.
        let _ = thread.spawn(move || {
            let _count = count;
            door.forward(client);
        });
    }
}

/// One open connection, for as long as this lives.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one_more(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(open.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Door {
    fn forward(&self, client: TcpStream) {
        let outcome = self.ask().and_then(|guest| relay(&client, &guest));
        if let Err(error) = outcome {
            let text = format!("port {} of the guest: {error}", self.guest);
            self.told.call_once(|| self.report.note(&text));
            // A reset, as if the port were closed, and not an orderly end without an answer.
            let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
        }
    }

    /// A connection to the guest, which has been asked for one to the service.
    fn ask(&self) -> io::Result<UnixStream> {
        let mut guest = self.vsock.connect(FORWARD_PORT)?;
        let request = ForwardRequest { port: self.guest };
        guest.write_all(&smol_protocol::encode_line(&request).map_err(invalid)?)?;
        Ok(guest)
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

/// Waits until the guest has a connection to the service; what that has said already.
fn accepted(mut guest: &UnixStream) -> io::Result<Vec<u8>> {
    let mut lines = LineBuffer::default();
    let mut buffer = [0; 512];
    let line = loop {
        if let Some(line) = lines.next_line().map_err(invalid)? {
            break line;
        }
        match guest.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => lines.push(&buffer[..n]),
        }
    };
    match smol_protocol::decode_line(&line).map_err(invalid)? {
        ForwardReply { ok: true, .. } => Ok(lines.into_rest()),
        ForwardReply { error, .. } => Err(io::Error::other(
            error.unwrap_or_else(|| "the guest refuses it".into()),
        )),
    }
}

/// Copies both ways until both are at their end. What the client says goes to the guest at once, which
/// keeps it until it has a connection to the service: so the first request need not wait for that.
///
/// # Errors
/// If there is no such connection; then the client has got nothing.
fn relay(client: &TcpStream, guest: &UnixStream) -> io::Result<()> {
    let _ = client.set_nodelay(true);
    thread::scope(|scope| {
        let up = thread::Builder::new()
            .name("forward".into())
            .stack_size(STACK);
        let upward = up.spawn_scoped(scope, || {
            if copy(client, guest).is_err() {
                let _ = guest.shutdown(Shutdown::Both);
            }
            let _ = guest.shutdown(Shutdown::Write);
        });
        let first = match accepted(guest) {
            Ok(first) => first,
            Err(error) => {
                // Lets the other thread end, and tells the client nothing yet.
                let _ = client.shutdown(Shutdown::Read);
                return Err(error);
            }
        };
        let downward = |mut client: &TcpStream| {
            client.write_all(&first)?;
            copy(guest, client)
        };
        if upward.is_err() || downward(client).is_err() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = guest.shutdown(Shutdown::Both);
        }
        let _ = client.shutdown(Shutdown::Write);
        Ok(())
    })
}

/// Copies to the end of `from`.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, String> {
        text.parse::<Publish>().map(|p| p.to_string())
    }

    #[test]
    fn a_port_is_bound_to_loopback_unless_told_otherwise() {
        assert_eq!(parse("16379:6379").unwrap(), "127.0.0.1:16379 -> 6379");
        assert_eq!(parse("0.0.0.0:80:8080").unwrap(), "0.0.0.0:80 -> 8080");
        assert_eq!(parse("[::1]:80:8080").unwrap(), "[::1]:80 -> 8080");
        assert_eq!(parse("0:80").unwrap(), "127.0.0.1:0 -> 80");
    }

    #[test]
    fn malformed_ports_are_refused_with_what_is_wrong() {
        for (text, wrong) in [
            ("", "[ip:]host:guest"),
            ("80", "[ip:]host:guest"),
            ("80:", "guest port"),
            (":80", "host port"),
            ("80:0", "guest port"),
            ("80:+80", "guest port"),
            ("65536:80", "host port"),
            ("80:65536", "guest port"),
            ("a:80", "host port"),
            ("localhost:80:80", "IP address"),
            ("::1:80:80", "IP address"),
            ("[127.0.0.1]:80:80", "IP address"),
            ("1.2.3.4.5:80:80", "IP address"),
            ("80:80/udp", "guest port"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_a_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = taken.local_addr().unwrap();
        let error = bind(&[Publish { host, guest: 80 }]).unwrap_err();
        let text = smol_cli::error::render(&error, false);
        let port = host.port();
        assert!(
            text.starts_with(&format!(
                "error: port {port} on 127.0.0.1 is already in use\n"
            )),
            "{text}"
        );
        assert!(
            text.contains("hint: choose another one: -p 127.0.0.1:PORT:80"),
            "{text}"
        );
        assert_eq!(smol_cli::exit_kind(&error), ExitKind::Failed);
    }

    #[test]
    fn the_same_port_twice_is_taken_the_second_time() {
        let free = bind(&["0:80".parse().unwrap()]).unwrap().remove(0).publish;
        assert_ne!(free.host.port(), 0);
        assert!(bind(&[free, free]).is_err());
    }

    #[test]
    fn an_address_of_another_host_is_told() {
        let error = bind(&["192.0.2.1:0:80".parse().unwrap()]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("192.0.2.1 is not an address of this host"),
            "{error}"
        );
    }

    #[test]
    fn a_relay_copies_both_ways_and_passes_each_end_on_by_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let accepted = listener.accept().unwrap().0;
        let relay = thread::spawn(move || relay(&accepted, &ours));
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // The question does not wait for the guest's own answer.
        let mut asked = String::new();
        guest.read_to_string(&mut asked).unwrap();
        assert_eq!(asked, "question");
        guest.write_all(b"{\"ok\":true}\nhello ").unwrap();
        guest.write_all(b"answer").unwrap();
        drop(guest);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "hello answer");
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_guest_that_refuses_ends_it_and_the_client_has_got_nothing() {
        let refusal = &b"{\"ok\":false,\"error\":\"nobody listens\"}\n"[..];
        for (said, wanted) in [
            (refusal, "nobody listens"),
            (b"{\"o", "unexpected end of file"),
            (b"what?\n", "expected value"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, mut guest) = UnixStream::pair().unwrap();
            let accepted = listener.accept().unwrap().0;
            guest.write_all(said).unwrap();
            drop(guest);
            let error = relay(&accepted, &ours).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            drop(accepted);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "");
        }
    }
}
