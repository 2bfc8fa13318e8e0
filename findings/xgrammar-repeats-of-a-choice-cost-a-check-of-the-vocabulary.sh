#!/usr/bin/env bash
# xgrammar 0.2.8 (EBNF): a bounded repetition of a choice makes each step check most of the vocabulary.
#
# A JSON string of at most 100 characters can be written in three ways: a repeated choice, `([^"\\] | "\\" ["\\n]){1,100}`;
# a repeated class without escapes, `[^"\\]{1,100}`; or a rule that is only `Regex("...")`. All of them compile, and those
# with escapes accept the same texts. For the second and third, the allowed tokens of each state are computed when the
# grammar is compiled. For the first, nearly every token that is longer than a character is checked again at each step of
# the text. With 30,000 random words a step takes thousands of times as long. With the vocabulary of SmolLM2 (49,152
# tokens) and limits of 16 to 200 it took 221 ms on average and up to 758 ms. vLLM 0.32 computes the same mask for each
# request at each step, so a grammar with long texts is slow for a reason that no profile of the model shows.
#
# `Regex(...)` has to be alone in its rule; its repetition counts end at 128 (a higher one fails at compilation in a rule
# that another rule names).
#
# Seen: "choice: 19.991 ms a step", "class: 0.001 ms a step", "regex: 0.001 ms a step" (one core of an AMD EPYC, other load).
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet xgrammar==0.2.8 torch==2.13.0 transformers==5.19.0 numpy==2.3.5
cat > "$here/steps.py" <<'PYTHON'
import random
import statistics
import time

import xgrammar

rng = random.Random(0)
letters = "etaoinshrdlucmfwypvbgkjqxz ,.-0123456789"
words = {"".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(30_000)}
vocabulary = [*map(chr, range(32, 127)), *sorted(words), "<stop>"]
info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, stop_token_ids=[len(vocabulary) - 1])
grammars = {
    "choice": r'root ::= "\"" ([^"\\] | "\\" ["\\n]){1,100} "\""',
    "class": r'root ::= "\"" [^"\\]{1,100} "\""',
    "regex": 'root ::= "\\"" text "\\""\ntext ::= Regex("([^\\"\\\\\\\\]|\\\\\\\\[\\"\\\\\\\\n]){1,100}")',
}
text = '"the letters of a word, and of 40 more words'
milliseconds = {}
for name, grammar in grammars.items():
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(grammar))
    mask, times = xgrammar.allocate_token_bitmask(1, len(vocabulary)), []
    for character in text:
        assert matcher.accept_token(vocabulary.index(character))
        started_at = time.perf_counter()
        matcher.fill_next_token_bitmask(mask)
        times.append(time.perf_counter() - started_at)
    milliseconds[name] = 1e3 * statistics.median(times)
    print(f"{name}: {milliseconds[name]:.3f} ms a step")
assert milliseconds["choice"] > 50 * max(milliseconds["class"], milliseconds["regex"])
PYTHON
"$here/venv/bin/python" "$here/steps.py"
