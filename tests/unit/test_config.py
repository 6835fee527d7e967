"""What a caller may write down: every default, both sides of every bound, every wrong type."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from switchgear.config import (
    MAX_COUNT,
    MAX_NAME_BYTES,
    MAX_SECONDS,
    CircuitConfig,
    check_count,
    check_name,
    check_seconds,
)
from switchgear.errors import ConfigError

COUNTS = ["failure_threshold", "success_threshold", "max_concurrent_requests"]
SECONDS = ["open_timeout", "permit_timeout"]
CHOICES = {"lost_permit": ["failure", "ignore"], "consistency": ["leased", "strict"]}

NOT_NUMBERS: list[object] = [
    True,
    False,
    None,
    "5",
    "",
    b"5",
    [5],
    {},
    5j,
    Decimal(5),
    Fraction(5),
    timedelta(seconds=5),
    object,
]


def refusal(field: str, value: object) -> str:
    """What ConfigError says when the field is given that value."""
    with pytest.raises(ConfigError) as caught:
        CircuitConfig(**{field: value})  # type: ignore[arg-type]  # wrong on purpose
    return str(caught.value)


def accepted(field: str, value: object) -> object:
    config = CircuitConfig(**{field: value})  # type: ignore[arg-type]  # some are ints for floats
    return getattr(config, field)


# -- the whole ---------------------------------------------------------------------------------


def test_the_fields_and_their_defaults_are_the_contracts() -> None:
    assert dataclasses.asdict(CircuitConfig()) == {
        "failure_threshold": 5,
        "success_threshold": 2,
        "open_timeout": 30.0,
        "max_concurrent_requests": 1,
        "permit_timeout": 60.0,
        "lost_permit": "failure",
        "consistency": "leased",
    }


def test_the_limits_are_the_ones_the_documentation_gives() -> None:
    assert (MAX_COUNT, MAX_SECONDS, MAX_NAME_BYTES) == (1_000_000_000, 1_000_000_000.0, 128)


def test_every_field_keeps_the_value_it_is_given() -> None:
    given: dict[str, Any] = {
        "failure_threshold": 11,
        "success_threshold": 12,
        "open_timeout": 13.5,
        "max_concurrent_requests": 14,
        "permit_timeout": 15.5,
        "lost_permit": "ignore",
        "consistency": "strict",
    }
    assert dataclasses.asdict(CircuitConfig(**given)) == given


def test_a_config_cannot_be_changed_after_it_is_built() -> None:
    config = CircuitConfig()
    for field in dataclasses.fields(CircuitConfig):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, getattr(config, field.name))
        with pytest.raises(dataclasses.FrozenInstanceError):
            delattr(config, field.name)
    assert config == CircuitConfig()


def test_a_config_has_no_room_for_anything_else() -> None:
    assert not hasattr(CircuitConfig(), "__dict__")


def test_a_config_takes_keywords_only() -> None:
    with pytest.raises(TypeError):
        CircuitConfig(5)  # type: ignore[call-arg]  # wrong on purpose


def test_a_config_refuses_a_field_it_does_not_have() -> None:
    with pytest.raises(TypeError, match="failure_treshold"):
        CircuitConfig(failure_treshold=5)  # type: ignore[call-arg]  # a typing mistake, on purpose


def test_configs_of_the_same_values_are_equal_and_of_other_values_are_not() -> None:
    assert CircuitConfig(open_timeout=30) == CircuitConfig()
    assert hash(CircuitConfig(open_timeout=30)) == hash(CircuitConfig())
    assert CircuitConfig(open_timeout=30.5) != CircuitConfig()
    assert CircuitConfig(consistency="strict") != CircuitConfig()


def test_a_config_pickles_and_what_replace_makes_of_it_is_checked_again() -> None:
    config = CircuitConfig(failure_threshold=7)
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.replace(config, success_threshold=3).success_threshold == 3
    with pytest.raises(ConfigError, match="success_threshold"):
        dataclasses.replace(config, success_threshold=0)


# -- counts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", COUNTS)
def test_a_count_may_be_one_or_a_thousand_million_and_nothing_beyond(field: str) -> None:
    assert [accepted(field, value) for value in (1, 2, MAX_COUNT - 1, MAX_COUNT)] == [
        1,
        2,
        MAX_COUNT - 1,
        MAX_COUNT,
    ]
    for value in (0, -1, -MAX_COUNT, MAX_COUNT + 1, 2**63, 2**64, 10**400):
        refusal(field, value)


@pytest.mark.parametrize(
    "value", [*NOT_NUMBERS, 5.0, 0.0, math.nan, math.inf, -math.inf, 1.5], ids=repr
)
@pytest.mark.parametrize("field", COUNTS)
def test_a_count_is_a_whole_number_and_no_other_type(field: str, value: object) -> None:
    assert repr(value) in refusal(field, value)


@pytest.mark.parametrize("field", COUNTS)
@pytest.mark.parametrize("value", [0, -7, MAX_COUNT + 1, True, None, "5", 2.5, math.nan])
def test_the_refusal_of_a_count_names_field_value_and_range(field: str, value: object) -> None:
    assert refusal(field, value) == (
        f"{field} must be a whole number from 1 to 1000000000, got {value!r}"
    )


# -- seconds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", SECONDS)
def test_a_duration_is_more_than_zero_and_at_most_the_limit(field: str) -> None:
    for value in (math.nextafter(0.0, 1.0), 1e-6, 0.5, 1, 30.0, MAX_COUNT, MAX_SECONDS):
        assert accepted(field, value) == value
    beyond = math.nextafter(MAX_SECONDS, math.inf)
    for value in (0, 0.0, -0.0, -1, -1e-6, -30.0, beyond, MAX_COUNT + 1, 1e308, 10**400):
        refusal(field, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=repr)
@pytest.mark.parametrize("field", SECONDS)
def test_a_duration_is_finite(field: str, value: float) -> None:
    assert refusal(field, value) == (
        f"{field} must be a number of seconds, more than 0 and at most 1000000000, got {value!r}"
    )


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("field", SECONDS)
def test_a_duration_is_a_number_and_no_other_type(field: str, value: object) -> None:
    text = refusal(field, value)
    assert text.startswith(f"{field} must be ")
    assert repr(value) in text


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -7.5, MAX_SECONDS * 2])
def test_the_refusal_of_a_duration_names_field_value_and_range(field: str, value: object) -> None:
    assert refusal(field, value) == (
        f"{field} must be a number of seconds, more than 0 and at most 1000000000, got {value!r}"
    )


@pytest.mark.parametrize("field", SECONDS)
def test_the_refusal_of_a_duration_of_the_wrong_type_names_the_range_too(field: str) -> None:
    assert "more than 0 and at most 1000000000" in refusal(field, "30")


@pytest.mark.parametrize("field", [*COUNTS, *SECONDS])
def test_a_number_too_long_to_print_is_refused_with_a_config_error(field: str) -> None:
    refusal(field, 10**5000)


# -- choices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", CHOICES)
def test_a_choice_is_one_of_its_words_and_nothing_like_them(field: str) -> None:
    words = CHOICES[field]
    assert [accepted(field, word) for word in words] == words
    near = [words[0].upper(), words[1].title(), f" {words[0]}", "", words[0].encode()]
    others: list[object] = [True, False, None, 0, 1, math.nan, words, {}, set()]
    for value in (*near, *others):
        refusal(field, value)


def test_a_choice_of_one_field_is_no_choice_of_the_other() -> None:
    refusal("lost_permit", "strict")
    refusal("consistency", "failure")


def test_the_refusal_of_a_choice_names_field_value_and_choices() -> None:
    assert refusal("lost_permit", "explode") == (
        "lost_permit must be 'failure' or 'ignore', got 'explode'"
    )
    assert refusal("consistency", None) == "consistency must be 'leased' or 'strict', got None"


# -- the checks by themselves, as other modules use them ---------------------------------------


@pytest.mark.parametrize(("check", "good"), [(check_count, 1), (check_seconds, 0.5)])
def test_a_check_is_silent_about_a_good_value_and_names_the_field_of_a_bad_one(
    check: Callable[[str, object], None], good: object
) -> None:
    check("batch", good)
    with pytest.raises(ConfigError, match=r"^batch must be .*, got 0$"):
        check("batch", 0)


# -- names -------------------------------------------------------------------------------------


def name_refusal(name: object) -> str:
    with pytest.raises(ConfigError) as caught:
        check_name(name)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "p",
        "payments",
        "payments/eu-west.v2:charge",
        "two words",
        "caf\u00e9",
        "\u652f\u4ed8",
        "\U0001f50c",
        "'quoted'",
        "%s {x} \\",
    ],
)
def test_a_name_may_be_any_printable_text(name: str) -> None:
    check_name(name)


def test_a_name_is_at_most_128_bytes() -> None:
    check_name("x" * 128)
    assert name_refusal("x" * 129) == (
        f"a circuit's name must be at most 128 bytes of UTF-8, got 129: '{'x' * 59}..."
    )


@pytest.mark.parametrize(
    ("character", "size"), [("\u00e9", 2), ("\u652f", 3), ("\U0001f50c", 4)], ids=ascii
)
def test_the_limit_of_a_name_is_in_bytes_and_not_in_characters(character: str, size: int) -> None:
    fits = character * (128 // size) + "x" * (128 % size)
    assert len(fits.encode()) == 128
    check_name(fits)
    assert f"got {128 - 128 % size + size}" in name_refusal(character * (128 // size + 1))
    assert "got 129" in name_refusal(fits + "x")


def test_the_refusal_of_a_very_long_name_does_not_repeat_all_of_it() -> None:
    assert len(name_refusal("x" * 1_000_000)) < 200


def test_a_name_is_not_empty() -> None:
    assert name_refusal("") == "a circuit's name must be a non-empty string, got ''"


@pytest.mark.parametrize(
    "name",
    [
        "a\nb",
        "a\n",
        "\n",
        "a\rb",
        "a\tb",
        "a\x00b",
        "a\x1b[31mb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "a\u200bb",
        "a\u202eb",
        "a\u00a0b",
        "\ud800",
        "a\udfffb",
        "\ue000",
    ],
    ids=ascii,
)
def test_a_name_has_no_character_that_cannot_be_printed(name: str) -> None:
    text = name_refusal(name)
    assert text == f"a circuit's name must be printable characters, got {name!r}"
    text.encode()  # and the sentence itself can go into any log
    assert text.isprintable()


@pytest.mark.parametrize(
    "name", [None, True, 0, 7, 1.5, b"payments", ["payments"], ("payments",), object], ids=repr
)
def test_a_name_is_a_string(name: object) -> None:
    assert f"got {name!r}" in name_refusal(name)


def test_a_name_is_not_of_a_class_derived_from_str() -> None:
    class Tagged(str):
        __slots__ = ()

    # It could print as one thing and be encoded as another.
    name_refusal(Tagged("payments"))


@pytest.mark.parametrize(("characters", "shown"), [(58, 60), (59, 60)])
def test_of_a_long_value_no_more_than_sixty_characters_are_shown(
    characters: int, shown: int
) -> None:
    value = "x" * characters
    with pytest.raises(ConfigError) as refused:
        CircuitConfig(lost_permit=value)  # type: ignore[arg-type]
    _, _, told = str(refused.value).partition("got ")
    quoted = repr(value)
    assert told == quoted if len(quoted) <= shown else told == f"{quoted[:shown]}..."
