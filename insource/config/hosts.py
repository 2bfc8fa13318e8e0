"""Loopback addresses, and requests sent by web pages of another origin."""

import ipaddress
from urllib.parse import urlsplit


def parse_host(url: str | None) -> str | None:
    """Return the host of a URL, None if it has none."""
    return urlsplit(url).hostname if url else None


def is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine, by a loopback address or localhost."""
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def parse_netloc(url: str) -> str | None:
    """Return host and port of a URL, None if it has none."""
    try:
        return urlsplit(url).netloc.lower() or None
    except ValueError:
        return None


def cross_origin_problem(host: str, origin: str | None, needs_key: bool) -> str | None:
    """Return the reason why a request with these headers looks like one from a web page of another origin, else None.

    A page can send requests to any address that its visitor reaches. With a name that resolves to this machine (DNS
    rebinding) it can also read the answer, unless a key is needed.
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
