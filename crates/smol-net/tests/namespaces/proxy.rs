//! The proxy at the gateway: through a real one of the host's, and directly.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use smol_net::{Policy, Proxies, Upstream};

use crate::world::*;

const RECORDS: &str = "--host-record=a.example,198.51.100.2 --host-record=b.example,198.51.100.2 --host-record=inner.example,10.7.0.2";

/// What tinyproxy, at 198.51.100.3:8888 of the world, is configured by.
fn tinyproxy(world: &World, login: bool) -> (Program, std::path::PathBuf) {
    static UNIQUE: AtomicU32 = AtomicU32::new(0);
    let unique = UNIQUE.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("smol-net-{}-{unique}.conf", std::process::id()));
    let login = if login { "BasicAuth user secret\n" } else { "" };
    let text = format!(
        "Port 8888\nListen 198.51.100.3\nTimeout 600\nMaxClients 20\nAllow 198.51.100.0/24\n\
         ViaProxyName \"proxy.corp\"\n{login}AddHeader \"X-Through\" \"tinyproxy\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let program = world
        .servers
        .program("tinyproxy", &format!("-d -c {}", file.display()));
    world.wait_for("198.51.100.3:8888");
    (program, file)
}

/// The environment of a host with this proxy.
fn with_proxy(url: &str, except: &str) -> Upstream {
    let variable = |name: &str| match name {
        "http_proxy" | "HTTPS_PROXY" => Some(url.to_owned()),
        "NO_PROXY" => Some(except.to_owned()),
        _ => None,
    };
    Upstream {
        proxies: Proxies::from_variables(variable, "").unwrap(),
        ..with_dns()
    }
}

/// Serves this many connections: reads a head (and a body of three bytes, of a POST), and answers with it.
fn web(world: &World, address: &str, connections: usize) -> JoinHandle<Vec<String>> {
    let listener = world.servers.listen(address);
    thread::spawn(move || {
        let serve = |_| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            let whole = |asked: &[u8]| {
                let end = if asked.starts_with(b"POST") {
                    &b"\r\n\r\nxyz"[..]
                } else {
                    b"\r\n\r\n"
                };
                asked.windows(end.len()).any(|bytes| bytes == end)
            };
            while !whole(&asked) {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    n => asked.extend(&buffer[..n]),
                }
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                .unwrap();
            // Whatever else comes, in time.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut asked).unwrap();
            String::from_utf8(asked).unwrap()
        };
        (0..connections).map(serve).collect()
    })
}

/// Asks the proxy of the guest.
fn ask(world: &World, request: &str) -> String {
    let mut stream = world
        .guest
        .connect("192.0.0.1:3128".parse().unwrap())
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// Asks for a connection; returns it once the proxy says that it is there.
fn connect(world: &World, to: &str) -> Result<TcpStream, String> {
    let mut stream = world
        .guest
        .connect("192.0.0.1:3128".parse().unwrap())
        .unwrap();
    write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    match head.starts_with("HTTP/1.1 200 ") {
        true => Ok(stream),
        false => Err(head),
    }
}

#[test]
fn requests_go_through_the_hosts_proxy_with_its_credentials() {
    if !possible() {
        return;
    }
    for login in [false, true] {
        let world = World::new();
        let _dns = world.dns(RECORDS);
        let (_proxy, file) = tinyproxy(&world, login);
        let url = match login {
            true => "http://user:secret@198.51.100.3:8888",
            false => "http://198.51.100.3:8888",
        };
        // The proxy resolves by the machine's own resolver, which does not know our names: addresses.
        let policy = Policy::listed(rules(&["198.51.100.2:80", "198.51.100.2:443"]));
        let network = world.network(policy, with_proxy(url, ""));
        let server = web(&world, "198.51.100.2:80", 2);
        let get = "GET http://198.51.100.2/x HTTP/1.1\r\nHost: evil\r\nProxy-Authorization: Basic eA==\r\n\r\n";
        let answer = ask(&world, get);
        assert!(
            answer.starts_with("HTTP/1.") && answer.ends_with("\r\n\r\nhello"),
            "{answer}"
        );
        assert!(!answer.contains("proxy.corp"), "{answer}");
        let post = "POST http://198.51.100.2/y HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyz\
                    GET http://198.51.100.2/hidden HTTP/1.1\r\n\r\n";
        assert!(ask(&world, post).ends_with("\r\n\r\nhello"));
        let asked = server.join().unwrap();
        assert!(asked[0].starts_with("GET /x HTTP/1."), "{}", asked[0]);
        assert!(asked[0].contains("198.51.100.2") && !asked[0].contains("evil"));
        assert!(
            asked.iter().all(|asked| asked.contains("tinyproxy")),
            "{asked:?}"
        );
        assert!(
            asked[1].ends_with("xyz") && !asked[1].contains("hidden"),
            "{}",
            asked[1]
        );
        assert!(!format!("{asked:?}").contains("secret"));

        let listener = world.servers.listen("198.51.100.2:443");
        let mut tunnel = connect(&world, "198.51.100.2:443").unwrap();
        let (mut server, from) = listener.accept().unwrap();
        assert_ne!(from.ip().to_string(), HOST, "not the proxy's address");
        let much = vec![7; 3 << 20];
        let sent = much.clone();
        let writer = thread::spawn(move || {
            tunnel.write_all(&sent).unwrap();
            tunnel.shutdown(std::net::Shutdown::Write).unwrap();
            tunnel
        });
        let mut came = Vec::new();
        server.read_to_end(&mut came).unwrap();
        assert!(came == much);
        drop(server);
        let mut tunnel = writer.join().unwrap();
        tunnel.read_to_end(&mut Vec::new()).unwrap();
        let refused_head = connect(&world, "198.51.100.2:444").unwrap_err();
        assert!(refused_head.starts_with("HTTP/1.1 403 "), "{refused_head}");
        assert_eq!(refused(&network.report()), ["198.51.100.2:444"]);
        std::fs::remove_file(file).unwrap();
    }
}

#[test]
fn credentials_that_the_proxy_refuses_are_told_without_them() {
    if !possible() {
        return;
    }
    let world = World::new();
    let _dns = world.dns(RECORDS);
    let (_proxy, _file) = tinyproxy(&world, true);
    // Without any, it says that it wants some; to false ones it answers as a server would (401).
    let upstream = with_proxy("http://198.51.100.3:8888", "");
    let network = world.network(Policy::all(), upstream);
    let answer = ask(&world, "CONNECT 198.51.100.2:443 HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("credentials"),
        "{answer}"
    );
    let answer = ask(&world, "GET http://198.51.100.2/ HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && answer.contains("credentials"),
        "{answer}"
    );
    assert!(
        !answer.contains("Authenticate") && !answer.contains("tinyproxy"),
        "{answer}"
    );
    network.report();
    let world = World::new();
    let _dns = world.dns(RECORDS);
    let (_proxy, file) = tinyproxy(&world, true);
    let upstream = with_proxy("http://user:wrong@198.51.100.3:8888", "");
    let network = world.network(Policy::all(), upstream);
    let answer = ask(&world, "CONNECT 198.51.100.2:443 HTTP/1.1\r\n\r\n");
    assert!(
        answer.starts_with("HTTP/1.1 502 ") && !answer.contains("wrong"),
        "{answer}"
    );
    network.report();
    std::fs::remove_file(file).unwrap();
}

#[test]
fn what_the_host_has_no_proxy_for_is_reached_directly_by_its_name() {
    if !possible() {
        return;
    }
    let world = World::new();
    let _dns = world.dns(RECORDS);
    // Nobody is at that address.
    let upstream = with_proxy("http://198.51.100.2:1", "a.example,inner.example");
    let policy = Policy::listed(rules(&[
        "a.example:80",
        "a.example:443",
        "inner.example",
        "b.example",
    ]));
    let network = world.network(policy, upstream);
    let server = web(&world, "198.51.100.2:80", 1);
    let answer = ask(
        &world,
        "GET http://a.example/x?y HTTP/1.1\r\nHost: b\r\n\r\n",
    );
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    assert!(server.join().unwrap()[0].starts_with("GET /x?y HTTP/1.1\r\nHost: a.example\r\n"));

    let listener = world.servers.listen("198.51.100.2:443");
    let mut tunnel = connect(&world, "A.example:443").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"first").unwrap();
    let mut first = [0; 5];
    tunnel.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"first");

    for (to, status) in [
        ("a.example:444", "403"),
        ("c.example:443", "403"),
        ("198.51.100.2:443", "403"),
        ("127.0.0.1:80", "403"),
        ("[::ffff:127.0.0.1]:80", "403"),
        ("localhost:80", "400"),
        ("2130706433:80", "400"),
        ("a.example:853", "403"),
        ("inner.example:80", "403"),
        ("b.example:1", "502"),
    ] {
        // `a.example` is bound to the address by now, but not at every port.
        let to = if to == "198.51.100.2:443" {
            "198.51.100.2:445"
        } else {
            to
        };
        let head = connect(&world, to).unwrap_err();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{to}: {head}"
        );
    }
    network.report();
}

#[test]
fn a_proxy_can_be_offered_without_one_of_the_hosts() {
    if !possible() {
        return;
    }
    let world = World::new();
    let _dns = world.dns(RECORDS);
    let upstream = Upstream {
        offer_proxy: true,
        ..with_dns()
    };
    let told = upstream.guest_variables();
    assert!(told.contains(&("https_proxy".into(), "http://192.0.0.1:3128".into())));
    let network = world.network(Policy::all(), upstream);
    let server = web(&world, "198.51.100.2:80", 1);
    let chunked = "POST http://a.example/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nxyz\r\n0\r\n\r\nGET http://b.example/ HTTP/1.1\r\n\r\n";
    // The server stops at what it takes for the end of the body; all of it came, and no more.
    let answer = ask(&world, &chunked.replace("3\r\nxyz", "7\r\n\r\n\r\nxyz"));
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let asked = server.join().unwrap();
    assert!(asked[0].ends_with("xyz\r\n0\r\n\r\n"), "{}", asked[0]);
    network.report();
    // Without one, nobody is at its port, but the host's loopback, which is not allowed.
    let world = World::new();
    let network = world.open_network();
    assert!(
        world
            .guest
            .connect("192.0.0.1:3128".parse().unwrap())
            .is_err()
    );
    network.report();
}
