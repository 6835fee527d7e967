"""Worker processes that do what they are told, and that never outlive who started them."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final

# A server process that has imported much and started nothing forks each worker: as fast as fork,
# without inheriting our sockets and threads.
CONTEXT: Final = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["switchgear", "pybreaker", "circuitbreaker", "interlock", "redis", "hiredis", "aiobreaker"]
)
PATIENCE: Final = 60.0  # seconds a worker may take for anything before all is given up


class Crew:
    """Some worker processes, each at the other end of a pipe."""

    def __init__(self, pipes: list[Connection], pids: list[int]) -> None:
        self.pids = pids
        self._pipes = pipes

    def __len__(self) -> int:
        return len(self._pipes)

    def tell(self, order: object, count: int | None = None) -> None:
        """Send the same to the first `count` of them."""
        for pipe in self._pipes[:count]:
            pipe.send(order)

    def tell_each(self, what: Sequence[object]) -> None:
        """Send each of them an order of its own."""
        for pipe, order in zip(self._pipes, what, strict=True):
            pipe.send(order)

    def hear(self, count: int | None = None) -> list[Any]:
        """What each of them sends back, in their order."""
        answers = []
        for pipe in self._pipes[:count]:
            if not pipe.poll(PATIENCE):
                raise RuntimeError("a worker process said nothing")
            answer = pipe.recv()
            if isinstance(answer, BaseException):
                raise answer
            answers.append(answer)
        return answers

    def ask(self, order: object, count: int | None = None) -> list[Any]:
        """Both."""
        self.tell(order, count)
        return self.hear(count)


@contextlib.contextmanager
def crew(count: int, target: Callable[..., object], *args: object) -> Iterator[Crew]:
    """Processes that run `target(number, pipe, *args)`; they are ended with the block.

    The target has a loop that receives orders and ends at EOFError; see `orders`.
    """
    pipes: list[Connection] = []
    processes = []
    try:
        for number in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_run, args=(target, number, theirs, args), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        yield Crew(pipes, [process.pid or 0 for process in processes])
    finally:
        for pipe in pipes:
            pipe.close()
        _end(processes)


def orders(pipe: Connection) -> Iterator[Any]:
    """What a worker is told, until nobody is left who could tell it anything."""
    while True:
        try:
            yield pipe.recv()
        except (EOFError, ConnectionResetError):
            return


def _run(
    target: Callable[..., object], number: int, pipe: Connection, args: Sequence[object]
) -> None:
    try:
        target(number, pipe, *args)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException as error:
        with contextlib.suppress(OSError):
            pipe.send(RuntimeError(f"worker {number}: {error!r}"))
        raise


def _end(processes: list[Any]) -> None:
    for process in processes:
        process.join(2 if process is processes[0] else 0.2)
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(2)
        if process.is_alive():
            process.kill()
            process.join()
