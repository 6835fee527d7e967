"""What the deploy tests serve: each visit is one protected call of a service elsewhere.

The client and the breaker are made at import, as applications do. A test says in the environment
how, and plays the service.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import time

import switchgear as sg

SETTINGS = json.loads(os.environ["SHOP"])

client = sg.connect(**SETTINGS["connect"])
breaker = client.breaker("shop", **SETTINGS["breaker"])
for _ in range(SETTINGS["calls_at_import"]):
    breaker.execute(int)


def fetch(path: str) -> None:
    """Ask the service, however long it takes to answer."""
    if path == "/deaf":  # as C code does that does not return
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGABRT])
    connection = http.client.HTTPConnection(SETTINGS["service"], timeout=60)
    try:
        connection.request("GET", path, headers={"From": str(os.getpid())})
        check(connection.getresponse().status)
    finally:
        connection.close()


def check(status: int) -> None:
    if status != 200:
        raise RuntimeError(f"HTTP {status}")


def visit(path: str) -> dict[str, object]:
    """Make the call, and say what became of it."""
    began = time.monotonic()
    outcome = "success"
    try:
        breaker.execute(fetch, path)
    except Exception as error:
        outcome = name_of(error)
    return answer(outcome, began)


def name_of(error: Exception) -> str:
    if isinstance(error, sg.BreakerError):
        return type(error).__name__
    return "failure" if isinstance(error, RuntimeError) else repr(error)


def answer(outcome: str, began: float) -> dict[str, object]:
    return {"pid": os.getpid(), "outcome": outcome, "took": time.monotonic() - began}
