"""Which addresses are this very machine."""

import ipaddress
from urllib.parse import urlsplit


def host_of(url: str | None) -> str | None:
    """Returns the host of a URL, None where there is none."""
    return urlsplit(url).hostname if url else None


def is_loopback(host: str | None) -> bool:
    """Returns whether a host is this machine, whatever network it is in."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def netloc_of(url: str) -> str | None:
    """Returns host and port of a URL, None where there are none."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None
