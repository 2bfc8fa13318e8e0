#!/usr/bin/env bash
# anthropic 2.12.0 waits as long as Retry-After says, whatever its timeout; openai 3.54.0 does not try again above two minutes.
#
# Both SDKs come from one generator, and both used to leave out a Retry-After of more than a minute (openai 1.50.0 and
# anthropic 0.40.0 do): they tried again after their own half second. A good guess is that they still do, or that `timeout`
# bounds a call. Now a 429 with Retry-After of two hours (a daily quota, say) makes `Anthropic(timeout=5)` sleep for two hours
# inside the call, without an exception and with no trace but a log line at INFO, and then send the request again;
# `max_retries=0` or an own deadline around the call keeps it from that. The same answer makes `OpenAI(timeout=5)` raise RateLimitError at once, after a single request, although
# max_retries is 2.
#
# Seen (a server on this machine answers the first request with 429 and retry-after: 121, later ones with 400):
#   anthropic: 2 requests, BadRequestError after 121 s
#   openai: 1 request, RateLimitError after 0 s
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet anthropic==2.12.0 openai==3.54.0
cat > "$here/ask.py" <<'PYTHON'
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import anthropic
import openai

for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
    os.environ.pop(name, None)
n_requests = 0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        global n_requests
        n_requests += 1
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(429 if n_requests == 1 else 400)
        if n_requests == 1:
            self.send_header("retry-after", "121")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
settings = {"api_key": "k", "base_url": f"http://127.0.0.1:{server.server_port}", "timeout": 5, "max_retries": 2}
message = [{"role": "user", "content": "hello"}]
calls = {
    "anthropic": lambda: anthropic.Anthropic(**settings).messages.create(model="m", max_tokens=1, messages=message),
    "openai": lambda: openai.OpenAI(**settings).chat.completions.create(model="m", messages=message),
}
for name, call in calls.items():
    n_requests, started = 0, time.monotonic()
    try:
        call()
    except (anthropic.APIStatusError, openai.APIStatusError) as error:
        seconds = time.monotonic() - started
        # A slow machine may need a second or two for the request itself.
        waited = 121 if 121 <= seconds < 131 else 0 if seconds < 10 else round(seconds)
        plural = "" if n_requests == 1 else "s"
        print(f"{name}: {n_requests} request{plural}, {type(error).__name__} after {waited} s")
PYTHON
seen=$("$here/venv/bin/python" "$here/ask.py")
echo "$seen"
[ "$seen" = "anthropic: 2 requests, BadRequestError after 121 s
openai: 1 request, RateLimitError after 0 s" ]
