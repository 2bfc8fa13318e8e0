#!/usr/bin/env bash
# transformers 5.19.0: if two threads are the first of a process to import from transformers, one of them may get an
# ImportError for a name that is there.
#
# Imports in Python are safe between threads: the second one waits until the module is complete. `transformers` replaces
# itself by a lazy module while it is imported, so a thread that came second can look the name up in the module that was
# replaced. A server that loads tokenizers or models on first use, in a pool of threads, answers its first requests with
# errors, and never again. Import a name from transformers once before threads start, or hold a lock.
#
# Seen in 40 new processes with two threads each, on two cores: 9 had "ImportError: cannot import name 'PreTrainedTokenizerFast'
# from 'transformers'"; with the same import before the threads none.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet transformers==5.19.0
cat > "$here/import.py" <<'PYTHON'
import sys
import threading

if sys.argv[1] == "before":
    from transformers import PreTrainedTokenizerFast
start, errors = threading.Barrier(2), []


def first_use():
    start.wait()
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        errors.append(str(error).partition(" (")[0])


threads = [threading.Thread(target=first_use) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*errors)
PYTHON
count() { # count ARGUMENT: processes of 40 with an ImportError
  for _ in $(seq 40); do "$here/venv/bin/python" "$here/import.py" "$1" 2>/dev/null; done | grep -c "cannot import name" || true
}
threads=$(count threads)
before=$(count before)
echo "of 40 processes, with an ImportError: $threads; with an import before the threads: $before"
[ "$threads" -gt 0 ] && [ "$before" -eq 0 ]
