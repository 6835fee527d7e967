"""Clients that are wrong on purpose, as `mutants` has managers that are: each has one defect.

A worker of the campaign is told which to have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import switchgear as sg
from switchgear.client.breaker import Breaker
from switchgear.client.events import Dispatcher
from switchgear.client.lease import Lease
from switchgear.client.permit import Permit
from switchgear.client.session import Session

CLIENT_MUTANTS: Final[dict[str, Callable[[], None]]] = {}


def _mutant(plant: Callable[[], None]) -> Callable[[], None]:
    CLIENT_MUTANTS[plant.__name__.strip("_")] = plant
    return plant


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have a method run as wrapper(the method, self, ...)."""
    method = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **kwargs: wrapper(method, self, *args, **kwargs))


@_mutant
def _asks_before_its_reports_are_taken_in() -> None:
    def ask(method: Any, self: Any, *args: Any) -> None:
        method(self, *args)
        self._held = [behind._replace(reports=0) for behind in self._held]
        self._pass_barrier()

    _wrap(Session, "ask", ask)


@_mutant
def _goes_on_under_a_lease_after_a_permit_has_failed() -> None:
    def end(method: Any, self: Any, *args: Any) -> None:
        owed = self._owed
        term = owed.term if isinstance(owed, Lease) else None
        method(self, *args)
        if term is not None:
            owed.term = term

    _wrap(Permit, "_end", end)


@_mutant
def _tells_other_metrics() -> None:
    def metrics(method: Any, self: Breaker) -> Any:
        told = method(self)
        return replace(told, requests_total=told.requests_total + 1)

    _wrap(Breaker, "metrics", metrics)


@_mutant
def _tells_of_no_history() -> None:
    _wrap(Breaker, "history", lambda method, self: [])


@_mutant
def _does_not_reset() -> None:
    _wrap(Breaker, "reset", lambda method, self: None)


@_mutant
def _runs_what_was_rejected() -> None:
    def execute(method: Any, self: Breaker, function: Any) -> Any:
        try:
            return method(self, function)
        except sg.CallNotPermittedError:
            with contextlib.suppress(BaseException):
                function()
            raise

    _wrap(Breaker, "execute", execute)


@_mutant
def _runs_twice() -> None:
    def execute(method: Any, self: Breaker, function: Any) -> Any:
        def twice() -> Any:
            with contextlib.suppress(BaseException):
                function()
            return function()

        return method(self, twice)

    _wrap(Breaker, "execute", execute)


@_mutant
def _skips_a_callback() -> None:
    def put(method: Any, self: Dispatcher, events: Any) -> None:
        method(self, list(events)[1:])

    _wrap(Dispatcher, "put", put)


@_mutant
def _calls_back_twice() -> None:
    def put(method: Any, self: Dispatcher, events: Any) -> None:
        method(self, [event for event in events for _ in range(2)])

    _wrap(Dispatcher, "put", put)
