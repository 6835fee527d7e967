"""Calls that a token stops, interrupted at every line by a signal handler that fires it."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any, Final

from switchgear.client import limits
from switchgear.client.limits import Cancelled, CancelToken, call_on_thread

PATIENCE: Final = 10.0  # seconds
INTERRUPTIBLE: Final = (limits.__file__, threading.__file__)  # what a caller waits in


class Handler:
    """Stands in for a signal handler: cancels a token before one line of what its thread runs."""

    def __init__(self, token: CancelToken, line: int) -> None:
        self.token = token
        self.lines_left = line

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in INTERRUPTIBLE:
            return None
        if event == "line":
            self.lines_left -= 1
            if self.lines_left == 0:
                sys.settrace(None)
                self.token.cancel()
        return self.trace


def call_interrupted_at(line: int) -> str | None:
    """What becomes of a call whose token fires then; None: it had ended before."""
    token = CancelToken()
    handler = Handler(token, line)
    came: list[str] = []

    def call() -> None:
        sys.settrace(handler.trace)
        try:
            came.append(call_on_thread(lambda: "returned", None, token))
        except Cancelled:
            came.append("cancelled")
        finally:
            sys.settrace(None)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert came, f"interrupted at line {line} of the call, it never ended"
    return came[0] if token.is_set() else None


def test_a_signal_handler_may_fire_a_token_wherever_it_interrupts_the_call() -> None:
    before = sys.gettrace()
    came = []
    while (ended := call_interrupted_at(len(came) + 1)) is not None:
        came.append(ended)
    assert sys.gettrace() is before
    assert len(came) > 20
