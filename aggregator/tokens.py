"""Tokens that name who asks the API and what they may do, in the head `tokens`.

A token is `ff_<id>_<secret>`. Of the secret only its SHA-256 is stored: it is 32 random bytes, so there is nothing to
guess, and the slow hashes that protect passwords would only make each request slow.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time

import msgspec

from aggregator.callers import LOCAL, Caller, Role
from aggregator.errors import NotFoundError, RefusedError
from aggregator.heads import decode_head
from broker_bridge.ports import Conflict, Heads

TOKENS_KEY = "tokens"
TOKENS_MAX = 256  # people and programs of one fleet; one cell holds them all
NAME_LENGTH_MAX = 64
SECRET_BYTES = 32
TOKEN_LENGTH_MAX = 200


class Token(msgspec.Struct, frozen=True):
    """One token; `digest` is the SHA-256 of its secret in hex, times are Unix seconds."""

    id: str
    name: str
    role: Role
    digest: str
    created_at: float
    expires_at: float | None = None

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


class Tokens:
    """The stored tokens; read at each request, so that one that is revoked ends at once."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    async def all(self) -> list[Token]:
        """All tokens, oldest first."""
        return (await self._load())[1]

    async def any(self) -> bool:
        """Whether there is one, expired ones included: an open server is nobody's wish who made a token."""
        return bool(await self.all())

    async def find(self, header: str | None) -> Caller:
        """Who sent this `Authorization` header; raise RefusedError (`unauthorized`, `expired`)."""
        scheme, _, text = (header or "").partition(" ")
        parts = text.strip().split("_", 2)
        if header is None:
            raise RefusedError(
                "unauthorized", "a token is needed: send the header Authorization: Bearer ff_…"
            )
        if scheme.casefold() != "bearer" or len(parts) != 3 or len(text) > TOKEN_LENGTH_MAX:
            raise RefusedError(
                "unauthorized", "Authorization is not `Bearer ff_…`, a token of fedfleet token create"
            )
        digest = hashlib.sha256(parts[2].encode()).hexdigest()
        for token in await self.all():
            if token.id == parts[1] and hmac.compare_digest(token.digest, digest):
                if token.expired(time.time()):
                    raise RefusedError("expired", f"token {token.name} has expired; have another made")
                return Caller(token.name, token.role)
        raise RefusedError("unauthorized", "no such token; it may have been revoked")

    async def still(self, caller: Caller) -> bool:
        """Whether somebody who was let in would be let in now; for connections that stay open."""
        tokens = await self.all()
        if caller == LOCAL:
            return not tokens
        now = time.time()
        return any((t.name, t.role) == caller and not t.expired(now) for t in tokens)

    async def create(
        self, name: str, role: Role, *, lifetime_s: float | None, now: float
    ) -> tuple[Token, str]:
        """Store a new token and return it with its text, which is nowhere else; raise RefusedError."""
        if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable():
            raise RefusedError("bad_token", f"a token's name is 1 to {NAME_LENGTH_MAX} printable characters")
        secret = secrets.token_urlsafe(SECRET_BYTES)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        expires_at = None if lifetime_s is None else now + lifetime_s
        token = Token(secrets.token_hex(4), name, role, digest, now, expires_at)
        while True:
            revision, tokens = await self._load()
            if any(known.name == name for known in tokens):
                raise RefusedError(
                    "exists", f"there is a token named {name}; revoke it, or choose another name"
                )
            if len(tokens) >= TOKENS_MAX:
                raise RefusedError("bad_token", f"there are {TOKENS_MAX} tokens; revoke one first")
            if await self._store(revision, [*tokens, token]):
                return token, f"ff_{token.id}_{secret}"

    async def revoke(self, name: str) -> Token:
        """Remove a token by its name or id; raise NotFoundError."""
        while True:
            revision, tokens = await self._load()
            found = next((token for token in tokens if name in (token.name, token.id)), None)
            if found is None:
                known = ", ".join(token.name for token in tokens) or "none"
                raise NotFoundError(f"no token named {name[:80]}; there are: {known}")
            if await self._store(revision, [token for token in tokens if token is not found]):
                return found

    async def _load(self) -> tuple[int, list[Token]]:
        revision, value = await self._heads.load(TOKENS_KEY)
        return revision, decode_head(TOKENS_KEY, value, list[Token]) if value else []

    async def _store(self, revision: int, tokens: list[Token]) -> bool:
        """False when somebody else changed them meanwhile."""
        try:
            await self._heads.swing(TOKENS_KEY, revision, msgspec.json.encode(tokens))
        except Conflict:
            return False
        return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, of which only this one is sure
        return host == "localhost"


def no_tokens(host: str, state_dir: str = "DIR") -> str:
    """Why a server does not listen at an address beyond this machine, and what to do."""
    return (
        f"anybody who reaches {host} could steer this fleet, because there is no token yet; create one with: "
        f"fedfleet token create --name me --role admin --state-dir {state_dir}"
    )
