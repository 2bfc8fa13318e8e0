"""From the files of a fine-tune, or the log of an API, to a recipe: `python -m data_prep.importer train.jsonl`.

train.jsonl   {"messages": [{"role": "system", "content": "Route it."}, {"role": "user", "content": "it is late"},
               {"role": "assistant", "content": "delivery_delay"}]}                                 a line a row
tickets.yaml  a recipe: what task it is, its instruction, labels or schema, split and baseline, with comments
"""
