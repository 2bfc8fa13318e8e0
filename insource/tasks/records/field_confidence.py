"""Log-probability of the least certain field of a record.

tokens             {"   number  ": "  204   17    ",   "due":   null   }
log-probability     0     0      0   -0.1  -0.2   0      0     -1.2   0      -> -1.2, of "due"; "number" has -0.3

A token belongs to the first field whose value ends after the token's start. A decision between two values (the next
key, an omitted field) counts for the later field. Only the top-level fields of the record are distinguished, not those
of nested objects.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

WHITESPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder()


def lowest_field_log_probability(tokens: Sequence[str], log_probabilities: Sequence[float]) -> float | None:
    """Return the smallest sum of log-probabilities over the tokens of one field.

    None if the text is not a JSON object with a field. The texts of tokens may differ from the answer inside a string,
    where several tokens form one character.
    """
    value_ends = find_value_ends("".join(tokens))
    if not value_ends:
        return None
    sums = [0.0] * len(value_ends)
    starts = accumulate(map(len, tokens[:-1]), initial=0)
    for start, log_probability in zip(starts, log_probabilities, strict=True):
        sums[min(bisect_right(value_ends, start), len(value_ends) - 1)] += log_probability
    return min(sums)


def find_value_ends(text: str) -> list[int]:
    """Return the end position of each field's value in a JSON object; [] if the text is not a JSON object."""
    value_ends: list[int] = []
    index = _skip_whitespace(text, 0)
    try:
        if text[index] != "{":
            return []
        while text[index] != "}":
            _, index = DECODER.raw_decode(text, _skip_whitespace(text, index + 1))
            index = _skip_whitespace(text, index)
            if text[index] != ":":
                return []
            _, index = DECODER.raw_decode(text, _skip_whitespace(text, index + 1))
            value_ends.append(index)
            index = _skip_whitespace(text, index)
            if text[index] not in ",}":
                return []
    except (ValueError, IndexError, RecursionError):
        return []
    return value_ends


def _skip_whitespace(text: str, index: int) -> int:
    match = WHITESPACE.match(text, index)
    return match.end() if match else index
