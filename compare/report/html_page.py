"""report.html and report.md: what scores.json says, to look at and to sign. The page is one file that loads nothing.

in   scores.json, and the rows in which the two systems of the plan differ
out  runs/<recipe>/<run id>/report.html, and report.md for a pull request

Whatever a model, a label or a provider wrote may stand in it, a script tag too. So the template escapes everything,
data for the page's script is JSON without a single <, the script sets text and never markup, and a
Content-Security-Policy lets run that script and that style alone, known by their hashes.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from compare.report import cost_section, markdown_page, routing_section, section_data, wording
from compare.report.wording import Scores
from insource.system import atomic_files

PAGE = Path(__file__).parent / "templates"
HTML, MARKDOWN = "report.html", "report.md"
# Characters that show nothing are shown by their pictures; line ends and tabs are left.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}


def write(folder: Path, scores: Scores, disagreements: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Returns the two files that it writes into a folder."""
    found = {HTML: html(scores, disagreements), MARKDOWN: markdown_page.markdown(scores)}
    for name, text in found.items():
        atomic_files.write_text(folder / name, text)
    return [folder / name for name in found]


def html(scores: Scores, disagreements: Sequence[Mapping[str, Any]]) -> str:
    """Returns the page. `disagreements` are rows in which two systems differ, with both answers."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    css, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    here = FileSystemLoader(PAGE)
    pages = Environment(loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= _filters()
    shown = _shown(scores, disagreements)
    page = pages.get_template("report.html.jinja").render(
        **shown,
        scores=scores,
        sections=[(id_, title) for id_, title, there in _sections(shown) if there],
        css=css,
        script=script,
        policy=policy(css, script),
        told=block({"parts": shown["parts"], "cost": (shown["cost"]["picture"] or {}).get("for_script")}),
    )
    # A model may answer with half a character, which is no text, or with NUL, which is none in HTML.
    return page.encode("utf-8", errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def policy(css: str, script: str) -> str:
    """Returns the Content-Security-Policy under which these two run, and nothing else does or loads."""
    style, run = (b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, script))
    allowed = {"style-src": f"'sha256-{style}'", "script-src": f"'sha256-{run}'"}
    rules = {"default-src": "'none'", **allowed, "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{what} {which}" for what, which in rules.items())


def block(value: Any) -> str:
    """Returns JSON that can stand in a script element: no text in it ends the element, or a line of a script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def breakable(name: str) -> Markup:
    """Returns a name that may be broken where its words end."""
    return escape(visible(name)).replace("_", Markup("_<wbr>"))


def visible(text: str) -> str:
    """Returns a text with pictures in the place of characters that show nothing."""
    return text.translate(PICTURES)


def _filters() -> dict[str, Any]:
    plain = (
        wording.many,
        wording.percent,
        wording.between,
        wording.signed,
        wording.signed_between,
        wording.usd,
        wording.compact,
        wording.whole_percent,
        wording.points,
        wording.seconds,
        wording.p_value,
        wording.shown,
        wording.answered,
        wording.ends,
        breakable,
        visible,
    )
    return {
        **{one.__name__: one for one in plain},
        "number": "{:,}".format,
        "metric": wording.metric_name,
        "sentence": lambda text: text[:1].upper() + text[1:],
        "price": lambda value: "–" if value is None else wording.usd(value),
    }


def _shown(scores: Scores, disagreements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what each section shows."""
    return {
        "KIND": wording.KIND,
        "JUDGED": wording.JUDGED,
        "STAGES": wording.STAGES,
        "named": wording.titles(scores),
        "linear": wording.linear_as_good(scores),
        "served_as_trained": wording.served_as_trained(scores),
        "reasons": wording.reasons(scores),
        "questions": wording.questions(scores),
        "counted": wording.counted(scores),
        "primary": wording.primary(scores),
        "incomplete": wording.incomplete(scores),
        "quality": section_data.quality(scores),
        "differences": section_data.differences(scores),
        "agreement": section_data.agreement(scores),
        "cost": cost_section.cost(scores),
        "routing": routing_section.routing(scores),
        "validity": section_data.validity(scores),
        "parts": section_data.parts(scores),
        "confusion": section_data.confusion(scores),
        "calibration": section_data.calibration(scores),
        "slices": section_data.slices(scores),
        "latency": section_data.latency(scores),
        "disagreements": section_data.disagreements(scores, disagreements),
    }


def _sections(shown: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Returns (id, name, whether it is there) of the page's sections in their order."""
    word = "Fields" if shown["parts"] and shown["parts"]["word"] == "field" else "Labels"
    return [
        ("reasons", "Reasons", True),
        ("quality", "Quality", True),
        ("differences", "Differences", bool(shown["differences"])),
        ("cost", "Cost", True),
        ("routing", "Routing", shown["routing"] is not None),
        ("validity", "Validity", bool(shown["validity"]["rows"])),
        ("parts", word, shown["parts"] is not None),
        ("confusion", "Confusion", bool(shown["confusion"])),
        ("calibration", "Calibration", bool(shown["calibration"])),
        ("slices", "Slices", bool(shown["slices"])),
        ("latency", "Latency", shown["latency"] is not None),
        ("disagreements", "Disagreements", shown["disagreements"] is not None),
        ("systems", "Systems", True),
        ("integrity", "Integrity", True),
    ]
