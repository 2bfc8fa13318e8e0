"""The learning curve: a picture of metrics.jsonl.

    metrics.jsonl  {"step": 100, "epoch": 0.88, "loss": 2.31, "learning_rate": 0.0002, ...}
                   {"step": 100, "epoch": 0.88, "validation/accuracy": 0.87, ...}
    picture        loss by update, validation metrics below it, the learning rate at the bottom; epochs as grey lines,
                   the kept checkpoint as a green one

The picture has its own background, so that it looks the same on a light page and on a dark one. PNG opens everywhere
(image viewers, W&B, chats); matplotlib also writes SVG or PDF if the path has that suffix.
"""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from insource.config.metric_names import METRICS
from insource.tasks import metric_label
from insource.tracking import metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACKGROUND, TEXT, MUTED, GRID = "#fbfaf8", "#22211f", "#74716b", "#e4e1db"
LOSS, BEST, LEARNING_RATE = "#2f6fb5", "#2c8a5b", "#9a968e"
# The colors differ in lightness as well as in hue.
VALIDATION = ("#c4501b", "#7b55a8", "#8a6d00", "#3f4a54")
# Metrics of preference tuning that are drawn with the validation metrics: fractions, measured in training.
TRAINING_FRACTIONS = ("rewards/accuracies",)
MIN_POINTS_TO_SMOOTH = 40
LINE_INCHES = 0.17
MAX_EPOCH_LABELS = 8
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """The data of the picture."""

    loss: Points
    learning_rate: Points
    fractions: Mapping[str, Points]
    """{metric: points}: the main metrics of validation, and TRAINING_FRACTIONS."""
    validation_loss: Points
    updates_per_epoch: float | None


def draw(metrics_path: Path, picture_path: Path, title: str, best_step: int | None) -> None:
    """Write the picture of a run; `best_step` is the update of the kept checkpoint, None if the last one is kept.

    Write nothing if no loss was logged yet.
    """
    curve = read(metrics_path)
    if not curve.loss:
        return
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes, which is acceptable in a title.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = _draw_figure(curve, title, best_step)
        temp_path = picture_path.with_name(f".{picture_path.name}")
        figure.savefig(temp_path, format=picture_path.suffix.lstrip("."), dpi=160)
    temp_path.replace(picture_path)


def read(metrics_path: Path) -> Curve:
    """Return the data of a metrics.jsonl for the picture."""
    rows = metrics.read_rows(metrics_path)

    def points(name: str) -> Points:
        return [(row["step"], row[name]) for row in rows if name in row]

    main_metrics = {f"validation/{name}" for kind_metrics in METRICS.values() for name in kind_metrics}
    names = dict.fromkeys(name for row in rows for name in row if name in main_metrics)
    points_by_name = {name: points(name) for name in (*names, *TRAINING_FRACTIONS)}
    by_epoch = [row["step"] / row["epoch"] for row in rows if row.get("epoch")]
    return Curve(
        points("loss"),
        points("learning_rate"),
        {name: series for name, series in points_by_name.items() if series},
        points("validation/loss"),
        by_epoch[-1] if by_epoch else None,
    )


def _draw_figure(curve: Curve, title: str, best_step: int | None) -> "Figure":
    from matplotlib.figure import Figure

    heights = [2.9, *([1.8] if curve.fractions else []), 0.5]
    height = 1.9 + sum(heights)
    figure = Figure(figsize=(9, height), facecolor=BACKGROUND)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, hspace=0.2, left=0.08, right=0.84,
                               top=1 - 1.0 / height, bottom=0.5 / height)  # fmt: skip
    panels = [figure.add_subplot(grid[index]) for index in range(len(heights))]
    last_step = max(points[-1][0] for points in (curve.loss, *curve.fractions.values()))
    for panel in panels:
        _style_panel(panel, last_step, best_step, labelled=panel is panels[-1])
    _draw_epochs(panels, curve, last_step)
    _draw_loss(panels[0], curve)
    if curve.fractions:
        _draw_fractions(panels[1], curve.fractions, best_step)
    _draw_learning_rate(panels[-1], curve.learning_rate)
    panels[-1].set_xlabel("update", color=MUTED, fontsize=9, labelpad=2)
    if best_step is not None:
        side = "right" if best_step > 0.85 * last_step else "center"
        panels[0].annotate(f"kept: update {best_step:,}", (best_step, 1), xycoords=("data", "axes fraction"),
                           xytext=(0, 3), textcoords="offset points", color=BEST, fontsize=9, fontweight="bold",
                           ha=side, va="bottom")  # fmt: skip
    text: dict[str, Any] = {"x": 0.08, "ha": "left", "va": "top", "parse_math": False}
    figure.text(y=1 - 0.2 / height, s=title, color=TEXT, fontsize=13.5, fontweight="bold", **text)
    figure.text(y=1 - 0.5 / height, s=_format_subtitle(curve, best_step), color=MUTED, fontsize=9.5, **text)
    return figure


def _style_panel(panel: "Axes", last_step: float, best_step: int | None, labelled: bool) -> None:
    panel.set_facecolor(BACKGROUND)
    panel.set_xlim(0, last_step * 1.01)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(GRID)
    panel.tick_params(colors=MUTED, labelsize=8.5, length=0, labelbottom=labelled)
    panel.grid(axis="y", color=GRID, linewidth=0.7)
    panel.set_axisbelow(True)
    if best_step is not None:
        panel.axvline(best_step, color=BEST, linewidth=1.1, zorder=1)


def _draw_epochs(panels: "Sequence[Axes]", curve: Curve, last_step: float) -> None:
    epochs = int(last_step / curve.updates_per_epoch) if curve.updates_per_epoch else 0
    for epoch in range(1, epochs + 1 if epochs <= MAX_EPOCH_LABELS else 0):
        step = epoch * (curve.updates_per_epoch or 0)
        for panel in panels:
            panel.axvline(step, color=GRID, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        panels[0].annotate(f"epoch {epoch} ", (step, 0.97), xycoords=("data", "axes fraction"), color=MUTED, fontsize=8,
                           ha="right", va="top")  # fmt: skip


def _draw_loss(panel: "Axes", curve: Curve) -> None:
    smooth = moving_average(curve.loss) if len(curve.loss) >= MIN_POINTS_TO_SMOOTH else None
    panel.plot(
        *zip(*curve.loss, strict=True), color=LOSS, linewidth=0.8 if smooth else 1.8, alpha=0.35 if smooth else 1
    )
    if smooth:
        panel.plot(*zip(*smooth, strict=True), color=LOSS, linewidth=2)
    line_labels = [("training" + (", smoothed" if smooth else ""), (smooth or curve.loss)[-1][1], LOSS)]
    if curve.validation_loss:
        panel.plot(
            *zip(*curve.validation_loss, strict=True), color=VALIDATION[0], linewidth=1.2, marker="o", markersize=4
        )
        line_labels.append(("validation", curve.validation_loss[-1][1], VALIDATION[0]))
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(_tick_locator())
    _label_lines(panel, line_labels)
    panel.set_title("loss", loc="left", color=MUTED, fontsize=9, pad=3)


def _draw_fractions(panel: "Axes", fractions: Mapping[str, Points], best_step: int | None) -> None:
    line_labels = []
    for (name, points), color in zip(fractions.items(), itertools.cycle(VALIDATION), strict=False):
        panel.plot(*zip(*points, strict=True), color=color, linewidth=1.6, marker="o" if len(points) < 60 else None,
                   markersize=4.5, markeredgecolor=BACKGROUND, markeredgewidth=0.8)  # fmt: skip
        line_labels.append((_display_name(name), points[-1][1], color))
    for best_point in (point for point in next(iter(fractions.values())) if point[0] == best_step):
        panel.plot(*best_point, marker="o", markersize=10, markerfacecolor="none", markeredgecolor=BEST,
                   markeredgewidth=1.8, clip_on=False)  # fmt: skip
    low = min(value for points in fractions.values() for _, value in points)
    high = max(value for points in fractions.values() for _, value in points)
    margin = max(0.02, (high - low) * 0.15)
    panel.set_ylim(max(0, low - margin) if low >= 0 else low - margin, min(1.005, high + margin))
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    panel.yaxis.set_major_locator(_tick_locator())
    title = "validation" if set(fractions) - set(TRAINING_FRACTIONS) else "training"
    panel.set_title(title, loc="left", color=MUTED, fontsize=9, pad=3)
    _label_lines(panel, line_labels)


def _draw_learning_rate(panel: "Axes", points: Points) -> None:
    if points:
        steps, rates = zip(*points, strict=True)
        panel.fill_between(steps, rates, color=LEARNING_RATE, alpha=0.25, linewidth=0)
        panel.plot(steps, rates, color=LEARNING_RATE, linewidth=1)
        highest = max(rates)
        panel.set_ylim(0, highest * 1.15 or 1)
        panel.set_yticks([highest], [f"{highest:.1e}".replace("e-0", "e-")])
        _label_lines(panel, [("learning rate", highest / 2, MUTED)])


def _tick_locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])


def _label_lines(panel: "Axes", line_labels: Sequence[tuple[str, float, str]]) -> None:
    """Write each line's name in its color beside its last value, without overlap. The panel's limits must be set."""
    low, high = panel.get_ylim()
    gap = LINE_INCHES / (panel.get_position().height * panel.get_figure(root=True).get_figheight())  # type: ignore[union-attr]
    position = 2.0
    for name, value, color in sorted(line_labels, key=lambda label: -label[1]):
        position = min((value - low) / (high - low), position - gap)
        panel.annotate(name, (1, position), xycoords="axes fraction", xytext=(8, 0), textcoords="offset points",
                       color=color, fontsize=9, va="center", annotation_clip=False)  # fmt: skip


def _display_name(name: str) -> str:
    return "pairs right, training" if name in TRAINING_FRACTIONS else metric_label(name.removeprefix("validation/"))


def _format_subtitle(curve: Curve, best_step: int | None) -> str:
    """Return the subtitle: the final loss, and the validation metrics of the kept weights."""
    step, loss = curve.loss[-1]
    kept_values = {
        name: next((value for point_step, value in points if point_step == best_step), points[-1][1])
        for name, points in curve.fractions.items()
        if name not in TRAINING_FRACTIONS
    }
    scores = [f"{_display_name(name)} {value:.1%}" for name, value in kept_values.items()]
    best_note = f"   ·   at update {best_step:,}: " if best_step is not None else "   ·   "
    return f"loss {loss:.3f} after {step:,} updates" + (best_note + ", ".join(scores) if scores else "")


def moving_average(points: Points) -> Points:
    """Return each point as the mean of its neighbors, up to a twentieth of all points on both sides.

    Towards the ends there are fewer neighbors, nearly as many on both sides, so that a falling line is not shifted up.
    """
    max_reach, min_reach = len(points) // 20, len(points) // 80
    averages: Points = []
    for index, (step, _) in enumerate(points):
        half_width = max(min_reach, min(max_reach, index, len(points) - 1 - index))
        neighbors = [value for _, value in points[max(0, index - half_width) : index + half_width + 1]]
        averages.append((step, sum(neighbors) / len(neighbors)))
    return averages
