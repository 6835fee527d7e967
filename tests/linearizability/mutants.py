"""Managers that are wrong on purpose: `python -m linearizability.mutants NAME --address ...`.

Each has one defect that somebody could make. The campaign must find every one of them; else what it
does not find in the real manager says little.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from switchgear.circuit import Circuit, Permit, Standing, Totals
from switchgear.manager import run
from switchgear.manager.actor import Actor
from switchgear.manager.journal import Journal
from switchgear.manager.leases import Leases
from switchgear.manager.sessions import Session
from switchgear.manager.unsaved import Changes
from switchgear.states import Outcome, State, Verdict

MUTANTS: Final[dict[str, Callable[[], None]]] = {}
LOSS_MUTANTS: Final[dict[str, Callable[[], None]]] = {}  # that show when the manager is killed


def _mutant(plant: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[plant.__name__.strip("_")] = plant
    return plant


def _loss_mutant(plant: Callable[[], None]) -> Callable[[], None]:
    LOSS_MUTANTS[plant.__name__.strip("_")] = plant
    return plant


def _wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have a method run as wrapper(the method, self, ...)."""
    method = getattr(owner, name)
    setattr(owner, name, lambda self, *args, **kwargs: wrapper(method, self, *args, **kwargs))


@_mutant
def _counts_what_is_stale() -> None:
    def report(method: Any, self: Circuit, permit: Permit, *args: Any, **kwargs: Any) -> Any:
        if self.state is not State.OPEN:  # where there is nothing that an outcome could move
            permit = permit._replace(generation=self.generation)
        return method(self, permit, *args, **kwargs)

    _wrap(Circuit, "report", report)


@_mutant
def _counts_stale_leases() -> None:
    Circuit._leases = lambda self, generation: self.state is State.CLOSED  # type: ignore[method-assign]


@_mutant
def _opens_one_failure_late() -> None:
    def judge(method: Any, self: Circuit, outcome: Outcome, now: float) -> None:
        config = self.config
        self.config = replace(config, failure_threshold=config.failure_threshold + 1)
        method(self, outcome, now)
        self.config = config

    _wrap(Circuit, "_judge", judge)


@_mutant
def _closes_one_success_early() -> None:
    def judge(method: Any, self: Circuit, outcome: Outcome, now: float) -> None:
        config = self.config
        self.config = replace(config, success_threshold=max(1, config.success_threshold - 1))
        method(self, outcome, now)
        self.config = config

    _wrap(Circuit, "_judge", judge)


@_mutant
def _admits_one_probe_too_many() -> None:
    def acquire(method: Any, self: Circuit, *args: Any) -> Any:
        config = self.config
        self.config = replace(config, max_concurrent_requests=config.max_concurrent_requests + 1)
        permit = method(self, *args)
        self.config = config
        return permit

    _wrap(Circuit, "acquire", acquire)


@_mutant
def _turns_half_open_early() -> None:
    def to(method: Any, self: Circuit, cause: str, now: float) -> None:
        method(self, cause, now)
        if self.half_open_at is not None:
            self.half_open_at = now + self.config.open_timeout / 4

    _wrap(Circuit, "_to", to)


@_mutant
def _forgives_the_dead() -> None:
    def abandon(method: Any, self: Circuit, permit: Permit, now: float) -> None:
        self.report(permit, Outcome.NEUTRAL, now)

    _wrap(Circuit, "abandon", abandon)


@_mutant
def _forgets_the_lost_permit() -> None:
    def lose(method: Any, self: Circuit, permit: Permit, now: float) -> None:
        method(self, permit._replace(generation=0), now)

    _wrap(Circuit, "_lose", lose)


@_mutant
def _gives_a_number_twice() -> None:
    turns = itertools.count(1)

    def next_operation(method: Any, self: Actor) -> int:
        number: int = self._operation if next(turns) % 500 == 0 else method(self)
        return number

    _wrap(Actor, "_next_operation", next_operation)


@_mutant
def _skips_a_number() -> None:
    turns = itertools.count(1)

    def next_operation(method: Any, self: Actor) -> int:
        if next(turns) % 500 == 0:
            method(self)
        number: int = method(self)
        return number

    _wrap(Actor, "_next_operation", next_operation)


@_mutant
def _counts_a_batch_twice() -> None:
    def report_totals(
        method: Any, self: Circuit, totals: Totals, now: float, generation: int = 0
    ) -> Verdict:
        verdict: Verdict = method(self, totals, now, generation)
        self._totals[Outcome.SUCCESS] += totals.successes
        return verdict

    _wrap(Circuit, "report_totals", report_totals)


@_mutant
def _resets_without_a_generation() -> None:
    def reset(method: Any, self: Circuit, now: float) -> None:
        method(self, now)
        if self._transitions[-1].old is State.CLOSED:
            self.generation -= 1

    _wrap(Circuit, "reset", reset)


@_mutant
def _moves_when_it_is_read() -> None:
    def stats(method: Any, self: Circuit, *args: Any) -> Any:
        answer = method(self, *args)
        self.consecutive_failures = 0
        return answer

    _wrap(Circuit, "stats", stats)


@_mutant
def _keeps_a_change_to_itself() -> None:
    turns = itertools.count(1)

    def publish(method: Any, self: Actor, *args: Any) -> Any:
        return [] if next(turns) % 50 == 0 else method(self, *args)

    _wrap(Actor, "_publish", publish)


@_mutant
def _forgets_a_holder() -> None:
    def follow(method: Any, self: Leases[Any], *args: Any) -> Any:
        holders, message = method(self, *args)
        return holders[1:], message

    _wrap(Leases, "follow", follow)


@_mutant
def _rejects_while_closed() -> None:
    turns = itertools.count(1)

    def acquire(method: Any, self: Circuit, *args: Any) -> Any:
        state = self.state
        if state is State.CLOSED and next(turns) % 50 == 0:
            self.state = State.OPEN
            permit = method(self, *args)
            self.state = state
            return permit
        return method(self, *args)

    _wrap(Circuit, "acquire", acquire)


@_mutant
def _tells_only_the_first_subscriber() -> None:
    _wrap(Actor, "_publish", lambda method, self, *args: method(self, *args)[:1])


@_mutant
def _lets_the_permits_of_the_dead_be() -> None:
    def died(method: Any, self: Actor, session: Session, now: float) -> Any:
        session.granted.clear()
        return method(self, session, now)

    _wrap(Actor, "died", died)


@_mutant
def _halves_the_time_of_a_probe() -> None:
    def acquire(method: Any, self: Circuit, *args: Any) -> Any:
        config = self.config
        self.config = replace(config, permit_timeout=config.permit_timeout / 2)
        permit = method(self, *args)
        self.config = config
        return permit

    _wrap(Circuit, "acquire", acquire)


@_mutant
def _never_looks_for_probes_that_are_overdue() -> None:
    def tick(method: Any, self: Circuit, now: float) -> None:
        if self.half_open_at is not None and now >= self.half_open_at:
            self._to("timeout", now)

    _wrap(Circuit, "tick", tick)
    Circuit.next_deadline = property(lambda self: self.half_open_at)  # type: ignore[method-assign, assignment]


@_mutant
def _says_to_try_again_at_once() -> None:
    def retry_after(method: Any, self: Circuit, now: float) -> Any:
        return None if method(self, now) is None else 0.0

    _wrap(Circuit, "retry_after", retry_after)


@_mutant
def _turns_half_open_early_and_does_not_say_so() -> None:
    right: dict[str, float] = {}

    def to(method: Any, self: Circuit, cause: str, now: float) -> None:
        method(self, cause, right.get(self.name, now) if cause == "timeout" else now)
        if self.half_open_at is not None:
            right[self.name] = self.half_open_at
            self.half_open_at = now + self.config.open_timeout / 4

    _wrap(Circuit, "_to", to)


@_loss_mutant
def _succeeds_without_what_was_in_a_row() -> None:
    def resume(method: Any, self: Circuit, *args: Any) -> None:
        method(self, *args)
        self.consecutive_failures = self.consecutive_successes = 0

    _wrap(Circuit, "_resume_counts", resume)


@_loss_mutant
def _succeeds_with_what_is_open_half_open_at_once() -> None:
    restore = Circuit.restore

    def begin(name: str, standing: Standing, *args: Any) -> Circuit:
        if standing.half_open_at is not None:
            standing = standing._replace(half_open_at=standing.half_open_at - 1e6)
        return restore(name, standing, *args)

    Circuit.restore = begin  # type: ignore[method-assign, assignment]


@_loss_mutant
def _acknowledges_what_it_has_not_saved() -> None:
    def write(method: Any, self: Journal, changes: Changes) -> None:
        method(self, changes._replace(counts=[], sessions=[]))

    _wrap(Journal, "write", write)


@_loss_mutant
def _forgets_who_has_reported() -> None:
    def write(method: Any, self: Journal, changes: Changes) -> None:
        method(self, changes._replace(sessions=[]))

    _wrap(Journal, "write", write)


@_loss_mutant
def _tells_before_it_has_saved() -> None:
    def write(method: Any, self: Journal, changes: Changes) -> None:
        method(self, changes._replace(standings=[], events=[]) if changes.events else changes)

    _wrap(Journal, "write", write)


@_loss_mutant
def _succeeds_as_if_all_were_closed() -> None:
    restore = Circuit.restore

    def begin(name: str, standing: Standing, *args: Any) -> Circuit:
        return restore(name, standing._replace(state=State.CLOSED, half_open_at=None), *args)

    Circuit.restore = begin  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    {**MUTANTS, **LOSS_MUTANTS}[sys.argv[1]]()
    sys.exit(run.main(sys.argv[2:]))
