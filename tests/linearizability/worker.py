"""A process that does what its scripts say, through the public API, and records it."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import switchgear as sg
from switchgear.client.permit import Permit

from .recorder import Recorder

PATIENCE: Final = 20.0  # seconds that a call may wait for the manager: machines are loaded
HEARD_WITHIN: Final = 5.0  # seconds after which a change that nobody was told of is missing

_idle: Final = threading.Event()


class Step(NamedTuple):
    """One thing to do with one circuit."""

    what: str
    name: str
    argument: Any = None


class Leave(BaseException):
    """What a call raises that says nothing of the service."""


class Player:
    """Plays scripts with one client."""

    def __init__(self, client: sg.Client, recorder: Recorder) -> None:
        self._client = client
        self._recorder = recorder
        self._breakers: dict[str, sg.Breaker] = {}
        self._permits: list[Permit] = []
        self._ended: list[Permit] = []
        self._errors = 0
        self._heard: Counter[str] = Counter()  # changes, by circuit
        self._hearing = threading.Condition()

    def play(self, steps: list[Step]) -> None:
        """Do all of it, give back what is left, and wait until the manager knows."""
        for step in steps:
            getattr(self, f"_{step.what}")(step)
        while self._permits:
            self._end(Step("end", "", "success"))
        self._flush()
        for permit in self._ended:
            verdict = "none" if permit.verdict is None else permit.verdict.name
            now = time.monotonic()
            self._recorder.called(now, None, "verdict", permit.name, verdict, permit.operation)
        self._ended.clear()
        self._breakers.clear()

    def _note(self, step: Step, do: Callable[[], tuple[str, object]]) -> None:
        begun = time.monotonic()
        result, detail = _result_of(do)
        self._recorder.called(begun, None, step.what, step.name, result, detail)

    def _declare(self, step: Step) -> None:
        self._breakers[step.name] = self._client.breaker(step.name, step.argument)

    def _call(self, step: Step) -> None:
        ran: list[float] = []
        error = self._error(step.argument)

        def function() -> None:
            ran.append(time.monotonic())
            if error is not None:
                raise error

        def call() -> tuple[str, object]:
            self._breakers[step.name].execute(function)
            return "returned", None

        begun = time.monotonic()
        result, detail = _result_of(call)
        if len(ran) > 1:
            result = f"ran {len(ran)} times"
        self._recorder.called(begun, ran[0] if ran else None, "call", step.name, result, detail)

    def _error(self, outcome: str) -> BaseException | None:
        self._errors += 1
        match outcome:
            case "success":
                return None
            case "failure":
                return ConnectionError(f"{self._recorder.session}.{self._errors}")
        return Leave()

    def _acquire(self, step: Step) -> None:
        def acquire() -> tuple[str, object]:
            permit = self._breakers[step.name].acquire()
            self._permits.append(permit)
            return "granted", permit.operation

        self._note(step, acquire)

    def _end(self, step: Step) -> None:
        if not self._permits:
            return
        permit = self._permits.pop(0)
        outcome: str = step.argument
        begun = time.monotonic()
        error = self._error(outcome)
        permit.end(error)
        self._ended.append(permit)
        detail = [permit.operation, None if error is None else str(error)]
        self._recorder.called(begun, None, "end", permit.name, outcome, detail)

    def _stats(self, step: Step) -> None:
        def stats() -> tuple[str, object]:
            stats = self._breakers[step.name].stats()
            return "told", [stats.generation, str(stats.state), stats.total_requests]

        self._note(step, stats)

    def _metrics(self, step: Step) -> None:
        def metrics() -> tuple[str, object]:
            return "told", self._breakers[step.name].metrics().requests_total

        self._note(step, metrics)

    def _history(self, step: Step) -> None:
        def history() -> tuple[str, object]:
            return "told", [change.version for change in self._breakers[step.name].history()]

        self._note(step, history)

    def _reset(self, step: Step) -> None:
        def reset() -> tuple[str, object]:
            self._breakers[step.name].reset()
            return "told", None

        self._note(step, reset)

    def _flush(self, step: Step | None = None) -> None:
        def flush() -> tuple[str, object]:
            self._client.flush(PATIENCE)
            return "told", None

        self._note(Step("flush", ""), flush)

    def _listen(self, step: Step) -> None:
        """Have the changes of a circuit noted, from now on."""

        def hear(name: str, old: sg.State, new: sg.State) -> None:
            now = time.monotonic()
            self._recorder.called(now, None, "heard", name, str(new), [str(old), str(new)])
            with self._hearing:
                self._heard[name] += 1
                self._hearing.notify()

        self._client.on_state_change(step.name, hear)

    def _hear(self, step: Step) -> None:
        """Wait until so many changes were noted; the checker finds it if they were not."""
        with self._hearing:
            self._hearing.wait_for(lambda: self._heard[step.name] >= step.argument, HEARD_WITHIN)

    def _pause(self, step: Step) -> None:
        """What an application does between two calls: something else."""
        _idle.wait(step.argument)


def _result_of(do: Callable[[], tuple[str, object]]) -> tuple[str, object]:
    try:
        return do()
    except sg.CallNotPermittedError as error:
        kind = "open" if isinstance(error, sg.CircuitOpenError) else "half-open"
        return kind, [str(error.state), error.retry_after, error.last_error]
    except sg.ManagerUnavailableError:
        return "unavailable", None
    except sg.BreakerError as error:
        return "refused", str(error)
    except ConnectionError as error:
        return "raised", str(error)
    except Leave:
        return "left", None


def work(
    orders: Connection, number: int, address: str, path: str, defect: str | None = None
) -> None:
    """The life of a worker: play the scripts that come, and say when each is done.

    Args:
        orders: Where they come from.
        number: Of its session.
        address: The manager's.
        path: The file that its records go to.
        defect: One of `client_mutants`, which it is to have; None: none.
    """
    if defect is not None:
        from .client_mutants import CLIENT_MUTANTS

        CLIENT_MUTANTS[defect]()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    recorder = Recorder(number, lambda record: os.write(fd, record))
    client = sg.connect(address, manager_loss="reject", acquire_timeout=PATIENCE)
    with recorder.attached():
        player = Player(client, recorder)
        while (steps := orders.recv()) is not None:
            player.play(steps)
            orders.send(True)
        client.close()
