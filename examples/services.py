"""One breaker for each service: the one that fails is left alone, and the others go on.

Three services listen on TCP ports, and one page needs all three. When `stock` goes down, only its
circuit opens; the page is served without it, as fast as before.
"""

from __future__ import annotations

import socket
import socketserver
import threading
import time

import switchgear as sg

NAMES = ("search", "stock", "mail")


class Greeting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"hello")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True


def serve(port: int = 0) -> Server:
    server = Server(("127.0.0.1", port), Greeting)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


def stop(server: Server) -> None:
    server.shutdown()
    server.server_close()


def greet(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as service:
        return service.recv(5).decode()


def main() -> None:
    servers = {name: serve() for name in NAMES}
    ports: dict[str, int] = {name: server.server_address[1] for name, server in servers.items()}

    with sg.Manager(acquire_timeout=5.0) as manager:
        config = sg.CircuitConfig(failure_threshold=3, success_threshold=1, open_timeout=0.4)
        breakers = {name: manager.breaker(name, config) for name in NAMES}

        def ask(name: str) -> str:
            try:
                return breakers[name].execute(greet, ports[name])
            except sg.CallNotPermittedError as rejected:
                return f"({rejected.state})"
            except OSError:
                return "REFUSED"

        def page(title: str) -> None:
            print(f"{title:14}  {'  '.join(f'{ask(name):8}' for name in NAMES)}".rstrip())

        print(f"{'':14}  {'  '.join(f'{name:8}' for name in NAMES)}".rstrip())
        page("all is well")
        page("all is well")
        stop(servers["stock"])
        page("stock is down")
        for _ in range(4):
            page("stock is down")
        servers["stock"] = serve(ports["stock"])
        while breakers["stock"].state is sg.State.OPEN:
            time.sleep(0.01)
        page("stock is back")
        page("stock is back")

        print()
        for name, stats in manager.breakers().items():
            print(
                f"{name:8} {stats.state}: {stats.total_successes} answered, "
                f"{stats.total_failures} failed, {stats.total_rejected} not sent"
            )

    for server in servers.values():
        stop(server)


if __name__ == "__main__":
    main()
