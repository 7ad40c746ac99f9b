"""Which server is meant when none is named: the argument, else the environment, else what `fedfleet login` kept.

A kept token is sent to the server it was kept for and to no other.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from aggregator.sdk.errors import FleetError

DEFAULT_URL = "http://127.0.0.1:8080"


class Account(NamedTuple):
    """A server and the token for it, None where it needs none."""

    url: str
    token: str | None


def file() -> Path:
    """Where it is kept: the user's configuration (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "fedfleet" / "login.json"


def load() -> Account | None:
    """What was kept, None for nothing; raise FleetError (`bad_argument`)."""
    try:
        found = json.loads(file().read_text())
        account = Account(str(found["url"]), found["token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FleetError(
            "bad_argument", f"{file()} cannot be used ({error}); fedfleet logout removes it"
        ) from error
    return account


def save(account: Account) -> Path:
    """Keep it, for this user alone to read; raise FleetError (`bad_argument`)."""
    path = file()
    temporary = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(account._asdict(), out)
        temporary.replace(path)
    except OSError as error:
        raise FleetError("bad_argument", f"{path} cannot be written: {error.strerror}") from error
    return path


def drop() -> bool:
    """Forget it; whether there was anything."""
    try:
        file().unlink()
    except FileNotFoundError:
        return False
    return True


def resolve(url: str | None, token: str | None) -> Account:
    """The server and token to use, an empty one being none; raise FleetError (`bad_argument`)."""
    url = url or os.environ.get("FEDFLEET_SERVER")
    token = os.environ.get("FEDFLEET_TOKEN") if token is None else token
    kept = None if url and token is not None else load()
    url = (url or (kept.url if kept else DEFAULT_URL)).rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise FleetError("bad_argument", f"{url!r} is not the URL of a server; one looks like {DEFAULT_URL}")
    if token is None and kept is not None and kept.url == url:
        token = kept.token
    return Account(url, token or None)
