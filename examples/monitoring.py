"""Watch a circuit: every change of state as it happens, and its numbers whenever you ask.

`stats()` and `metrics()` come from the manager and are those of the whole host, whichever process
made the calls. They are asked for on a connection of their own, so reading them holds up nobody,
and reading never moves a circuit.
"""

from __future__ import annotations

import contextlib
import http.client
import queue
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import switchgear as sg


class Service(BaseHTTPRequestHandler):
    """A real service, as slow as 10 ms; it fails while it is told to."""

    broken = False

    def do_GET(self) -> None:
        time.sleep(0.01)
        self.send_response(500 if Service.broken else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def call(port: int) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as service:
        service.request("GET", "/")
        status = service.getresponse().status
    if status >= 500:
        raise RuntimeError(f"HTTP {status}")


HEAD = "what happened                 state      calls     ok  failed  rejected  p50 ms  last error"


def row(what: str, breaker: sg.Breaker) -> str:
    stats, metrics = breaker.stats(), breaker.metrics()
    p50 = "-" if metrics.p50_latency is None else f"{metrics.p50_latency * 1e3:.1f}"
    return (
        f"{what:28}  {stats.state!s:9} {stats.total_requests:6} {stats.total_successes:6} "
        f"{stats.total_failures:7} {stats.total_rejected:9} {p50:>7}  {stats.last_error or '-'}"
    )


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    changes: queue.SimpleQueue[tuple[sg.State, sg.State]] = queue.SimpleQueue()

    with server, sg.Manager(acquire_timeout=5.0) as manager:
        breaker = manager.breaker(
            "stock",
            failure_threshold=4,
            open_timeout=0.3,
            # Runs on a thread of its own: a log line, a metric or an alert belongs here.
            on_state_change=lambda name, old, new: changes.put((old, new)),
        )

        def work_until_change(limit: float = 10.0) -> None:
            """Call the service until a change of state arrives, and print it."""
            deadline = time.monotonic() + limit
            while changes.empty() and time.monotonic() < deadline:
                with contextlib.suppress(sg.CallNotPermittedError, RuntimeError):
                    breaker.execute(call, server.server_port)
                time.sleep(0.005)
            while not changes.empty():
                old, new = changes.get()
                print(row(f"circuit {old} -> {new}", breaker))

        print(HEAD)
        print(row("nothing yet", breaker))
        work_until_change(limit=0.2)
        print(row("0.2 s of work", breaker))
        Service.broken = True
        print(row("THE SERVICE BREAKS", breaker))
        work_until_change()
        Service.broken = False
        print(row("the service is well again", breaker))
        while breaker.state is not sg.State.CLOSED or not changes.empty():
            work_until_change()

        entered = ", ".join(f"{s} {n}" for s, n in breaker.metrics().transitions.items())
        print(f"\ntimes entered: {entered}")
        print(f"circuits of this host: {', '.join(manager.breakers())}")
        server.shutdown()


if __name__ == "__main__":
    main()
