"""Checks of an output grammar byte by byte: the texts that it accepts, and texts sampled from it."""

import json
import random
from functools import cache
from typing import Any

import jsonschema
import xgrammar

from insource.tasks import extraction
from insource.tasks.parsed_answer import ParsedAnswer


@cache
def compile_grammar(grammar: str) -> Any:
    """Return the grammar compiled for a vocabulary of 256 bytes and a stop token."""
    vocabulary = [bytes([byte]) for byte in range(256)] + ["<stop>"]
    tokenizer_info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[256])
    return xgrammar.GrammarCompiler(tokenizer_info, max_threads=1).compile_grammar(grammar)


def matches(grammar: str, text: str) -> bool:
    """Return whether the grammar accepts a complete text."""
    matcher = xgrammar.GrammarMatcher(compile_grammar(grammar))
    return all(matcher.accept_token(byte) for byte in text.encode()) and bool(matcher.accept_token(256))


def sample_text(grammar: str, rng: random.Random) -> str:
    """Return a random text of the grammar: each byte is drawn from those that it allows."""
    matcher = xgrammar.GrammarMatcher(compile_grammar(grammar))
    bitmask, output = xgrammar.allocate_token_bitmask(1, 257), bytearray()
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(bitmask)
        bits = bitmask[0].tolist()
        byte = rng.choice([candidate for candidate in range(257) if bits[candidate // 32] >> candidate % 32 & 1])
        assert matcher.accept_token(byte)
        output += bytes([byte]) if byte < 256 else b""
    return output.decode()


def check_spelling(spec: extraction.Spec, record: Any) -> None:
    """Assert that the answer of a record matches the grammar and the schema, and parses to the canonical record."""
    canonical = extraction.canonical_record(spec, record)
    answer = extraction.answer_text(spec, canonical)
    assert matches(extraction.grammar(spec), answer)
    assert extraction.parse(spec, answer) == ParsedAnswer(canonical)
    assert extraction.canonical_record(spec, canonical) == canonical
    jsonschema.validate(json.loads(answer), extraction.output_schema(spec))
