"""Do an idle client and an idle manager use the processor?"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

from crew import crew, orders
from measure import PATIENCE, Settings, cpu_seconds
from report import Goal, Section, Table

import switchgear as sg


def client(number: int, pipe: Connection) -> None:
    """A process with a client that has nothing to do."""
    for address in orders(pipe):
        with sg.connect(address, acquire_timeout=PATIENCE) as connected:
            breaker = connected.breaker("bench")
            breaker.on_state_change(lambda name, old, new: None)
            breaker.execute(int)
            connected.flush(PATIENCE)
            pipe.send(os.getpid())
            pipe.recv()


def run(settings: Settings) -> Section:
    """Look at what both use while nothing happens."""
    seconds = settings.pick(10.0, 0.5)
    with sg.Manager(acquire_timeout=PATIENCE) as manager, crew(1, client) as workers:
        assert manager.pid is not None
        pids = [*workers.ask(manager.address), manager.pid]
        time.sleep(settings.pick(1.5, 0.1))  # until nothing is left of the calls, no lease either
        before = [cpu_seconds(pid) for pid in pids]
        time.sleep(seconds)  # what is measured is that time passes
        after = [cpu_seconds(pid) for pid in pids]
        workers.tell("enough")
    used = [end - start for start, end in zip(before, after, strict=True)]
    rows = [
        [name, f"{value * 1e3:.2f}"]
        for name, value in zip(("client", "manager"), used, strict=True)
    ]
    return Section(
        "At rest",
        "idle",
        tables=[Table("Idle", [f"in {seconds:g} s", "ms of processor time"], rows)],
        goals=[
            Goal(
                "an idle client and an idle manager use no processor time: less than 1 ms in 10 s",
                f"{used[0] * 1e3:.2f} ms and {used[1] * 1e3:.2f} ms in {seconds:g} s",
                max(used) < 0.001,
            )
        ],
        notes=["A client that has a subscription, and the thread that waits for it, included."],
    )
