"""The messages and their msgpack form: every message once, for both sides.

A message is a frozen tuple of values; on the wire it is one msgpack array, `[kind, field, ...]`, in
one ZeroMQ frame; the frames of one ZeroMQ message are as many messages, in order. The annotation of
a field is its type for people and its check for bytes: whatever `decode` returns has passed every
check, and whatever does not pass raises `Malformed` and nothing else. Elements after the last known
field are ignored, so that a later version may add some.

No socket, no clock. Times and durations are whole microseconds; instants are either on the
manager's monotonic clock (`deadline`, `clock`) or Unix time (`..._at`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import msgpack

from .circuit import CAUSES
from .config import MAX_COUNT, MAX_SECONDS, CircuitConfig, Consistency, LostPermit, check_name
from .errors import ConfigError, ProtocolError
from .states import Outcome, State, Verdict
from .stats import LATENCY_WINDOW, CircuitStats, MetricsSnapshot, StateChange

PROTOCOL: Final = 1  # the only version there is; negotiated in Hello and Welcome
MAX_FRAME: Final = 64 * 1024  # bytes of one message
MAX_FRAMES: Final = 64  # messages in one ZeroMQ message
MAX_ERROR_CHARACTERS: Final = 512  # of the last error's text
HISTORY: Final = 16  # changes of one circuit in one HistoryOf
PAGE: Final = 24  # circuits in one Listed; 24 of the largest stay below MAX_FRAME

MAX_INTEGER: Final = 2**63 - 1
_MAX_UNIX_MICROS: Final = 253_402_300_799_000_000  # the end of the year 9999
_MAX_MICROS: Final = int(MAX_SECONDS) * 1_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class ErrorCode(IntEnum):
    """Why a message was refused. The numbers are the wire's and must not move."""

    MALFORMED = 1  # not msgpack, or not of the form its kind has
    UNKNOWN_KIND = 2  # no such message, or not on this socket
    WRONG_PROTOCOL = 3  # no version in common
    NO_SESSION = 4  # say Hello first
    UNKNOWN_CIRCUIT = 5  # nobody has declared it
    BAD_CONFIG = 6  # a name or a configuration out of its range
    DEADLINE_PASSED = 7  # nobody waits for the answer any more
    UNKNOWN_PERMIT = 8  # never issued, or reported before
    FOREIGN_PERMIT = 9  # issued to another session
    DUPLICATE_REPORT = 10  # that sequence number was taken in before
    OUT_OF_ORDER = 11  # a report before this one is missing
    DUPLICATE_REQUEST = 12  # answered before, or overtaken; ask under a new number
    TOO_MANY_CLIENTS = 13  # there is no room for another session
    TOO_MANY_CIRCUITS = 14  # nor for another circuit


class Malformed(ProtocolError):
    """A frame that is no message, or no message for this side.

    Attributes:
        kind: The kind it claims, 0 when it has none.
        ref: Its first field if that is a number (a request's or a report's), else 0.
        code: What to answer.
        text: What is wrong, for people.
    """

    def __init__(self, kind: int, ref: int, code: ErrorCode, text: str) -> None:
        super().__init__(kind, ref, code, text)
        self.kind, self.ref, self.code, self.text = kind, ref, code, text

    def __str__(self) -> str:
        return self.text


# -- seconds and microseconds ----------------------------------------------------------------------


def to_micros(seconds: float) -> int:
    """Whole microseconds of a duration or an instant of the monotonic clock; never less than 0."""
    return max(0, round(seconds * 1e6))


def to_seconds(micros: int) -> float:
    """The other way. Exact for what `to_micros` made of a duration in whole microseconds."""
    return micros / 1e6


# -- fields: how one value crosses -----------------------------------------------------------------


class _Field(NamedTuple):
    """`decode` raises ValueError with a text; `encode` None means that the value goes as it is.

    `inline` is Python for `decode(x)` that spares the call where x is plainly right, perhaps by a
    look into `table`; what is wrong, it leaves to decode(x). `_reader` says what for.
    """

    decode: Callable[[Any], Any]
    encode: Callable[[Any], object] | None = None
    inline: str = "decode(x)"
    table: object = None


def _whole(highest: int) -> _Field:
    def decode(value: object) -> int:
        if type(value) is int and 0 <= value <= highest:
            return value
        raise ValueError(f"expected a whole number from 0 to {highest}, got {_short(value)}")

    return _Field(decode, inline=f"x if type(x) is int and 0 <= x <= {highest} else decode(x)")


def _of_type(
    kind: type, what: str, holds: Callable[[Any], bool], inline: str = "decode(x)"
) -> _Field:
    def decode(value: object) -> object:
        if type(value) is kind and holds(value):
            return value
        raise ValueError(f"expected {what}, got {_short(value)}")

    return _Field(decode, inline=inline)


_LOOK_UP: Final = "table[x] if type(x) is int and x in table else decode(x)"


def _number_of(members: type[IntEnum]) -> _Field:
    """A member of an IntEnum, as its number."""
    by_number = {int(member): member for member in members}

    def decode(value: object) -> object:
        if type(value) is int and value in by_number:
            return by_number[value]
        raise ValueError(f"expected one of {sorted(by_number)}, got {_short(value)}")

    return _Field(decode, inline=_LOOK_UP, table=by_number)


def _place_in(choices: tuple[Any, ...]) -> _Field:
    """One of a few values, as its place among them."""
    place = _whole(len(choices) - 1).decode
    table = dict(enumerate(choices))
    return _Field(lambda value: choices[place(value)], choices.index, _LOOK_UP, table)


def _optional(field: _Field) -> _Field:
    decode, encode = field.decode, field.encode
    return field._replace(
        decode=lambda value: None if value is None else decode(value),
        encode=encode and (lambda value: None if value is None else encode(value)),
        inline=f"None if x is None else {field.inline}",
    )


def _record(build: Callable[..., Any], fields: Mapping[str, _Field]) -> _Field:
    """An object as an array of its attributes, in the order given."""

    def encode(value: object) -> object:
        return tuple(
            getattr(value, name) if field.encode is None else field.encode(getattr(value, name))
            for name, field in fields.items()
        )

    return _Field(lambda value: build(**_decode_row(value, fields)), encode)


def _decode_row(value: object, fields: Mapping[Any, _Field]) -> dict[Any, Any]:
    array = _known(value, len(fields))
    return {key: field.decode(array[place]) for place, (key, field) in enumerate(fields.items())}


def _known(value: object, size: int) -> tuple[Any, ...]:
    """The elements of an array that this version knows; a later one may have added some."""
    if type(value) is not tuple or len(value) < size:
        raise ValueError(f"expected an array of {size}, got {_short(value)}")
    return value[:size]


def _array_of(field: _Field, most: int) -> _Field:
    def decode(value: object) -> tuple[object, ...]:
        if type(value) is tuple and len(value) <= most:
            return tuple([field.decode(item) for item in value])
        raise ValueError(f"expected an array of at most {most}, got {_short(value)}")

    encode = field.encode
    return _Field(decode, encode and (lambda value: tuple(map(encode, value))))


def _numbers(highest: int, most: int) -> _Field:
    """Whole numbers. There may be many, so they are looked at together, not one by one."""

    def decode(value: object) -> object:
        if (
            type(value) is tuple
            and len(value) <= most
            and (
                not value
                or (set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= highest)
            )
        ):
            return value
        raise ValueError(
            f"expected at most {most} whole numbers from 0 to {highest}, got {_short(value)}"
        )

    return _Field(decode)


# The same few names come with every message. These have passed; a refused one is not remembered.
_MAX_KNOWN_NAMES: Final = 16_384
_known_names: Final[set[str]] = set()


def _decode_name(value: object) -> object:
    if type(value) is not str:  # before check_name, which quotes what it is given: see _short
        raise ValueError(f"expected a name, got {_short(value)}")
    if value not in _known_names:
        check_name(value)
        if len(_known_names) >= _MAX_KNOWN_NAMES:
            _known_names.clear()
        _known_names.add(value)
    return value


def _short(value: object) -> str:
    if type(value) is tuple:  # never its contents: they may be nested too deep for repr()
        return f"an array of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


_integer = _whole(MAX_INTEGER)
_count = _whole(MAX_COUNT)
_micros = _whole(_MAX_MICROS)
_durations = _numbers(_MAX_MICROS, LATENCY_WINDOW)
_duration = _Field(
    lambda value: to_seconds(_micros.decode(value)),
    to_micros,
    f"x / 1e6 if type(x) is int and 0 <= x <= {_MAX_MICROS} else decode(x)",
)
# A configured duration below a microsecond is legal and must not become 0, which is not.
_setting = _Field(_duration.decode, lambda seconds: max(1, to_micros(seconds)))
_instant = _Field(
    lambda value: _EPOCH + timedelta(microseconds=_whole(_MAX_UNIX_MICROS).decode(value)),
    lambda at: (at - _EPOCH) // timedelta(microseconds=1),
)
_name = _Field(
    _decode_name, inline="x if type(x) is str and x in table else decode(x)", table=_known_names
)
_after = _Field(lambda value: value if value == "" else _decode_name(value))
_text = _of_type(
    str,
    f"text of at most {MAX_ERROR_CHARACTERS} characters",
    lambda value: len(value) <= MAX_ERROR_CHARACTERS,
    f"x if type(x) is str and len(x) <= {MAX_ERROR_CHARACTERS} else decode(x)",
)
_cause = _of_type(str, f"one of {', '.join(sorted(CAUSES))}", CAUSES.__contains__)
_token = _of_type(bytes, "16 bytes", lambda value: len(value) == 16)
_flag = _of_type(bool, "a boolean", lambda value: True)
_state = _place_in(tuple(State))
_leased_state = _place_in((State.CLOSED, State.OPEN))
_config = _record(
    CircuitConfig,
    {
        "failure_threshold": _integer,
        "success_threshold": _integer,
        "open_timeout": _setting,
        "max_concurrent_requests": _integer,
        "permit_timeout": _setting,
        "lost_permit": _place_in(get_args(LostPermit)),
        "consistency": _place_in(get_args(Consistency)),
    },
)
_stats = _record(
    CircuitStats,
    {
        "name": _name,
        "state": _state,
        "total_requests": _integer,
        "total_successes": _integer,
        "total_failures": _integer,
        "total_neutral": _integer,
        "total_rejected": _integer,
        "consecutive_successes": _integer,
        "consecutive_failures": _integer,
        "in_flight": _integer,
        "last_error": _optional(_text),
        "last_error_at": _optional(_instant),
        "state_changed_at": _instant,
        "retry_after": _optional(_duration),
        "generation": _integer,
        "config": _config,
    },
)
_metrics = _record(
    MetricsSnapshot,
    {
        "requests_total": _integer,
        "requests_successful": _integer,
        "requests_failed": _integer,
        "requests_rejected": _integer,
        "permits_lost": _integer,
        "stale_reports": _integer,
        "transitions": _Field(
            lambda value: _decode_row(value, dict.fromkeys(State, _integer)),
            lambda value: tuple(value[state] for state in State),
        ),
        "avg_latency": _optional(_duration),
        "min_latency": _optional(_duration),
        "max_latency": _optional(_duration),
        "p50_latency": _optional(_duration),
        "p95_latency": _optional(_duration),
        "p99_latency": _optional(_duration),
    },
)
_change = _record(
    StateChange,
    {
        "version": _integer,
        "old": _state,
        "new": _state,
        "cause": _cause,
        "generation": _integer,
        "at": _instant,
    },
)

# What the annotations below are made of. A request's number is its sender's, and rises; an
# operation's is the manager's, and rises with every decision it makes, whoever it was made for.
Number = Annotated[int, _integer]
Count = Annotated[int, _count]
Micros = Annotated[int, _micros]
Instant = Annotated[int, _integer]
Text = Annotated[str, _text]
Name = Annotated[str, _name]


# -- the messages of both sockets ------------------------------------------------------------------


class Hello(NamedTuple):
    """The first message of a connection, and after a break: who speaks, and which versions."""

    request: Number
    lowest: Number
    highest: Number
    session: Annotated[bytes, _token]  # drawn once in the life of a client
    pid: Number
    started: Number  # when the process was, in its kernel's clock ticks; 0: it does not know


class Welcome(NamedTuple):
    """The answer to Hello."""

    request: Number
    protocol: Number  # the version to speak from now on
    epoch: Number  # the manager's life
    origin: Number  # that of the first one in its line: what it said is still true
    clock: Instant  # the manager's monotonic clock
    reports: Number  # the last report of this session that was taken in
    lease: Micros  # how long a session's leases hold


class Error(NamedTuple):
    """A message was refused; it moved nothing."""

    kind: Number  # of the message refused, 0 when it had none
    ref: Number  # its request or report number, 0 when it had none
    code: Annotated[ErrorCode, _number_of(ErrorCode)]
    text: Text


# -- the data socket: permits and outcomes ---------------------------------------------------------


class Declare(NamedTuple):
    """Name a circuit. A config replaces the one in force; none leaves it, or means the defaults."""

    request: Number
    name: Name
    config: Annotated[CircuitConfig | None, _optional(_config)]


class Declared(NamedTuple):
    """The answer to Declare: the config in force from now on."""

    request: Number
    operation: Number
    config: Annotated[CircuitConfig, _config]


class Acquire(NamedTuple):
    """Ask to run one call. Answered by Granted, Rejected or Error."""

    request: Number
    name: Name
    deadline: Instant  # on the manager's clock: after it the caller has gone


class Granted(NamedTuple):
    """The call may run. The number of the operation is the permit's."""

    request: Number
    operation: Number
    generation: Number
    deadline: Annotated[int | None, _optional(_integer)]  # None: admitted while closed


class Rejected(NamedTuple):
    """The call may not run."""

    request: Number
    operation: Number
    state: Annotated[State, _state]
    retry_after: Annotated[float | None, _optional(_duration)]
    last_error: Annotated[str | None, _optional(_text)]


class Leased(NamedTuple):
    """What the session may decide about a circuit from now on, without asking.

    Closed: run every call. Open: reject every call, until `until`.
    """

    name: Name
    generation: Number
    state: Annotated[State, _leased_state]
    until: Annotated[int | None, _optional(_integer)]  # on the manager's clock; None when closed
    last_error: Annotated[str | None, _optional(_text)]


class Revoked(NamedTuple):
    """The session may decide nothing about a circuit any more: ask for every call."""

    name: Name
    generation: Number


class Report(NamedTuple):
    """How one call ended. The numbers of a session's reports are 1, 2, 3 ... without a gap."""

    number: Number
    name: Name
    epoch: Number  # of the manager that issued the permit, or the lease
    permit: Annotated[int | None, _optional(_integer)]  # None: it ran under a lease
    generation: Number  # of the permit, or of the lease
    outcome: Annotated[Outcome, _number_of(Outcome)]
    duration: Micros
    error: Annotated[str | None, _optional(_text)]


class Batch(NamedTuple):
    """How many calls under one lease ended. Numbered as if it were one Report."""

    number: Number
    name: Name
    epoch: Number
    generation: Number
    successes: Count
    neutral: Count
    rejected: Count
    durations: Annotated[tuple[int, ...], _durations]  # the last successes', oldest first


class Missed(NamedTuple):
    """What calls came to that the client decided by itself, while no manager answered.

    Numbered as if it were one Report.
    """

    number: Number
    name: Name
    successes: Count
    failures: Count
    neutral: Count
    rejected: Count
    durations: Annotated[tuple[int, ...], _durations]  # of the last executed, oldest first
    last_error: Annotated[str | None, _optional(_text)]


class Reported(NamedTuple):
    """A report was taken in, and all before it. May be held back a little; see Sync."""

    number: Number
    operation: Number
    verdict: Annotated[Verdict, _number_of(Verdict)]


class Sync(NamedTuple):
    """Ask for the acknowledgements of all reports before this one, now."""

    request: Number


class Synced(NamedTuple):
    """The answer to Sync; what it asked for has gone before it."""

    request: Number
    operation: Number


class Goodbye(NamedTuple):
    """The client goes: what it still holds is given back."""


# -- the control socket: for programs and people that ask ------------------------------------------


class Ping(NamedTuple):
    """Ask whether anybody is there."""

    request: Number


class Pong(NamedTuple):
    """The answer to Ping."""

    request: Number
    operation: Number
    pid: Number
    circuits: Number


class GetStats(NamedTuple):
    """Ask for one circuit's CircuitStats."""

    request: Number
    name: Name


class StatsOf(NamedTuple):
    """The answer to GetStats."""

    request: Number
    operation: Number
    stats: Annotated[CircuitStats, _stats]


class GetMetrics(NamedTuple):
    """Ask for one circuit's MetricsSnapshot."""

    request: Number
    name: Name


class MetricsOf(NamedTuple):
    """The answer to GetMetrics."""

    request: Number
    operation: Number
    metrics: Annotated[MetricsSnapshot, _metrics]


class GetHistory(NamedTuple):
    """Ask for the last changes of one circuit."""

    request: Number
    name: Name


class HistoryOf(NamedTuple):
    """Those, oldest first."""

    request: Number
    operation: Number
    changes: Annotated[tuple[StateChange, ...], _array_of(_change, HISTORY)]


class GetList(NamedTuple):
    """Ask for a page of circuits, sorted by name, from the first one after a name ("" for all)."""

    request: Number
    after: Annotated[str, _after]


class ListOf(NamedTuple):
    """The answer to GetList."""

    request: Number
    operation: Number
    circuits: Annotated[tuple[CircuitStats, ...], _array_of(_stats, PAGE)]
    more: Annotated[bool, _flag]


class Reset(NamedTuple):
    """Close a circuit by hand."""

    request: Number
    name: Name


class ResetDone(NamedTuple):
    """The answer to Reset."""

    request: Number
    operation: Number
    name: Name
    generation: Number


class Subscribe(NamedTuple):
    """Ask for every Event from now on, or, after a gap, from the one after a version."""

    request: Number
    since: Annotated[int | None, _optional(_integer)]


class Subscribed(NamedTuple):
    """The answer to Subscribe: the events that follow begin after this version."""

    request: Number
    operation: Number
    version: Number


class Event(NamedTuple):
    """One circuit changed. Versions rise by one, over all circuits; `old` may be `new`."""

    version: Number
    operation: Number
    name: Name
    old: Annotated[State, _state]
    new: Annotated[State, _state]
    cause: Annotated[str, _cause]
    generation: Number
    at: Annotated[datetime, _instant]


class Shutdown(NamedTuple):
    """Ask the manager to end in good order."""

    request: Number


class Stopping(NamedTuple):
    """The answer to Shutdown, and the last one."""

    request: Number
    operation: Number


Message = (
    Hello | Welcome | Error
    | Declare | Declared | Acquire | Granted | Rejected | Leased | Revoked
    | Report | Batch | Missed | Reported | Sync | Synced | Goodbye
    | Ping | Pong | GetStats | StatsOf | GetMetrics | MetricsOf | GetHistory | HistoryOf
    | GetList | ListOf
    | Reset | ResetDone | Subscribe | Subscribed | Event | Shutdown | Stopping
)  # fmt: skip

# The first element of each message's array, and which way it goes on which socket.
KINDS: Final[Mapping[type[Message], int]] = {
    Hello: 1,
    Welcome: 2,
    Error: 3,
    Declare: 10,
    Declared: 11,
    Acquire: 12,
    Granted: 13,
    Rejected: 14,
    Report: 15,
    Reported: 16,
    Sync: 17,
    Synced: 18,
    Goodbye: 19,
    Leased: 20,
    Revoked: 21,
    Batch: 22,
    Missed: 23,
    Ping: 30,
    Pong: 31,
    GetStats: 32,
    StatsOf: 33,
    GetMetrics: 34,
    MetricsOf: 35,
    GetList: 36,
    ListOf: 37,
    Reset: 38,
    ResetDone: 39,
    Subscribe: 40,
    Subscribed: 41,
    Event: 42,
    Shutdown: 43,
    Stopping: 44,
    GetHistory: 45,
    HistoryOf: 46,
}
TO_DATA: Final = frozenset({Hello, Declare, Acquire, Report, Batch, Missed, Sync, Goodbye})
FROM_DATA: Final = frozenset(
    {Welcome, Error, Declared, Granted, Rejected, Leased, Revoked, Reported, Synced}
)
TO_CONTROL: Final = frozenset(
    {Hello, Ping, GetStats, GetMetrics, GetHistory, GetList, Reset, Subscribe, Shutdown}
)
FROM_CONTROL: Final = frozenset(
    {
        Welcome,
        Error,
        Pong,
        StatsOf,
        MetricsOf,
        HistoryOf,
        ListOf,
        ResetDone,
        Subscribed,
        Event,
        Stopping,
    }
)


# -- bytes and messages ----------------------------------------------------------------------------


def _fields(message: type[Message]) -> tuple[_Field, ...]:
    hints = get_type_hints(message, include_extras=True).values()
    return tuple(get_args(hint)[1] for hint in hints)


_FIELDS: Final = {message: _fields(message) for message in KINDS}


def _reader(message: type[Message]) -> Callable[[tuple[Any, ...]], Message]:
    """The function that makes a message of its array, or raises ValueError.

    A call for each field would be most of what decode() costs, so the `inline` of every field is
    written into one function, as namedtuple() and dataclass() write theirs. The source is made of
    what this module says of its fields and of nothing else. That of Sync:

        def read(array):
            if len(array) != 2:
                array = known(array, 2)
            [_, x0] = array
            return new(message, (x0 if type(x0) is int and 0 <= x0 <= ... else decode0(x0),))
    """
    fields = dict(enumerate(_FIELDS[message]))
    size = 1 + len(fields)
    values = [
        re.sub(r"\b(x|decode|table)\b", rf"\g<1>{place}", field.inline)
        for place, field in fields.items()
    ]
    source = f"""
def read(array):
    if len(array) != {size}:
        array = known(array, {size})
    [{", ".join(["_", *(f"x{place}" for place in fields)])}] = array
    return new(message, ({"".join(f"{value}," for value in values)}))
"""
    # tuple's own __new__, because that of a NamedTuple is a Python function that calls it.
    names: dict[str, Any] = {"message": message, "new": tuple.__new__, "known": _known}
    for place, field in fields.items():
        names |= {f"decode{place}": field.decode, f"table{place}": field.table}
    exec(compile(source, f"<reader of {message.__name__}>", "exec"), names)
    read: Callable[[tuple[Any, ...]], Message] = names["read"]
    return read


def _encoders(message: type[Message]) -> tuple[tuple[int, Callable[[Any], object]], ...]:
    """Where in the array of a message a value stands that does not go as it is, and how it goes."""
    return tuple(
        (place, field.encode)
        for place, field in enumerate(_FIELDS[message], start=1)
        if field.encode is not None
    )


_BY_KIND: Final = {kind: message for message, kind in KINDS.items()}
_READERS: Final = {message: _reader(message) for message in KINDS}
_WRITERS: Final = {message: ((kind,), _encoders(message)) for message, kind in KINDS.items()}


def encode(message: Message) -> bytes:
    """The bytes of one message.

    Raises:
        Nothing for a message whose fields hold what their annotations say.
    """
    head, encoders = _WRITERS[type(message)]
    array: Sequence[object] = head + message
    if encoders:
        array = list(array)
        for place, encoder in encoders:
            array[place] = encoder(array[place])
    # A fresh Packer each time, as packb() has one: when a signal handler raises in the middle of
    # msgpack's Packer in Python, what that has packed by then would begin the next message. The
    # buffer grows from 512 bytes; the 256 KiB it has by default take longer to get.
    packed: bytes = _Packer(buf_size=512).pack(array)
    return packed


def decode(frame: bytes, allowed: Set[type[Message]]) -> Message:
    """The message in a frame.

    Args:
        frame: Any bytes at all.
        allowed: What may come this way: TO_DATA, FROM_DATA, TO_CONTROL or FROM_CONTROL.

    Raises:
        Malformed: The bytes are no message, or none of those allowed. Nothing else is raised.
    """
    if len(frame) > MAX_FRAME:
        raise Malformed(
            0, 0, ErrorCode.MALFORMED, f"{len(frame)} bytes, the limit is {MAX_FRAME} bytes"
        )
    if not frame:  # what ZeroMQ itself says on a connection that is new: see the protocol
        raise Malformed(0, 0, ErrorCode.NO_SESSION, "an empty frame; say Hello first")
    try:
        # A fresh call each time: an Unpacker that has failed once is not safe to use again
        # (GHSA-6v7p-g79w-8964). max_ext_len=0 keeps out timestamps too, which no hook can refuse.
        array = _unpackb(
            frame,
            use_list=False,
            max_str_len=4 * MAX_ERROR_CHARACTERS,
            max_bin_len=64,
            max_array_len=128,
            max_map_len=0,
            max_ext_len=0,
        )
    except _NOT_MSGPACK as error:
        text = f"not msgpack within our limits: {type(error).__name__}"
        raise Malformed(0, 0, ErrorCode.MALFORMED, text) from None
    if type(array) is not tuple or not array or type(array[0]) is not int:
        raise Malformed(0, 0, ErrorCode.MALFORMED, "expected an array that begins with a kind")
    message = _BY_KIND.get(array[0])
    if message is None or message not in allowed:
        text = f"no message of kind {_short(array[0])} goes this way"
        raise Malformed(_ref(array[0]), _ref(*array[1:2]), ErrorCode.UNKNOWN_KIND, text)
    try:
        return _READERS[message](array)
    except ValueError as error:
        code = ErrorCode.BAD_CONFIG if isinstance(error, ConfigError) else ErrorCode.MALFORMED
        text = f"{message.__name__}: {error}"[:MAX_ERROR_CHARACTERS]
        raise Malformed(array[0], _ref(*array[1:2]), code, text) from None


def _ref(value: object = None) -> int:
    try:
        number: int = _integer.decode(value)
    except ValueError:
        return 0
    return number


_Packer: Final = msgpack.Packer
_unpackb: Final[Callable[..., object]] = msgpack.unpackb

# All that msgpack raises for bytes. Not Exception: a signal handler may raise its own in here.
_NOT_MSGPACK: Final = (ValueError, TypeError, OverflowError, msgpack.UnpackException)
