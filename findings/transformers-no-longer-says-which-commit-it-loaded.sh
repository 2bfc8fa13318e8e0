#!/usr/bin/env bash
# transformers 5.19.0, huggingface-hub 2.4.0: a configuration that was loaded from a hub no longer has the commit that it
# came from. transformers 4.57.6 had it as config._commit_hash.
#
# Tools that record what they trained or served read this attribute, as model cards and adapters did for years, mostly by
# getattr(config, "_commit_hash", None) because a local folder has none. They now record nothing, without an error: a
# branch is resolved at each from_pretrained, and the result is not kept. Who wants the commit resolves it before
# (HfApi().resolve_revision) and passes it to every load.
#
# Seen, from a hub on loopback whose branch main is the commit 1111111111111111111111111111111111111111:
#   transformers 4.57.6: 1111111111111111111111111111111111111111
#   transformers 5.19.0: None
set -euo pipefail
here=$(mktemp -d)
trap 'kill "${hub:-}" 2>/dev/null || true; rm -rf "$here"' EXIT
for version in 4.57.6 5.19.0; do
  python3 -m venv "$here/$version"
  "$here/$version/bin/pip" install --quiet "transformers==$version"
done
"$here/5.19.0/bin/pip" install --quiet huggingface-hub==2.4.0
cat > "$here/hub.py" <<'PYTHON'
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

COMMIT, CONFIG = "1" * 40, json.dumps({"model_type": "llama"}).encode()


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        listing = json.dumps({"id": "acme/model", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}]}).encode()
        body = listing if self.path.startswith("/api/") else CONFIG if self.path.endswith("/config.json") else b""
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"1"' if body == CONFIG else '"2"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Hub)
print(server.server_port, file=open(sys.argv[1], "w"), flush=True)
server.serve_forever()
PYTHON
python3 "$here/hub.py" "$here/port" &
hub=$!
until [ -s "$here/port" ]; do sleep 0.1; done
for version in 4.57.6 5.19.0; do
  printf 'transformers %s: ' "$version"
  HF_ENDPOINT="http://127.0.0.1:$(cat "$here/port")" HF_HOME="$here/cache-$version" HF_HUB_DISABLE_TELEMETRY=1 \
    "$here/$version/bin/python" -c '
from transformers import AutoConfig
config = AutoConfig.from_pretrained("acme/model")
assert config.model_type == "llama"
print(getattr(config, "_commit_hash", None))' 2>"$here/errors" || { cat "$here/errors"; exit 1; }
done | tee "$here/seen"
diff - "$here/seen" <<'EXPECTED'
transformers 4.57.6: 1111111111111111111111111111111111111111
transformers 5.19.0: None
EXPECTED
