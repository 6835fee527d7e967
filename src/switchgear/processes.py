"""What the kernel says of processes, and what a thread tells it, for both shells."""

from __future__ import annotations

import signal
from typing import Final

# What a thread brings on itself is its own: blocked, it would end the process without a trace.
_FAULTS: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}


def start_of(pid: int | str = "self") -> int:
    """When a process was started, in the kernel's clock ticks since the boot; 0: nobody knows.

    With its number it tells a process from a later one that got the same number.
    """
    try:
        # Not as text: for that Python may import a codec, and a signal handler that comes in the
        # middle of an import, and needs the same one, waits for it for ever.
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def leave_signals() -> None:
    """Have this thread take none of the process's signals.

    The kernel gives a signal to any thread that does not block it. So what an application blocks in
    its threads, for as long as they hold a lock that others wait for, would come through ours and
    end it there.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
