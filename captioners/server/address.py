"""Where a server is, in any of the ways in which its address is usually written."""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

PREFIX = "openai:"
VERSION = re.compile(r"v\d+\w*", re.IGNORECASE)  # v1, v3, v1beta
WHOLE = "/chat/completions"


@dataclass(frozen=True)
class Address:
    """`openai:http://host:port#model`, read: `base` is what the paths of the interface are below, `query` what follows them."""

    base: str
    query: str
    model: str

    def of(self, path: str) -> str:
        return f"{self.base}/{path}{self.query and '?'}{self.query}"

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.base).hostname or ""
        return host == "localhost" or _is_ip(host) and ipaddress.ip_address(host).is_loopback


def read_address(name: str) -> Address:
    """The address that a captioner's name gives; ValueError where it is none, without what may be a secret in it.

    A path without a version gets /v1, unless it was written whole, up to /chat/completions; without a scheme it is http for
    hosts with a port, of one word or of numbers, else https. Of queries only Azure's api-version is taken.
    """
    url, _, model = name.removeprefix(PREFIX).partition("#")
    url, model = url.strip(), model.strip()
    try:
        parts = urlsplit(url if "://" in url else f"{_usual_scheme(url)}://{url}")
        right = (
            parts.scheme in ("http", "https")
            and re.fullmatch(r"[\w.:-]+", parts.hostname or "")
            and parts.port != 0
            and parts.username is None
            and {name for name, _ in parse_qsl(parts.query, True)} <= {"api-version"}
        )
    except ValueError:
        right = False
    if not right:
        shown = name.rpartition("@")[2].partition("?")[0]
        raise ValueError(
            f"model: {shown!r} is not {PREFIX}http://host:port#model; a key comes from OPENAI_API_KEY, or by a "
            "--header with '$NAME' in it, not with the address"
        )
    path = re.sub("/+", "/", parts.path).rstrip("/")
    whole = path.endswith(WHOLE)
    path = path.removesuffix(WHOLE).removesuffix("/models")
    if not (whole or parts.query or any(VERSION.fullmatch(part) for part in path.split("/"))):
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
