"""Draws a memory report: the renderer's memory over the time of day, the stages in it, and what befell them.

matplotlib is imported when a picture is drawn, and through its objects alone: `pyplot` would keep every figure and look
for a screen. It stays out of the base install, as it brings numpy.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
import zlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from renderkiln.schema.errors import MissingExtraError

from .reading import MemoryReport, time_span, zone_at
from .spans import bands, label_rows, level_spans, longest_pause, stretches, thinned

#: Of a picture, in inches; a PNG has so many pixels an inch.
WIDTH, HEIGHT, DPI = 14.0, 8.0, 120
#: Distances of the axes from the picture's edges, in inches; on the right are the legend and the ends of labels.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 3.0, 0.75, 0.95
#: Height of a row of event labels, how many there may be, and how many letters one may have.
_ROW, _MOST_ROWS, _MOST_LETTERS = 0.2, 12, 72
#: More points than these cannot be told apart.
_MOST_POINTS = 1500
_GB = 1e9

#: From the bottom of the stack. Colours keep apart for those who see red and green alike.
_STAGES = {
    "text_encoder": "#5b8cc9",
    "text_encoder_2": "#9dbfe6",
    "unet": "#e08e2b",
    "control-unet": "#f2bd7c",
    "controlnet": "#c9a227",
    "vae": "#3a9a86",
    "vae_decoder": "#3a9a86",
    "vae_encoder": "#93ccbf",
    "safety_checker": "#b87fb0",
}
_OTHERS = ("#7a62b0", "#e377a0", "#6d8891", "#8c6a4f", "#a8b545")
_RENDERER, _AVAILABLE, _EVENT, _CROSS = "#333333", "#2f7d32", "#6b6b6b", "#d0021b"
_BUDGET, _DOTS = "#a3195b", (0, (1, 1.5))
_NOTHING = "#efefef"
_SHADES = {"warn": ("#fff0c2", "memory is short (warn)"), "critical": ("#fbd0cb", "memory is critical")}
_FAILURES = {"out_of_memory": "out of memory", "renderer_died": "renderer died"}


def draw(report: MemoryReport, form: Literal["svg", "png"]) -> bytes:
    """The picture as the bytes of a file. The same report gives the same picture, but for the machine's time zone.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(
            "a picture needs matplotlib, which the base install leaves out: pip install 'renderkiln[report]'. "
            "Without it, --json gives the numbers."
        )
    import matplotlib

    own = {
        "svg.fonttype": "none",  # text stays text: small, and to be searched
        "svg.hashsalt": "renderkiln",
        "text.parse_math": False,  # a worker may have a dollar in its name
        "text.usetex": False,
        "font.size": 10.0,
    }
    with matplotlib.rc_context(own), warnings.catch_warnings():
        # A letter that matplotlib's own font has not is a box in a PNG, and itself in an SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return _Picture(report).drawn(form)


def stage_colour(stage: str) -> str:
    """The colour of a stage, the same in every picture."""
    return _STAGES.get(stage) or _OTHERS[zlib.crc32(stage.encode("utf-8", "replace")) % len(_OTHERS)]


@dataclass(frozen=True)
class _Label:
    #: Inches from the left edge of the axes.
    place: float
    text: str
    row: int | None


class _Picture:
    """A figure of one report while it is drawn."""

    def __init__(self, report: MemoryReport) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._report = report
        # One for the whole picture, or an hour of an autumn night would be there twice.
        self._zone = zone_at(report.since)
        #: Where the time axis begins and ends; a single sample gets a minute.
        self._start = report.since
        self._end = report.until if report.until > report.since else report.since + 60.0
        self._figure: Any = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
        self._canvas: Any = FigureCanvasAgg(self._figure)  # measures text; for an SVG another one writes it
        self._labels = self._placed_labels()
        rows = 1 + max((label.row for label in self._labels if label.row is not None), default=-1)
        #: Inches from the bottom edge to the top of the axes.
        self._ceiling = HEIGHT - _TOP - (rows * _ROW + 0.1 if rows else 0.0)
        size = (_LEFT / WIDTH, _BOTTOM / HEIGHT, (WIDTH - _LEFT - _RIGHT) / WIDTH, (self._ceiling - _BOTTOM) / HEIGHT)
        self._axes: Any = self._figure.add_axes(size)
        self._legend: list[tuple[Any, str]] = []

    def drawn(self, form: str) -> bytes:
        self._draw_memory()
        self._draw_levels()
        self._draw_events()
        self._draw_failures()
        self._draw_time()
        self._draw_words()
        title = _clean(f"Memory of worker {self._report.worker}")
        about = {"Title": title, "Date": None} if form == "svg" else {"Title": title, "Software": None}
        file = io.BytesIO()
        self._figure.savefig(file, format=form, dpi=DPI, metadata=about)
        return file.getvalue()

    def _draw_memory(self) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch
        from matplotlib.patheffects import withStroke

        # Lines run over bands of any colour: a white border keeps them apart.
        halo = [withStroke(linewidth=3.0, foreground="white", alpha=0.75)]
        axes, pause = self._axes, longest_pause(self._report.samples)
        used = 0.0
        stages: dict[str, None] = {}
        for stretch in stretches(self._report.samples, pause):
            shown = thinned(stretch, _MOST_POINTS)
            if len(shown) == 1:  # a moment alone would be a line of no length
                shown = [shown[0], replace(shown[0], at=shown[0].at + 6.0)]
            days = [_days(sample.at) for sample in shown]
            process = [sample.process_bytes / _GB for sample in shown]
            axes.fill_between(days, process, color=_RENDERER, alpha=0.13, linewidth=0, zorder=2)
            axes.plot(days, process, color=_RENDERER, linewidth=1.5, zorder=5, path_effects=halo)
            available = [sample.available_bytes / _GB for sample in shown]
            axes.plot(days, available, color=_AVAILABLE, linewidth=0.9, zorder=4, path_effects=halo)
            used = max(used, *process)
            budget = [each.budget_bytes / _GB if each.budget_bytes else float("nan") for each in shown]
            axes.plot(days, budget, drawstyle="steps-post", color=_BUDGET, linewidth=1.2, linestyle=_DOTS, zorder=6)
            for band in bands(shown, list(_STAGES)):
                bottoms, tops = ([size / _GB for size in sizes] for sizes in (band.bottoms, band.tops))
                axes.fill_between(
                    days, bottoms, tops, step="post", color=stage_colour(band.stage), linewidth=0, zorder=3
                )
                edge = [high if high > low else float("nan") for low, high in zip(bottoms, tops, strict=True)]
                axes.plot(days, edge, drawstyle="steps-post", color="white", linewidth=0.8, zorder=3.5)
                stages[band.stage] = None
                used = max(used, *tops)
        least, most = (limit(each.available_bytes for each in self._report.samples) / _GB for limit in (min, max))
        # Where a machine has far more memory than the renderer takes, the renderer would be a line at the bottom.
        top = 1.08 * (min(max(used, most), 2.5 * used) if least < 2 * used else used) or 1.0
        axes.set_ylim(0, top)
        beyond = f" (up to {most:,.1f} GB)" if most > top else ""
        self._legend = [
            (Line2D([], [], color=_RENDERER, linewidth=1.5), "renderer"),
            (Line2D([], [], color=_AVAILABLE, linewidth=0.9), f"available to all{beyond}"),
        ]
        budgets = sorted({each.budget_bytes / _GB for each in self._report.samples if each.budget_bytes})
        if budgets:
            said = f"budget: {' or '.join(f'{each:,.1f}' for each in budgets)} GB"  # it may lie above the picture
            self._legend.insert(1, (Line2D([], [], color=_BUDGET, linewidth=1.2, linestyle=_DOTS), said))
        order = [*_STAGES, *sorted(set(stages) - set(_STAGES))]
        for stage in sorted(stages, key=order.index, reverse=True):
            self._legend.append((Patch(color=stage_colour(stage)), _clean(stage)))

    def _draw_levels(self) -> None:
        from matplotlib.patches import Patch

        samples, axes = self._report.samples, self._axes
        spans, least = level_spans(samples), (self._end - self._start) / 1000  # what is short is still to be seen
        for level, (colour, meaning) in _SHADES.items():
            there = [span for span in spans if span.level == level]
            for span in there:
                axes.axvspan(
                    _days(span.start), _days(max(span.end, span.start + least)), facecolor=colour, linewidth=0, zorder=0
                )
            if there:
                self._legend.append((Patch(color=colour), meaning))
        parts = stretches(samples, longest_pause(samples))
        for before, after in pairwise(parts):
            axes.axvspan(_days(before[-1].at), _days(after[0].at), facecolor=_NOTHING, linewidth=0, zorder=0)
        if len(parts) > 1:
            self._legend.append((Patch(color=_NOTHING), "no samples"))

    def _placed_labels(self) -> list[_Label]:
        from matplotlib.text import Text

        scale = (WIDTH - _LEFT - _RIGHT) / (self._end - self._start)
        events = self._report.events
        places = [(at - self._start) * scale for at, _ in events]
        texts = [_shortened(_clean(event)) for _, event in events]
        widths = {}
        for text in set(texts):
            artist: Any = Text(text=text, fontsize=8.5, figure=self._figure)
            widths[text] = artist.get_window_extent(self._canvas.get_renderer()).width / DPI + 0.15
        rows = label_rows(places, [widths[text] for text in texts], _MOST_ROWS)
        return [_Label(*each) for each in zip(places, texts, rows, strict=True)]

    def _draw_events(self) -> None:
        from matplotlib.lines import Line2D

        inches = self._figure.dpi_scale_trans
        dashed: dict[str, Any] = {"color": _EVENT, "linewidth": 0.8, "linestyle": (0, (4, 3))}
        for label in self._labels:
            x, y = _LEFT + label.place, self._ceiling
            if label.row is not None:
                y += 0.1 + (label.row + 0.75) * _ROW
                self._figure.text(x + 0.05, y, label.text, transform=inches, va="top", fontsize=8.5, color="#222222")
            self._figure.add_artist(Line2D([x, x], [_BOTTOM, y], transform=inches, **dashed))
        if self._labels:
            left_out = sum(label.row is None for label in self._labels)
            without = f" ({left_out:,} without a label)" if left_out else ""
            self._legend.append((Line2D([], [], **dashed), f"event{without}"))

    def _draw_failures(self) -> None:
        from matplotlib.lines import Line2D

        failures = self._report.failures
        if not failures:
            return
        look: dict[str, Any] = {
            "color": _CROSS,
            "linestyle": "none",
            "marker": "x",
            "markersize": 10,
            "markeredgewidth": 2.6,
        }
        days = [_days(min(each.ended_at or 0.0, self._end)) for each in failures]
        on_axis = self._axes.get_xaxis_transform()
        self._axes.plot(days, [0.0] * len(days), transform=on_axis, clip_on=False, zorder=10, **look)
        kinds = {each.failure_kind or "" for each in failures}
        meaning = " or ".join(text for kind, text in _FAILURES.items() if kind in kinds)
        self._legend.append((Line2D([], [], **look), f"attempt failed:\n{meaning}"))

    def _draw_time(self) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        axes = self._axes
        axes.set_xlim(_days(self._start), _days(self._end))
        locator = AutoDateLocator(tz=self._zone, minticks=5, maxticks=11)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=self._zone))
        axes.set_xlabel("time of day")
        axes.set_ylabel("GB")
        axes.grid(axis="y", color="#000000", alpha=0.12, linewidth=0.7, zorder=1)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    def _draw_words(self) -> None:
        report, figure, inches = self._report, self._figure, self._figure.dpi_scale_trans
        title = _shortened(_clean(f"Memory of worker {report.worker}"), 90)
        figure.text(_LEFT, HEIGHT - 0.2, title, transform=inches, va="top", fontsize=14, weight="bold")
        summary = report.summary
        numbers = f"peak {summary['peak_bytes'] / _GB:.2f} GB, median {summary['median_bytes'] / _GB:.2f} GB"
        attempts = f"{len(report.attempts):,} attempt{'' if len(report.attempts) == 1 else 's'}"
        said = f"{time_span(report.since, report.until)}   ·   {numbers}   ·   {attempts}"
        figure.text(_LEFT, HEIGHT - 0.5, said, transform=inches, va="top", fontsize=10, color="#444444")
        figure.legend(
            [handle for handle, _ in self._legend],
            [text for _, text in self._legend],
            loc="upper left",
            bbox_to_anchor=((WIDTH - _RIGHT + 0.15) / WIDTH, self._ceiling / HEIGHT),
            borderaxespad=0.0,
            frameon=False,
            fontsize=9.5,
            handlelength=1.8,
        )


def _days(at: float) -> float:
    """A time as matplotlib counts it: in days since 1970."""
    return at / 86400.0


def _clean(text: str) -> str:
    """Text without what neither XML nor a line of a picture can hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _shortened(text: str, most: int = _MOST_LETTERS) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
