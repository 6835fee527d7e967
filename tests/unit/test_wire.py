"""The wire: every message has its golden bytes, and nothing but a message is ever decoded.

One table drives encoder and decoder, and `docs/protocol.md` is held to it.
"""

from __future__ import annotations

import math
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, Final, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear import wire
from switchgear.circuit import CAUSES
from switchgear.config import MAX_COUNT, MAX_NAME_BYTES, MAX_SECONDS, CircuitConfig
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import LATENCY_WINDOW, CircuitStats, MetricsSnapshot, StateChange
from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    KINDS,
    MAX_ERROR_CHARACTERS,
    MAX_FRAME,
    MAX_FRAMES,
    PAGE,
    PROTOCOL,
    TO_CONTROL,
    TO_DATA,
    Acquire,
    Batch,
    Declare,
    Declared,
    Error,
    ErrorCode,
    Event,
    GetHistory,
    GetList,
    GetMetrics,
    GetStats,
    Goodbye,
    Granted,
    Hello,
    HistoryOf,
    Leased,
    ListOf,
    Malformed,
    Message,
    MetricsOf,
    Missed,
    Ping,
    Pong,
    Rejected,
    Report,
    Reported,
    Reset,
    ResetDone,
    Revoked,
    Shutdown,
    StatsOf,
    Stopping,
    Subscribe,
    Subscribed,
    Sync,
    Synced,
    Welcome,
    decode,
    encode,
    to_micros,
    to_seconds,
)

EPOCH = 1_700_000_000_000_000
AT = datetime(2023, 11, 14, 22, 13, 20, 5, tzinfo=timezone.utc)
CONFIG = CircuitConfig(
    failure_threshold=300,
    success_threshold=3,
    open_timeout=0.25,
    max_concurrent_requests=4,
    permit_timeout=60.0,
    lost_permit="ignore",
    consistency="strict",
)
STATS = CircuitStats(
    name="payments",
    state=State.OPEN,
    total_requests=20,
    total_successes=8,
    total_failures=6,
    total_neutral=2,
    total_rejected=3,
    consecutive_successes=0,
    consecutive_failures=0,
    in_flight=1,
    last_error="TimeoutError: 25 s",
    last_error_at=AT,
    state_changed_at=AT,
    retry_after=29.5,
    generation=2,
    config=CONFIG,
)
QUIET = CircuitStats(
    name="a",
    state=State.CLOSED,
    total_requests=0,
    total_successes=0,
    total_failures=0,
    total_neutral=0,
    total_rejected=0,
    consecutive_successes=0,
    consecutive_failures=0,
    in_flight=0,
    last_error=None,
    last_error_at=None,
    state_changed_at=AT,
    retry_after=None,
    generation=1,
    config=CircuitConfig(),
)
CHANGES = (
    StateChange(
        version=11, old=State.CLOSED, new=State.OPEN, cause="failures", generation=2, at=AT
    ),
    StateChange(version=12, old=State.OPEN, new=State.CLOSED, cause="reset", generation=3, at=AT),
)
METRICS = MetricsSnapshot(
    requests_total=14,
    requests_successful=8,
    requests_failed=6,
    requests_rejected=3,
    permits_lost=1,
    stale_reports=2,
    transitions={State.CLOSED: 1, State.OPEN: 2, State.HALF_OPEN: 3},
    avg_latency=0.5,
    min_latency=0.001,
    max_latency=25.0,
    p50_latency=0.25,
    p95_latency=None,
    p99_latency=0.000001,
)

GOLDEN: Final[tuple[tuple[Message, str], ...]] = (
    (
        Hello(3, 1, 1, bytes(range(16)), 4711, 123_456),
        "9701030101c410000102030405060708090a0b0c0d0e0fcd1267ce0001e240",
    ),
    (
        Welcome(3, 1, EPOCH, 1_600_000_000_000_000, 123_456_789, 41, 1_000_000),
        "98020301cf00060a24181e4000cf0005af3107a40000ce075bcd1529ce000f4240",
    ),
    (
        Error(12, 7, ErrorCode.DEADLINE_PASSED, "the caller's deadline had passed"),
        "95030c0707d9207468652063616c6c6572277320646561646c696e652068616420706173736564",
    ),
    (Declare(5, "payments", None), "940a05a87061796d656e7473c0"),
    (
        Declare(6, "payments", CONFIG),
        "940a06a87061796d656e747397cd012c03ce0003d09004ce039387000101",
    ),
    (Declared(6, 101, CircuitConfig()), "940b0665970502ce01c9c38001ce039387000000"),
    (Acquire(7, "payments", 123_506_789), "940c07a87061796d656e7473ce075c9065"),
    (Granted(7, 102, 1, None), "950d076601c0"),
    (Granted(8, 104, 3, 183_456_789), "950d086803ce0aef5415"),
    (
        Rejected(9, 105, State.OPEN, 29.5, "TimeoutError: 25 s"),
        "960e096901ce01c22260b254696d656f75744572726f723a2032352073",
    ),
    (Rejected(10, 106, State.HALF_OPEN, None, None), "960e0a6a02c0c0"),
    (
        Report(42, "payments", EPOCH, 102, 1, Outcome.FAILURE, 25_000_000, "TimeoutError: 25 s"),
        "990f2aa87061796d656e7473cf00060a24181e4000660101ce017d7840b254696d656f7574457272"
        "6f723a2032352073",
    ),
    (
        Report(43, "zahlungen-ü", EPOCH, 104, 3, Outcome.SUCCESS, 1_250, None),
        "990f2bac7a61686c756e67656e2dc3bccf00060a24181e4000680300cd04e2c0",
    ),
    (
        Report(44, "payments", EPOCH, None, 3, Outcome.FAILURE, 25_000_000, None),
        "990f2ca87061796d656e7473cf00060a24181e4000c00301ce017d7840c0",
    ),
    (
        Batch(45, "payments", EPOCH, 3, 250, 2, 1, (1_250, 90)),
        "99162da87061796d656e7473cf00060a24181e400003ccfa020192cd04e25a",
    ),
    (
        Batch(46, "payments", EPOCH, 2, 0, 0, 17, ()),
        "99162ea87061796d656e7473cf00060a24181e40000200001190",
    ),
    (
        Missed(47, "payments", 4, 3, 1, 2, (1_250, 90), "TimeoutError: 25 s"),
        "99172fa87061796d656e74730403010292cd04e25ab254696d656f75744572726f723a2032352073",
    ),
    (Missed(48, "payments", 0, 0, 0, 7, (), None), "991730a87061796d656e74730000000790c0"),
    (Leased("payments", 3, State.CLOSED, None, None), "9614a87061796d656e74730300c0c0"),
    (
        Leased("payments", 4, State.OPEN, 183_456_789, "TimeoutError: 25 s"),
        "9614a87061796d656e74730401ce0aef5415b254696d656f75744572726f723a2032352073",
    ),
    (Revoked("payments", 4), "9315a87061796d656e747304"),
    (Reported(42, 103, Verdict.COUNTED), "94102a6700"),
    (Reported(43, 107, Verdict.EXPIRED), "94102b6b02"),
    (Sync(11), "92110b"),
    (Synced(11, 108), "93120b6c"),
    (Goodbye(), "9113"),
    (Ping(1), "921e01"),
    (Pong(1, 109, 4242, 3), "951f016dcd109203"),
    (GetStats(2, "payments"), "932002a87061796d656e7473"),
    (
        StatsOf(2, 110, STATS),
        "9421026edc0010a87061796d656e7473011408060203000001b254696d656f75744572726f723a20"
        "32352073cf00060a24181e4005cf00060a24181e4005ce01c222600297cd012c03ce0003d09004ce"
        "039387000101",
    ),
    (GetMetrics(3, "payments"), "932203a87061796d656e7473"),
    (
        MetricsOf(3, 111, METRICS),
        "9423036f9d0e080603010293010203ce0007a120cd03e8ce017d7840ce0003d090c001",
    ),
    (GetHistory(10, "payments"), "932d0aa87061796d656e7473"),
    (
        HistoryOf(10, 117, CHANGES),
        "942e0a7592960b0001a86661696c7572657302cf00060a24181e4005960c0100a5726573657403cf00060a24181e4005",
    ),
    (HistoryOf(11, 118, ()), "942e0b7690"),
    (GetList(4, ""), "932404a0"),
    (GetList(5, "payments"), "932405a87061796d656e7473"),
    (
        ListOf(4, 112, (QUIET,), True),
        "9525047091dc0010a161000000000000000000c0c0cf00060a24181e4005c001970502ce01c9c380"
        "01ce039387000000c3",
    ),
    (ListOf(5, 113, (), False), "9525057190c2"),
    (Reset(6, "payments"), "932606a87061796d656e7473"),
    (ResetDone(6, 114, "payments", 4), "95270672a87061796d656e747304"),
    (Subscribe(7, None), "932807c0"),
    (Subscribe(8, 11), "9328080b"),
    (Subscribed(8, 115, 11), "942908730b"),
    (
        Event(12, 103, "payments", State.CLOSED, State.OPEN, "failures", 2, AT),
        "992a0c67a87061796d656e74730001a86661696c7572657302cf00060a24181e4005",
    ),
    (Shutdown(9), "922b09"),
    (Stopping(9, 116), "932c0974"),
)
WAYS: Final[tuple[Set[type[Message]], ...]] = (TO_DATA, FROM_DATA, TO_CONTROL, FROM_CONTROL)
PROTOCOL_MD: Final = Path(__file__).parents[2] / "docs" / "protocol.md"
MAX_INTEGER: Final = 2**63 - 1

by_kind = pytest.mark.parametrize(
    ("message", "golden"), GOLDEN, ids=[f"{type(m).__name__}-{g[:8]}" for m, g in GOLDEN]
)


def way_of(message: type[Message]) -> Set[type[Message]]:
    """One of the ways this message may go."""
    return next(way for way in WAYS if message in way)


def refusal(frame: bytes, allowed: Set[type[Message]]) -> Malformed:
    """What decode() says of a frame that must be refused."""
    with pytest.raises(Malformed) as caught:
        decode(frame, allowed)
    return caught.value


def decodes_or_is_refused(frame: bytes, allowed: Set[type[Message]]) -> bool:
    """True: it is a message, and a sound one. Anything raised but Malformed fails the test."""
    found = message_or_refusal(frame, allowed)
    if isinstance(found, Malformed):
        assert 0 <= found.kind <= MAX_INTEGER
        assert 0 <= found.ref <= MAX_INTEGER
        answer = Error(found.kind, found.ref, found.code, found.text)
        assert decode(encode(answer), FROM_DATA) == answer  # the sender can be told
        return False
    assert type(found) in allowed
    assert decode(encode(found), allowed) == found
    return True


def message_or_refusal(frame: bytes, allowed: Set[type[Message]]) -> Message | Malformed:
    try:
        return decode(frame, allowed)
    except Malformed as wrong:
        return wrong


def array_of(golden: str) -> tuple[Any, ...]:
    array: tuple[Any, ...] = msgpack.unpackb(bytes.fromhex(golden), use_list=False)
    return array


def places(array: tuple[Any, ...], above: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where a value is in an array, at any depth; the kind itself is left out."""
    for index, value in enumerate(array):
        if above or index:
            yield (*above, index)
            if isinstance(value, tuple):
                yield from places(value, (*above, index))


def put(array: tuple[Any, ...], place: tuple[int, ...], value: object) -> tuple[Any, ...]:
    """The array with another value at a place."""
    index, *rest = place
    inner = put(array[index], tuple(rest), value) if rest else value
    return (*array[:index], inner, *array[index + 1 :])


def at(array: tuple[Any, ...], place: tuple[int, ...]) -> Any:
    value: Any = array
    for index in place:
        value = value[index]
    return value


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\x01"


# -- every message, both ways ----------------------------------------------------------------------


def test_every_message_has_golden_bytes() -> None:
    assert {type(message) for message, _ in GOLDEN} == set(KINDS) == set(get_args(Message))


@by_kind
def test_encode_writes_the_golden_bytes(message: Message, golden: str) -> None:
    assert encode(message).hex() == golden


@by_kind
def test_decode_reads_the_golden_bytes(message: Message, golden: str) -> None:
    decoded = decode(bytes.fromhex(golden), way_of(type(message)))
    assert type(decoded) is type(message)
    assert decoded == message
    assert [type(field) for field in decoded] == [type(field) for field in message]


@by_kind
def test_first_element_is_the_kind(message: Message, golden: str) -> None:
    assert array_of(golden)[0] == KINDS[type(message)]


def test_no_two_messages_share_a_kind() -> None:
    assert len(set(KINDS.values())) == len(KINDS)


def test_every_message_goes_some_way_and_only_greetings_and_errors_go_two() -> None:
    ways = {message: [way for way in WAYS if message in way] for message in KINDS}
    assert {m for m, found in ways.items() if len(found) == 2} == {Hello, Welcome, Error}
    assert all(1 <= len(found) <= 2 for found in ways.values())


@by_kind
def test_a_message_is_refused_where_it_does_not_go(message: Message, golden: str) -> None:
    for way in WAYS:
        if type(message) not in way:
            wrong = refusal(bytes.fromhex(golden), way)
            assert wrong.code is ErrorCode.UNKNOWN_KIND
            assert wrong.kind == KINDS[type(message)]
            first = array_of(golden)[1:2]
            assert wrong.ref == (first[0] if first and type(first[0]) is int else 0)


# -- the document ----------------------------------------------------------------------------------


def diagnostic(value: object) -> str:
    """An array as docs/protocol.md writes it: JSON, and h'...' for bytes."""
    match value:
        case tuple():
            return f"[{', '.join(diagnostic(item) for item in value)}]"
        case bytes():
            return f"h'{value.hex()}'"
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case _:
            return repr(value)


def rows_of_the_document() -> dict[str, list[str]]:
    """The rows of its tables of messages: name -> cells."""
    rows = {}
    for line in PROTOCOL_MD.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and re.fullmatch(r"\d+", cells[0]):
            rows[cells[1].strip("`")] = cells
    return rows


def test_the_document_has_one_row_for_every_message_with_its_kind_and_golden_bytes() -> None:
    rows = rows_of_the_document()
    assert set(rows) == {message.__name__ for message in KINDS}
    for message, kind in KINDS.items():
        number, _, _, _, example = rows[message.__name__]
        assert int(number) == kind
        expected = [
            word
            for of, golden in GOLDEN
            if type(of) is message
            for word in (diagnostic(array_of(golden)), golden)
        ]
        assert re.findall(r"`([^`]*)`", example) == expected


def test_the_document_names_every_field_in_order() -> None:
    rows = rows_of_the_document()
    for message in KINDS:
        fields = re.findall(r"`(\w+)`:", rows[message.__name__][3])
        assert tuple(fields) == message._fields


def test_the_document_says_which_way_every_message_goes() -> None:
    words = ("to data", "from data", "to control", "from control")
    rows = rows_of_the_document()
    for message in KINDS:
        ways = [word for word, way in zip(words, WAYS, strict=True) if message in way]
        assert rows[message.__name__][2].split(", ") == ways


def test_the_document_has_every_error_code() -> None:
    found = re.findall(r"^\| (\d+) \| `([A-Z_]+)` \|", PROTOCOL_MD.read_text("utf-8"), re.M)
    assert [(int(number), name) for number, name in found] == [
        (int(code), code.name) for code in ErrorCode
    ]


def test_the_document_has_every_limit() -> None:
    text = PROTOCOL_MD.read_text(encoding="utf-8")
    limits = (MAX_FRAME, MAX_FRAMES, MAX_ERROR_CHARACTERS, PAGE, PROTOCOL, MAX_NAME_BYTES)
    for limit in (*limits, MAX_COUNT, int(MAX_SECONDS) * 1_000_000, MAX_INTEGER):
        assert re.search(rf"\b{limit}\b", text), limit
    for cause in CAUSES:
        assert f'`"{cause}"`' in text


# -- what is no message ----------------------------------------------------------------------------


@by_kind
def test_every_truncation_is_refused(message: Message, golden: str) -> None:
    frame = bytes.fromhex(golden)
    for way in (way_of(type(message)), frozenset(KINDS)):
        for length in range(len(frame)):
            assert not decodes_or_is_refused(frame[:length], way)


@by_kind
def test_every_change_of_one_byte_decodes_or_is_refused(message: Message, golden: str) -> None:
    frame = bytes.fromhex(golden)
    everything = frozenset(KINDS)
    decoded = 0
    for index in range(len(frame)):
        for byte in range(256):
            changed = b"%b%c%b" % (frame[:index], byte, frame[index + 1 :])
            decoded += decodes_or_is_refused(changed, everything)
    assert decoded >= len(frame)  # at least the frame itself, once for each of its bytes


@by_kind
def test_bytes_after_the_message_are_refused(message: Message, golden: str) -> None:
    assert not decodes_or_is_refused(bytes.fromhex(golden) + b"\x00", way_of(type(message)))


@by_kind
def test_fields_after_the_last_known_one_are_ignored(message: Message, golden: str) -> None:
    frame = msgpack.packb((*array_of(golden), "of a later version", 1.5, None, (1, (2,))))
    assert decode(frame, way_of(type(message))) == message


@by_kind
def test_a_missing_field_is_refused(message: Message, golden: str) -> None:
    array = array_of(golden)
    for length in range(1, len(array)):
        wrong = refusal(msgpack.packb(array[:length]), way_of(type(message)))
        assert wrong.code is ErrorCode.MALFORMED
        assert wrong.kind == KINDS[type(message)]


@pytest.mark.parametrize(
    ("message", "record"),
    [
        (Declared(6, 101, CONFIG), (3,)),
        (StatsOf(2, 110, STATS), (3,)),
        (StatsOf(2, 110, STATS), (3, 15)),
        (MetricsOf(3, 111, METRICS), (3,)),
        (HistoryOf(10, 117, CHANGES), (3, 1)),
    ],
)
def test_a_record_within_a_message_may_be_longer_but_not_shorter(
    message: Message, record: tuple[int, ...]
) -> None:
    array, way = array_of(encode(message).hex()), way_of(type(message))
    longer = (*at(array, record), "of a later version", (1, (2,)))
    assert decode(msgpack.packb(put(array, record, longer)), way) == message
    shorter = at(array, record)[:-1]
    wrong = refusal(msgpack.packb(put(array, record, shorter)), way)
    assert wrong.code is ErrorCode.MALFORMED
    assert f"an array of {len(shorter) + 1}" in wrong.text


# No field of any message may hold one of these, at any depth.
NEVER: Final[tuple[object, ...]] = (
    -1,
    -(2**63),
    MAX_INTEGER + 1,
    2**64 - 1,
    0.0,
    1.0,
    math.nan,
    math.inf,
    -math.inf,
    b"",
    bytes(15),
    bytes(17),
    "x" * (MAX_ERROR_CHARACTERS + 1),
    "\ud800",  # a surrogate: no UTF-8
    {},
    {1: 2},
    (((),),),
    msgpack.ExtType(5, b""),
    msgpack.ExtType(5, b"abcd"),
    msgpack.Timestamp(1),
    msgpack.Timestamp(2**40, 1),
)
FLAGS: Final = {(ListOf, (4,))}
OPTIONAL: Final = {
    (Declare, (3,)),
    (Granted, (4,)),
    (Rejected, (4,)),
    (Rejected, (5,)),
    (Leased, (4,)),
    (Leased, (5,)),
    (Report, (4,)),
    (Report, (8,)),
    (Subscribe, (2,)),
    *((StatsOf, (3, index)) for index in (10, 11, 13)),
    *((ListOf, (3, 0, index)) for index in (10, 11, 13)),
    *((MetricsOf, (3, index)) for index in range(7, 13)),
    (Missed, (8,)),
}


@by_kind
def test_no_field_takes_a_value_of_another_type_or_range(message: Message, golden: str) -> None:
    array, way = array_of(golden), way_of(type(message))
    for place in places(array):
        for value in NEVER:
            frame = msgpack.packb(put(array, place, value), unicode_errors="surrogatepass")
            assert not decodes_or_is_refused(frame, way), (place, value)


@by_kind
def test_true_is_no_number_and_none_only_goes_where_a_field_is_optional(
    message: Message, golden: str
) -> None:
    array, way = array_of(golden), way_of(type(message))
    for place in places(array):
        where = (type(message), place)
        for flag in (False, True):
            taken = decodes_or_is_refused(msgpack.packb(put(array, place, flag)), way)
            assert taken == (where in FLAGS), where
        taken = decodes_or_is_refused(msgpack.packb(put(array, place, None)), way)
        assert taken == (where in OPTIONAL), where


@by_kind
def test_text_is_no_number_and_a_number_is_no_text(message: Message, golden: str) -> None:
    array, way = array_of(golden), way_of(type(message))
    for place in places(array):
        old = at(array, place)
        if type(old) is int:
            assert not decodes_or_is_refused(msgpack.packb(put(array, place, "1")), way)
        if type(old) in (str, bytes, tuple, bool):
            assert not decodes_or_is_refused(msgpack.packb(put(array, place, 1)), way)


@pytest.mark.parametrize("levels", [70, 900, 1_000, 1_020, 2_000, 60_000])
@by_kind
def test_no_nesting_is_deep_enough_to_raise_anything_else(
    message: Message, golden: str, levels: int
) -> None:
    way = way_of(type(message))
    assert not decodes_or_is_refused(nested(levels), way)
    fields = [msgpack.packb(field) for field in array_of(golden)]
    for index in range(1, len(fields)):
        deep = [*fields[:index], nested(levels), *fields[index + 1 :]]
        assert not decodes_or_is_refused(bytes([0x90 + len(deep)]) + b"".join(deep), way)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1",  # never used in msgpack
        b"GET / HTTP/1.1\r\n\r\n",
        b'[12, 7, "payments", 1]',
        b"\x80",  # an empty map
        b"\x81\x0c\x01",
        b"\x90",
        b"\xc0",
        b"\x0c",
        b"\x91\xc3",  # kind True, which is an int to Python
        b"\x91\xcb\x40\x33\x00\x00\x00\x00\x00\x00",  # kind 19.0
        b"\x91\xa2\x31\x39",
        b"\x91\x91\x13",
        b"\x91\xc4\x01\x13",
        b"\xdd\xff\xff\xff\xff",  # arrays, strings, bytes that claim to be huge
        b"\x92\x11\xdb\xff\xff\xff\xff",
        b"\x92\x11\xc6\xff\xff\xff\xff",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
    ],
)
def test_what_has_no_kind_is_refused_as_malformed(frame: bytes) -> None:
    for way in WAYS:
        wrong = refusal(frame, way)
        assert (wrong.kind, wrong.ref, wrong.code) == (0, 0, ErrorCode.MALFORMED)


def test_what_zeromq_says_on_a_new_connection_is_answered_with_a_call_for_a_hello() -> None:
    for way in WAYS:
        wrong = refusal(b"", way)
        assert (wrong.kind, wrong.ref, wrong.code) == (0, 0, ErrorCode.NO_SESSION)


@pytest.mark.parametrize("kind", [0, 4, 9, 24, 29, 47, 127, 2**31, MAX_INTEGER])
def test_an_unknown_kind_is_refused_with_its_number_and_its_request(kind: int) -> None:
    wrong = refusal(msgpack.packb((kind, 77)), frozenset(KINDS))
    assert (wrong.kind, wrong.ref, wrong.code) == (kind, 77, ErrorCode.UNKNOWN_KIND)


@pytest.mark.parametrize("kind", [-1, -(2**63), 2**63, 2**64 - 1])
def test_a_kind_that_no_number_field_can_hold_is_answered_as_zero(kind: int) -> None:
    wrong = refusal(msgpack.packb((kind, -5)), frozenset(KINDS))
    assert (wrong.kind, wrong.ref, wrong.code) == (0, 0, ErrorCode.UNKNOWN_KIND)


def test_a_frame_may_have_max_frame_bytes_and_no_more() -> None:
    field = b"\xda\x08\x00" + b"x" * 2_048  # the longest string within the limits
    frame = b"\xdc\x00\x22\x11\x0b" + 31 * field  # Sync(11) and 32 further fields
    last = MAX_FRAME - len(frame) - 3
    frame += b"\xda" + last.to_bytes(2, "big") + b"x" * last
    assert len(frame) == MAX_FRAME
    assert decode(frame, TO_DATA) == Sync(11)
    wrong = refusal(frame + b"x", TO_DATA)
    assert (wrong.kind, wrong.code) == (0, ErrorCode.MALFORMED)


@pytest.mark.parametrize(
    ("fits", "too_much"),
    [
        ("x" * 2_048, "x" * 2_049),
        (b"x" * 64, b"x" * 65),
        ((1,) * 128, (1,) * 129),
        ((), {1: 1}),
        (msgpack.ExtType(5, b""), msgpack.ExtType(5, b"x")),
    ],
)
def test_even_ignored_fields_stay_within_the_limits(fits: object, too_much: object) -> None:
    assert decode(msgpack.packb((17, 11, fits)), TO_DATA) == Sync(11)
    assert refusal(msgpack.packb((17, 11, too_much)), TO_DATA).code is ErrorCode.MALFORMED


# -- what decode() is made of ----------------------------------------------------------------------

# On both sides of every border that a field has, and of every type.
BORDERS: Final[tuple[object, ...]] = (
    *NEVER,
    *(None, False, True, "", "a", "a\nb", "x" * MAX_ERROR_CHARACTERS, "failures", (), bytes(16)),
    *range(len(ErrorCode) + 2),
    *(10**15, 10**15 + 1, 253_402_300_799_000_000, 253_402_300_799_000_001, MAX_INTEGER),
)


def fields_or_refusal(read: Callable[[tuple[Any, ...]], Message], array: tuple[Any, ...]) -> object:
    try:
        message = read(array)
    except ValueError as error:
        return type(error), str(error)
    return type(message), [(type(field), field) for field in message]


@by_kind
def test_a_reader_gives_and_refuses_what_the_decoders_of_its_fields_do(
    message: Message, golden: str
) -> None:
    fields = wire._FIELDS[type(message)]

    def field_by_field(array: tuple[Any, ...]) -> Message:
        values = [field.decode(value) for field, value in zip(fields, array[1:], strict=True)]
        return type(message)(*values)

    arrays = [array_of(golden)]
    for place in range(1, len(arrays[0])):
        for value in BORDERS:
            one = put(arrays[0], (place,), value)
            two = [put(one, (later,), -1) for later in range(place + 1, len(one))]
            arrays += [one, *two]  # of two that are wrong, the first is named
    for array in arrays:
        expected = fields_or_refusal(field_by_field, array)
        assert fields_or_refusal(wire._READERS[type(message)], array) == expected, array


@pytest.mark.parametrize(
    "message",
    [
        Acquire(7, "payments", 123_506_789),
        Granted(7, 102, 1, None),
        Granted(8, 104, 3, 183_456_789),
        Rejected(9, 105, State.OPEN, 29.5, "TimeoutError: 25 s"),
        Report(42, "payments", EPOCH, 102, 1, Outcome.FAILURE, 25_000_000, "TimeoutError: 25 s"),
        Reported(42, 103, Verdict.COUNTED),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_crosses_for_every_call_is_decoded_without_a_function_for_each_field(
    message: Message,
) -> None:
    frame, way = encode(message), way_of(type(message))
    decode(frame, way)  # the name is known from then on
    called: list[str] = []

    def note(running: FrameType, event: str, _: object) -> None:
        if event == "call" and "msgpack" not in running.f_code.co_filename:
            called.append(running.f_code.co_name)

    sys.setprofile(note)
    try:
        decode(frame, way)
    finally:
        sys.setprofile(None)
    assert called == ["decode", "read"]


def test_names_are_remembered_up_to_a_limit_and_refused_ones_not_at_all() -> None:
    for number in range(wire._MAX_KNOWN_NAMES + 2):
        assert decode(encode(GetStats(1, f"n{number}")), TO_CONTROL) == GetStats(1, f"n{number}")
        assert len(wire._known_names) <= wire._MAX_KNOWN_NAMES
    for _ in range(2):
        assert refusal(encode(GetStats(1, "a\nb")), TO_CONTROL).code is ErrorCode.BAD_CONFIG
    assert "a\nb" not in wire._known_names


# -- names, texts, configurations ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "x" * 128, "ü" * 64, "𝄞" * 32, "with space", "日本"])
def test_a_printable_name_of_up_to_128_bytes_crosses(name: str) -> None:
    message = GetStats(1, name)
    assert decode(encode(message), TO_CONTROL) == message


@pytest.mark.parametrize(
    "name",
    ["", "x" * 129, "ü" * 64 + "x", "𝄞" * 33, "a\nb", "\x00", "\x1b[31m", "\x7f", "\u200b"],
)
def test_a_bad_name_is_refused_as_bad_config(name: str) -> None:
    for message in (Declare(7, name, None), Acquire(7, name, 1)):
        wrong = refusal(encode(message), TO_DATA)
        assert (wrong.kind, wrong.ref, wrong.code) == (
            KINDS[type(message)],
            7,
            ErrorCode.BAD_CONFIG,
        )


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xed\xb3\xbf", b"\xc0\x80", b"\xf4\x90\x80\x80"]
)
def test_what_is_not_utf_8_is_refused(raw: bytes) -> None:
    frame = b"\x93\x20\x07" + bytes([0xA0 + len(raw)]) + raw
    assert refusal(frame, TO_CONTROL).code is ErrorCode.MALFORMED


def test_an_empty_name_goes_only_where_a_list_begins() -> None:
    assert decode(encode(GetList(1, "")), TO_CONTROL) == GetList(1, "")
    assert refusal(encode(GetList(1, "\n")), TO_CONTROL).code is ErrorCode.BAD_CONFIG


@pytest.mark.parametrize("character", ["x", "ü", "𝄞", "\n"])
def test_an_error_text_may_have_512_characters_of_any_width_and_no_more(character: str) -> None:
    report = Report(1, "a", 1, 1, 1, Outcome.FAILURE, 0, character * MAX_ERROR_CHARACTERS)
    assert decode(encode(report), TO_DATA) == report
    longer = report._replace(error=character * (MAX_ERROR_CHARACTERS + 1))
    assert refusal(encode(longer), TO_DATA).code is ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        (0, 1, MAX_COUNT),
        (1, 1, MAX_COUNT),
        (2, 1, int(MAX_SECONDS) * 1_000_000),
        (3, 1, MAX_COUNT),
        (4, 1, int(MAX_SECONDS) * 1_000_000),
    ],
)
def test_a_config_out_of_its_range_is_refused(field: int, lowest: int, highest: int) -> None:
    def declare(value: int) -> bytes:
        config = put((5, 2, 30_000_000, 1, 60_000_000, 0, 0), (field,), value)
        frame: bytes = msgpack.packb((10, 7, "payments", config))
        return frame

    for value in (lowest, highest):
        assert isinstance(decode(declare(value), TO_DATA), Declare)
    below = refusal(declare(lowest - 1), TO_DATA)
    assert (below.kind, below.ref, below.code) == (10, 7, ErrorCode.BAD_CONFIG)
    above = refusal(declare(highest + 1), TO_DATA)
    # A duration beyond the range is no duration at all; a count is one, but not one of a config.
    code = ErrorCode.BAD_CONFIG if highest == MAX_COUNT else ErrorCode.MALFORMED
    assert (above.kind, above.ref, above.code) == (10, 7, code)


@pytest.mark.parametrize(("field", "choices"), [(5, 2), (6, 2)])
def test_a_choice_is_its_place_among_the_choices(field: int, choices: int) -> None:
    row = (5, 2, 30_000_000, 1, 60_000_000, 0, 0)
    for place in range(choices):
        frame = msgpack.packb((10, 7, "payments", put(row, (field,), place)))
        assert isinstance(decode(frame, TO_DATA), Declare)
    frame = msgpack.packb((10, 7, "payments", put(row, (field,), choices)))
    assert refusal(frame, TO_DATA).code is ErrorCode.MALFORMED


@pytest.mark.parametrize(
    ("frame", "highest"),
    [
        ((15, 1, "a", 1, 1, 1, None, 0, None), len(Outcome) - 1),
        ((16, 1, 1, None), len(Verdict) - 1),
        ((14, 1, 1, None, None, None), len(State) - 1),
        ((20, "a", 1, None, 1, None), 1),  # half-open is never leased
        ((3, 1, 1, None, ""), len(ErrorCode)),
    ],
)
def test_an_enumeration_ends_where_it_ends(frame: tuple[object, ...], highest: int) -> None:
    place = (frame.index(None),)  # the first one
    assert decodes_or_is_refused(msgpack.packb(put(frame, place, highest)), frozenset(KINDS))
    assert not decodes_or_is_refused(
        msgpack.packb(put(frame, place, highest + 1)), frozenset(KINDS)
    )


def test_durations_may_be_none_to_a_hundred_of_no_time_to_the_longest() -> None:
    longest = int(MAX_SECONDS) * 1_000_000
    batch = Batch(45, "payments", EPOCH, 3, 250, 2, 1, ())
    for durations in ((), (0,), (longest,), (longest, 0, 1), (1,) * LATENCY_WINDOW):
        fits = batch._replace(durations=durations)
        assert decode(encode(fits), TO_DATA) == fits
    for durations in ((1, -1), (longest + 1, 1), (1, True), (1,) * (LATENCY_WINDOW + 1)):
        wrong = refusal(encode(batch._replace(durations=durations)), TO_DATA)
        assert wrong.code is ErrorCode.MALFORMED


def test_a_cause_that_is_none_is_refused() -> None:
    event = Event(1, 1, "a", State.CLOSED, State.OPEN, "failures", 1, AT)
    for cause in CAUSES:
        assert decode(encode(event._replace(cause=cause)), FROM_CONTROL)
    wrong = refusal(encode(event._replace(cause="weather")), FROM_CONTROL)
    assert wrong.code is ErrorCode.MALFORMED


# -- times -----------------------------------------------------------------------------------------


def test_an_instant_may_be_of_1970_to_9999() -> None:
    for micros in (0, 253_402_300_799_000_000):
        frame = msgpack.packb((42, 1, 1, "a", 0, 1, "failures", 1, micros))
        assert decode(frame, FROM_CONTROL)
    frame = msgpack.packb((42, 1, 1, "a", 0, 1, "failures", 1, 253_402_300_799_000_001))
    assert refusal(frame, FROM_CONTROL).code is ErrorCode.MALFORMED


def test_a_duration_of_the_config_never_becomes_nothing() -> None:
    config = CircuitConfig(open_timeout=1e-9, permit_timeout=4e-7)
    (declared,) = [decode(encode(Declare(1, "a", config)), TO_DATA)]
    assert declared == Declare(1, "a", replace(config, open_timeout=1e-6, permit_timeout=1e-6))


@pytest.mark.parametrize(
    ("seconds", "micros"),
    [(0.0, 0), (-1.0, 0), (4e-7, 0), (6e-7, 1), (1.5, 1_500_000), (1e9, 10**15)],
)
def test_seconds_are_rounded_to_whole_microseconds_and_never_negative(
    seconds: float, micros: int
) -> None:
    assert to_micros(seconds) == micros


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.integers(0, int(MAX_SECONDS) * 1_000_000))
def test_microseconds_survive_the_way_to_seconds_and_back(micros: int) -> None:
    assert to_micros(to_seconds(micros)) == micros


def test_the_largest_page_of_circuits_fits_into_a_frame() -> None:
    largest = CircuitStats(
        name="𝄞" * 32,
        state=State.HALF_OPEN,
        **dict.fromkeys(COUNTS, MAX_INTEGER),
        last_error="𝄞" * MAX_ERROR_CHARACTERS,
        last_error_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
        state_changed_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
        retry_after=MAX_SECONDS,
        config=CircuitConfig(
            failure_threshold=MAX_COUNT,
            success_threshold=MAX_COUNT,
            open_timeout=MAX_SECONDS,
            max_concurrent_requests=MAX_COUNT,
            permit_timeout=MAX_SECONDS,
        ),
    )
    page = ListOf(MAX_INTEGER, MAX_INTEGER, (largest,) * PAGE, True)
    assert len(encode(page)) <= MAX_FRAME
    assert decode(encode(page), FROM_CONTROL) == page
    longer = page._replace(circuits=(largest,) * (PAGE + 1))
    assert refusal(encode(longer), FROM_CONTROL).code is ErrorCode.MALFORMED


COUNTS: Final = (
    "total_requests",
    "total_successes",
    "total_failures",
    "total_neutral",
    "total_rejected",
    "consecutive_successes",
    "consecutive_failures",
    "in_flight",
    "generation",
)


# -- generated -------------------------------------------------------------------------------------

generated = settings(max_examples=100, deadline=None, derandomize=True, database=None)

numbers = st.integers(0, MAX_INTEGER)
micros = st.integers(0, 10**15)
durations = micros.map(to_seconds)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_ERROR_CHARACTERS)
names = st.text(
    st.characters(exclude_categories=["C", "Z"]).filter(str.isprintable), min_size=1, max_size=32
)
instants = st.datetimes(
    datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59), timezones=st.just(timezone.utc)
)
states = st.sampled_from(State)
configs = st.builds(
    CircuitConfig,
    failure_threshold=st.integers(1, MAX_COUNT),
    success_threshold=st.integers(1, MAX_COUNT),
    open_timeout=st.integers(1, 10**15).map(to_seconds),
    max_concurrent_requests=st.integers(1, MAX_COUNT),
    permit_timeout=st.integers(1, 10**15).map(to_seconds),
    lost_permit=st.sampled_from(["failure", "ignore"]),
    consistency=st.sampled_from(["leased", "strict"]),
)
circuit_stats = st.builds(
    CircuitStats,
    name=names,
    state=states,
    **dict.fromkeys(COUNTS, numbers),
    last_error=st.none() | texts,
    last_error_at=st.none() | instants,
    state_changed_at=instants,
    retry_after=st.none() | durations,
    config=configs,
)
state_changes = st.builds(
    StateChange,
    version=numbers,
    old=st.sampled_from(State),
    new=st.sampled_from(State),
    cause=st.sampled_from(sorted(CAUSES)),
    generation=numbers,
    at=instants,
)
metrics_snapshots = st.builds(
    MetricsSnapshot,
    **dict.fromkeys(
        (
            "requests_total",
            "requests_successful",
            "requests_failed",
            "requests_rejected",
            "permits_lost",
            "stale_reports",
        ),
        numbers,
    ),
    transitions=st.fixed_dictionaries({state: numbers for state in State}),
    **dict.fromkeys(
        (
            "avg_latency",
            "min_latency",
            "max_latency",
            "p50_latency",
            "p95_latency",
            "p99_latency",
        ),
        st.none() | durations,
    ),
)
BY_FIELD: Final[dict[str, st.SearchStrategy[Any]]] = {
    "session": st.binary(min_size=16, max_size=16),
    "name": names,
    "after": st.just("") | names,
    "config": configs,
    "code": st.sampled_from(ErrorCode),
    "text": texts,
    "state": states,
    "old": states,
    "new": states,
    "retry_after": st.none() | durations,
    "last_error": st.none() | texts,
    "error": st.none() | texts,
    "outcome": st.sampled_from(Outcome),
    "verdict": st.sampled_from(Verdict),
    "duration": micros,
    "stats": circuit_stats,
    "metrics": metrics_snapshots,
    "circuits": st.lists(circuit_stats, max_size=2).map(tuple),
    "changes": st.lists(state_changes, max_size=3).map(tuple),
    "more": st.booleans(),
    "since": st.none() | numbers,
    "cause": st.sampled_from(sorted(CAUSES)),
    "at": instants,
}
BY_PLACE: Final[dict[tuple[type[Message], str], st.SearchStrategy[Any]]] = {
    (Declare, "config"): st.none() | configs,
    (Granted, "deadline"): st.none() | numbers,
    (Pong, "circuits"): numbers,
    (Welcome, "lease"): micros,
    (Leased, "state"): st.sampled_from([State.CLOSED, State.OPEN]),
    (Leased, "until"): st.none() | numbers,
    (Report, "permit"): st.none() | numbers,
    **{(Batch, field): st.integers(0, MAX_COUNT) for field in ("successes", "neutral", "rejected")},
    **{
        (Missed, field): st.integers(0, MAX_COUNT)
        for field in ("successes", "failures", "neutral", "rejected")
    },
    (Missed, "durations"): st.lists(micros, max_size=LATENCY_WINDOW).map(tuple),
    (Batch, "durations"): st.lists(micros, max_size=LATENCY_WINDOW).map(tuple),
}


def messages(kind: type[Message]) -> st.SearchStrategy[Message]:
    fields = (BY_PLACE.get((kind, field), BY_FIELD.get(field, numbers)) for field in kind._fields)
    return st.tuples(*fields).map(lambda values: kind(*values))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_was_encoded_decodes_to_the_same(kind: type[Message]) -> None:
    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(messages(kind))
    def crosses(message: Message) -> None:
        decoded = decode(encode(message), way_of(kind))
        assert type(decoded) is kind
        assert decoded == message

    crosses()


@generated
@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused(frame: bytes) -> None:
    decodes_or_is_refused(frame, frozenset(KINDS))


msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(0, 50)
    | st.floats()
    | texts
    | names
    | st.binary(max_size=80)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.integers(), inner, max_size=2),
    max_leaves=20,
)


@generated
@given(
    st.sampled_from(sorted(KINDS.values())) | st.integers(-(2**63), 2**64 - 1),
    st.lists(msgpack_values, max_size=10),
)
def test_random_msgpack_decodes_or_is_refused(kind: int, fields: list[object]) -> None:
    try:
        frame = msgpack.packb([kind, *fields])
    except OverflowError:  # a key of a map that msgpack itself cannot hold
        return
    decodes_or_is_refused(frame, frozenset(KINDS))


@generated
@given(st.sampled_from([golden for _, golden in GOLDEN]), st.data())
def test_a_golden_frame_with_a_random_field_decodes_or_is_refused(
    golden: str, data: st.DataObject
) -> None:
    array = array_of(golden)
    found = list(places(array))
    if found:
        place = data.draw(st.sampled_from(found))
        value = data.draw(msgpack_values)
        try:
            frame = msgpack.packb(put(array, place, value))
        except OverflowError:
            return
        decodes_or_is_refused(frame, frozenset(KINDS))


def test_a_malformed_message_pickles_with_what_is_to_be_answered() -> None:
    wrong = Malformed(kind=3, ref=17, code=ErrorCode.BAD_CONFIG, text="out of range")
    again = pickle.loads(pickle.dumps(wrong))
    assert type(again) is Malformed
    assert (again.kind, again.ref, again.code) == (3, 17, ErrorCode.BAD_CONFIG)
    assert again.text == str(again) == "out of range"


def test_the_names_that_are_known_are_those_that_passed_and_never_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = wire._known_names
    monkeypatch.setattr(wire, "_MAX_KNOWN_NAMES", 3)
    known.clear()
    seen = []
    for name in ("a", "b", "b", "c", "d"):
        decode(encode(Ping(1)), TO_CONTROL)
        decode(encode(GetStats(1, name)), TO_CONTROL)
        seen.append(set(known))
    assert seen == [{"a"}, {"a", "b"}, {"a", "b"}, {"a", "b", "c"}, {"d"}]
    with pytest.raises(Malformed):
        decode(encode(GetStats(1, "line\nbreak")), TO_CONTROL)
    assert known == {"d"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (("x",) * 3, "an array of 3"),
        ("x" * 58, repr("x" * 58)),
        ("x" * 59, f"'{'x' * 59}..."),
        (-1, "-1"),
    ],
)
def test_a_refusal_shows_what_came_and_no_more_than_sixty_characters_of_it(
    value: object, told: str
) -> None:
    frame = msgpack.packb([KINDS[Ping], value])
    with pytest.raises(Malformed) as refused:
        decode(frame, TO_CONTROL)
    assert str(refused.value).endswith(f"got {told}")


@pytest.mark.parametrize(
    ("kind", "field", "expected"),
    [
        (Hello, "request", f"a whole number from 0 to {MAX_INTEGER}"),
        (Hello, "session", "16 bytes"),
        (Error, "text", f"text of at most {MAX_ERROR_CHARACTERS} characters"),
        (Reported, "verdict", "one of [0, 1, 2]"),
        (Event, "cause", f"one of {', '.join(sorted(CAUSES))}"),
        (ListOf, "circuits", f"an array of at most {PAGE}"),
        (ListOf, "more", "a boolean"),
        (Batch, "durations", f"at most {LATENCY_WINDOW} whole numbers from 0 to {10**15}"),
    ],
)
def test_a_refusal_says_what_was_expected(kind: type[Message], field: str, expected: str) -> None:
    array = next(array_of(golden) for message, golden in GOLDEN if type(message) is kind)
    frame = msgpack.packb(put(array, (1 + kind._fields.index(field),), None))
    assert f"expected {expected}, got None" in refusal(frame, way_of(kind)).text


def test_a_malformed_message_is_made_of_what_is_to_be_answered() -> None:
    assert Malformed(3, 17, ErrorCode.BAD_CONFIG, "out of range").args == (
        3,
        17,
        ErrorCode.BAD_CONFIG,
        "out of range",
    )


def test_a_frame_above_the_limit_is_refused_however_well_formed() -> None:
    filler = "x" * 2_000  # which a later version might have added
    fits = msgpack.packb([KINDS[Ping], 1, *[filler] * 32])
    above = msgpack.packb([KINDS[Ping], 1, *[filler] * 33])
    assert len(fits) <= MAX_FRAME < len(above)
    assert decode(fits, TO_CONTROL) == Ping(1)
    with pytest.raises(Malformed):
        decode(above, TO_CONTROL)


@pytest.mark.parametrize("extra", [{}, {"a": 2}, [{"a": 2}]])
def test_a_map_is_refused_unless_it_is_empty_wherever_it_stands(extra: object) -> None:
    frame = msgpack.packb([KINDS[Ping], 1, extra])
    if extra:
        with pytest.raises(Malformed):
            decode(frame, TO_CONTROL)
    else:
        assert decode(frame, TO_CONTROL) == Ping(1)


def test_the_protocols_version_and_its_longest_arrays_are_as_documented() -> None:
    protocol = Path(__file__).parents[2].joinpath("docs", "protocol.md").read_text("utf-8")
    assert protocol.startswith(f"# The wire protocol, version {PROTOCOL}\n")
    assert f"`changes`: array of at most {wire.HISTORY} changes" in protocol
    assert f"`circuits`: array of at most {PAGE} stats" in protocol
