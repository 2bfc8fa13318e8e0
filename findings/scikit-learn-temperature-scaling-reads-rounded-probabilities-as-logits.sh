#!/usr/bin/env bash
# scikit-learn 1.9.1: temperature scaling takes probabilities for logits if one row of the batch does not sum to 1 within 1e-5,
# so the calibrated confidence of a row depends on the rows that are predicted with it.
#
# CalibratedClassifierCV(method="temperature") calibrates an estimator that has only `predict_proba` (label probabilities of a
# language model, say). A good guess is that it scales their logarithms. `_convert_to_logits` in sklearn/calibration.py guesses
# by the values instead: if all rows of the array sum to 1 they are probabilities, else logits. Probabilities of four decimals,
# as APIs and CSV files have them, or of float16 are then not logarithms but numbers from 0 to 1 for the whole batch, without
# a warning. The temperature is fitted to these. A later call with a single row that happens to sum to 1 takes the logarithm,
# with the temperature of the other scale. A threshold of confidence that was chosen on a batch fails for single requests.
# Divide each row by its sum in float64 first; then both ways agree.
#
# Seen (4 labels, logits twice as large as they should be; confidence of the first row's top label, which was 0.66):
#   6 decimals: temperature 1.95, alone 0.46, in the batch 0.46
#   4 decimals: temperature 0.40, alone 0.96, in the batch 0.57
#   4 decimals, divided by the sum: temperature 1.95, alone 0.45, in the batch 0.45
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet scikit-learn==1.9.1 numpy==2.3.5 scipy==1.17.1
cat > "$here/calibrate.py" <<'PYTHON'
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator


class Probabilities(ClassifierMixin, BaseEstimator):
    """A fitted model whose inputs are its probabilities."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return self.classes_[X.argmax(1)]

    def predict_proba(self, X):
        return X


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


rng = np.random.default_rng(0)
logits = 1.5 * rng.normal(size=(2000, 4))
labels = (softmax(logits).cumsum(1) > rng.random((2000, 1))).argmax(1)
overconfident = softmax(2 * logits)
rounded = overconfident.round(4)
for name, rows in {
    "6 decimals": overconfident.round(6),
    "4 decimals": rounded,
    "4 decimals, divided by the sum": rounded / rounded.sum(1, keepdims=True),
}.items():
    model = CalibratedClassifierCV(FrozenEstimator(Probabilities().fit(rows, labels)), method="temperature")
    model.fit(rows, labels)
    temperature = 1 / model.calibrated_classifiers_[0].calibrators[0].beta_
    alone, batch = model.predict_proba(rows[:1])[0].max(), model.predict_proba(rows)[0].max()
    print(f"{name}: temperature {temperature:.2f}, alone {alone:.2f}, in the batch {batch:.2f}")
PYTHON
seen=$("$here/venv/bin/python" "$here/calibrate.py")
echo "$seen"
[ "$seen" = "6 decimals: temperature 1.95, alone 0.46, in the batch 0.46
4 decimals: temperature 0.40, alone 0.96, in the batch 0.57
4 decimals, divided by the sum: temperature 1.95, alone 0.45, in the batch 0.45" ]
