"""One line of a file that is imported, to what was asked and what was answered.

in   {"messages": [{"role": "system", "content": "Route it."}, {"role": "user", "content": "it is late"},
      {"role": "assistant", "content": "delivery_delay"}]}                       OpenAI's and Azure's fine-tuning format
     {"input": {"messages": [...]}, "preferred_output": [{...}], "non_preferred_output": [{...}]}              their DPO
out  Example("Route it.", "it is late", "delivery_delay")

Sources: OpenAI API, FineTuneChatRequestInput and FineTunePreferenceRequestInput; Azure, "Customize a model with
fine-tuning" and "Direct preference optimization". A line of a log may hold several calls (spans.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.importer import api_logs, otel_spans
from insource.config.errors import RecipeError
from insource.tasks.chat_messages import parse_messages, read_answer, split_prompt
from insource.tasks.source_record import UnusableRowError
from insource.tasks.text_keys import clean

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """What was asked and answered: system message and text as they stand there, answers clean."""

    system: str
    text: str
    answer: str
    rejected: str | None = None
    """The answer that is not preferred, of a preference."""
    turns: int = 1
    """Messages in the text that are no system message."""
    model: str | None = None
    """Who answered, where a log says so."""
    plain: bool = True
    """Whether data preparation would read the same from the line as it is."""
    expanded: bool = False
    """Whether its conversation gives other examples too."""
    one_system: bool = True
    """Whether the system message stands in the first message alone, as a text."""


ExampleReader = Callable[[Values], Iterator[Example | UnusableRowError]]


def read_chat(values: Values) -> Iterator[Example | UnusableRowError]:
    """Yields what a line of the chat format teaches: one example for each answer of the assistant that is learnt.

    OpenAI trains on every answer whose `weight` is not 0, so a conversation of three answers is three examples.
    """
    raw_messages = values.get("messages")
    try:
        messages = parse_messages(raw_messages, "messages")
    except UnusableRowError as error:
        yield error
        return
    weights = (
        [message.get("weight", 1) for message in raw_messages]
        if isinstance(raw_messages, list)
        else [1] * len(messages)
    )
    if messages[-1]["role"] != "assistant":
        problem = "the conversation does not end in an answer of the assistant"
        yield UnusableRowError("no_answer", f"{problem} (reinforcement fine-tuning has no answers to learn)")
        return
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    learnt = [index for index in answers if weights[index] not in (0, "0")]
    if not learnt:
        yield UnusableRowError("weight_0", "every answer has weight 0: nothing is learnt from this row")
    flags = {
        "plain": learnt == [len(messages) - 1],
        "expanded": len(learnt) > 1,
        "one_system": _has_one_system(raw_messages),
    }
    for index in learnt:
        yield _make_example(messages[: index + 1], **flags)


def read_preference(values: Values) -> Iterator[Example | UnusableRowError]:
    """Yields the pair of a line of the DPO format."""
    try:
        raw_input = values.get("input")
        prompt = parse_messages(
            raw_input.get("messages") if isinstance(raw_input, dict) else raw_input, "input.messages"
        )
        sides = [parse_messages(values.get(name), name) for name in ("preferred_output", "non_preferred_output")]
        if any(len(side) > 1 for side in sides):
            raise UnusableRowError("bad_pair", "an output of several messages (calls of tools); one answer is needed")
        chosen, rejected = (clean(read_answer(side[0])) for side in sides)
        if not (chosen and rejected):
            raise UnusableRowError("no_answer", "one of the two answers is empty")
        if chosen == rejected:
            raise UnusableRowError("same_answers", "both answers are the same")
        system, text = split_prompt(prompt)
    except UnusableRowError as error:
        yield error
        return
    is_plain = isinstance(raw_input, dict)
    yield Example(system, text, chosen, rejected, turns=_count_turns(prompt), plain=is_plain)


def make_log_reader(calls: Callable[[Values], Iterator[api_logs.ApiCall | UnusableRowError]]) -> ExampleReader:
    """Returns what reads a log, by what reads the calls of one of its lines."""

    def read(values: Values) -> Iterator[Example | UnusableRowError]:
        try:
            for call in calls(values):
                yield call if isinstance(call, UnusableRowError) else _example_from_call(call)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            yield UnusableRowError("bad_log", f"not as an SDK writes it ({type(error).__name__}: {str(error)[:60]})")

    return read


def _example_from_call(call: api_logs.ApiCall) -> Example | UnusableRowError:
    try:
        return _make_example(parse_messages(call.messages, "messages"), plain=False, model=call.model)
    except UnusableRowError as error:
        return error


def detect_format(name: str, values: Values) -> tuple[str, ExampleReader]:
    """Returns the format of a file, by its first readable row, and what reads its rows.

    Raises RecipeError where it is none of those that are imported.
    """
    for keys, title, reader in FORMATS:
        if all(key in values for key in keys):
            return title, reader
    if "prompt" in values and "completion" in values:
        raise RecipeError(
            f"{name}: prompt and completion: no conversations. A recipe reads them as they are: copy "
            "recipes/summarizer.yaml and set data.columns: {text: prompt, target: completion}"
        )
    raise RecipeError(
        f"{name}: the first row has the keys {', '.join(map(str, list(values)[:8])) or '(none)'}; read are messages "
        "(OpenAI's and Azure's fine-tuning format), input with preferred_output and non_preferred_output (DPO), "
        "request with response (a log of API calls), and OpenTelemetry spans (attributes, or resourceSpans)"
    )


def _has_one_system(messages: Any) -> bool:
    systems = (
        [message for message in messages if message.get("role") in ("system", "developer")]
        if isinstance(messages, list)
        else []
    )
    return len(systems) == 1 and systems == messages[:1] and isinstance(systems[0].get("content"), str)


def _make_example(messages: Sequence[Mapping[str, str]], **fields: Any) -> Example | UnusableRowError:
    try:
        answer = clean(read_answer(messages[-1]))
        system, text = split_prompt(messages[:-1])
        if not answer:
            raise UnusableRowError("no_answer", "the answer is empty")
        if not text.strip():
            raise UnusableRowError("no_text", "the text is empty")
    except UnusableRowError as error:
        return error
    return Example(system, text, answer, turns=_count_turns(messages[:-1]), **fields)


def _count_turns(messages: Sequence[Mapping[str, str]]) -> int:
    return sum(message["role"] not in ("system", "developer") for message in messages)


# The keys that tell a format, what it is called, and what reads it; the first that fits counts.
FORMATS: Sequence[tuple[tuple[str, ...], str, ExampleReader]] = (
    (("input", "preferred_output", "non_preferred_output"), "OpenAI's preference format (DPO)", read_preference),
    (("messages",), "OpenAI's chat fine-tuning format", read_chat),
    (("request", "response"), "a log of API calls", make_log_reader(api_logs.read_calls)),
    (("resourceSpans",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("resourceLogs",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("resourceMetrics",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("attributes",), "OpenTelemetry spans", make_log_reader(otel_spans.read_calls)),
)
