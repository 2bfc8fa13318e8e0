"""Examples in a line of an imported file: system message, text and answer.

in   {"messages": [{"role": "system", "content": "Route it."}, {"role": "user", "content": "it is late"},
      {"role": "assistant", "content": "delivery_delay"}]}           fine-tuning format of OpenAI and Azure
     {"input": {"messages": [...]}, "preferred_output": [{...}], "non_preferred_output": [{...}]}  their DPO format
out  Example("Route it.", "it is late", "delivery_delay")

Sources: OpenAI API, FineTuneChatRequestInput and FineTunePreferenceRequestInput; Azure, "Customize a model with
fine-tuning" and "Direct preference optimization". A line of a log may contain several calls (`otel_spans.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.importer import api_logs, otel_spans
from insource.config.errors import RecipeError
from insource.tasks.chat_messages import parse_messages, read_answer, split_prompt
from insource.tasks.source_record import UnusableRowError, to_text
from insource.text.text_keys import clean

Values = Mapping[str, Any]
# Reasons why a file is converted.
EXPANSION_REASON = "each trained answer of a conversation becomes a row"
WEIGHT_REASON = "answers of weight 0 are not trained on"
LOG_REASON = "a log is no table of rows; personal data are replaced"
OUTPUTS = ("preferred_output", "non_preferred_output")


@dataclass(frozen=True)
class Example:
    """A request and its answer: system message and text as written, answers cleaned."""

    system: str
    text: str
    answer: str
    rejected: str | None = None
    """The answer that is not preferred, in preference data."""
    turns: int = 1
    """Messages in the text that are no system message."""
    model: str | None = None
    """The model that answered, if a log has it."""
    conversion_reason: str = ""
    """Why data preparation would not read the same example from the line; "" if it would."""
    expanded: bool = False
    """Whether the conversation has other examples too."""
    system_messages: int = 0
    has_plain_system: bool = True
    """Whether the first message is the only system message, and its content a text."""
    has_untrained_answer: bool = False
    """Whether the text contains an answer of weight 0."""

    @property
    def characters(self) -> int:
        """Return the characters of the text and its answers."""
        return len(self.text) + len(self.answer) + len(self.rejected or "")


ExampleReader = Callable[[Values], Iterator[Example | UnusableRowError]]


def read_chat(values: Values) -> Iterator[Example | UnusableRowError]:
    """Yield one example per assistant answer that is trained on, from a line of the chat format.

    OpenAI trains on every answer whose `weight` is not 0: a conversation with three answers has three examples.
    """
    raw_messages = values.get("messages")
    try:
        messages = parse_messages(raw_messages, "messages")
        weights = _read_weights(raw_messages, len(messages))
    except UnusableRowError as error:
        yield error
        return
    if messages[-1]["role"] != "assistant":
        problem = "the conversation does not end in an answer of the assistant"
        yield UnusableRowError("no_answer", f"{problem} (reinforcement fine-tuning has no answers to learn)")
        return
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    trained_indices = [index for index in answers if weights[index]]
    if not trained_indices:
        yield UnusableRowError("weight_0", "every answer has weight 0: the row trains nothing")
    conversion_reason = ""
    if len(trained_indices) > 1:
        conversion_reason = EXPANSION_REASON
    elif trained_indices != [len(messages) - 1]:
        conversion_reason = WEIGHT_REASON
    for index in trained_indices:
        yield _make_example(
            messages[: index + 1],
            conversion_reason=conversion_reason,
            expanded=len(trained_indices) > 1,
            has_plain_system=_has_plain_system(raw_messages),
            has_untrained_answer=any(answer < index and not weights[answer] for answer in answers),
        )


def _read_weights(messages: Any, count: int) -> list[int]:
    """Return the weight of each message, 0 or 1. Raise UnusableRowError for another weight."""
    if not isinstance(messages, list):
        return [1] * count
    weights = []
    for turn, message in enumerate(messages, start=1):
        weight = message.get("weight")
        if weight not in (None, 0, 1, "0", "1"):
            raise UnusableRowError("bad_weight", f"turn {turn}: weight is {to_text(weight)[:40]}, allowed: 0 or 1")
        weights.append(1 if weight is None else int(weight))
    return weights


def read_preference(values: Values) -> Iterator[Example | UnusableRowError]:
    """Yield the pair of a line of the DPO format."""
    try:
        raw_input = values.get("input")
        prompt = parse_messages(
            raw_input.get("messages") if isinstance(raw_input, dict) else raw_input, "input.messages"
        )
        sides = [parse_messages(values.get(name), name) for name in OUTPUTS]
        for name, side in zip(OUTPUTS, sides, strict=True):
            if len(side) > 1:
                raise UnusableRowError("bad_pair", f"{name} has {len(side)} messages, allowed: one answer")
            if side[0]["role"] != "assistant":
                raise UnusableRowError("bad_pair", f"{name} is a message of {side[0]['role']}, allowed: assistant")
        chosen, rejected = (clean(read_answer(side[0])) for side in sides)
        if not (chosen and rejected):
            raise UnusableRowError("no_answer", "one of the two answers is empty")
        if chosen == rejected:
            raise UnusableRowError("same_answers", "both answers are the same")
        system, text = split_prompt(prompt)
    except UnusableRowError as error:
        yield error
        return
    yield Example(
        system,
        text,
        chosen,
        rejected,
        turns=_count_turns(prompt),
        conversion_reason="" if isinstance(raw_input, dict) else "the input is a list of messages",
        system_messages=len(prompt) - _count_turns(prompt),
    )


def make_log_reader(calls: Callable[[Values], Iterator[api_logs.ApiCall | UnusableRowError]]) -> ExampleReader:
    """Return the reader of a log, given the function that reads the calls of a line."""

    def read(values: Values) -> Iterator[Example | UnusableRowError]:
        try:
            for call in calls(values):
                yield call if isinstance(call, UnusableRowError) else _example_from_call(call)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            yield UnusableRowError("bad_log", f"not as an SDK writes it ({type(error).__name__}: {str(error)[:60]})")

    return read


def _example_from_call(call: api_logs.ApiCall) -> Example | UnusableRowError:
    """Return the example of a call, or its problem."""
    try:
        return _make_example(parse_messages(call.messages, "messages"), conversion_reason=LOG_REASON, model=call.model)
    except UnusableRowError as error:
        return error


def detect_format(name: str, values: Values) -> tuple[str, ExampleReader]:
    """Return the format name and the reader of a file, by its first readable row.

    Raise RecipeError if the format is not supported.
    """
    for keys, title, reader in FORMATS:
        if all(key in values for key in keys):
            return title, reader
    if "prompt" in values and "completion" in values:
        raise RecipeError(
            f"{name}: the rows have prompt and completion, which need no import: copy "
            "recipes/summarizer.yaml and set data.columns: {text: prompt, target: completion}",
            code="INS-D035",
        )
    raise RecipeError(
        f"{name}: the first row has the keys {', '.join(map(str, list(values)[:8])) or '(none)'}; supported are "
        "messages (OpenAI's and Azure's fine-tuning format), input with preferred_output and non_preferred_output "
        "(DPO), request with response (a log of API calls), and OpenTelemetry spans (attributes, or resourceSpans)",
        code="INS-D035",
    )


def _has_plain_system(messages: Any) -> bool:
    """Return whether the first message is the only system message, and its content a text."""
    systems = (
        [message for message in messages if message.get("role") in ("system", "developer")]
        if isinstance(messages, list)
        else []
    )
    return len(systems) == 1 and systems == messages[:1] and isinstance(systems[0].get("content"), str)


def _make_example(
    messages: Sequence[Mapping[str, str]],
    *,
    conversion_reason: str,
    expanded: bool = False,
    has_plain_system: bool = True,
    has_untrained_answer: bool = False,
    model: str | None = None,
) -> Example | UnusableRowError:
    """Return the example of a conversation that ends in its answer, or its problem."""
    try:
        answer = clean(read_answer(messages[-1]))
        system, text = split_prompt(messages[:-1])
        if not answer:
            raise UnusableRowError("no_answer", "the answer is empty")
        if not text.strip():
            raise UnusableRowError("no_text", "the text is empty")
    except UnusableRowError as error:
        return error
    return Example(
        system,
        text,
        answer,
        turns=_count_turns(messages[:-1]),
        model=model,
        conversion_reason=conversion_reason,
        expanded=expanded,
        system_messages=len(messages) - 1 - _count_turns(messages[:-1]),
        has_plain_system=has_plain_system,
        has_untrained_answer=has_untrained_answer,
    )


def _count_turns(messages: Sequence[Mapping[str, str]]) -> int:
    """Return the number of messages that are no system message."""
    return sum(message["role"] not in ("system", "developer") for message in messages)


# (keys of a format, its name, its reader); the first format whose keys are all present is used.
FORMATS: Sequence[tuple[tuple[str, ...], str, ExampleReader]] = (
    (("input", "preferred_output", "non_preferred_output"), "OpenAI's preference format (DPO)", read_preference),
    (("messages",), "OpenAI's chat fine-tuning format", read_chat),
    (("request", "response"), "a log of API calls", make_log_reader(api_logs.read_calls)),
    (("resourceSpans",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("resourceLogs",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("resourceMetrics",), "OpenTelemetry spans (OTLP)", make_log_reader(otel_spans.read_calls)),
    (("attributes",), "OpenTelemetry spans", make_log_reader(otel_spans.read_calls)),
)
