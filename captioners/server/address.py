"""The address of a server, read from any of the forms in which people write it."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

PREFIX = "openai:"
VERSION = re.compile(r"v\d+\w*", re.IGNORECASE)  # v1, v3, v1beta
COMPLETIONS = "/chat/completions"  # the path that some people write at the end of an address


@dataclass(frozen=True)
class Address:
    """The parts of a captioner's name `openai:http://host:port#model`."""

    base: str  # URL to which the interface's paths are appended
    query: str  # appended to every URL, after "?"
    model: str

    def url(self, path: str) -> str:
        """The URL of a path of the interface, such as chat/completions."""
        return f"{self.base}/{path}{self.query and '?'}{self.query}"

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.base).hostname or ""
        return host == "localhost" or _is_ip(host) and ipaddress.ip_address(host).is_loopback


def read_address(name: str) -> Address:
    """Read the address in a captioner's name.

    A path without a version gets /v1, unless it ends in /chat/completions. Without a scheme, http is assumed for hosts
    with a port, of a single word, or by IP number, and https for all others. The only accepted query is Azure's
    api-version.
    Raises ValueError if it is not an address; the message omits parts that may be secret.
    """
    url, _, model = name.removeprefix(PREFIX).partition("#")
    url, model = url.strip(), model.strip()
    try:
        parts = urlsplit(url if "://" in url else f"{_usual_scheme(url)}://{url}")
        is_valid = (
            parts.scheme in ("http", "https")
            and re.fullmatch(r"[\w.:-]+", parts.hostname or "")
            and parts.port != 0
            and parts.username is None
            and {name for name, _ in parse_qsl(parts.query, True)} <= {"api-version"}
        )
    except ValueError:
        is_valid = False
    if not is_valid:
        without_secrets = name.rpartition("@")[2].partition("?")[0]
        raise ValueError(
            f"model: {without_secrets!r} is not {PREFIX}http://host:port#model; a key comes from OPENAI_API_KEY, or by"
            " a --header with '$NAME' in it, not with the address"
        )
    path = re.sub("/+", "/", parts.path).rstrip("/")
    is_complete = path.endswith(COMPLETIONS)
    path = path.removesuffix(COMPLETIONS).removesuffix("/models")
    has_version = any(VERSION.fullmatch(part) for part in path.split("/"))
    if not (is_complete or parts.query or has_version):
        path += "/v1"
    return Address(f"{parts.scheme}://{parts.netloc}{path}", parts.query, model)


def _usual_scheme(url: str) -> str:
    host = urlsplit(f"//{url}").hostname or ""
    return "http" if "." not in host or _is_ip(host) or re.search(r":\d+(/|$)", url) else "https"


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
