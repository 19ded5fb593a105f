"""`serve`: a page on the loopback address, and nothing else of the folder that it is in."""

import webbrowser
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOST = "127.0.0.1"


def server(path: str | Path, *, port: int = 0) -> ThreadingHTTPServer:
    """Give a server of one page; port 0 takes a free one. The file is read at each request.

    Raises:
        ValueError: If there is no such file, or the port is out of range.
        OSError: If the port is taken.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no page {path}. `tl-sparse view MODEL CIRCUIT` makes one.")
    if not 0 <= port <= 65535:
        raise ValueError(f"A port is a number from 0 (any free one) to 65535, got {port}.")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.split("?")[0] not in ("/", f"/{path.name}"):
                self.send_error(404)
                return
            body = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the terminal for our own lines."""

    return ThreadingHTTPServer((HOST, port), Page)


def serve(
    path: str | Path,
    *,
    port: int = 0,
    open_browser: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve a page on this machine alone and open it, until Ctrl-C.

    Raises:
        ValueError: If there is no such file, or the port is out of range.
        OSError: If the port is taken.
    """
    with server(path, port=port) as running:
        address = f"http://{HOST}:{running.server_port}/"
        say(f"{path} is on {address} (Ctrl-C ends). The file opens without it too.")
        if open_browser:
            webbrowser.open(address)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            say("Ended.")
