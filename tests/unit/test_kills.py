"""Managers that are killed at any moment, and successors that go on from what was saved.

Three clients do as they please with two circuits. Nothing is saved but at moments of chance, and
the manager may die between any two things it does: before it writes, after it has written and
before it says so, and with what it has said half on its way.
"""

from __future__ import annotations

import functools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Final

import pytest
from harness import Memory, Pair, Waiter

from switchgear.circuit import Circuit
from switchgear.client.lease import Lease
from switchgear.client.session import Grant
from switchgear.config import CircuitConfig
from switchgear.manager.actor import LEASE
from switchgear.manager.sessions import CONTROL, DATA
from switchgear.manager.unsaved import SAVE_INTERVAL, Changes
from switchgear.states import Outcome, State
from switchgear.stats import CircuitStats
from switchgear.wire import (
    HISTORY,
    TO_DATA,
    Batch,
    Event,
    GetStats,
    Leased,
    Malformed,
    Message,
    Report,
    Reset,
    StatsOf,
    decode,
)

STEPS: Final = 1_500
SEEDS: Final = range(30)
NAMES: Final = ("a", "b")
MOST_PROBES: Final = 2
CONFIGS: Final = [
    CircuitConfig(
        failure_threshold=threshold,
        success_threshold=2,
        open_timeout=open_timeout,
        max_concurrent_requests=MOST_PROBES,
        permit_timeout=3.0,
        consistency=consistency,
    )
    for threshold, open_timeout in ((2, 0.5), (3, 2.0))
    for consistency in ("leased", "strict")
]


class Killed(Exception):
    """The manager is no more."""


class Mortal(Memory):
    """A journal whose manager may die over it."""

    def __init__(self, written: Callable[[Changes], None]) -> None:
        super().__init__()
        self.dies: str | None = None
        self.lost: list[Changes] = []
        self._written = written

    def write(self, changes: Changes) -> None:
        if self.dies == "before it writes":
            self.lost.append(changes)
            raise Killed
        super().write(changes)
        self._written(changes)
        if self.dies == "after it has written":
            raise Killed


class Walk:
    """What happens, and what was handed over.

    Args:
        seed: Of everything that is random here.
        forgetting: Some managers are replaced by one that knows nothing.
    """

    def __init__(self, seed: int, *, forgetting: bool = False) -> None:
        self.random = random.Random(seed)
        self.forgetting = forgetting
        self.pair = Pair(3)
        self.pair.memory = Mortal(self.note_written)
        self.pair.saves = False
        self.waiters: list[tuple[int, str, Waiter]] = []
        self.grants: list[tuple[int, str, Grant]] = []
        self.running: list[tuple[int, Lease]] = []
        self.handed_over: dict[str, Counter[Outcome]] = {name: Counter() for name in NAMES}
        self.rejected: Counter[str] = Counter()
        self.failures: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
        self.saved_failures: set[str | None] = set()
        self.states: dict[tuple[int, str, int], tuple[State, float | None]] = {}
        self.told: Counter[tuple[int, str]] = Counter()  # the highest generation, by line
        self.heard = 0  # how much of what was said has been looked at
        self.events: dict[tuple[int, int], Event] = {}
        self.seen: Counter[str] = Counter()
        for client in self.pair.clients:
            for name in NAMES:
                client.session.declare(name, CONFIGS[0])
            self.pair.subscribe(client.number)
        self.pair.run()

    # -- one step ----------------------------------------------------------------------------------

    def step(self) -> None:
        chances = [
            (4, self.acquire),
            (20, self.call),
            (10, self.report),
            (16, self.end_call),
            (5, self.flush),
            (2, self.abandon),
            (1, self.ask),
            (90, self.deliver),
            (2, self.cut),
            (12, self.connect),
            (4, self.wait),
            (5, self.save),
            (1, self.kill),
            (1, self.die_over_the_journal),
        ]
        (action,) = self.random.choices([a for _, a in chances], [w for w, _ in chances])
        try:
            action()
        except Killed:
            self.seen["died over the journal"] += 1
            memory = self.pair.memory
            assert isinstance(memory, Mortal)
            self.seen["news lost"] += sum(bool(lost.events) for lost in memory.lost)
            self.seen["counts lost"] += sum(bool(lost.counts) for lost in memory.lost)
            memory.lost.clear()
            self.succeed()
        self.pair.collect()
        self.look()

    def circuit(self, name: str) -> Circuit | None:
        return self.pair.actor._circuits.get(name)

    def look(self) -> None:
        """Take what came, and assert what is true at any time."""
        line = self.pair.actor.origin
        for client, name, waiter in self.waiters:
            if isinstance(waiter.answer, Grant):
                self.grants.append((client, name, waiter.answer))
        self.waiters = [one for one in self.waiters if not one[2].answered]
        for name in NAMES:
            circuit = self.circuit(name)
            if circuit is not None:
                place = (line, name, circuit.generation)
                until = circuit.standing().half_open_at
                assert self.states.setdefault(place, (circuit.state, until)) == (
                    circuit.state,
                    until,
                )
        for said in self.pair.said[self.heard :]:
            if not said.by_client:
                self.note_told(said.message)
        self.heard = len(self.pair.said)
        held = [held for held in self.pair.actor._permits.values() if held.permit.deadline]
        for name in NAMES:  # G3, as far as one manager can see
            probes = [one for one in held if one.circuit.name == name]
            overdue = [one for one in probes if one.permit.id not in one.circuit._probes]
            assert len(probes) - len(overdue) <= MOST_PROBES

    def note_told(self, message: Message) -> None:
        line = self.pair.actor.origin
        if isinstance(message, Event):
            # One version is one event, whoever says it.
            assert self.events.setdefault((line, message.version), message) == message
        if isinstance(message, Event | Leased):
            key = line, message.name
            self.told[key] = max(self.told[key], message.generation)

    def note_written(self, changes: Changes) -> None:
        if changes.sessions:
            self.saved_failures.update(report.error for report in self.pair.taken_in)

    def any_client(self) -> int:
        return self.random.randrange(len(self.pair.clients))

    def pick(self, things: list[tuple[int, str, Waiter]] | list[tuple[int, str, Grant]]) -> int:
        return self.random.randrange(len(things))

    # -- what callers do ---------------------------------------------------------------------------

    def acquire(self) -> None:
        client, name = self.any_client(), self.random.choice(NAMES)
        timeout = self.random.choice([0.05, 10.0])
        waiter = self.pair.acquire(name, client=client, timeout=timeout)
        self.waiters.append((client, name, waiter))

    def call(self) -> None:
        client, name = self.any_client(), self.random.choice(NAMES)
        admitted = self.pair.admit(name, client=client)
        if isinstance(admitted, Waiter):
            self.waiters.append((client, name, admitted))
        elif admitted is None:
            self.rejected[name] += 1
        else:
            self.running.append((client, admitted))
            # G7, whatever dies.
            assert self.failures[client, name] <= self.saved_failures
            assert self.pair.now < self.pair.answered[client] + LEASE  # G8
            self.check_news(client, admitted)

    def check_news(self, client: int, lease: Lease) -> None:
        """G8: who has heard all there is to hear runs what the manager would."""
        wire, circuit = self.pair.clients[client].wires[DATA], self.circuit(lease.name)
        holders = self.pair.actor._leases.holders(lease.name)
        if circuit is not None and wire.peer in holders and not wire.down:
            assert (circuit.generation, circuit.state) == (lease.generation, State.CLOSED)
        self.seen["leased by the dead"] += lease.epoch != self.pair.actor.epoch

    def outcome(self, client: int, name: str) -> tuple[Outcome, str | None]:
        """How a call ended; a failure's text is unlike any other's."""
        (outcome,) = self.random.choices(list(Outcome), [5, 4, 1])
        self.handed_over[name][outcome] += 1
        if outcome is not Outcome.FAILURE:
            return outcome, None
        text = f"Error: {name} {self.handed_over[name][outcome]}"
        self.failures[client, name].add(text)
        return outcome, text

    def report(self) -> None:
        if self.grants:
            client, name, grant = self.grants.pop(self.pick(self.grants))
            outcome, error = self.outcome(client, name)
            self.pair.clients[client].report(name, grant, outcome, error)
            of_the_dead = grant.epoch != self.pair.actor.epoch
            self.seen["permits of the dead"] += of_the_dead and not grant.probe
            self.seen["probes of the dead"] += of_the_dead and grant.probe

    def end_call(self) -> None:
        if self.running:
            client, lease = self.running.pop(self.random.randrange(len(self.running)))
            outcome, error = self.outcome(client, lease.name)
            if outcome is Outcome.SUCCESS and self.random.random() < 0.5:
                lease.successes.append(0.001)
                if not lease.noted:
                    lease.rouse()
            else:
                lease.report(outcome, 0.001, error)

    def flush(self) -> None:
        self.pair.clients[self.any_client()].flush()

    def abandon(self) -> None:
        if self.waiters:
            client, _, waiter = self.waiters.pop(self.pick(self.waiters))
            timed_out = self.random.random() < 0.5
            self.pair.clients[client].session.abandon(waiter, timed_out=timed_out)

    def ask(self) -> None:
        client, name = self.any_client(), self.random.choice(NAMES)
        actions: list[Callable[[], object]] = [
            lambda: self.pair.ask(lambda number: Reset(number, name), name, client=client),
            lambda: self.pair.flush(client),
            lambda: self.pair.clients[client].session.declare(name, self.random.choice(CONFIGS)),
        ]
        self.random.choice(actions)()

    # -- what connections and managers do ----------------------------------------------------------

    def deliver(self) -> None:
        client, connection = self.any_client(), self.random.choice([DATA, DATA, CONTROL])
        if self.random.random() < 0.5:
            for _ in range(self.random.randrange(1, 6)):
                self.pair.deliver_down(client, connection)
        else:
            for _ in range(self.random.randrange(1, 6)):
                self.deliver_up(client, connection)

    def deliver_up(self, client: int, connection: int) -> None:
        self.pair._tick()
        queue = self.pair.clients[client].wires[connection].up
        late = self.late(queue[0]) if queue else None
        before = late and late.generation
        self.pair.deliver_up(client, connection)
        if late is not None:  # G6
            self.seen["late reports"] += 1
            assert late.generation == before

    def late(self, frame: bytes) -> Circuit | None:
        """The circuit of a report that may not move it."""
        try:
            message = decode(frame, TO_DATA)
        except Malformed:
            return None
        if not isinstance(message, Report | Batch):
            return None
        circuit, actor = self.circuit(message.name), self.pair.actor
        if circuit is None:
            return None
        in_line = actor.origin <= message.epoch <= actor.epoch
        current = in_line and message.generation == circuit.generation
        if current and message.epoch != actor.epoch and circuit.state is not State.CLOSED:
            current = False  # the probe of a dead manager
        return None if current else circuit

    def cut(self) -> None:
        self.pair.cut(self.any_client(), self.random.choice([DATA, CONTROL]))

    def connect(self) -> None:
        self.pair.connect(self.any_client(), self.random.choice([DATA, CONTROL]))

    def wait(self) -> None:
        self.pair.now += self.random.choice([0.001, 0.006, 0.1, 0.6, 2.0])
        self.pair._tick()

    def save(self) -> None:
        self.pair.save()

    def die_over_the_journal(self) -> None:
        memory = self.pair.memory
        assert isinstance(memory, Mortal)
        memory.dies = self.random.choice(["before it writes", "after it has written"])

    def kill(self) -> None:
        actor = self.pair.actor
        unsaved = actor._unsaved
        self.seen["kills"] += 1
        self.seen["unsaved counts"] += bool(unsaved._counts)
        self.seen["unsaved reports"] += bool(unsaved._sessions)
        self.seen["unacknowledged"] += bool(actor._acks._waiting)
        for name in NAMES:
            circuit = self.circuit(name)
            if circuit is not None:
                self.seen[str(circuit.state)] += 1
                self.seen["probes out"] += bool(circuit._probes)
                saved = self.pair.memory._counts.get(name)
                behind = saved is not None and saved.generation < circuit.generation
                self.seen["counts behind"] += behind
        self.succeed()

    def succeed(self) -> None:
        """The manager is dead; what it had said may still arrive, or not."""
        memory = self.pair.memory
        assert isinstance(memory, Mortal)
        memory.dies = None
        for client in self.pair.clients:
            for connection in (DATA, CONTROL):
                for _ in range(self.random.choice([0, 0, 1, 3, 100])):
                    self.pair.deliver_down(client.number, connection)
        self.look_at_what_was_said()
        if self.forgetting and self.random.random() < 0.3:
            self.pair.replace_manager()
            self.pair.memory = Mortal(self.note_written)
            self.saved_failures.update(*self.failures.values())  # nobody can ask for more
            return
        self.pair.kill_manager()
        if self.random.random() < 0.7:
            self.pair.connect_all()
        line = self.pair.actor.origin
        for name in NAMES:
            told = self.told[line, name]
            circuit = self.circuit(name)
            if told:  # G11: whatever anybody was told is still so
                assert circuit is not None
                assert circuit.generation >= told
            if circuit is not None:
                self.forget_untold(line, name, circuit.generation)
                place = line, name, circuit.generation
                found = circuit.state, circuit.standing().half_open_at
                assert self.states.get(place, found) == found
        versions = [version for its_line, version in self.events if its_line == line]
        assert self.pair.actor._version >= max(versions, default=0)

    def forget_untold(self, line: int, name: str, saved: int) -> None:
        """What was neither saved nor told has not happened."""
        for place in list(self.states):
            if place[:2] == (line, name) and place[2] > saved:
                self.seen["generations nobody heard of"] += 1
                del self.states[place]

    def look_at_what_was_said(self) -> None:
        for said in self.pair.said[self.heard :]:
            if not said.by_client:
                self.note_told(said.message)
        self.heard = len(self.pair.said)

    # -- the end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """Everything held is reported, every break is mended, and everything is saved."""
        memory = self.pair.memory
        assert isinstance(memory, Mortal)
        memory.dies = None
        self.pair.saves = True
        for number, _, waiter in self.waiters:
            self.pair.clients[number].session.abandon(waiter, timed_out=False)
        self.waiters.clear()
        for _ in range(3):
            for client in self.pair.clients:
                self.pair.cut(client.number, DATA)
                self.pair.cut(client.number, CONTROL)
            self.pair.connect_all()
            self.pair.run()
            self.look()
            while self.grants:
                self.report()
            while self.running:
                self.end_call()
            self.pair.collect_leases()
            self.pair.run()
            waiters = [self.pair.flush(client.number) for client in self.pair.clients]
            self.pair.run()
            assert all(waiter.answered for waiter in waiters)

    def stats(self, name: str) -> CircuitStats:
        waiter = self.pair.ask(lambda number: GetStats(number, name), name)
        self.pair.run()
        assert isinstance(waiter.answer, StatsOf)
        return waiter.answer.stats

    def totals(self) -> list[tuple[int, int]]:
        found = [self.stats(name) for name in NAMES]
        return [(stats.total_successes, stats.total_failures) for stats in found]


@functools.cache
def walked(seed: int, *, forgetting: bool = False) -> Walk:
    walk = Walk(seed, forgetting=forgetting)
    for _ in range(STEPS):
        walk.step()
    walk.end()
    return walk


@pytest.mark.parametrize("seed", SEEDS)
def test_g10_whoever_is_killed_when_each_outcome_is_counted_once(seed: int) -> None:
    walk = walked(seed)
    handed_over = [
        (walk.handed_over[name][Outcome.SUCCESS], walk.handed_over[name][Outcome.FAILURE])
        for name in NAMES
    ]
    assert walk.totals() == handed_over
    for name in NAMES:
        found = walk.stats(name)
        assert found.total_neutral >= walk.handed_over[name][Outcome.NEUTRAL]
        assert found.total_rejected >= walk.rejected[name]
        assert found.in_flight == 0
    # What was acknowledged is saved, and nobody has anything to send again.
    assert not any(len(client.session._reports) for client in walk.pair.clients)
    walk.pair.advance(SAVE_INTERVAL)  # rejections are acknowledged to nobody
    before = [walk.stats(name) for name in NAMES]
    walk.pair.kill_manager()
    walk.pair.connect_all()
    walk.pair.run()
    walk.look()
    assert [walk.stats(name) for name in NAMES] == before


@pytest.mark.parametrize("seed", SEEDS)
def test_g1_events_rise_by_one_for_everybody_whoever_is_killed(seed: int) -> None:
    walk = walked(seed)
    everything = sorted(version for _, version in walk.events)
    for client in walk.pair.clients:
        seen = [event.version for event in client.events]
        assert seen == sorted(set(seen))
        for event in client.events:
            assert walk.events[1, event.version] == event
        assert seen[-1:] == everything[-1:]
        # What was skipped is older than what a successor gets to know of.
        for version in set(range(1, max(seen) + 1)) - set(seen):
            later = Counter(event.name for event in walk.events.values() if event[0] > version)
            assert max(later.values()) >= HISTORY


@pytest.mark.parametrize("seed", range(10))
def test_a_manager_that_knows_nothing_may_come_between_and_counts_nothing_twice(seed: int) -> None:
    walk = walked(1_000 + seed, forgetting=True)
    for name, (successes, failures) in zip(NAMES, walk.totals(), strict=True):
        assert successes <= walk.handed_over[name][Outcome.SUCCESS]
        assert failures <= walk.handed_over[name][Outcome.FAILURE]
    assert not any(len(client.session._reports) for client in walk.pair.clients)


def test_the_walks_kill_where_it_matters() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        seen += walked(seed).seen
    wanted = {
        "kills": 200,
        "died over the journal": 50,
        "news lost": 5,
        "counts lost": 20,
        "unsaved counts": 50,
        "unsaved reports": 50,
        "unacknowledged": 50,
        "counts behind": 20,
        "closed": 50,
        "open": 15,
        "half-open": 20,
        "probes out": 10,
        "permits of the dead": 50,
        "probes of the dead": 5,
        "leased by the dead": 20,
        "late reports": 100,
    }
    assert {what: seen[what] for what in wanted if seen[what] < wanted[what]} == {}, seen
