"""Environment variables that the SDKs read and that must have no effect: the recipe defines host, account and headers.

OPENAI_BASE_URL, ANTHROPIC_BASE_URL               another host would answer in the provider's name
OPENAI_CUSTOM_HEADERS, ANTHROPIC_CUSTOM_HEADERS   any header, including Authorization and the API version, to any host
OPENAI_ORG_ID, OPENAI_PROJECT_ID                  the account: sent only to the provider's own address
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from insource.config.providers import PROVIDERS

IGNORED_VARIABLES = tuple(name for provider in PROVIDERS.values() for name in provider.ignored_variables)
ACCOUNT_VARIABLES = tuple(name for provider in PROVIDERS.values() for name in provider.account_variables)


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
