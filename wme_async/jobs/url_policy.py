"""Which addresses may be fetched when strangers name the URL. Pure: it looks at addresses, never at the network.

A server that fetches what it is told can be made to fetch from behind its own firewall: the cloud's metadata service
with its credentials, a router's page, a database. So only addresses of the public internet pass, whichever way they are
written, unless a host is allowed by name.
"""

import ipaddress
import logging
from collections.abc import Callable, Iterable

from wme_async.errors import WMEError

__all__ = ["AddressRefused", "check_address", "check_host", "guard"]

logger: logging.Logger = logging.getLogger("wme_async.jobs")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Ranges that Python's `is_global` lets pass, or names less clearly.
_REFUSED: tuple[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str], ...] = tuple(
    (ipaddress.ip_network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "a cloud's metadata service"),
        ("169.254.170.2/32", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("168.63.129.16/32", "a cloud's metadata service"),
        ("192.0.0.192/32", "a cloud's metadata service"),
        ("fd00:ec2::254/128", "a cloud's metadata service"),
        ("fd20:ce::254/128", "a cloud's metadata service"),
        ("100.64.0.0/10", "shared address space of a carrier"),
        ("192.88.99.0/24", "a retired relay range"),
        ("fec0::/10", "site-local"),
        ("5f00::/16", "segment routing"),
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")
_ISATAP = 0x5EFE

_LOCAL_NAMES = ("localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp", "private")


class AddressRefused(WMEError):
    """A URL leads to an address that must not be fetched. Trying again does not help.

    Args:
        message: Which address and why.
        url: The URL's host.
    """


def check_address(address: str) -> str | None:
    """Say why an IP address must not be connected to.

    Args:
        address: IPv4 or IPv6, a zone allowed.

    Returns:
        The reason, or None where it is an address of the public internet.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "not an IP address"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return "link-local"
        inner = _embedded(parsed)
        reason = _reason(inner) if inner is not None else None
        if reason:
            return f"{inner} written as IPv6, {reason}"
        if inner is not None and (parsed.ipv4_mapped is not None or parsed in _NAT64):
            # Networks without IPv4 reach the public internet this way; the ranges themselves count as reserved.
            return None
    return _reason(parsed)


def _reason(address: _Address) -> str | None:
    for network, reason in _REFUSED:
        if address in network:
            return reason
    for holds, reason in (
        (address.is_unspecified, "unspecified"),
        (address.is_loopback, "loopback"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "multicast"),
        (address.is_private, "private"),
        (address.is_reserved, "reserved"),
        (not address.is_global, "not of the public internet"),
    ):
        if holds:
            return reason
    return None


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address carries to, in one of the seven ways there are."""
    number = int(address)
    low = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _NAT64_LOCAL or address in _TRANSLATED:
        return low
    if address in _COMPATIBLE and number > 1:
        return low
    if (number >> 32) & 0xFFFF == _ISATAP and (number >> 48) & 0xFDFF == 0:
        return low
    return None


def check_host(host: str, *, allow: Iterable[str] = ()) -> str | None:
    """Say why a host in a URL must not be asked, as far as its name tells. The address decides later.

    Args:
        host: A name in ASCII, or an address without brackets.
        allow: Names and addresses that may be fetched all the same.

    Returns:
        The reason, or None.
    """
    if _allowed(host, frozenset(allow)):
        return None
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        reason = check_address(host)
        return f"{host} is refused: {reason}" if reason else None
    last = host.rstrip(".").rpartition(".")[2].lower()
    if last in _LOCAL_NAMES:
        return f"{host} is refused: a local name"
    # `127.1`, `0x7f000001` and `2130706433` are addresses to the C library, and names to nobody.
    if last.isdigit() or last.startswith("0x"):
        return f"{host} is refused: an address in disguise"
    return None


def guard(allow: Iterable[str] = ()) -> Callable[[str, str], str | None]:
    """Make the guard of a `SessionPool`: it is asked about every address before it is connected to.

    Args:
        allow: Hosts, as written in URLs, whose addresses may be private.

    Returns:
        A function of host and address, which answers None or raises `AddressRefused`.
    """
    allowed = frozenset(name.lower().rstrip(".") for name in allow)

    def check(host: str, address: str) -> str | None:
        reason = None if _allowed(host, allowed) else check_address(address)
        if reason and host == address:
            raise AddressRefused(f"{host} is refused: {reason}", url=host)
        if reason:
            # Callers are not told what names of this network lead to; the log is for whoever runs it.
            logger.info("%s (%s) is refused: %s", host, address, reason)
            raise AddressRefused(f"{host} is refused: it leads to an address outside the public internet", url=host)
        return None

    return check


def _allowed(host: str, allow: frozenset[str]) -> bool:
    return host.lower().rstrip(".").strip("[]") in {name.lower().rstrip(".").strip("[]") for name in allow}
