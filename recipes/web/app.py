"""A threaded application on a Unix socket: counts its visits, and tells who it is."""

import os
import socketserver
import subprocess
import threading
from http.server import BaseHTTPRequestHandler

lock = threading.Lock()
visits = 0


def count() -> str:
    """How often it was asked, before the snapshot and since."""
    global visits
    with lock:
        visits += 1
        return f"visit {visits}"


def identity() -> str:
    """What must differ in every restored machine."""
    drawn = subprocess.run(["uuidgen", "--random"], capture_output=True, check=True, text=True)
    return f"random {os.urandom(16).hex()}\nuuid {drawn.stdout.strip()}"


PAGES = {"/count": count, "/identity": identity}


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests from PAGES."""

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        body = (page() if page else "not found").encode() + b"\n"
        self.send_response(200 if page else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """A Unix socket's other end has no address."""
        return "nginx"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """A thread for each connection."""

    daemon_threads = True


if __name__ == "__main__":
    Server("/tmp/app.sock", Handler).serve_forever()
