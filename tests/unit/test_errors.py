"""The exceptions: the tree that is drawn is the tree that exists, and all of it travels."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from switchgear import errors
from switchgear.errors import (
    BreakerError,
    CallCancelledError,
    CallNotPermittedError,
    CallTimeoutError,
    CapacityError,
    CircuitOpenError,
    ConfigError,
    ManagerUnavailableError,
    ProtocolError,
    TooManyRequestsError,
    UnknownCircuitError,
)
from switchgear.states import State

INSTANCES: list[BreakerError] = [
    BreakerError("something", 7),
    CallNotPermittedError("payments", State.OPEN),
    CallNotPermittedError("payments", State.HALF_OPEN, 0.0, ""),
    CircuitOpenError("payments", State.OPEN, 12.5, "TimeoutError: no answer"),
    TooManyRequestsError("payments", State.HALF_OPEN, None, "ValueError: 7"),
    CallTimeoutError("payments", 2.5),
    CallCancelledError("payments"),
    ManagerUnavailableError("ipc:///run/switchgear"),
    CapacityError("ipc:///run/switchgear", "all 3 places for clients are taken"),
    UnknownCircuitError("payments"),
    ProtocolError("not an array"),
    ConfigError("failure_threshold must be a whole number"),
]

# One line of the drawing: branches, the class, and what else it is.
DRAWN = re.compile(r"^ {4}(?P<branches>[│├└─ ]*)(?P<name>[A-Z]\w+Error)\b(?P<rest>.*)$")
ALSO = re.compile(r"also an? (\w+)$")


def classes() -> list[type[BreakerError]]:
    """Every exception the module defines."""
    found = []
    for _name, cls in inspect.getmembers(errors, inspect.isclass):
        if issubclass(cls, BaseException):
            assert issubclass(cls, BreakerError)
            found.append(cls)
    return found


def drawn() -> list[tuple[str, str | None, str | None]]:
    """(class, its parent, the builtin it also is), as the module's docstring draws them."""
    tree: list[tuple[str, str | None, str | None]] = []
    above: list[str] = []  # the path from the root to the line before
    for line in inspect.cleandoc(errors.__doc__ or "").splitlines():
        if (match := DRAWN.match(line)) is None:
            continue
        depth = len(match["branches"]) // 4
        del above[depth:]
        also = ALSO.search(match["rest"])
        tree.append((match["name"], above[-1] if above else None, also[1] if also else None))
        above.append(match["name"])
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    exist = []
    for cls in classes():
        first, *mixed_in = [base.__name__ for base in cls.__bases__]
        assert len(mixed_in) <= 1
        parent = None if cls is BreakerError else first
        exist.append((cls.__name__, parent, mixed_in[0] if mixed_in else None))
    assert sorted(map(repr, drawn())) == sorted(map(repr, exist))


def test_the_drawing_starts_at_the_root_and_shows_more_than_one_level() -> None:
    parents = {name: parent for name, parent, _also in drawn()}
    assert parents["BreakerError"] is None
    assert parents["CallNotPermittedError"] == "BreakerError"
    assert parents["CircuitOpenError"] == "CallNotPermittedError"
    assert parents["ConfigError"] == "BreakerError"


def test_the_root_is_an_exception_and_nothing_else() -> None:
    assert BreakerError.__bases__ == (Exception,)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (CallTimeoutError, TimeoutError),
        (ManagerUnavailableError, ConnectionError),
        (CapacityError, ConnectionError),
        (ConfigError, ValueError),
        (UnknownCircuitError, LookupError),
    ],
)
def test_a_handler_for_the_builtin_catches_ours(
    cls: type[BreakerError], builtin: type[Exception]
) -> None:
    instance = next(instance for instance in INSTANCES if type(instance) is cls)
    with pytest.raises(builtin) as caught:
        raise instance
    assert caught.value is instance


def test_only_the_classes_that_say_so_are_builtins_too() -> None:
    common = (OSError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError)
    assert {cls for cls in classes() if issubclass(cls, common)} == {
        CallTimeoutError,
        ManagerUnavailableError,
        CapacityError,
        ConfigError,
        UnknownCircuitError,
    }


def test_no_class_is_missing_from_the_instances_these_tests_pickle() -> None:
    assert {type(instance) for instance in INSTANCES} == set(classes())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", INSTANCES, ids=lambda error: type(error).__name__)
def test_an_error_pickles_with_every_attribute(error: BreakerError, protocol: int) -> None:
    arrived = pickle.loads(pickle.dumps(error, protocol))
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert str(arrived) == str(error)


@pytest.mark.parametrize("error", INSTANCES, ids=lambda error: type(error).__name__)
def test_an_error_survives_copy_and_deepcopy(error: BreakerError) -> None:
    for copied in (copy.copy(error), copy.deepcopy(error)):
        assert (type(copied), copied.args) == (type(error), error.args)


def test_an_error_built_with_keywords_pickles_like_one_built_without() -> None:
    by_keyword: list[BreakerError] = [
        CircuitOpenError(name="n", state=State.OPEN, retry_after=1.0, last_error="E: m"),
        CallTimeoutError(name="n", timeout=2.0),
        ManagerUnavailableError(address="a"),
        CapacityError(address="a", reason="r"),
        UnknownCircuitError(name="n"),
        CallCancelledError(name="n"),
    ]
    for error in by_keyword:
        arrived = pickle.loads(pickle.dumps(error))
        assert (type(arrived), arrived.args) == (type(error), error.args)
        assert arrived.args != ()


def test_a_refusal_has_its_facts_as_attributes() -> None:
    error = CircuitOpenError("payments", State.OPEN, 12.5, "TimeoutError: no answer")
    assert error.name == "payments"
    assert error.state is State.OPEN
    assert error.retry_after == 12.5
    assert error.last_error == "TimeoutError: no answer"


def test_a_refusal_knows_no_wait_and_no_last_error_unless_told() -> None:
    error = TooManyRequestsError("payments", State.HALF_OPEN)
    assert (error.retry_after, error.last_error) == (None, None)


def test_a_timeout_has_its_facts_as_attributes() -> None:
    error = CallTimeoutError("payments", 2.5)
    assert (error.name, error.timeout) == ("payments", 2.5)


def test_the_other_errors_have_their_facts_as_attributes() -> None:
    assert CallCancelledError("payments").name == "payments"
    assert UnknownCircuitError("payments").name == "payments"
    assert ManagerUnavailableError("ipc:///run/sg").address == "ipc:///run/sg"


def test_the_sentence_of_an_open_circuit_says_name_state_wait_and_last_error() -> None:
    error = CircuitOpenError("payments", State.OPEN, 12.5, "TimeoutError: no answer")
    assert str(error) == (
        "circuit 'payments' is open; retry after 12.500 s; last error: TimeoutError: no answer"
    )


def test_the_sentence_of_a_refused_probe_says_that_all_permits_are_out() -> None:
    error = TooManyRequestsError("payments", State.HALF_OPEN)
    assert str(error) == "circuit 'payments' is half-open and all its permits are out"


def test_the_sentence_leaves_out_what_is_not_known_and_keeps_a_wait_of_zero() -> None:
    assert str(CircuitOpenError("payments", State.OPEN)) == "circuit 'payments' is open"
    assert str(CircuitOpenError("payments", State.OPEN, 0.0)) == (
        "circuit 'payments' is open; retry after 0.000 s"
    )


def test_the_sentence_of_a_timeout_says_name_and_limit() -> None:
    text = str(CallTimeoutError("payments", 2.5))
    assert "'payments'" in text
    assert "timeout of 2.5 s" in text


def test_the_sentence_of_a_cancelled_call_says_name_and_reason() -> None:
    text = str(CallCancelledError("payments"))
    assert "'payments'" in text
    assert "cancelled by its token" in text


def test_the_sentence_of_a_missing_manager_says_where_and_how_to_start_one() -> None:
    text = str(ManagerUnavailableError("ipc:///run/sg"))
    assert "answers at ipc:///run/sg" in text
    assert "switchgear serve --address ipc:///run/sg" in text
    assert "switchgear.Manager()" in text


def test_the_sentence_of_an_unknown_circuit_says_its_name() -> None:
    # A plain LookupError's sentence would be the quoted argument alone.
    assert str(UnknownCircuitError("payments")) == "the manager knows no circuit 'payments'"


def test_the_sentence_of_the_plain_errors_is_what_they_were_given() -> None:
    assert str(ProtocolError("not an array")) == "not an array"
    assert str(ConfigError("open_timeout must be finite")) == "open_timeout must be finite"


def test_what_there_is_no_room_for_is_told_with_the_managers_address() -> None:
    error = CapacityError("ipc:///run/switchgear", "all 3 places for clients are taken")
    assert (error.address, error.reason) == (
        "ipc:///run/switchgear",
        "all 3 places for clients are taken",
    )
