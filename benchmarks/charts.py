"""Pictures of the results, as SVG. Needs matplotlib, which only the benchmarks' environment has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text: it can be read aloud, and searched
        "svg.hashsalt": "switchgear",  # the same figures give the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.titlelocation": "left",
        "path.simplify": False,
        "figure.facecolor": "white",
    }
)

OURS: Final = "#0b6e99"
OTHERS: Final = ("#d1495b", "#8d6a9f", "#e3a018", "#5b8c5a", "#7a7a7a", "#a05a2c")
SHADES: Final = {"closed": 1.0, "open": 0.55, "half-open": 0.28, "called": 1.0, "raises": 0.55}
OUTCOMES: Final = {"ok": "#5fa777", "failed": "#d1495b", "rejected": "#a3abb5"}


def save(figure: Any, path: Path) -> None:
    """Write the picture, without a date in it."""
    figure.savefig(path, metadata={"Date": None, "Creator": "switchgear"}, bbox_inches="tight")
    # A hundredth of a point is less than anybody sees, and the rest is half of the file.
    path.write_text(re.sub(r"(\d+\.\d\d)\d+", r"\1", path.read_text()))


def bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str) -> Figure:
    """A row a candidate and a bar a case, on a logarithmic scale.

    Args:
        rows: Candidate to case to value.
        title: What is shown.
        unit: Of the values.
    """
    count = sum(len(cases) + 0.8 for cases in rows.values())
    figure = Figure(figsize=(8.5, 0.9 + 0.17 * count), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots()
    values = [value for cases in rows.values() for value in cases.values()]
    place, ticks = 0.0, []
    for label, cases in rows.items():
        colour = OURS if label.startswith("switchgear") else "#6b7280"
        start = place
        for case, value in cases.items():
            axes.barh(place, value, height=0.92, color=colour, alpha=SHADES[case])
            text = f" {case} {_short(value)}"
            axes.text(value, place, text, va="center", fontsize=7.5, color="#333333")
            place += 1
        ticks.append(((start + place - 1) / 2, label))
        place += 0.8
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(place - 0.6, -0.8)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(axis="x", color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.set_xlabel(unit)
    return figure


def lines(series: Mapping[str, Mapping[int, float]], title: str, across: str, up: str) -> Figure:
    """A line a candidate, both scales logarithmic; the names stand at the right ends."""
    figure = Figure(figsize=(8.5, 4.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots()
    colours = iter(OTHERS)
    ends = []
    for label, points in series.items():
        if label == "switchgear":
            style: dict[str, Any] = {"color": OURS, "linewidth": 2.4}
        elif label.startswith("switchgear"):
            style = {"color": OURS, "linewidth": 1.6, "linestyle": "--"}
        else:
            style = {"color": next(colours), "linewidth": 1.6}
        axes.plot(list(points), list(points.values()), marker="o", markersize=4, **style)
        ends.append([list(points.values())[-1], label, style["color"]])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({x for points in series.values() for x in points})
    axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    gap = (high / low) ** 0.055
    ends.sort()
    at = 0.0
    for value, label, colour in ends:
        at = max(value, at * gap)
        text = f"  {label}"
        axes.annotate(text, (ticks[-1], at), va="center", color=colour, annotation_clip=False)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(color="#e5e7eb")
    return figure


def timeline(
    panels: Mapping[str, Sequence[Sequence[tuple[float, float, str]]]],
    moments: Mapping[str, float],
    title: str,
    captions: Mapping[str, str],
) -> Figure:
    """A row a worker, a mark a call; one panel a candidate.

    Args:
        panels: Candidate to worker to its calls: start and end in seconds, and how it ended.
        moments: What happened when, drawn across.
        title: What is shown.
        captions: Candidate to what is said about it.
    """
    figure = Figure(figsize=(10, 0.9 + 2.35 * len(panels)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
    for axes, (name, workers) in zip(grid[:, 0], panels.items(), strict=True):
        for outcome, height in (("rejected", 0.22), ("ok", 0.34), ("failed", 0.0)):
            across: list[float] = []
            up: list[float] = []
            for row, calls in enumerate(workers):
                for start, end in _thinned(calls, outcome):
                    if outcome == "failed":
                        across += [round(start, 3), round(end, 3), float("nan")]
                        up += [row, row, float("nan")]
                    else:
                        across += [round(start, 3)] * 2 + [float("nan")]
                        up += [row - height, row + height, float("nan")]
            width = 3.2 if outcome == "failed" else 1.0
            axes.plot(across, up, color=OUTCOMES[outcome], linewidth=width, solid_capstyle="butt")
        for moment, at in moments.items():
            axes.axvline(at, color="#374151", linewidth=0.8, linestyle=":")
            if axes is grid[0, 0]:
                axes.annotate(
                    f"{moment} ", (at, -1.2), fontsize=8.5, color="#374151", ha="left", va="bottom",
                    annotation_clip=False, xytext=(2, 0), textcoords="offset points",
                )  # fmt: skip
        axes.set_ylim(len(workers) - 0.3, -1.2)
        axes.set_yticks([0, len(workers) - 1], ["worker 1", str(len(workers))])
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{name}: {captions.get(name, '')}", pad=16 if axes is grid[0, 0] else 6)
        axes.spines["left"].set_visible(False)
    grid[-1, 0].set_xlabel("seconds")
    figure.legend(
        handles=[
            Line2D([], [], color=OUTCOMES["ok"], marker="|", linestyle="", label="call answered"),
            Line2D([], [], color=OUTCOMES["failed"], linewidth=3.2, label="call hangs, then fails"),
            Line2D(
                [], [], color=OUTCOMES["rejected"], marker="|", linestyle="", label="call rejected"
            ),
        ],
        loc="outside lower right",
        ncols=3,
        frameon=False,
    )
    return figure


THINNEST: Final = 0.05  # seconds between two marks of one kind in one row


def _thinned(calls: Sequence[tuple[float, float, str]], outcome: str) -> list[tuple[float, float]]:
    """The calls that ended so; of those that are answered at once, not more than can be seen."""
    kept: list[tuple[float, float]] = []
    for start, end, how in calls:
        if how == outcome and (outcome == "failed" or not kept or start - kept[-1][0] >= THINNEST):
            kept.append((start, end))
    return kept


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g} M" if value % 1e5 == 0 else f"{value / 1e6:.1f} M"
    if value >= 1000:
        return f"{value / 1000:g} k" if value % 100 == 0 else f"{value / 1000:.1f} k"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2g}" if value < 10 else f"{value:.0f}"
