#!/usr/bin/env bash
# pyarrow 26.0.1: a filter finds NaN in a Parquet file only if the other values of the row group are not all equal.
#
# `pq.read_table(path, filters=...)` is expected to give the rows that `table.filter` gives. Row groups that cannot match are
# skipped by their smallest and largest value, which leave NaN out; for a group with two different values the reader allows
# for that (apache/arrow issue 28074, closed). For a group whose numbers are all equal it does not: [1, NaN, 1] is taken
# for a group of ones. is_nan(score) then finds nothing, score != 1 drops the row, in pandas.read_parquet, too. A column of
# scores or rewards is such a column: mostly ones, NaN where an evaluation failed. The search for failed rows says that
# there are none, and with another row_group_size it finds them. Filter the table after it was read, or write the column
# without statistics.
#
# Seen: "[1, NaN, 1]: is_nan [], != 1 []; of the table [1], [1]", "[1, NaN, 2]: is_nan [1], != 1 [1, 2]; of the table [1],
# [1, 2]", "[1, NaN, 1] without statistics: is_nan [1], != 1 [1]; of the table [1], [1]" (numbers of rows).
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet pyarrow==26.0.1
cat > "$here/filter.py" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

nan, score, path = float("nan"), pc.field("score"), f"{sys.argv[1]}/scores.parquet"
filters = (pc.is_nan(score), score != 1.0)
for name, scores, options in (
    ("[1, NaN, 1]", [1.0, nan, 1.0], {}),
    ("[1, NaN, 2]", [1.0, nan, 2.0], {}),
    ("[1, NaN, 1] without statistics", [1.0, nan, 1.0], {"write_statistics": False}),
):
    table = pa.table({"row": [0, 1, 2], "score": scores})
    pq.write_table(table, path, **options)
    of_file = [pq.read_table(path, filters=condition)["row"].to_pylist() for condition in filters]
    of_table = [table.filter(condition)["row"].to_pylist() for condition in filters]
    print(f"{name}: is_nan {of_file[0]}, != 1 {of_file[1]}; of the table {of_table[0]}, {of_table[1]}")
PYTHON
"$here/venv/bin/python" "$here/filter.py" "$here" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
[1, NaN, 1]: is_nan [], != 1 []; of the table [1], [1]
[1, NaN, 2]: is_nan [1], != 1 [1, 2]; of the table [1], [1, 2]
[1, NaN, 1] without statistics: is_nan [1], != 1 [1]; of the table [1], [1]
SEEN
