"""A real HTTP server on loopback that fails on purpose, in the order it is told to."""

import contextlib
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal[
    *("refuse", "500", "403", "cut", "other bytes", "drip", "hang"),
    *("short", "long", "html", "endless"),
]


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder.

    Args:
        folder: Of the files.
        faults: What goes wrong with the first requests for a file ending in ``faulty``, one each.
        faulty: Ending of the names that are served wrongly.
    """

    daemon_threads = True

    def __init__(self, folder: Path, faults: Sequence[Fault] = (), faulty: str = ".tar") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.faulty = folder, list(faults), faulty
        self.requests: Counter[str] = Counter()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Of the folder, with a slash at its end."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up here; that is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"  # which keeps connections

    def do_GET(self) -> None:
        name = self.path.strip("/").partition("?")[0]
        with self.server.lock:
            self.server.requests[name] += 1
            is_faulty = name.endswith(self.server.faulty) and self.server.faults
            fault = self.server.faults.pop(0) if is_faulty else ""
        path = self.server.folder / name
        if fault == "refuse":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault in ("500", "403"):
            self.send_error(int(fault))
            return
        if not path.is_file():
            self.send_error(404)
            return
        self._send(path.read_bytes(), fault)

    def _send(self, data: bytes, fault: str) -> None:
        if fault == "html":
            data = b"<!DOCTYPE html><html><body>Please log in</body></html>"
        self.send_response(200)
        if fault != "endless":
            said = len(data) // 2 if fault == "long" else len(data)
            self.send_header("Content-Length", str(said))
        if fault not in ("short", "long"):
            self.send_header("Connection", "close")  # a server that is gone answers nobody
        self.end_headers()
        match fault:
            case "cut":
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            case "other bytes":
                self.wfile.write(bytes([data[0] ^ 1]) + data[1:])
            case "short":
                self.wfile.write(data[: len(data) // 2])  # and the connection stays
            case "long":
                # What comes when the next request is on its way passes for its answer.
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                time.sleep(0.2)
                self.wfile.write(data[len(data) // 2 :])
            case "endless":
                self.close_connection = True
                with contextlib.suppress(OSError):
                    while True:
                        self.wfile.write(data)
            case "drip":
                for place in range(min(len(data), 40)):
                    self.wfile.write(data[place : place + 1])
                    self.wfile.flush()
                    time.sleep(0.05)
                self.close_connection = True
            case "hang":
                self.wfile.write(data[:10])
                self.wfile.flush()
                time.sleep(3)
                self.close_connection = True
            case _:
                self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(
    folder: Path, faults: Sequence[Fault] = (), faulty: str = ".tar"
) -> Iterator[FaultyServer]:
    """A server in a thread of this process, for the time of the block."""
    server = FaultyServer(folder, faults, faulty)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":  # FOLDER NAME FAULT …, for benchmarks/fuzz.py
    alone = FaultyServer(Path(sys.argv[1]), sys.argv[3:], sys.argv[2])  # type: ignore[arg-type]
    print(alone.url, flush=True)
    alone.serve_forever()
