"""The proxy of a request, by one rule for the client, the command line and jobs.

An explicit proxy wins. Otherwise, with `trust_env`, the usual variables are read. A variable with an unusable value is
an error that names it: a request never bypasses a proxy because it cannot be used.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from yarl import URL

from wme_async._arguments import check_type


class EnvironmentProxies:
    """The proxies that the environment names.

    `HTTP_PROXY` is for `http` URLs, `HTTPS_PROXY` for `https` URLs, `ALL_PROXY` for both where their own is not set. In
    lower case they win over upper case. A value is a URL of scheme `http` or `https`, or `host:port`, which is `http`.
    An empty one means no proxy. `HTTP_PROXY` in upper case is ignored under CGI (where `REQUEST_METHOD` is set): there
    anybody can set it by a header.

    `NO_PROXY` lists the hosts without a proxy, separated by commas: `*` is all hosts; `example.org` and `.example.org`
    are the host and all its subdomains; an address or a network such as `10.0.0.0/8` covers URLs with such an address
    (names are not resolved for it); each may end in `:port`. No other host is exempt, loopback included.

    Args:
        environ: The variables.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._values: dict[str, tuple[str, str]] = {}
        for scheme in ("http", "https"):
            names = [f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"]
            forged = "HTTP_PROXY" if "REQUEST_METHOD" in environ else None
            name = next((name for name in names if name in environ and name != forged), None)
            if name is not None and environ[name].strip():
                self._values[scheme] = (name, environ[name].strip())
        exempt = environ.get("no_proxy", environ.get("NO_PROXY", ""))
        self._exempt = [entry for part in exempt.split(",") if (entry := part.strip().lower())]

    def proxy_of(self, url: URL) -> URL | None:
        """Return the proxy for a URL; None for a direct connection.

        Raises:
            ValueError: The value of its variable is not a usable proxy.
        """
        name, value = self._values.get(url.scheme, ("", ""))
        host = (url.host or "").lower().rstrip(".")
        if not value or any(entry == "*" or _covers(entry, host, url.port) for entry in self._exempt):
            return None
        return _parsed(value if "://" in value else f"http://{value}", name)


def _covers(entry: str, host: str, port: int | None) -> bool:
    """Return whether an entry of `NO_PROXY` covers a host."""
    address = ip_address_of(host)
    if address is not None:
        network = _network(entry)
        if network is not None:
            return address in network
    if entry.startswith("["):
        name, _, entry_port = entry[1:].partition("]")
        entry_port = entry_port.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, entry_port = entry.partition(":")
    else:
        name, entry_port = entry, ""
    if entry_port and entry_port != str(port):
        return False
    if address is not None:
        return ip_address_of(name) == address
    name = name.removeprefix("*").strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def ip_address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an IP address; None for a name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def check_proxy(proxy: str) -> None:
    """Raise if a proxy cannot be used.

    Raises:
        TypeError: It is not text.
        ValueError: It is not a URL of scheme `http` or `https`.
    """
    check_type("proxy", proxy, str, "text such as http://host:3128", secret=True)
    _parsed(proxy, None)


def _parsed(value: str, variable: str | None) -> URL:
    # The value may contain a password, so messages repeat its scheme alone.
    try:
        parts = urlsplit(value)
        well_formed = bool(parts.hostname) and parts.port != 0
        if well_formed and parts.scheme in {"http", "https"}:
            return URL(value)
    except ValueError:
        well_formed = False
    usage = "a proxy is a URL such as http://host:3128 or http://user:password@host:3128"
    problem = f"proxies of scheme {parts.scheme} cannot be used; {usage}" if well_formed else usage
    if variable is None:
        raise ValueError(problem)
    raise ValueError(f"the environment variable {variable} cannot be used: {problem}. Correct it, or unset it")
