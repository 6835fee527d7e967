"""Every command of docs/deploying.md runs as it stands, on the programs that stand beside it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

import switchgear as sg

from ..conftest import connect, eventually
from .servers import SRC, Server, Service, needs, running, service_at_a_port

pytestmark = pytest.mark.process

DOCUMENT: Final = Path(__file__).parents[3] / "docs" / "deploying.md"
TEXT: Final = DOCUMENT.read_text(encoding="utf-8")
PROGRAMS: Final = re.findall(r"`(\w+\.py)`:\n+```python\n(.*?)```", TEXT, re.S)
COMMANDS: Final = "".join(re.findall(r"^```console\n(.*?)```", TEXT, re.S | re.M)).splitlines()
ITEM: Final = "tea"


def started_by(program: str) -> list[str]:
    return [command for command in COMMANDS if command.split()[0] == program]


@pytest.fixture
def service(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service, the programs of the document, and what leads its commands to both."""
    with service_at_a_port() as (service, place):
        for name, text in PROGRAMS:
            # Where the service is, and a broker that nobody has to install.
            text = text.replace("localhost:8001", place).replace(
                "amqp://localhost", "filesystem://"
            )
            (tmp_path / name).write_text(text)
        for folder in ("data_in", "out", "control", "read"):
            (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{SRC}")
        monkeypatch.setenv("SWITCHGEAR_ADDRESS", address)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "read"))  # Celery moves there what it has read
        with command("switchgear serve"), connect(address) as client:
            eventually(lambda: serves(client))
            yield service


def command(
    text: str, *fds: int, **environment: str
) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return running(shlex.split(text), {**os.environ, **environment}, *fds)


def test_the_document_has_commands_for_every_server_and_no_others() -> None:
    assert {command.split()[0] for command in COMMANDS} == {
        "switchgear",
        "gunicorn",
        "uvicorn",
        "celery",
    }
    assert started_by("switchgear") == ["switchgear serve"]
    assert [name for name, _ in PROGRAMS] == ["shop.py", "shop_async.py", "tasks.py"]


@pytest.mark.parametrize("text", started_by("gunicorn") + started_by("uvicorn"))
def test_a_documented_server_answers_and_the_manager_knows(
    service: Service, address: str, text: str
) -> None:
    needs(text.split()[0])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        options = f"--bind fd://{fd} --no-control-socket --log-level error"
        environment = {
            "GUNICORN_CMD_ARGS": options,
            "UVICORN_FD": str(fd),
            "UVICORN_LOG_LEVEL": "error",
        }
        with command(text, fd, **environment) as process:
            server = Server(process, listener.getsockname()[1])

            def answers() -> bool:  # a busy machine's manager may miss the first call
                assert server.fetch(f"/{ITEM}") == (200, b"")
                return successes(client) > 0

            with connect(address) as client:
                client.breaker("prices")
                eventually(answers)
            service.broken = True
            assert server.fetch(f"/{ITEM}") == (502, b"no answer")
            eventually(lambda: server.fetch(f"/{ITEM}")[0] == 503)


@pytest.mark.parametrize("text", started_by("celery"))
def test_a_documented_celery_worker_works_and_the_manager_knows(
    service: Service, address: str, tmp_path: Path, text: str
) -> None:
    needs("celery")
    from celery import Celery

    options = {"data_folder_out": f"{tmp_path}/out", "control_folder": f"{tmp_path}/control"}
    with (
        Celery("visitor", set_as_current=False, broker="filesystem://") as app,
        command(text),
    ):
        app.conf.broker_transport_options = options

        def works() -> bool:
            app.send_task("tasks.look_up", [ITEM])
            (message,) = (tmp_path / "out").iterdir()
            message.rename(tmp_path / "data_in" / message.name)
            tasks.append(ITEM)
            service.caller(len(tasks))
            return successes(client) > 0

        tasks: list[str] = []
        with connect(address) as client:
            client.breaker("prices")
            eventually(works)


def serves(client: sg.Client) -> bool:
    """Whether the manager answers yet: the documented command tells that to its log only."""
    with contextlib.suppress(sg.ManagerUnavailableError):
        client.breakers()
        return True
    return False


def successes(client: sg.Client) -> int:
    return client.stats("prices").total_successes
