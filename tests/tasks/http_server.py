"""A local HTTP server with configurable faults."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """The content and faults of a server, and the requests to it."""

    content: bytes
    url: str = ""
    etag: str | None = '"v1"'
    supports_range: bool = True
    honours_if_range: bool = True
    statuses: list[int] = field(default_factory=list)  # errors to answer with first, one a request
    cut_after: list[int] = field(default_factory=list)  # body bytes after which to drop the connection, one a request
    ranges: list[str | None] = field(default_factory=list)  # the Range header of each request


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            server.ranges.append(wanted)
            if server.statuses:
                self.send_error(server.statuses.pop(0))
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.supports_range else 0
            if server.honours_if_range and self.headers["If-Range"] != server.etag:
                start = 0
            if start >= len(server.content):
                self.send_error(416)
                return
            body = server.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
            if server.etag:
                self.send_header("ETag", server.etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    return Handler


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """Serve ``content`` at every path of ``Server.url`` until the context ends."""
    server = Server(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
