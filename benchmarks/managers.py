"""Managers in processes of their own, which end with who measures them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

MANAGER: Final = ("-m", "switchgear.manager")


def start(address: str, program: tuple[str, ...] = MANAGER) -> subprocess.Popen[bytes]:
    """A manager that logs nothing but errors; returns once its sockets answer.

    Args:
        address: Its own.
        program: What Python is to run: something that ends in the manager's main().
    """
    read, write = os.pipe()
    command = [sys.executable, *program, "--log-level", "ERROR"]
    command += ["--address", address, "--ready-fd", str(write), "--parent", str(os.getpid())]
    process = subprocess.Popen(command, pass_fds=(write,), start_new_session=True)
    os.close(write)
    with open(read, "rb") as said:
        if said.read() != b"ready":
            raise RuntimeError("the manager did not start")
    return process
