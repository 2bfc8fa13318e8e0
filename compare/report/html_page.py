"""report.html and report.md from scores.json. The page is one file that loads nothing.

in   scores.json, and the rows in which the two systems of the plan differ
out  runs/<recipe>/<run id>/report.html, and report.md for a pull request

Texts of models, labels and providers can contain anything, for example a script tag. The template therefore escapes
everything, the script's data are JSON without a "<", and the script sets text and never markup. A
Content-Security-Policy allows only this script and this style, identified by their hashes.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from compare.report import cost_section, head_note, markdown_page, routing_section, section_data, untuned_note, wording
from insource.config.schema.compare import HEAD
from insource.system import atomic_files, number_format
from insource.system.html_template import load_template
from insource.tasks import metric_label
from insource.tracking.scores.comparison import Disagreement, Scores

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent / "templates"
HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
# Control characters get visible symbols, except line ends and tabs.
CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def write_report(folder: Path, scores: Scores, disagreements: Sequence[Disagreement]) -> list[Path]:
    """Write both files into a folder and return their paths."""
    pages = {HTML_FILE: render_html(scores, disagreements), MARKDOWN_FILE: markdown_page.render_markdown(scores)}
    for name, text in pages.items():
        atomic_files.write_text(folder / name, text)
    return [folder / name for name in pages]


def render_html(scores: Scores, disagreements: Sequence[Disagreement]) -> str:
    """Return the page. `disagreements` are rows in which two systems differ, with both answers."""
    css, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    context = _template_context(scores, disagreements)
    page = _load_template().render(
        **context,
        scores=scores,
        sections=[(id_, title) for id_, title, present in _page_sections(context) if present],
        css=css,
        script=script,
        policy=content_security_policy(css, script),
        report_data=script_json(
            {"parts": context["parts"], "cost": (context["cost"]["picture"] or {}).get("for_script")}
        ),
    )
    # An answer may contain a lone surrogate, which cannot be encoded, or NUL, which HTML does not allow.
    return page.encode("utf-8", errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def content_security_policy(css: str, script: str) -> str:
    """Return a Content-Security-Policy that allows only this style and this script, and no loading."""
    style_hash, script_hash = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    allowed = {"style-src": f"'sha256-{style_hash}'", "script-src": f"'sha256-{script_hash}'"}
    rules = {"default-src": "'none'", **allowed, "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{directive} {sources}" for directive, sources in rules.items())


def script_json(value: object) -> str:
    """Return JSON that is safe inside a script element: no text in it can end the element or a line of the script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def with_word_breaks(name: str) -> Markup:
    """Return a name with a possible line break after each underscore."""
    return escape(show_control_characters(name)).replace("_", Markup("_<wbr>"))


def show_control_characters(text: str) -> str:
    """Return a text with visible symbols for control characters."""
    return text.translate(CONTROL_PICTURES)


def start_with_capital(text: str) -> str:
    """Return a text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def format_price(usd: float | None) -> str:
    """Return a price; a dash if it is unknown."""
    return "–" if usd is None else number_format.format_usd(usd)


def _load_template() -> "Template":
    functions = (
        number_format.format_count,
        number_format.format_percent,
        number_format.format_range,
        number_format.format_delta,
        number_format.format_delta_range,
        number_format.format_usd,
        number_format.format_compact,
        number_format.format_axis_percent,
        number_format.format_points,
        number_format.format_seconds,
        number_format.format_p_value,
        number_format.format_number,
        wording.count_answered,
        wording.format_outcomes,
        with_word_breaks,
        show_control_characters,
    )
    path = TEMPLATES / "report.html.jinja"
    return load_template(path, *functions, metric=metric_label, sentence=start_with_capital, price=format_price)


def _template_context(scores: Scores, disagreements: Sequence[Disagreement]) -> dict[str, Any]:
    """Return the data of each section."""
    return {
        "KIND": wording.KIND_LABELS,
        "JUDGED": wording.CONCLUSION_LABELS,
        "STAGES": wording.STAGE_LABELS,
        "named": wording.display_names(scores),
        "linear": wording.linear_baseline_note(scores),
        "quantization": wording.quantization_label(scores),
        "untuned": untuned_note.describe_untuned_base(scores),
        "head": head_note.describe_head(scores),
        "head_cost": head_note.COST_NOTE if HEAD in scores.systems else None,
        "served_as_trained": wording.parity_text(scores),
        "train_labels": wording.teacher_text(scores),
        "reasons": wording.supporting_reasons(scores),
        "questions": wording.question_reasons(scores),
        "counted": wording.format_votes(scores),
        "primary": scores.primary_comparison,
        "incomplete": wording.incomplete_notes(scores),
        "quality": section_data.quality(scores),
        "differences": section_data.differences(scores),
        "agreement": section_data.agreement(scores),
        "cost": cost_section.build_cost_section(scores),
        "routing": routing_section.build_routing_section(scores),
        "validity": section_data.validity(scores),
        "parts": section_data.breakdown(scores),
        "confusion": section_data.confusion(scores),
        "calibration": section_data.calibration(scores),
        "slices": section_data.slices(scores),
        "latency": section_data.latency(scores),
        "disagreements": section_data.disagreements(scores, disagreements),
    }


def _page_sections(context: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Return (id, title, whether it is present) of the page's sections in their order."""
    word = "Fields" if context["parts"] and context["parts"]["word"] == "field" else "Labels"
    return [
        ("reasons", "Reasons", True),
        ("quality", "Quality", True),
        ("differences", "Differences", bool(context["differences"])),
        ("cost", "Cost", True),
        ("routing", "Routing", context["routing"] is not None),
        ("validity", "Validity", bool(context["validity"]["rows"])),
        ("parts", word, context["parts"] is not None),
        ("confusion", "Confusion", bool(context["confusion"])),
        ("calibration", "Calibration", bool(context["calibration"])),
        ("slices", "Slices", bool(context["slices"])),
        ("latency", "Latency", context["latency"] is not None),
        ("disagreements", "Disagreements", context["disagreements"] is not None),
        ("systems", "Systems", True),
        ("integrity", "Integrity", True),
    ]
