#!/usr/bin/env bash
# anthropic 2.12.0: DefaultAsyncHttpxClient(trust_env=False) goes through the proxy of the environment all the same.
#
# Their HTTP library reads HTTP_PROXY where trust_env is true, and trust_env=False is its documented way to leave the
# environment alone. The SDK's own client class looks up the proxies itself and mounts them, so the argument changes nothing: a
# request to a server on this machine reaches the proxy, too. Empty mounts keep it out. openai 3.54.0 has a class of the
# same name and does as that library documents.
#
# Seen: "anthropic trust_env=False: proxy", "anthropic mounts=None: server", "openai trust_env=False: server".
set -euo pipefail
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/venv"
"$here/venv/bin/pip" install --quiet anthropic==2.12.0 openai==3.54.0
cat > "$here/ask.py" <<'PYTHON'
import asyncio
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import anthropic
import openai

seen = []


def listening(name):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            seen.append(name)
            self.send_response(400)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
    os.environ.pop(name, None)
server, os.environ["HTTP_PROXY"] = listening("server"), listening("proxy")
message = [{"role": "user", "content": "hello"}]


async def ask(module, client):
    try:
        if module is anthropic:
            asking = anthropic.AsyncAnthropic(api_key="k", base_url=server, max_retries=0, http_client=client)
            await asking.messages.create(model="m", max_tokens=1, messages=message)
        else:
            asking = openai.AsyncOpenAI(api_key="k", base_url=server, max_retries=0, http_client=client)
            await asking.chat.completions.create(model="m", messages=message)
    except (anthropic.APIStatusError, openai.APIStatusError):
        pass
    return seen.pop()


none = {"all://": None, "http://": None, "https://": None}
print("anthropic trust_env=False:", asyncio.run(ask(anthropic, anthropic.DefaultAsyncHttpxClient(trust_env=False))))
unmounted = anthropic.DefaultAsyncHttpxClient(trust_env=False, mounts=none)
print("anthropic mounts=None:", asyncio.run(ask(anthropic, unmounted)))
print("openai trust_env=False:", asyncio.run(ask(openai, openai.DefaultAsyncHttpxClient(trust_env=False))))
PYTHON
seen=$("$here/venv/bin/python" "$here/ask.py")
echo "$seen"
[ "$seen" = "anthropic trust_env=False: proxy
anthropic mounts=None: server
openai trust_env=False: server" ]
