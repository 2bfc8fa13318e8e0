#!/usr/bin/env bash
# xgrammar 0.2.8: a class in `Regex("...")` whose characters have different lengths in UTF-8 allows bytes that are not UTF-8.
#
# `[\u0020-\U0010FFFF]` in EBNF allows only the bytes of characters. In a regular expression of the same grammar it also
# allows the beginnings of overlong forms, such as E0 80 or F0 80. A model whose tokens are bytes can then write an answer
# that no decoder reads, although each token was allowed; a negated class, `[^"]`, does the same and allows surrogates. If
# each class has characters of one length, joined by `|`, the bytes are always UTF-8.
#
# Seen: "EBNF: 0 of 500, regex: 10 of 500, regex by length: 0 of 500" samples that are not UTF-8.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet xgrammar==0.2.8 torch==2.13.0 transformers==5.19.0 numpy==2.3.5
cat > "$here/samples.py" <<'PYTHON'
import random

import xgrammar

vocabulary = [bytes([byte]) for byte in range(256)] + ["<stop>"]
info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[256])
grammars = {
    "EBNF": r'root ::= [\u0020-\uD7FF\uE000-\U0010FFFF]{1,4} "\n"',
    "regex": 'root ::= text "\\n"\ntext ::= Regex("[\\u0020-\\uD7FF\\uE000-\\U0010FFFF]{1,4}")',
    "regex by length": 'root ::= text "\\n"\ntext ::= Regex("([\\u0020-\\u007F]|[\\u0080-\\u07FF]|[\\u0800-\\uD7FF]'
    '|[\\uE000-\\uFFFF]|[\\U00010000-\\U0010FFFF]){1,4}")',
}


def sample(compiled, rng):
    matcher, mask, output = xgrammar.GrammarMatcher(compiled), xgrammar.allocate_token_bitmask(1, 257), bytearray()
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(mask)
        bits = mask[0].tolist()
        byte = rng.choice([value for value in range(257) if bits[value // 32] >> value % 32 & 1])
        assert matcher.accept_token(byte)
        output += bytes([byte]) if byte < 256 else b""
    return bytes(output)


wrong = {}
for name, grammar in grammars.items():
    compiled = xgrammar.GrammarCompiler(info).compile_grammar(grammar)
    samples = [sample(compiled, random.Random(seed)) for seed in range(500)]
    wrong[name] = sum(text.decode(errors="replace").count("\ufffd") > 0 for text in samples)
print(", ".join(f"{name}: {count} of 500" for name, count in wrong.items()))
assert wrong["EBNF"] == wrong["regex by length"] == 0 < wrong["regex"]
PYTHON
"$here/venv/bin/python" "$here/samples.py"
