"""What a benchmark found, and how it is shown: on the terminal, and as RESULTS.md with charts."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from measure import Figure

DASH: Final = "-"


@dataclass(frozen=True)
class Goal:
    """What was promised, beside what was measured. `reached` is None when nothing was."""

    promise: str
    measured: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        """In words."""
        return {True: "reached", False: "**not reached**", None: "not measured"}[self.reached]


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column is what the others are about."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A picture: `draw` makes a matplotlib figure of it."""

    name: str
    shows: str
    draw: Callable[[], Any]


@dataclass(frozen=True)
class Section:
    """One benchmark's results.

    Attributes:
        title: The question that it answers.
        name: What `--only` calls it.
        tables: The answer.
        charts: The same to look at.
        goals: What was promised about it.
        notes: What a reader must know: definitions, what was left out and why.
    """

    title: str
    name: str
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()


@dataclass
class Results:
    """All of a run."""

    command: str
    machine: Sequence[tuple[str, str]]
    setups: Sequence[tuple[str, str]]
    left_out: Sequence[str]
    sections: list[Section] = field(default_factory=list)


# -- numbers as text -------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three figures that mean something."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.0f}" if size >= 100 else f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def micros(seconds: float) -> str:
    """Seconds as microseconds."""
    return number(seconds * 1e6)


def spread(figure: Figure, scale: float = 1.0) -> str:
    """The median and, in brackets, what it is the median of."""
    low, high = number(figure.low * scale), number(figure.high * scale)
    return f"{number(figure.middle * scale)} ({low} to {high})"


# -- on the terminal -------------------------------------------------------------------------------


def show(section: Section) -> None:
    """Print the tables, the goals and the notes."""
    for table in section.tables:
        print(f"\n{table.title}\n")
        print("\n".join(_columns([table.head, *table.rows])))
    for goal in section.goals:
        print(f"\ngoal: {goal.promise}\n      {goal.measured}: {goal.verdict.strip('*')}")
    print(flush=True)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *rest = (
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return lines


def show_goals(sections: Sequence[Section]) -> None:
    """Print every goal in a line."""
    rows = [(g.promise, g.measured, g.verdict.strip("*")) for s in sections for g in s.goals]
    if rows:
        print("\n== Goals ==\n")
        for promise, measured, verdict in rows:
            print(f"{verdict.upper():12}  {promise}\n{'':12}  {measured}")


# -- as a file -------------------------------------------------------------------------------------


def write(results: Results, directory: Path) -> None:
    """RESULTS.md, and the charts beside it where matplotlib is installed."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = _draw(results.sections, directory / "charts")
    lines = [
        "# What was measured",
        "",
        f"Written by `{results.command}` on {datetime.date.today():%d %B %Y}; do not edit.",
        "",
        *(f"- {name}: {value}" for name, value in results.machine),
        *(f"- Left out: {what}" for what in results.left_out),
        "",
        "Figures are medians of rounds in which the candidates took turns; in brackets are the",
        "lowest and the highest round. Ratios are taken within a round.",
        "",
        "## Goals",
        "",
        *_table(
            ["goal", "measured", ""],
            [(g.promise, g.measured, g.verdict) for s in results.sections for g in s.goals],
        ),
    ]
    for section in results.sections:
        lines += ["", f"## {section.title}", ""]
        for chart in section.charts:
            if chart.name in drawn:
                lines += [f"![{chart.shows}](charts/{chart.name}.svg)", ""]
        for table in section.tables:
            lines += [f"**{table.title}**", "", *_table(table.head, table.rows), ""]
        lines += [f"- {note}" for note in section.notes]
        if not section.notes:
            lines.pop()
    if results.setups:
        lines += ["", "## How each was set up", ""]
        lines += [f"- **{label}**: {setup}." for label, setup in results.setups]
    (directory / "RESULTS.md").write_text("\n".join(lines) + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *("---:" if _numeric(rows, place) else "---" for place in range(1, len(head)))]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def _numeric(rows: Sequence[Sequence[str]], place: int) -> bool:
    return bool(rows) and all(row[place][:1].isdigit() or row[place] == DASH for row in rows)


def _draw(sections: Sequence[Section], directory: Path) -> set[str]:
    wanted = [chart for section in sections for chart in section.charts]
    if not wanted:
        return set()
    try:
        import charts
    except ImportError as error:
        print(f"no charts: {error}")
        return set()
    directory.mkdir(parents=True, exist_ok=True)
    drawn = set()
    for chart in wanted:
        try:
            charts.save(chart.draw(), directory / f"{chart.name}.svg")
            drawn.add(chart.name)
        except Exception:  # the figures are worth more than the picture of them
            traceback.print_exc()
    return drawn
