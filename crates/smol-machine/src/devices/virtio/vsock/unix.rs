//! The host's side of a live machine: Unix stream sockets, and a thread that waits for them.
//!
//! The thread holds no connection of its own. It polls the streams that the device has it watch,
//! notes which are ready and has the device served ([`Waker`]); the device moves the bytes. It also
//! reads the `CONNECT` lines of new clients of the machine's socket, and calls the listeners of this
//! process.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::Waker;
use super::host::{ConnectRequest, Host, Token, Watch};
use super::stream::{Ready, Rest, Stream};

/// Clients of the machine's socket that have yet to send their whole `CONNECT` line, and
/// requests that have yet to reach the guest. A new client displaces the oldest.
const MAX_WAITING: usize = 128;

/// Longest `CONNECT` line: the word, a space, ten digits, a line end, and then some.
const MAX_LINE: usize = 32;

/// How long [`VsockHandle::connect`] waits for the guest's answer.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type Listener = Box<dyn FnOnce(UnixStream) + Send>;

/// What the device, the thread and the handles share.
struct Shared {
    state: Mutex<State>,
    /// A byte here ends the thread's wait.
    poke: UnixStream,
}

#[derive(Default)]
struct State {
    /// The machine is gone.
    closed: bool,
    waker: Option<Waker>,
    requests: Vec<ConnectRequest>,
    listeners: HashMap<u32, Listener>,
    /// Connections of the guest that their listeners have yet to be given.
    accepted: Vec<(Listener, UnixStream)>,
    watch: Vec<Watch>,
    timeout: Option<Duration>,
    events: Vec<(Token, Ready)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poke(&self) {
        // Full means that a poke is on its way already.
        let _ = (&self.poke).write(&[0]);
    }

    /// Queues a connection to the guest for the device to make.
    fn request(&self, request: ConnectRequest) -> io::Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(io::Error::new(
                ErrorKind::NotConnected,
                "the machine is gone",
            ));
        }
        if state.requests.len() >= MAX_WAITING {
            return Err(io::Error::new(
                ErrorKind::WouldBlock,
                format!("{MAX_WAITING} connections wait for the guest already"),
            ));
        }
        state.requests.push(request);
        Ok(())
    }
}

/// Connects to the guest of a live machine, and listens for it, from within this process.
#[derive(Clone)]
pub struct VsockHandle(Arc<Shared>);

impl VsockHandle {
    /// Connects to `port` in the guest and waits for its answer, up to [`CONNECT_TIMEOUT`].
    /// Not to be called from a listener.
    ///
    /// # Errors
    /// As for [`VsockHandle::connect_timeout`].
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        self.connect_timeout(port, CONNECT_TIMEOUT)
    }

    /// Connects to `port` in the guest and waits for its answer, up to `timeout`. Not to be
    /// called from a listener.
    ///
    /// # Errors
    /// `ConnectionRefused` if nothing listens there or the machine ends, `TimedOut` if the guest
    /// does not answer, `NotConnected` if the machine is gone, `WouldBlock` if too many
    /// connections wait for the guest already.
    pub fn connect_timeout(&self, port: u32, timeout: Duration) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let (accepted, answer) = sync_channel(1);
        self.0.request(ConnectRequest {
            port,
            stream: Box::new(SocketStream::new(theirs, Some(Asker::Thread(accepted)))?),
        })?;
        self.0.poke();
        match answer.recv_timeout(timeout) {
            Ok(()) => Ok(ours),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::new(
                ErrorKind::ConnectionRefused,
                format!("the guest refused a connection to its vsock port {port}"),
            )),
            Err(RecvTimeoutError::Timeout) => Err(io::Error::new(
                ErrorKind::TimedOut,
                format!(
                    "the guest did not answer a connection to its vsock port {port} within {timeout:?}"
                ),
            )),
        }
    }

    /// Has `listener` called with the next connection that the guest makes to `port` of the host;
    /// those after it are refused, as those to a port without a listener are. A later listener of
    /// the same port takes its place. It runs on the device's thread: it must not block, a stream
    /// that wants attention gets a thread of its own.
    pub fn listen(&self, port: u32, listener: impl FnOnce(UnixStream) + Send + 'static) {
        self.0.lock().listeners.insert(port, Box::new(listener));
    }
}

/// Unix sockets as the host's side of the device.
pub struct UnixHost {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    path: Option<PathBuf>,
}

impl UnixHost {
    /// Listens on `path`, if there is one, and starts the thread. The socket is removed when the
    /// device is dropped.
    ///
    /// # Errors
    /// If the socket cannot be created (also when `path` exists) or the thread not be started.
    pub fn new(path: Option<&Path>) -> io::Result<(Self, VsockHandle)> {
        let (poke, poked) = UnixStream::pair()?;
        poke.set_nonblocking(true)?;
        poked.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            poke,
        });
        let mut host = Self {
            shared: shared.clone(),
            thread: None,
            path: None,
        };
        let mut clients = None;
        if let Some(path) = path {
            let listener = UnixListener::bind(path).map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("cannot listen on {}: {e}", path.display()),
                )
            })?;
            host.path = Some(path.to_owned()); // from here on it is ours to remove
            listener.set_nonblocking(true)?;
            clients = Some(listener);
        }
        let pump = Pump {
            shared: shared.clone(),
            poked,
            clients,
            waiting: Vec::new(),
        };
        let thread = thread::Builder::new().name("vsock".into());
        host.thread = Some(thread.spawn(move || pump.run())?);
        Ok((host, VsockHandle(shared)))
    }

    /// Whether this is the device's own thread.
    fn on_thread(&self) -> bool {
        let thread = self.thread.as_ref().map(|thread| thread.thread().id());
        thread == Some(thread::current().id())
    }

    /// Returns a connection to the listener of the port, which takes no other one.
    fn open_listener(&self, port: u32) -> Option<SocketStream> {
        let mut state = self.shared.lock();
        if !state.listeners.contains_key(&port) {
            return None;
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        let stream = SocketStream::new(theirs, None).ok()?;
        let listener = state.listeners.remove(&port)?;
        state.accepted.push((listener, ours));
        drop(state);
        self.shared.poke();
        Some(stream)
    }

    /// Returns a connection to `<path>_<port>`, made without waiting.
    fn open_path(&self, port: u32) -> Option<UnixStream> {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
        let mut path = self.path.clone()?.into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(path).ok()?;
        let stream = UnixStream::from(socket(AddressFamily::UNIX, SocketType::STREAM, None).ok()?);
        stream.set_nonblocking(true).ok()?;
        connect(&stream, &address).ok()?;
        Some(stream)
    }
}

impl Host for UnixHost {
    fn open(&mut self, port: u32) -> Option<Box<dyn Stream>> {
        let stream = match self.open_listener(port) {
            Some(stream) => stream,
            None => SocketStream::new(self.open_path(port)?, None).ok()?,
        };
        Some(Box::new(stream))
    }

    fn attach(&mut self, waker: Waker) {
        self.shared.lock().waker = Some(waker);
    }

    fn requests(&mut self, limit: usize) -> Vec<ConnectRequest> {
        let requests = &mut self.shared.lock().requests;
        requests.drain(..limit.min(requests.len())).collect()
    }

    fn events(&mut self) -> Vec<(Token, Ready)> {
        std::mem::take(&mut self.shared.lock().events)
    }

    fn watch(&mut self, list: Vec<Watch>, timeout: Option<Duration>) {
        let mut state = self.shared.lock();
        state.watch = list;
        state.timeout = timeout;
        state.events.clear();
        drop(state);
        if !self.on_thread() {
            self.shared.poke(); // it still waits for what was watched before
        }
    }

    fn poke(&mut self) {
        self.shared.poke();
    }

    /// On a thread of their own: the readers may wait for the one that calls.
    fn leave(&mut self, rests: Vec<Rest>) {
        // Without a thread they end early, as they do where the whole process does.
        let thread = thread::Builder::new().name("vsock-rest".into());
        let _ = thread.spawn(move || write_out(rests));
    }
}

/// Returns when each stream has taken all of its bytes, or takes no more.
fn write_out(mut rests: Vec<Rest>) {
    while !rests.is_empty() {
        let sockets = rests.iter().map(|rest| &*rest.socket);
        let mut fds: Vec<_> = sockets.map(|s| PollFd::new(s, PollFlags::OUT)).collect();
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        rests.retain_mut(|rest| ready.next() != Some(true) || rest.write());
    }
}

impl Rest {
    /// Writes what the stream takes now; true if it has yet to take more.
    fn write(&mut self) -> bool {
        match (&*self.socket).write(&self.bytes) {
            Ok(count) => drop(self.bytes.drain(..count)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return false,
        }
        !self.bytes.is_empty()
    }
}

impl Drop for UnixHost {
    fn drop(&mut self) {
        let end = State {
            closed: true,
            ..State::default()
        };
        // The old state holds the listeners, which are dropped without the lock.
        drop(std::mem::replace(&mut *self.shared.lock(), end));
        self.shared.poke();
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
        // A listener may drop the machine.
        if !self.on_thread()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// How to report that the guest has accepted a connection.
enum Asker {
    /// A client of the machine's socket: by a line on it.
    Client,
    /// A caller of [`VsockHandle::connect`].
    Thread(SyncSender<()>),
}

/// A Unix stream socket as the host's end of a connection.
struct SocketStream {
    socket: Arc<UnixStream>,
    asker: Option<Asker>,
}

impl SocketStream {
    fn new(socket: UnixStream, asker: Option<Asker>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Arc::new(socket),
            asker,
        })
    }
}

impl Stream for SocketStream {
    fn send(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self.socket).write(data)
    }

    fn receive(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.socket).read(buf)
    }

    fn shutdown(&mut self, how: Shutdown) {
        let _ = self.socket.shutdown(how); // fails only if the far end is gone already
    }

    fn accepted(&mut self, host_port: u32) -> io::Result<()> {
        match self.asker.take() {
            // The socket is fresh, there is room for a line.
            Some(Asker::Client) => {
                (&*self.socket).write_all(format!("OK {host_port}\n").as_bytes())
            }
            Some(Asker::Thread(accepted)) => {
                accepted.send(()).map_err(|_| ErrorKind::BrokenPipe.into())
            }
            None => Ok(()),
        }
    }

    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.socket, PollFlags::empty())];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    fn socket(&self) -> Option<&Arc<UnixStream>> {
        Some(&self.socket)
    }
}

/// The thread.
struct Pump {
    shared: Arc<Shared>,
    poked: UnixStream,
    clients: Option<UnixListener>,
    waiting: Vec<Client>,
}

/// A client that has yet to say which port it wants.
struct Client {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Pump {
    fn run(mut self) {
        loop {
            let (watch, timeout, accepted) = {
                let mut state = self.shared.lock();
                if state.closed {
                    return;
                }
                (
                    state.watch.clone(),
                    state.timeout,
                    std::mem::take(&mut state.accepted),
                )
            };
            for (listener, stream) in accepted {
                listener(stream); // with no lock held
            }
            let (events, clients) = self.wait(&watch, timeout);
            self.admit(clients);
            let waker = {
                let mut state = self.shared.lock();
                state.events = events;
                state.waker.clone()
            };
            drop(watch);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Waits until something is ready: watched streams, and whether clients are.
    fn wait(&mut self, watch: &[Watch], timeout: Option<Duration>) -> (Vec<(Token, Ready)>, bool) {
        let mut fds = vec![PollFd::new(&self.poked, PollFlags::IN)];
        for watch in watch {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, watch.want.read);
            flags.set(PollFlags::OUT, watch.want.write);
            fds.push(PollFd::new(&*watch.socket, flags));
        }
        let sockets = self.clients.iter().map(AsFd::as_fd);
        for socket in sockets.chain(self.waiting.iter().map(|client| client.stream.as_fd())) {
            fds.push(PollFd::from_borrowed_fd(socket, PollFlags::IN));
        }
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return (Vec::new(), false); // interrupted by a signal
        }
        let mut ready = fds.iter().map(PollFd::revents);
        let poked = ready.next().is_some_and(|flags| !flags.is_empty());
        let mut events = Vec::new();
        for (watch, flags) in watch.iter().zip(&mut ready) {
            // An error or the end shows at the next read or write.
            let end = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            let ready = Ready {
                read: watch.want.read && (end || flags.contains(PollFlags::IN)),
                write: watch.want.write && (end || flags.contains(PollFlags::OUT)),
            };
            if ready.read || ready.write {
                events.push((watch.token, ready));
            }
        }
        let clients = ready.any(|flags| !flags.is_empty());
        if poked {
            let mut drain = [0; 256];
            while matches!((&self.poked).read(&mut drain), Ok(256)) {}
        }
        (events, clients)
    }

    /// Takes new clients and what they have sent so far.
    fn admit(&mut self, clients: bool) {
        if !clients {
            return;
        }
        if let Some(listener) = &self.clients {
            loop {
                match listener.accept() {
                    Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                        if self.waiting.len() >= MAX_WAITING {
                            self.waiting.remove(0);
                        }
                        let line = Vec::new();
                        self.waiting.push(Client { stream, line });
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Ok(_) | Err(_) => {
                        // Out of descriptors, most likely, with the client still in line.
                        thread::sleep(Duration::from_millis(10));
                        break;
                    }
                }
            }
        }
        for mut client in std::mem::take(&mut self.waiting) {
            match client.read_line() {
                Ok(Some(port)) => {
                    if let Ok(stream) = SocketStream::new(client.stream, Some(Asker::Client)) {
                        // Dropping the stream of a request that is refused tells the client.
                        let _ = self.shared.request(ConnectRequest {
                            port,
                            stream: Box::new(stream),
                        });
                    }
                }
                Ok(None) => self.waiting.push(client),
                Err(_) => {}
            }
        }
    }
}

impl Client {
    /// Returns the port of the `CONNECT <port>` line, once it is complete. Not a byte behind its
    /// end is read: it belongs to the guest.
    fn read_line(&mut self) -> io::Result<Option<u32>> {
        let invalid = || io::Error::from(ErrorKind::InvalidData);
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte[0] == b'\n' => break,
                Ok(_) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Ok(_) => return Err(invalid()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| invalid())?;
        let port = line
            .trim_end()
            .strip_prefix("CONNECT ")
            .ok_or_else(invalid)?;
        port.parse().map(Some).map_err(|_| invalid())
    }
}
