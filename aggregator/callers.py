"""Who asks: the bearer of a token, or somebody on this machine while there are no tokens."""

from typing import Literal, NamedTuple

from starlette.requests import HTTPConnection

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")  # each may do what those before it may


class Caller(NamedTuple):
    """`name` is a token's, or "local"."""

    name: str
    role: Role


LOCAL = Caller("local", "admin")  # whoever can open a port on loopback can read the state directory, too


def caller(connection: HTTPConnection) -> Caller:
    """Who asks; the gate has seen to it."""
    found: Caller = connection.state.caller
    return found


def needed(method: str, path: str) -> Role:
    """The role a request needs: viewers read, operators change, admins delete and read who did what."""
    if method == "DELETE" or path.endswith("/audit"):
        return "admin"
    return "viewer" if method in ("GET", "HEAD", "OPTIONS") else "operator"


def may(role: Role, wanted: Role) -> bool:
    """Whether a role includes another."""
    return ROLES.index(role) >= ROLES.index(wanted)
