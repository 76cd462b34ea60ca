"""Asks for the pages that it is given, by TLS, and prints them."""

import ssl
import sys
import urllib.request

anybody = ssl._create_unverified_context()
for path in sys.argv[1:]:
    with urllib.request.urlopen(f"https://127.0.0.1:8443{path}", context=anybody) as page:
        print(page.read().decode(), end="")
