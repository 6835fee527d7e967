"""Eight worker processes share one breaker in front of a service that breaks and heals.

The service is a real HTTP server. It hangs, then answers 500, then is well again, and it keeps its
own book of the calls that reach it: the summary at the end is read from that book. The last line
is the same in JSON.

    python examples/pool.py [fork | spawn | forkserver]
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import sys
import threading
import time
import urllib.request
from collections.abc import MutableSequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier, Event
from typing import NamedTuple

import switchgear as sg

WORKERS = 8
PAUSE = 0.02  # seconds between two calls of one worker
WORK = 0.02  # seconds the service needs for an answer when it is well
PATIENCE = 1.5  # seconds a caller waits for it at most
CONFIG = sg.CircuitConfig(failure_threshold=5, success_threshold=2, open_timeout=1.0)

INTRODUCTION = f"""\
{WORKERS} worker processes call one service, and share one circuit breaker in front of it.
{CONFIG.failure_threshold} failures in a row open the circuit. After {CONFIG.open_timeout:g} s it \
lets probes through, one at a time;
{CONFIG.success_threshold} that succeed close it. When the service hangs, a call costs its worker \
{PATIENCE:g} s."""

# -- the service -----------------------------------------------------------------------------------


@dataclass
class Call:
    """One line of the service's book."""

    worker: str
    mood: str
    arrived: float  # seconds on the machine's monotonic clock, as the next one
    left: float = 0.0


class Service(ThreadingHTTPServer):
    """What everybody calls. Its mood is "well", "hanging" or "answering 500"."""

    request_queue_size = 64  # no caller is kept out by anything but the mood

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mood = "well"
        self.book: list[Call] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        call = Call(self.path, self.server.mood, time.monotonic())
        self.server.book.append(call)
        try:
            if call.mood == "hanging":
                self.rfile.read(1)  # until the caller has had enough
            elif call.mood == "well":
                time.sleep(WORK)
            call.left = time.monotonic()
            self.send_response(200 if call.mood == "well" else 500)
            self.end_headers()
        except ConnectionError:
            pass  # the caller has hung up

    def log_message(self, format: str, *args: object) -> None:
        pass  # the book is enough


# -- the workers -----------------------------------------------------------------------------------


class Totals(NamedTuple):
    """What became of the calls. The workers count in shared memory, each in a row of its own."""

    answered: int
    failed: int
    rejected: int
    unasked: int
    rejecting: float  # seconds spent on being rejected


ANSWERED, FAILED, REJECTED, UNASKED, REJECTING = range(5)  # the columns

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine


def fetch(url: str) -> bytes:
    with direct.open(url, timeout=PATIENCE) as answer:
        body: bytes = answer.read()
        return body


def work(
    number: int,
    breaker: sg.Breaker,
    url: str,
    ready: Barrier,
    over: Event,
    tally: MutableSequence[float],
) -> None:
    """Call the service again and again. This is all that a worker has to do for the breaker."""
    row = number * len(Totals._fields)
    ready.wait(60)
    deadline = time.monotonic() + 60
    while not over.is_set() and time.monotonic() < deadline:
        began = time.perf_counter()
        try:
            breaker.execute(fetch, f"{url}/{number}")
            tally[row + ANSWERED] += 1
        except sg.CallNotPermittedError:  # known at once: answer from a cache, say so, or retry
            tally[row + REJECTED] += 1
            tally[row + REJECTING] += time.perf_counter() - began
        except sg.ManagerUnavailableError:  # nobody to ask: do without this call, and go on
            tally[row + UNASKED] += 1
        except OSError:  # the service's own failures, unchanged: timed out, refused, HTTP 500
            tally[row + FAILED] += 1
        time.sleep(PAUSE)


# -- the story -------------------------------------------------------------------------------------


class Show:
    """Prints what happened, and what it did to the workers since the line before."""

    def __init__(self, service: Service, tally: MutableSequence[float]) -> None:
        self._service = service
        self._tally = tally
        self._began = time.monotonic()
        self._before = [0, 0, 0, 0]
        head = "".join(name.rjust(10) for name in ("reached", "answered", "failed", "rejected"))
        print(f"\n{'time':>7}  {'what happened':36}{head}")
        print(f"{'':45}  (since the line before, all workers)")

    def totals(self) -> Totals:
        *counts, seconds = (sum(self._tally[column::5]) for column in range(5))
        return Totals._make([*map(int, counts), seconds])

    def line(self, text: str) -> None:
        totals = [len(self._service.book), *self.totals()[:3]]
        news = "".join(f"{a - b:10}" for a, b in zip(totals, self._before, strict=True))
        print(f"{time.monotonic() - self._began:5.1f} s  {text:36}{news}", flush=True)
        self._before = totals


def main() -> None:
    if len(sys.argv) > 1:
        multiprocessing.set_start_method(sys.argv[1])
    ready, over = multiprocessing.Barrier(WORKERS + 1), multiprocessing.Event()
    tally: MutableSequence[float] = multiprocessing.Array(
        "d", WORKERS * len(Totals._fields), lock=False
    )
    service = Service()

    # On a busy machine a process may wait for a turn on the processor: we are in no hurry.
    with sg.Manager(acquire_timeout=5.0) as manager:
        breaker = manager.breaker("stock", CONFIG)
        workers = [
            multiprocessing.Process(
                target=work, args=(n, breaker, service.url, ready, over, tally), daemon=True
            )
            for n in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        threading.Thread(target=service.serve_forever, daemon=True).start()

        print(INTRODUCTION)
        changes: queue.SimpleQueue[tuple[sg.State, sg.State]] = queue.SimpleQueue()
        breaker.on_state_change(lambda name, old, new: changes.put((old, new)))
        states = [breaker.state]
        ready.wait(60)
        show = Show(service, tally)

        def follow_to(*wanted: sg.State) -> None:
            for state in wanted:
                old, new = changes.get(timeout=30)
                states.append(new)
                show.line(f"  circuit: {old} -> {new}")
                if new is not state:
                    raise SystemExit(f"expected {state}: this machine is too busy for the story")

        show.line("the service is well")
        time.sleep(1.5)
        service.mood = "hanging"
        show.line("THE SERVICE HANGS")
        follow_to(sg.State.OPEN)
        opened_at = time.monotonic()
        follow_to(sg.State.HALF_OPEN, sg.State.OPEN)
        service.mood = "answering 500"
        show.line("THE SERVICE ANSWERS 500")
        follow_to(sg.State.HALF_OPEN, sg.State.OPEN)
        service.mood = "well"
        show.line("the service is well again")
        follow_to(sg.State.HALF_OPEN, sg.State.CLOSED)
        time.sleep(1.5)
        show.line("the end")
        over.set()
        for worker in workers:
            worker.join(10)
        service.shutdown()
        service.server_close()

    summarize(service.book, opened_at, states, show.totals())


def summarize(book: list[Call], opened_at: float, states: list[sg.State], totals: Totals) -> None:
    """Read the service's book, and set beside it what private breakers would have done."""
    broken = [call for call in book if call.mood != "well"]
    rested_at = opened_at + CONFIG.open_timeout / 2  # what arrives later is no straggler
    bad_probes = [call for call in broken if call.arrived > rested_at]
    until_open = len(broken) - len(bad_probes)
    # The circuit cannot have closed before the last good probe it needs was answered, so whoever
    # arrived before that was a probe too, and whoever arrived later was let in by a closed circuit.
    well_again = [call for call in book if call.mood == "well" and call.arrived > rested_at]
    recovered_at = sorted(call.left for call in well_again)[CONFIG.success_threshold - 1]
    good_probes = [call for call in well_again if call.arrived < recovered_at]
    probes = bad_probes + good_probes
    at_once = max(sum(a.arrived <= b.arrived < a.left for a in probes) for b in probes)
    back_at = {c.worker: c.arrived for c in reversed(well_again) if c.arrived >= recovered_at}

    private = WORKERS * CONFIG.failure_threshold
    private_probes = WORKERS * len(bad_probes)
    print(f"""
One shared breaker, by the service's own book:
  {len(broken)} calls reached it while it was broken: {until_open} until the circuit opened, then \
{len(bad_probes)} probes
  {len(good_probes)} more probes found it well again; never more than {at_once} probe was under way
  {(max(back_at.values()) - recovered_at) * 1e3:.0f} ms after the last of them all {len(back_at)} \
workers were back
  {totals.rejected:,} calls were rejected, in {totals.rejecting / totals.rejected * 1e3:.2g} ms \
each, where a call that hangs takes {PATIENCE * 1e3:.0f} ms

{WORKERS} private breakers (this is arithmetic, not measured):
  {WORKERS} x {CONFIG.failure_threshold} = {private} calls until the last of them opened, then \
{WORKERS} x {len(bad_probes)} = {private_probes} probes: {private + private_probes} calls, not \
{len(broken)}
""")
    facts = {
        "workers": WORKERS,
        "failure_threshold": CONFIG.failure_threshold,
        "states": [str(state) for state in states],
        "reached_while_broken": len(broken),
        "reached_until_open": until_open,
        "probes": len(probes),
        "probes_at_once": at_once,
        "workers_back": len(back_at),
        "answered": totals.answered,
        "failed": totals.failed,
        "rejected": totals.rejected,
        "unasked": totals.unasked,
        "private_breakers_by_arithmetic": private + private_probes,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
