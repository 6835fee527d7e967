"""The README's program runs as it stands."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import run

import pytest

from .conftest import PATIENCE

pytestmark = pytest.mark.process

README = Path(__file__).parents[2] / "README.md"


class Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Well) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_the_ten_lines_run_as_they_stand(port: int, tmp_path: Path) -> None:
    block = re.search(r"^## Ten lines\n+```python\n(.*?)```", README.read_text(), re.S | re.M)
    assert block is not None
    program = tmp_path / "ten_lines.py"
    # The port, and more patience than the default has on a busy machine; nothing else.
    text = block[1].replace("localhost:8000", f"127.0.0.1:{port}")
    text = text.replace("sg.Manager()", "sg.Manager(acquire_timeout=5.0)")
    program.write_text(text)
    done = run(
        [sys.executable, program], capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str([200] * 100)
