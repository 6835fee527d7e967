"""A breaker around an HTTP client: which answers count as failures, and when to come back.

A 5xx answer says that the service is in trouble, and counts. A 404 says that the service is well
and has nothing of that name: the breaker must see a success. So the line between the two is drawn
inside the function that the breaker calls: what it raises is a failure, what it returns is not.
"""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import switchgear as sg


class Reply(NamedTuple):
    status: int
    body: str


class ServiceError(Exception):
    """The service answered 5xx."""


# Past any proxy that the environment names: the service is on this machine.
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str) -> Reply:
    """Raises what is the service's fault; returns everything else, a 404 too."""
    try:
        with direct.open(url, timeout=5) as answer:
            return Reply(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise ServiceError(f"HTTP {error.code}") from error
            return Reply(error.code, error.reason)


class Shop(BaseHTTPRequestHandler):
    """The service: it has one item, and fails while it is told to."""

    broken = False
    calls = 0

    def do_GET(self) -> None:
        Shop.calls += 1
        status = 503 if Shop.broken else 200 if self.path == "/tea" else 404
        self.send_response(status)
        self.end_headers()
        if status == 200:
            self.wfile.write(b"2 kg of tea")

    def log_message(self, format: str, *args: object) -> None:
        pass


def show(shop: sg.Breaker, url: str) -> float | None:
    """Make one call and print what became of it; seconds to wait if it was not let through."""
    print(f"  GET {url.rpartition('/')[2]:5} ", end="")
    try:
        reply = shop.execute(get, url)
    except sg.CircuitOpenError as rejected:
        print(f"not sent, retry in {rejected.retry_after:.1f} s (last: {rejected.last_error})")
        return rejected.retry_after
    except ServiceError as error:
        print(f"{error}: a failure")
    else:
        print(f"HTTP {reply.status} {reply.body}: a success")
    return None


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"

    with server, sg.Manager(acquire_timeout=5.0) as manager:
        shop = manager.breaker("shop", failure_threshold=3, success_threshold=1, open_timeout=0.5)

        print("The shop is open. What it does not have is no failure of the shop:")
        for item in ("tea", "milk", "milk", "milk", "tea"):
            show(shop, f"{url}/{item}")
        print(f"  circuit {shop.state}")

        print("The shop breaks:")
        Shop.broken = True
        for _ in range(5):
            wait = show(shop, f"{url}/tea")
        print(f"  circuit {shop.state}, and the shop has seen {Shop.calls} calls")

        print("The shop is mended, and we come back when the breaker said:")
        Shop.broken = False
        while wait is not None:
            time.sleep(wait)
            wait = show(shop, f"{url}/tea")
        print(f"  circuit {shop.state}, and the shop has seen {Shop.calls} calls")
        server.shutdown()


if __name__ == "__main__":
    main()
