"""Where the pages are served, as ``serve.listen`` says it, and where they are asked for."""

from __future__ import annotations

import re

from segbatch.errors import SettingsError

_LISTEN = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<name>[^\[\]:/\s]+)):(?P<port>[0-9]{1,5})"
)
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - read, not bound


def parse_listen(listen: str) -> tuple[str, int]:
    """Return address and port of ``ADDRESS:PORT``; an IPv6 address stands in brackets.

    Raises
    ------
    SettingsError
        It is none.
    """
    found = _LISTEN.fullmatch(listen)
    if found is None or int(found["port"]) > 65535:
        raise SettingsError(
            f"serve.listen = {listen!r}",
            "ADDRESS:PORT, or nothing for no pages",
            "as in 127.0.0.1:9417 or [::1]:9417",
        )
    return found["v6"] or found["name"], int(found["port"])


def url_of(listen: str) -> str:
    """Return the address at which this machine asks what ``listen`` serves.

    Raises
    ------
    SettingsError
        ``listen`` is no address and port.
    """
    host, port = parse_listen(listen)
    host = _ANY.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
