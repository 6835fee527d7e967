"""What the kernel says of processes, for both shells."""

from __future__ import annotations


def start_of(pid: int | str = "self") -> int:
    """When a process was started, in the kernel's clock ticks since the boot; 0: nobody knows.

    With its number it tells a process from a later one that got the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
