"""Find the proxy for a server from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

A server on this machine never has one.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

_KINDS = ("http", "https", "socks5", "socks5h")


class UnusableProxy(Exception):
    """A proxy that cannot be used: its text says why, ``remedy`` what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


def proxy_for(url: str) -> str | None:
    """Return the address of the proxy for ``url``; None without one."""
    parts = urlsplit(url)
    host, found = parts.hostname or "", getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or is_loopback(host) or _excepted(host, parts.port, found.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is this machine: 127.0.0.0/8, ::1, localhost, and names below localhost."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with suppress(ValueError):
        address = ipaddress.ip_address(name)
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        address = mapped or address
        return address.is_loopback or address.is_unspecified
    with suppress(OSError, UnicodeError):  # as in 127.1, which is 127.0.0.1, or 0, which is 0.0.0.0
        return socket.inet_aton(name)[0] in (0, 127)
    return False


def shown(proxy: str) -> str:
    """Return a proxy's address for an error, without user and password."""
    try:
        parts = urlsplit(proxy)
        port = f":{parts.port}" if parts.port else ""
        name = parts.hostname or ""
    except ValueError:  # of the port, or of brackets
        return "that the environment names"
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}{port}"


def usable(proxy: str, url: str) -> httpx.Proxy:
    """Return the proxy in the form that httpx accepts.

    Raises:
        UnusableProxy: its address cannot be parsed, or a package is missing.
    """
    around = f"or add {urlsplit(url).hostname} to NO_PROXY"
    try:
        parts = urlsplit(proxy)
        if parts.scheme not in _KINDS or not parts.hostname or parts.port == 0:
            raise ValueError
        made = httpx.Proxy(proxy)
    except (ValueError, httpx.InvalidURL):
        raise UnusableProxy(
            f"the proxy {shown(proxy)} cannot be used, as its address cannot be read",
            "give HTTP_PROXY, HTTPS_PROXY or ALL_PROXY as http://host:port or socks5://host:port, " + around,
        ) from None
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise UnusableProxy(
            f"the proxy {shown(proxy)} needs the package socksio, which is not installed",
            "install it (pip install 'httpx[socks]'), " + around,
        )
    return made


def _excepted(host: str, port: int | None, exceptions: str) -> bool:
    """Return whether NO_PROXY names the host: its name, a parent domain, its address or network."""
    if proxy_bypass(host if port is None else f"{host}:{port}"):
        return True
    for entry in map(str.strip, exceptions.split(",")):
        if entry.startswith("*.") and host.endswith(entry[1:].lower()):
            return True
        with suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False):
                return True
    return False
