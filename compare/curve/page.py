"""curve.html: the picture of a learning curve, its table and its conclusion. One file that loads nothing.

in   curve.json, see results.py
out  positions in percent for SVG: {"x": 62.0, "y": 31.5, "top": 28.0, "bottom": 35.1} for each point

The horizontal axis is logarithmic and ends at twice the train rows, where the law predicts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compare.curve import wording
from compare.report import charts, html_page
from insource.system import number_format
from insource.system.html_template import load_template
from insource.tasks import metric_label

TEMPLATES = Path(__file__).parent / "templates"
CLASSES = {"tuned": "k-tuned", "linear": "k-linear"}

View = dict[str, Any]


def render_page(payload: Mapping[str, Any]) -> str:
    """Return the page of a curve.json."""
    css = (html_page.TEMPLATES / "report.css").read_text(encoding="utf-8")
    css += (TEMPLATES / "curve.css").read_text(encoding="utf-8")
    functions = (
        number_format.format_percent,
        number_format.format_range,
        number_format.format_delta,
        number_format.format_delta_range,
        number_format.format_axis_percent,
        number_format.format_compact,
    )
    headline = wording.HEADLINES.get(next(iter(payload["curves"].values()))["conclusion"] or "", "One size so far.")
    return load_template(TEMPLATES / "curve.html.jinja", *functions).render(
        payload=payload,
        metric=metric_label(payload["metric"]),
        picture=build_picture(payload),
        titles=wording.TITLES,
        classes=CLASSES,
        headline=headline,
        conclusions={
            name: wording.describe_conclusion(payload, name).removeprefix(f"{headline} ") for name in payload["curves"]
        },
        bases={name: wording.describe_basis(payload, name) for name in payload["curves"]},
        stop=wording.describe_stop(payload),
        api_levels=[wording.describe_api_level(level) for level in payload["api"]],
        css=css,
        policy=html_page.content_security_policy(css, ""),
    )


def build_picture(payload: Mapping[str, Any]) -> View:
    """Return the positions of all points, intervals, laws and API levels."""
    sizes = payload["planned_sizes"]
    size_axis = charts.Axis(sizes[0] / 1.15, 2.15 * sizes[-1], log=True)
    bounds = [
        point[end] for curve in payload["curves"].values() for point in curve["points"] for end in ("low", "high")
    ]
    bounds += [level["value"] for level in payload["api"]]
    bounds += [end for curve in payload["curves"].values() for end in _doubled_range(curve)]
    value_axis = charts.fraction_axis(bounds)

    def height(value: float) -> float:
        return round(100 - value_axis.position(value), 2)

    def draw_curve(name: str, curve: Mapping[str, Any]) -> View:
        points = [
            {
                "x": size_axis.position(point["train_rows"]),
                "y": height(point["value"]),
                "top": height(point["high"]),
                "bottom": height(point["low"]),
            }
            for point in curve["points"]
        ]
        law = curve["law"]["line"] if curve["law"] else []
        line = [f"{size_axis.position(point['train_rows'])},{height(point['value'])}" for point in law]
        doubled = [height(value) for value in _doubled_range(curve)]
        return {
            "class": CLASSES[name],
            "points": points,
            "line": " ".join(line or [f"{point['x']},{point['y']}" for point in points]),
            "doubled": {"bottom": doubled[0], "y": doubled[1], "top": doubled[2]} if doubled else None,
        }

    return {
        "curves": [draw_curve(name, curve) for name, curve in payload["curves"].items()],
        "levels": [{"y": height(level["value"]), "title": level["title"]} for level in payload["api"]],
        "sizes": [{"x": size_axis.position(size), "rows": size} for size in (*sizes, 2 * sizes[-1])],
        "doubled": size_axis.position(2 * sizes[-1]),
        "now": size_axis.position(sizes[-1]),
        "y_ticks": value_axis.ticks(),
    }


def _doubled_range(curve: Mapping[str, Any]) -> list[float]:
    """Return the metric that the interval gives for twice the train rows: low, estimate, high; [] without one."""
    if curve["doubling"] is None:
        return []
    value = curve["points"][-1]["value"]
    return [min(value + curve["doubling"][name], 1.0) for name in ("low", "gain", "high")]
