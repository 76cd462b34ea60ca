//! Port forwarding: a TCP listener for each port, and a vsock connection to the guest for each
//! connection that is accepted.
//!
//! ```text
//! client -- TCP --> listener .. vsock 1026 --> smol-guest -- TCP --> 127.0.0.1:port, the service
//! ```
//! Listeners are bound before the machine starts, so that a port that is in use is reported at once;
//! connections that come before the service runs wait in the listener's queue.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use smol_cli::{ErrorExt, ExitKind};
use smol_machine::devices::virtio::vsock::VsockHandle;
use smol_protocol::{FORWARD_PORT, ForwardReply, ForwardRequest, LineBuffer};

use crate::run::output::Output;
use crate::run::publish::Publish;
use crate::run::report::Report;

/// Connections at a time, of all ports together; more wait in the listeners' queues.
const MAX_CONNECTIONS: usize = 1024;
/// How long to wait before the next connection is taken, when one could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// How often it is checked whether there may be one more connection.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The forwarding threads copy through one buffer each.
const STACK: usize = 192 << 10;
const BUFFER: usize = 64 << 10;

/// A port with its listener.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    /// With the port number that was bound.
    pub publish: Publish,
}

/// Binds all of them, or none.
///
/// # Errors
/// If a port is in use or may not be used, with what to do.
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

/// Accepts connections from here on, on threads of their own, until the process ends. What the guest
/// says when `output` is closed reaches no client.
///
/// # Errors
/// If a thread cannot be started.
pub fn serve(
    bound: Vec<Bound>,
    vsock: &VsockHandle,
    output: &Arc<Output>,
    report: &Arc<dyn Report>,
) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    for Bound { listener, publish } in bound {
        let forward = PortForward {
            vsock: vsock.clone(),
            output: output.clone(),
            report: report.clone(),
            guest: publish.guest,
            reported: Once::new(),
        };
        let (forward, open) = (Arc::new(forward), open.clone());
        let thread = thread::Builder::new().name(format!("port {}", publish.host.port()));
        thread.spawn(move || accept(&listener, &forward, &open))?;
    }
    Ok(())
}

/// Where the connections of one port go.
struct PortForward {
    vsock: VsockHandle,
    output: Arc<Output>,
    report: Arc<dyn Report>,
    guest: u16,
    /// A refusal is reported once, not at every connection.
    reported: Once,
}

fn accept(listener: &TcpListener, forward: &Arc<PortForward>, open: &Arc<AtomicUsize>) {
    loop {
        let Ok((client, _)) = listener.accept() else {
            // Out of file descriptors, most likely: the client stays in the queue.
            thread::sleep(ACCEPT_PAUSE);
            continue;
        };
        while open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            thread::sleep(POLL_INTERVAL);
        }
        let count = Count::one_more(open);
        let forward = forward.clone();
        let thread = thread::Builder::new()
            .name("forward".into())
            .stack_size(STACK);
        // If there can be no thread, the connection is dropped, which the client sees.
        let _ = thread.spawn(move || {
            let _count = count;
            forward.connect(client);
        });
    }
}

/// Counts an open connection until it is dropped.
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

impl PortForward {
    fn connect(&self, client: TcpStream) {
        let outcome = self
            .ask()
            .and_then(|guest| relay(&client, &guest, &self.output));
        if let Err(error) = outcome {
            let text = format!("port {} of the guest: {error}", self.guest);
            self.reported.call_once(|| self.report.note(&text));
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
/// keeps it until it has a connection to the service, so the first request does not wait for that.
///
/// # Errors
/// If there is no such connection; then nothing was sent to the client.
fn relay(client: &TcpStream, guest: &UnixStream, output: &Output) -> io::Result<()> {
    let _ = client.set_nodelay(true);
    thread::scope(|scope| {
        let up = thread::Builder::new()
            .name("forward".into())
            .stack_size(STACK);
        let upward = up.spawn_scoped(scope, || {
            if copy(client, guest, || false).is_err() {
                let _ = guest.shutdown(Shutdown::Both);
            }
            let _ = guest.shutdown(Shutdown::Write);
        });
        let first = match accepted(guest) {
            Ok(first) => first,
            Err(error) => {
                // Lets the other thread end; the client does not see that yet.
                let _ = client.shutdown(Shutdown::Read);
                return Err(error);
            }
        };
        let downward =
            |client: &TcpStream| copy((&first[..]).chain(guest), client, || output.is_closed());
        if upward.is_err() || downward(client).is_err() {
            let _ = client.shutdown(Shutdown::Both);
            let _ = guest.shutdown(Shutdown::Both);
        }
        let _ = client.shutdown(Shutdown::Write);
        Ok(())
    })
}

/// Copies to the end of `from`, or until what is read is to be dropped because of `closed`.
fn copy(mut from: impl Read, mut to: impl Write, closed: impl Fn() -> bool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(_) if closed() => return Err(ErrorKind::ConnectionAborted.into()),
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

    fn output() -> Output {
        Output::new(false, None)
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
        let relay = thread::spawn(move || relay(&accepted, &ours, &output()));
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
            let error = relay(&accepted, &ours, &output()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            drop(accepted);
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "");
        }
    }
    #[test]
    fn what_the_guest_says_after_the_machine_has_failed_reaches_no_client() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let accepted = listener.accept().unwrap().0;
        let output = Arc::new(output());
        let relay = thread::spawn({
            let output = output.clone();
            move || relay(&accepted, &ours, &output)
        });
        guest.write_all(b"{\"ok\":true}\nbefore").unwrap();
        let mut seen = [0; 6];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"before");
        output.close();
        guest.write_all(b"after").unwrap();
        let mut rest = String::new();
        client.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        relay.join().unwrap().unwrap();
    }
}
