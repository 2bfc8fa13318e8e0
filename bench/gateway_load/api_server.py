"""A stand-in for an API model in a process of its own: `python -m bench.gateway_load.api_server PORT SECONDS LABEL`.

It answers every chat with LABEL after SECONDS, by the rules of the real API (tests/helpers/provider/).
"""

import logging
import sys

from aiohttp import web

from tests.helpers.provider import provider_rules
from tests.helpers.provider.faulty_provider import AUTH_HEADERS, Provider, make_application


def main() -> None:
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # requests that the gateway gave up
    port, seconds, label = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    # The first check imports the SDK's types, which takes seconds.
    messages = [{"role": "user", "content": "warm up"}]
    body = {"model": "gpt-6-luna", "messages": messages, "max_completion_tokens": 5}
    assert provider_rules.find_refusal("chat", AUTH_HEADERS, body) is None
    provider = Provider(delay_seconds=seconds, answer=lambda text: label)
    web.run_app(make_application(provider), host="127.0.0.1", port=port, access_log=None, print=None)


if __name__ == "__main__":
    main()
