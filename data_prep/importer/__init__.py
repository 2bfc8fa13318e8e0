"""Write a recipe from the files of a fine-tune or from an API log: `python -m data_prep.importer train.jsonl`.

train.jsonl   {"messages": [{"role": "system", "content": "Route it."}, {"role": "user", "content": "it is late"},
               {"role": "assistant", "content": "delivery_delay"}]}                                 one line per row
tickets.yaml  a recipe with comments: its task, instruction, labels or schema, split and baseline
"""
