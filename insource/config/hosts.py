"""Which addresses are this very machine, and which requests are those of web pages."""

import ipaddress
from urllib.parse import urlsplit


def parse_host(url: str | None) -> str | None:
    """Returns the host of a URL, None where there is none."""
    return urlsplit(url).hostname if url else None


def is_loopback(host: str | None) -> bool:
    """Returns whether a host is this machine, whatever network it is in."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def parse_netloc(url: str) -> str | None:
    """Returns host and port of a URL, None where there are none."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None


def cross_origin_problem(host: str, origin: str | None, needs_key: bool) -> str | None:
    """Returns why a request with these headers looks like one that a web page of another origin had a browser send,
    None where not.

    A page may send one to any address that its visitor reaches; and by a name that it lets point here (DNS rebinding)
    it may read the answer, where no key is needed.
    """
    if origin is not None and parse_netloc(origin) != host.lower():
        return f"requests of web pages from {origin!r} are not taken"
    if not needs_key and not is_loopback(_parse_netloc_host(host)):
        return f"without a key, requests go to a name of this machine, and not to {host!r}"
    return None


def _parse_netloc_host(netloc: str) -> str | None:
    try:
        return parse_host(f"//{netloc}")
    except ValueError:
        return None
