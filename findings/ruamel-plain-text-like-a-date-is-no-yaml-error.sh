#!/usr/bin/env bash
# ruamel.yaml 0.19.1: a plain scalar that looks like a date that no calendar has ends in ValueError, not in YAMLError.
#
# YAML 1.2, which the library follows by default, has no timestamps in its core schema: `due: 2026-13-01` is a string
# there. ruamel.yaml resolves it as a timestamp and lets datetime's error through, so a program that catches YAMLError to
# tell users of mistakes in their files shows a traceback. PyYAML 6.0.3 does the same under YAML 1.1.
#
# Seen: "2026-12-01: date", "2026-13-01: ValueError, a YAMLError: False" for both.
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet ruamel.yaml==0.19.1 pyyaml==6.0.3
cat > "$here/load.py" <<'PYTHON'
import yaml
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

for load, base in ((YAML(typ="safe").load, YAMLError), (yaml.safe_load, yaml.YAMLError)):
    for text in ("2026-12-01", "2026-13-01"):
        try:
            print(f"{text}: {type(load('due: ' + text)['due']).__name__}")
        except Exception as error:
            print(f"{text}: {type(error).__name__}, a YAMLError: {isinstance(error, base)}")
PYTHON
seen=$("$here/venv/bin/python" "$here/load.py")
echo "$seen"
[ "$seen" = "2026-12-01: date
2026-13-01: ValueError, a YAMLError: False
2026-12-01: date
2026-13-01: ValueError, a YAMLError: False" ]
