"""A classification head beside the label tokens: the same base, rows and LoRA settings, another output.

python -m train.head classifier          trains the head of a trained run: `make head`, and `make compare` if missing
python -m train.head.worker <run> ...    the process that trains
python -m train.head.predict <run> ...   the process that answers rows for a comparison
"""
