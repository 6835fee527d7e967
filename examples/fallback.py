"""When the circuit is open, answer from what is known: the last answer, or a default.

The service is a price list behind a TCP socket. While it is down, a customer who has seen a price
gets that one, marked as old; anybody else gets the list price. Nobody waits.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from contextlib import closing

import switchgear as sg

PRICES = {"tea": 3.20, "milk": 1.10, "cake": 4.50}
LIST_PRICE = 5.00


class Prices(socketserver.StreamRequestHandler):
    """One line in, one line out."""

    def handle(self) -> None:
        item = self.rfile.readline().decode().strip()
        self.wfile.write(f"{PRICES[item]}\n".encode())


class PriceClient:
    """Asks the service if the breaker lets it, and makes do if not."""

    def __init__(self, breaker: sg.Breaker, port: int) -> None:
        self._breaker = breaker
        self._port = port
        self._known: dict[str, float] = {}

    def price(self, item: str) -> tuple[float, str]:
        """A price, and where it is from. Never fails."""
        try:
            self._known[item] = self._breaker.execute(self._ask, item)
        except sg.CallNotPermittedError as rejected:  # at once, and the service is left alone
            asked = f"circuit {rejected.state}"
        except OSError as error:
            asked = type(error).__name__
        else:
            return self._known[item], "fresh"
        if item in self._known:
            return self._known[item], f"{asked}: the last one known"
        return LIST_PRICE, f"{asked}: the list price"

    def _ask(self, item: str) -> float:
        with closing(socket.create_connection(("127.0.0.1", self._port), timeout=5)) as service:
            service.sendall(f"{item}\n".encode())
            return float(service.makefile().readline())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


def serve(port: int = 0) -> Server:
    server = Server(("127.0.0.1", port), Prices)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def main() -> None:
    with sg.Manager(acquire_timeout=5.0) as manager:
        breaker = manager.breaker(
            "prices", failure_threshold=2, success_threshold=1, open_timeout=0.4
        )
        server = serve()
        port: int = server.server_address[1]
        client = PriceClient(breaker, port)

        def ask(*items: str) -> None:
            for item in items:
                price, source = client.price(item)
                print(f"  {item:5} {price:.2f}  {source}")

        print("The service is up:")
        ask("tea", "milk")

        print("The service is down:")
        server.shutdown()
        server.server_close()
        ask("tea", "milk", "tea", "milk", "cake")

        print("The service is back, with new prices:")
        PRICES["tea"] = 3.40
        server = serve(port)
        while breaker.state is sg.State.OPEN:
            time.sleep(0.01)
        ask("tea", "cake")
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
