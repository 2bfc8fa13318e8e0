"""What the SDKs read from the environment and must not: the recipe says who is asked, and how.

OPENAI_BASE_URL, ANTHROPIC_BASE_URL               another host would answer in the provider's name
OPENAI_CUSTOM_HEADERS, ANTHROPIC_CUSTOM_HEADERS   any header, Authorization and the API version among them, to any host
OPENAI_ORG_ID, OPENAI_PROJECT_ID                  the account: sent to the provider's own address, and to no other
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# As openai 3.54 (lib/_client_auth.py) and anthropic 2.12 (_client.py, lib/bedrock, lib/vertex, lib/_env.py) read them.
IGNORED_VARIABLES = (
    "OPENAI_BASE_URL",
    "OPENAI_CUSTOM_HEADERS",
    "OPENAI_ADMIN_KEY",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_BEDROCK_BASE_URL",
    "ANTHROPIC_VERTEX_BASE_URL",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_AUTH_TOKEN",
)
ACCOUNT_VARIABLES = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


@contextmanager
def hide_variables(default_address: bool) -> Iterator[None]:
    """Takes these variables away while a client is made, which is when the SDKs read them. `default_address`: whether
    it asks the provider's own address."""
    names = IGNORED_VARIABLES if default_address else (*IGNORED_VARIABLES, *ACCOUNT_VARIABLES)
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)
