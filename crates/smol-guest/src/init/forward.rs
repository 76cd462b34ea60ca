//! Forwards: the host connects, names a port, and gets a connection to the service. Two
//! threads for each connection: only a restored or cold-booted guest has any, so they need
//! not do the same things in the same order.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::net::SocketFlags;

use super::console::say;
use super::platform::HostListener;
use smol_protocol::{ForwardReply, ForwardRequest, LineBuffer, decode_line, encode_line};

/// Connections at a time; a further one is refused with a reason.
const MOST_CONNECTIONS: usize = 512;
const STACK: usize = 128 * 1024;
const BUFFER: usize = 64 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The host names its port at once.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Serves the connections to this port on threads from now on.
pub(super) fn start(listener: HostListener) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    thread::Builder::new()
        .name("forward".into())
        .stack_size(STACK)
        .spawn(move || accept(&listener, &open))?;
    Ok(())
}

fn accept(listener: &HostListener, open: &Arc<AtomicUsize>) {
    loop {
        let host = match listener.accept(SocketFlags::CLOEXEC) {
            Ok(Some(host)) => host,
            Ok(None) => continue,
            Err(e) => {
                // Out of descriptors or memory: it passes when connections end.
                say!("forward: {e}");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let slot = Slot::take(open);
        let started = thread::Builder::new()
            .name("forward".into())
            .stack_size(STACK)
            .spawn(move || match slot {
                Some(_slot) => serve(&host),
                None => refuse(
                    &host,
                    format!("{MOST_CONNECTIONS} connections are open already"),
                ),
            });
        if let Err(e) = started {
            say!("forward: no thread: {e}");
        }
    }
}

/// One of the [`MOST_CONNECTIONS`].
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Slot(Arc::clone(open));
        (open.fetch_add(1, Ordering::Relaxed) < MOST_CONNECTIONS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one connection of the host to its end.
fn serve(host: &OwnedFd) {
    let (request, early) = match read_request(host) {
        Ok(request) => request,
        Err(why) => return refuse(host, why),
    };
    let service = match connect(request.port) {
        Ok(service) => service,
        Err(e) => return refuse(host, format!("port {}: {e}", request.port)),
    };
    if reply(
        host,
        ForwardReply {
            ok: true,
            error: None,
        },
    )
    .and_then(|()| (&service).write_all(&early))
    .is_ok()
    {
        let service = OwnedFd::from(service);
        relay(host, &service);
    }
}

/// The request, and what came after its line.
fn read_request(host: &OwnedFd) -> Result<(ForwardRequest, Vec<u8>), String> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    let limit = |limit| set_socket_timeout(host, Timeout::Recv, limit).map_err(|e| e.to_string());
    limit(Some(REQUEST_LIMIT))?;
    let mut lines = LineBuffer::default();
    let line = loop {
        if let Some(line) = lines.next_line().map_err(|e| e.to_string())? {
            break line;
        }
        let mut buffer = [0; 4096];
        match rustix::io::read(host, &mut buffer) {
            Ok(0) => return Err("no request".to_owned()),
            Ok(n) => lines.push(&buffer[..n]),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(format!("no request: {e}")),
        }
    };
    limit(None)?;
    Ok((
        decode_line(&line).map_err(|e| e.to_string())?,
        lines.into_rest(),
    ))
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let to = |ip| TcpStream::connect_timeout(&SocketAddr::new(ip, port), CONNECT_LIMIT);
    let service = to(IpAddr::V4(Ipv4Addr::LOCALHOST))
        .or_else(|e| to(IpAddr::V6(Ipv6Addr::LOCALHOST)).map_err(|_| e))?;
    service.set_nodelay(true)?;
    Ok(service)
}

fn reply(host: &OwnedFd, reply: ForwardReply) -> io::Result<()> {
    write_all(host, &encode_line(&reply).map_err(io::Error::other)?)
}

fn refuse(host: &OwnedFd, why: String) {
    // A host that has gone needs no answer.
    let _ = reply(
        host,
        ForwardReply {
            ok: false,
            error: Some(why),
        },
    );
}

/// Carries bytes both ways until both sides have said that they are done, or one breaks.
fn relay(one: &OwnedFd, other: &OwnedFd) {
    thread::scope(|scope| {
        let back = thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || carry(other, one));
        match back {
            Ok(_) => carry(one, other),
            Err(e) => say!("forward: no thread: {e}"),
        }
    });
}

/// Carries bytes one way. The end of the stream is passed on; a broken one ends both ways.
fn carry(from: &OwnedFd, to: &OwnedFd) {
    let mut buffer = vec![0; BUFFER];
    let broken = loop {
        match rustix::io::read(from, &mut buffer) {
            Ok(0) => break false,
            Ok(n) if write_all(to, &buffer[..n]).is_ok() => {}
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => break true,
        }
    };
    // A side that has gone already cannot be told.
    if broken {
        let _ = shutdown(from, Shutdown::Both);
        let _ = shutdown(to, Shutdown::Both);
    } else {
        let _ = shutdown(to, Shutdown::Write);
    }
}

fn shutdown(socket: impl AsFd, how: Shutdown) -> io::Result<()> {
    let how = match how {
        Shutdown::Read => rustix::net::Shutdown::Read,
        Shutdown::Write => rustix::net::Shutdown::Write,
        Shutdown::Both => rustix::net::Shutdown::Both,
    };
    Ok(rustix::net::shutdown(socket, how)?)
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A connection of a host, served on a thread.
    fn host() -> UnixStream {
        let (ours, guests) = UnixStream::pair().unwrap();
        thread::spawn(move || serve(&OwnedFd::from(guests)));
        ours.set_read_timeout(Some(smol_testing::LIMIT)).unwrap();
        ours
    }

    fn line(stream: &mut UnixStream) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    /// A service that reads to the end, then answers with all of it, backwards.
    fn service() -> u16 {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all.reverse();
            stream.write_all(&all).unwrap();
        });
        port
    }

    #[test]
    fn a_half_closed_connection_still_gets_its_answer() {
        let mut host = host();
        // The first bytes come along with the request.
        write!(host, "{{\"port\":{}}}\nabc", service()).unwrap();
        assert_eq!(line(&mut host), "{\"ok\":true}\n");
        let long = vec![b'x'; 1_000_000];
        host.write_all(&long).unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        host.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 1_000_003);
        assert!(answer.ends_with(b"xcba"));
    }

    #[test]
    fn a_port_nobody_listens_on_is_an_error_line_and_the_end() {
        let port = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut host = host();
        writeln!(host, "{{\"port\":{port}}}").unwrap();
        let mut answer = String::new();
        host.read_to_string(&mut answer).unwrap();
        let reply: ForwardReply = decode_line(answer.as_bytes()).unwrap();
        assert!(!reply.ok);
        assert!(reply.error.unwrap().contains("refused"));
    }

    #[test]
    fn a_request_that_is_none_is_refused() {
        for bad in [
            "hello\n",
            "{\"port\":70000}\n",
            "{\"port\":1,\"host\":\"x\"}\n",
            "{\"port\":1}",
        ] {
            let mut host = host();
            host.write_all(bad.as_bytes()).unwrap();
            host.shutdown(Shutdown::Write).unwrap();
            let reply: ForwardReply = decode_line(line(&mut host).as_bytes()).unwrap();
            assert!(!reply.ok, "{bad:?}");
        }
    }

    #[test]
    fn an_endless_request_line_is_refused_at_its_limit() {
        let mut host = host();
        // The guest may stop reading before everything is written.
        let _ = host.write_all(&vec![b' '; smol_protocol::MAX_LINE]);
        let reply: ForwardReply = decode_line(line(&mut host).as_bytes()).unwrap();
        assert!(!reply.ok);
    }

    #[test]
    fn a_service_that_goes_away_ends_the_hosts_connection() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut host = host();
        writeln!(
            host,
            "{{\"port\":{}}}",
            listener.local_addr().unwrap().port()
        )
        .unwrap();
        assert_eq!(line(&mut host), "{\"ok\":true}\n");
        drop(listener.accept().unwrap());
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn slots_come_back_when_connections_end() {
        let open = Arc::new(AtomicUsize::new(MOST_CONNECTIONS - 1));
        let last = Slot::take(&open).unwrap();
        assert!(Slot::take(&open).is_none());
        drop(last);
        assert!(Slot::take(&open).is_some());
    }
}
