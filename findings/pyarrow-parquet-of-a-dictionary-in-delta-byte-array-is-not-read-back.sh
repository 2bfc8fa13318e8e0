#!/usr/bin/env bash
# pyarrow 26.0.1: a Parquet file that it wrote itself, of valid input and valid options, it refuses to read.
#
# A column of texts that is dictionary-encoded in memory (as pandas' categories are) may be written with the encoding
# DELTA_BYTE_ARRAY, and nothing is said. But the Arrow schema that is stored in the file has the column come back as a
# dictionary, and a reader of that encoding into dictionaries is not built. Other columns of the file can be read. Who
# writes with store_schema=False gets a file whose texts are read as texts.
#
# Seen: "stored schema: OSError: Not yet implemented: DecodeArrow of DictAccumulator for DeltaByteArrayDecoder.",
# "without the schema: read ['a', 'b', 'a']", "other column: [1, 2, 3]".
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet pyarrow==26.0.1
cat > "$here/write.py" <<'PYTHON'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode(), "n": [1, 2, 3]})
options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "n": "PLAIN"}}
for name, more in (("stored schema", {}), ("without the schema", {"store_schema": False})):
    path = f"{sys.argv[1]}/{name}.parquet"
    pq.write_table(table, path, **options, **more)
    try:
        print(f"{name}: read {pq.read_table(path)['text'].to_pylist()}")
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
print("other column:", pq.read_table(f"{sys.argv[1]}/stored schema.parquet", columns=["n"])["n"].to_pylist())
PYTHON
"$here/venv/bin/python" "$here/write.py" "$here" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
stored schema: OSError: Not yet implemented: DecodeArrow of DictAccumulator for DeltaByteArrayDecoder.
without the schema: read ['a', 'b', 'a']
other column: [1, 2, 3]
SEEN
