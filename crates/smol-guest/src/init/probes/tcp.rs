//! Is there someone who accepts a connection?

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::super::supervisor::{Interrupt, Supervisor};

/// Connects to a port of the loopback, over IPv4 or else over IPv6. The socket does not block.
pub(super) fn connect(
    port: u16,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Result<Result<OwnedFd, String>, Interrupt> {
    let four = connect_to(IpAddr::V4(Ipv4Addr::LOCALHOST), port, sup, deadline)?;
    let Err(saw) = four else { return Ok(four) };
    // A service that listens on IPv6 alone is rare: what IPv4 saw is what is told.
    Ok(connect_to(IpAddr::V6(Ipv6Addr::LOCALHOST), port, sup, deadline)?.map_err(|_| saw))
}

fn connect_to(
    to: IpAddr,
    port: u16,
    sup: &mut Supervisor,
    deadline: Instant,
) -> Result<Result<OwnedFd, String>, Interrupt> {
    let socket = match begin(SocketAddr::new(to, port)) {
        Ok(socket) => socket,
        Err(e) => return Ok(Err(describe(e))),
    };
    if !sup.wait(socket.as_fd(), PollFlags::OUT, deadline)? {
        return Ok(Err("no answer to the connection in time".to_owned()));
    }
    Ok(match rustix::net::sockopt::socket_error(&socket) {
        Ok(Ok(())) => Ok(socket),
        Ok(Err(e)) | Err(e) => Err(describe(e)),
    })
}

fn begin(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// What is seen of a port on which nothing listens.
const REFUSED: &str = "connection refused";
/// Ports that are told at most.
const MOST_TOLD: usize = 8;

fn describe(error: Errno) -> String {
    match error {
        Errno::CONNREFUSED => REFUSED.to_owned(),
        other => io::Error::from(other).to_string(),
    }
}

/// Adds to what was seen of this port on which others something listens, if nothing does on this one: the
/// number may be wrong in the Smolfile, or in the service's configuration.
pub(super) fn with_other_ports(saw: String, port: u16) -> String {
    if saw != REFUSED {
        return saw;
    }
    match told(&ports()) {
        None => format!("{saw}: nothing listens on any port"),
        Some(others) => format!("{saw}: nothing listens on {port}, but on {others}"),
    }
}

/// Adds to what was seen of this command on which ports something listens, unless the command names one of
/// them: it may ask another one.
pub(super) fn with_ports(saw: String, cmd: &[String]) -> String {
    let ports = ports();
    let numbers = cmd
        .iter()
        .flat_map(|word| word.split(|c: char| !c.is_ascii_digit()));
    let mut named = numbers.filter_map(|number| number.parse::<u16>().ok());
    match told(&ports) {
        Some(told) if !named.any(|port| ports.contains(&port)) => {
            format!("{saw}; something listens on port {told}")
        }
        _ => saw,
    }
}

/// The ports that something listens on.
fn ports() -> BTreeSet<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let tables = tables.into_iter().map(Result::unwrap_or_default);
    tables.flat_map(|table| listening(&table)).collect()
}

/// Ports as they are told; `None` if there are none.
fn told(ports: &BTreeSet<u16>) -> Option<String> {
    let mut told: Vec<String> = ports.iter().take(MOST_TOLD).map(u16::to_string).collect();
    if ports.len() > MOST_TOLD {
        told.push("others".to_owned());
    }
    match told.split_last()? {
        (last, []) => Some(last.clone()),
        (last, first) => Some(format!("{} and {last}", first.join(", "))),
    }
}

/// The ports of the sockets that listen, in a table of /proc/net/tcp (Documentation/networking/
/// proc_net_tcp.rst of the kernel).
fn listening(table: &str) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
        let (_, port) = local.rsplit_once(':')?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
    };
    table.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_that_something_listens_on_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n   \
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n   \
                     1: 0100007F:1F91 0100007F:9C40 01 00000000:00000000 00:00000000 00000000\n   \
                     2: 00000000000000000000000000000000:0050 00000000:0000 0A 00000000:00000000\n";
        assert_eq!(listening(table), [8080, 80]);
    }

    #[test]
    fn a_command_is_told_the_ports_unless_it_names_one_of_them() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let saw = |word: String| with_ports("exit code 7".to_owned(), &["curl".to_owned(), word]);
        assert_eq!(saw(format!("localhost:{port}/health")), "exit code 7");
        let told = saw("localhost/1".to_owned());
        let begin = "exit code 7; something listens on port ";
        assert!(told.starts_with(begin), "{told}");
        let ports: Vec<&str> = told[begin.len()..].split([',', ' ']).collect();
        assert!(ports.contains(&port.to_string().as_str()) || told.ends_with("others"));
    }

    #[test]
    fn other_ports_are_told_where_the_connection_is_refused_alone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = listener.local_addr().unwrap().port();
        let told = with_other_ports(REFUSED.to_owned(), 1);
        let begin = "connection refused: nothing listens on 1, but on ";
        assert!(told.starts_with(begin), "{told}");
        let ports: Vec<&str> = told[begin.len()..].split([',', ' ']).collect();
        let is_told = ports.contains(&other.to_string().as_str()) || told.ends_with("others");
        assert!(is_told, "{told}");
        assert_eq!(with_other_ports("no route".to_owned(), 1), "no route");
    }
}
