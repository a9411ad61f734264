"""Where a server is reached: a host, which is a name or an address of IPv4 or IPv6, and a port."""

from __future__ import annotations

import ipaddress
import re

_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_ADDRESS = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+):([1-9][0-9]{0,4})")


def split_address(address: str) -> tuple[str, int]:
    """Host, without the brackets of an IPv6 address, and port.

    Raises:
        ValueError: it is no address.

    >>> split_address("[::1]:8443")
    ('::1', 8443)
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match[2]) > 65_535:
        raise ValueError("not HOST:PORT")
    host, bracketed = match[1].strip("[]"), match[1].startswith("[")
    if not is_host(host) or bracketed != (":" in host):
        raise ValueError("not a host")
    return host, int(match[2])


def join_address(host: str, port: int) -> str:
    """The reverse of `split_address`.

    >>> join_address("::1", 8443), join_address("isthmus.example", 8443)
    ('[::1]:8443', 'isthmus.example:8443')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_address(value: object) -> bool:
    """Whether a value is ``HOST:PORT``."""
    try:
        split_address(value if isinstance(value, str) else "")
    except ValueError:
        return False
    return True


def is_host(value: str) -> bool:
    """Whether a text is a host name, or an address of IPv4 or IPv6 without a zone."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        numbers = set(value) <= set("0123456789.")  # no host name: half an address
        return _HOST_NAME.fullmatch(value) is not None and not numbers
    return "%" not in value
