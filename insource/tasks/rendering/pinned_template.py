"""Chat templates with pinned variables: the template's switch for thinking, today's date, and other options.

    {% set enable_thinking = false %}
    {% set date_string = {}.unset_date_string %}
    {% macro strftime_now(format) %}{{ {"%d %b %Y": "01 Jan 2026"}[format] }}{% endmacro %}
    <the published template>

Client requests may set template variables (`chat_template_kwargs`, `reasoning_effort`), and the date changes. Pinned
values are part of the template that is hashed, saved beside the adapter and given to the server, so neither can change
a prompt. Options such as `date_string` of Llama 3 stay undefined, as in training. Messages and tools are not pinned.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes

from insource.config.errors import RecipeError
from insource.config.schema.train import Template

# Template variables that enable thinking.
THINKING_SWITCHES = ("enable_thinking", "thinking")
# Options with several values, and their value without thinking.
THINKING_OPTIONS = {"reasoning_effort": "none", "thinking_mode": "disabled"}
CLOCK_FUNCTION = "strftime_now"
UNSET = "not set"
# Variables that each rendering has, beside the special tokens (`bos_token`), and names with a meaning in Jinja.
RENDERING_VARIABLES = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
SPECIAL_SUFFIX = "_token"
JINJA_NAMES = {"caller", "kwargs", "loop", "self", "super", "varargs"}
# Default date of a template that prints today's date. It is constant, so that training is repeatable.
DEFAULT_DATE = date(2026, 1, 1)


@dataclass(frozen=True)
class PinnedTemplate:
    """A template and its pinned values."""

    template: str
    values: Mapping[str, bool | str] = field(default_factory=dict)
    """Such as {"enable_thinking": False, "date": "2026-01-01"}; empty for a template without such variables."""

    @property
    def disables_thinking(self) -> bool:
        """Return whether a switch or an option for thinking is pinned to off."""
        return any(value is False or THINKING_OPTIONS.get(name) == value for name, value in self.values.items())


def pin_template(template: str, settings: Template, name: str) -> Iterator[PinnedTemplate]:
    """Yield the template pinned by the recipe's settings; for `auto` with thinking off, then with the switch undefined.

    A template without a switch, but with one of THINKING_OPTIONS, comes with that undefined, then without thinking.
    `name` is the base, for errors. Raises RecipeError if the template is invalid, or its date cannot be pinned.
    """
    environment, tree = _parse_template(template, name)
    names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
    clock, date_values = "", {}
    if CLOCK_FUNCTION in names:
        day = DEFAULT_DATE if settings.date == "auto" else date.fromisoformat(settings.date)
        clock, date_values = _clock_macro(tree, day, name), {"date": day.isoformat()}
    switches = [switch for switch in THINKING_SWITCHES if switch in names]
    options = _find_options(environment, tree) - {*switches, CLOCK_FUNCTION}

    def set_constants(values: Mapping[str, str]) -> str:
        return "".join(_set_statement(option, values.get(option, UNSET)) for option in sorted(options)) + clock

    choices = (False, UNSET) if settings.enable_thinking == "auto" else (settings.enable_thinking,)
    for choice in choices if switches else ():
        prologue = "".join(_set_statement(switch, choice) for switch in switches) + set_constants({})
        yield PinnedTemplate(prologue + template, {**dict.fromkeys(switches, choice), **date_values})
    if switches:
        return
    yield PinnedTemplate(set_constants({}) + template, date_values)
    off_values = {option: value for option, value in THINKING_OPTIONS.items() if option in options}
    if off_values and settings.enable_thinking is not True:
        yield PinnedTemplate(set_constants(off_values) + template, {**off_values, **date_values})


def _set_statement(variable: str, value: bool | str) -> str:
    # A missing attribute of an empty mapping is undefined, and no client can set it. Errors of Jinja name it.
    literal = f"{{}}.unset_{variable}" if value == UNSET else json.dumps(value)
    return f"{{% set {variable} = {literal} %}}\n"


def _find_options(environment: Environment, tree: nodes.Template) -> set[str]:
    """Return the variables that a template reads and nothing defines: a client could set them.

    Among them are variables that the template itself sets in some of its branches only.
    """
    given = {*RENDERING_VARIABLES, *JINJA_NAMES, *environment.globals}
    undeclared = meta.find_undeclared_variables(tree) - given
    return {variable for variable in undeclared if not variable.endswith(SPECIAL_SUFFIX)}


def _parse_template(template: str, name: str) -> tuple[Environment, nodes.Template]:
    # transformers and vLLM render in this environment, with its extensions and its trimming of line breaks.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment: Environment = _compile_jinja_template(template).environment
        tree = environment.parse(template)
    except TemplateError as error:
        raise RecipeError(f"model.base: the chat template of {name} cannot be read: {error}", code="INS-T007") from None
    return environment, tree


def _clock_macro(tree: nodes.Template, day: date, name: str) -> str:
    """Return a macro that prints a constant day in the formats that the template uses."""
    dates_by_format: dict[str, str] = {}
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != CLOCK_FUNCTION:
            continue
        arguments: list[Any] = [*call.args, *(keyword.value for keyword in call.kwargs)]
        if len(arguments) != 1 or not isinstance(arguments[0], nodes.Const):
            raise RecipeError(
                f"model.base: the chat template of {name} prints today's date in a format that it computes, which "
                "cannot be pinned; write a constant date into chat_template.jinja in a copy of the base",
                code="INS-T007",
            )
        dates_by_format[str(arguments[0].value)] = day.strftime(str(arguments[0].value))
    return f"{{% macro {CLOCK_FUNCTION}(format) %}}{{{{ {json.dumps(dates_by_format)}[format] }}}}{{% endmacro %}}\n"
