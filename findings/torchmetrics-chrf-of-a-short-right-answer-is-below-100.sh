#!/usr/bin/env bash
# torchmetrics 1.9.0: chrF of an answer that equals its reference is 0.33 for two characters; sacrebleu 2.6.0 gives 100.
#
# torchmetrics' CHRFScore follows sacrebleu by its own words, and agrees with it to six digits on usual sentences. A
# good guess is that it does on short answers too, and that an answer equal to its reference has the highest score. But it
# divides by six orders of character n-grams (and the word orders) whether or not the text has any: "ok" has n-grams of
# two orders, so 2 / 6. sacrebleu averages over the orders that occur. Corpus scores hide it: there the n-grams of all rows are
# added up first. Scores of single rows, which paired tests and resampling take, are too low for every answer below six
# characters: labels, numbers, "yes".
#
# Seen (answer equal to its reference; sacrebleu, torchmetrics, without words and with two orders of words):
#   ok: chrF 100.0 and 33.3, chrF++ 100.0 and 37.5
#   yes: chrF 100.0 and 50.0, chrF++ 100.0 and 50.0
#   Refund it.: chrF 100.0 and 100.0, chrF++ 100.0 and 100.0
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet torchmetrics==1.9.0 sacrebleu==2.6.0 torch==2.13.0 numpy==2.3.5
cat > "$here/score.py" <<'PYTHON'
import sacrebleu
from torchmetrics.text import CHRFScore

for answer in ("ok", "yes", "Refund it."):
    values = []
    for word_order in (0, 2):
        values.append(sacrebleu.corpus_chrf([answer], [[answer]], word_order=word_order).score)
        values.append(100 * CHRFScore(n_word_order=word_order)([answer], [[answer]]).item())
    print("{}: chrF {:.1f} and {:.1f}, chrF++ {:.1f} and {:.1f}".format(answer, *values))
PYTHON
seen=$("$here/venv/bin/python" "$here/score.py")
echo "$seen"
[ "$seen" = "ok: chrF 100.0 and 33.3, chrF++ 100.0 and 37.5
yes: chrF 100.0 and 50.0, chrF++ 100.0 and 50.0
Refund it.: chrF 100.0 and 100.0, chrF++ 100.0 and 100.0" ]
