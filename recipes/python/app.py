"""A service with state in memory: what it counted before the snapshot it still knows after."""

import os
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
primes: list[int] = []


def warm(limit: int = 20_000) -> str:
    """Fills the cache: the primes below `limit`."""
    with lock:
        if not primes:
            sieve = bytearray([1]) * limit
            for n in range(2, limit):
                if sieve[n]:
                    primes.append(n)
                    sieve[n * n :: n] = bytes(len(range(n * n, limit, n)))
        return f"{len(primes)} primes"


PAGES = {
    "/healthz": lambda: "ok",
    "/warm": warm,
    "/primes": lambda: f"{len(primes)} primes",
    "/now": lambda: f"time {int(time.time())}\nrandom {os.urandom(16).hex()}\nuuid {uuid.uuid4()}",
}


class Handler(BaseHTTPRequestHandler):
    """Answers GET requests from PAGES."""

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        body = (page() if page else "not found").encode() + b"\n"
        self.send_response(200 if page else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
