"""Environment variables that the SDKs read and that must have no effect: the recipe defines host, account and headers.

OPENAI_BASE_URL, ANTHROPIC_BASE_URL               another host would answer in the provider's name
OPENAI_CUSTOM_HEADERS, ANTHROPIC_CUSTOM_HEADERS   any header, including Authorization and the API version, to any host
OPENAI_ORG_ID, OPENAI_PROJECT_ID                  the account: sent only to the provider's own address
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Read by openai 3.54 (lib/_client_auth.py) and anthropic 2.12 (_client.py, lib/bedrock, lib/vertex, lib/_env.py).
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
    """Remove the variables from the environment while a client is created, which is when the SDKs read them.

    `default_address`: whether the client uses the provider's own address.
    """
    names = IGNORED_VARIABLES if default_address else (*IGNORED_VARIABLES, *ACCOUNT_VARIABLES)
    saved = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)
