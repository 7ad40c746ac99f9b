"""Who may ask what of the API, from where and how often, over memory ports."""

import asyncio
import time

import pytest

from aggregator.api.rate import Rates
from aggregator.callers import LOCAL, Caller, caller
from aggregator.errors import NotFoundError, RefusedError
from aggregator.tokens import TOKENS_KEY, Tokens, is_loopback

STOP = "/jobs/job/stop"


async def make(site, name, role, lifetime_s=None, at=None):
    return (await Tokens(site.ports.heads).create(name, role, lifetime_s=lifetime_s, now=at or time.time()))[
        1
    ]


def refused(response, status, code, *words):
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert [word for word in words if word not in problem["detail"]] == [], problem["detail"]


def test_each_role_does_its_part(drive, bundle):
    """Viewers read, operators change, admins delete and audit; a weaker role is told which it needs."""

    async def body(site):
        await site.start_job(bundle)
        tokens = {role: await make(site, f"my-{role}", role) for role in ("viewer", "operator", "admin")}
        async with site.api(token=tokens["viewer"]) as api:
            assert (await api.get("/jobs/job")).status_code == 200
            refused(await api.post(STOP), 403, "forbidden", "operator", "my-viewer is viewer")
            refused(await api.put("/devices/x/tags", json={"tags": []}), 403, "forbidden", "operator")
            refused(await api.get("/audit"), 403, "forbidden", "admin")
        async with site.api(token=tokens["operator"]) as api:
            assert (await api.post(STOP)).status_code == 200
            refused(await api.delete("/jobs/job"), 403, "forbidden", "admin", "my-operator is operator")
        async with site.api(token=tokens["admin"]) as api:
            assert (await api.delete("/jobs/job")).status_code == 204
            entries = (await api.get("/audit")).json()["audit"]
            assert [(e["actor"], e["role"]) for e in entries] == [
                ("my-admin", "admin"),
                ("my-operator", "operator"),
            ]

    drive(body)


def test_without_tokens_loopback_is_open_and_the_first_token_closes_it(drive):
    """Nobody needs a token on loopback until there is one; the last one revoked opens it again."""

    async def body(site):
        async with site.api() as api:
            assert (await api.get("/jobs")).status_code == 200
            await make(site, "me", "admin")
            response = await api.get("/jobs")
            refused(response, 401, "unauthorized", "Authorization: Bearer")
            assert response.headers["www-authenticate"] == "Bearer"
            await Tokens(site.ports.heads).revoke("me")
            assert (await api.get("/jobs")).status_code == 200

    drive(body)


def test_elsewhere_a_token_is_always_needed(drive):
    """A server bound beyond loopback stays closed also when its last token is revoked."""

    async def body(site):
        async with site.api(loopback=False, client="192.0.2.7", host="fleet.example") as api:
            refused(await api.get("/jobs"), 401, "unauthorized")

    drive(body)


def test_tokens_that_are_none_are_refused(drive):
    """Made-up, cut, foreign, revoked and expired tokens open nothing."""

    async def body(site):
        token = await make(site, "me", "admin")
        old = await make(site, "old", "admin", lifetime_s=60, at=time.time() - 61)
        gone = await make(site, "gone", "admin")
        await Tokens(site.ports.heads).revoke("gone")
        for wrong in (
            "x",
            token[:-1],
            token + "x",
            token.replace("ff_", "gg"),
            gone,
            "ff__",
            "ff_\xe9_x",
            "x" * 5000,
        ):
            async with site.api() as api:
                headers = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
                refused(await api.get("/jobs", headers=headers), 401, "unauthorized")
                refused(await api.get("/health", headers=headers), 401, "unauthorized")
        async with site.api() as api:
            refused(await api.get("/jobs", headers={"Authorization": f"Basic {token}"}), 401, "unauthorized")
        async with site.api(token=old) as api:
            refused(await api.get("/jobs"), 401, "expired", "old")

    drive(body)


def test_a_stream_ends_with_the_token_it_was_opened_with(drive, monkeypatch):
    """Events go to nobody whose token was revoked since, not even on a connection that is open."""
    monkeypatch.setattr("aggregator.api.events.HEARTBEAT_S", 0)
    monkeypatch.setattr("aggregator.stream.HEARTBEAT_S", 0.01)

    async def body(site):
        token = await make(site, "me", "viewer")
        tokens = Tokens(site.ports.heads)
        assert await tokens.still(Caller("me", "viewer"))
        assert not await tokens.still(Caller("me", "admin"))
        assert not await tokens.still(LOCAL)
        admitted = asyncio.Event()

        def told(request):
            admitted.set()
            return caller(request)

        monkeypatch.setattr("aggregator.api.events.caller", told)
        async with site.api(token=token) as api:
            reading = asyncio.create_task(api.get("/events"))
            await admitted.wait()
            await tokens.revoke("me")
            response = await asyncio.wait_for(reading, 5)  # it would never end by itself
            assert response.status_code == 200
        assert await tokens.still(LOCAL)

    drive(body)


def test_a_secret_is_not_stored(drive):
    """Of a token the state directory holds a digest alone, and names are used once."""

    async def body(site):
        token = await make(site, "me", "viewer")
        _, value = await site.ports.heads.load(TOKENS_KEY)
        assert token.split("_", 2)[2] not in value.decode()
        for name, code in (
            ("me", "exists"),
            ("", "bad_token"),
            ("a\n", "bad_token"),
            ("x" * 65, "bad_token"),
        ):
            with pytest.raises(RefusedError) as error:
                await make(site, name, "viewer")
            assert error.value.code == code
        with pytest.raises(NotFoundError, match="there are: me"):
            await Tokens(site.ports.heads).revoke("you")

    drive(body)


def test_probes_need_no_token_and_learn_nothing(drive):
    """Health and readiness answer a stranger, who is not told how many jobs and devices there are."""

    async def body(site):
        token = await make(site, "me", "viewer")
        async with site.api() as api:
            assert (await api.get("/health")).json() == {"status": "ok"}
            assert (await api.get("/ready")).json() == {"status": "ready"}
            assert (await api.get("/health", headers={"Authorization": f"Bearer {token}"})).json()[
                "jobs"
            ] == 0
            site.engine.ready.clear()
            refused(await api.get("/ready"), 503, "not_ready")

    drive(body)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://localhost"])
def test_a_page_of_another_site_changes_nothing(drive, bundle, kind, origin):
    """CSRF: what a foreign page may have a browser send without asking is refused, although loopback is open."""

    async def body(site):
        await site.start_job(bundle)
        async with site.api() as api:
            headers = {"Origin": origin, "Content-Type": kind}
            for call in (STOP, "/jobs", "/bundles"):
                refused(await api.post(call, headers=headers, content=b"{}"), 403, "foreign_origin")
            assert (await api.get("/jobs/job")).json()["state"] == "running"
            assert "access-control-allow-origin" not in (await api.get("/jobs", headers=headers)).headers
            preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            assert (await api.options(STOP, headers=preflight)).status_code == 405
            own = {"Origin": "http://127.0.0.1"}
            assert (await api.post(STOP, headers=own)).json()["state"] == "ended"

    drive(body)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "fleet"])
def test_a_name_that_was_rebound_to_loopback_reads_nothing(drive, host):
    """DNS rebinding: without tokens only requests to names of this machine are answered."""

    async def body(site):
        async with site.api(host=host) as api:
            refused(await api.get("/jobs"), 403, "foreign_host", "fedfleet token create")
        async with site.api(host="localhost:8080") as api:
            assert (await api.get("/jobs")).status_code == 200

    drive(body)


def test_a_client_that_asks_too_often_is_told_when_to_come_again(drive):
    """Each token has requests of its own; beyond them is 429 with Retry-After. Strangers are told apart by address."""

    async def body(site):
        tokens = [await make(site, name, "viewer") for name in ("one", "two")]
        rates = Rates(rate_s=0.001, burst=2)
        codes = []
        for token in (tokens[0], tokens[0], tokens[0], tokens[1], "wrong", "wrong", "wrong"):
            async with site.api(token=token, rates=rates) as api:
                response = await api.get("/jobs")
                codes.append(response.status_code)
        assert codes == [200, 200, 429, 200, 401, 401, 429]
        refused(response, 429, "too_many_requests", "again")
        assert int(response.headers["retry-after"]) > 1

    drive(body)


def test_a_bucket_fills_again_and_the_oldest_is_forgotten(monkeypatch):
    """I6: tokens come back at the rate, never beyond the burst, and a crowd of clients takes bounded memory."""
    monkeypatch.setattr("aggregator.api.rate.CLIENTS_MAX", 3)
    rates = Rates(rate_s=2, burst=2)

    assert [rates.take("a", 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert [rates.take("a", 0.5), rates.take("a", 0.5)] == [0, 0.5]
    assert [rates.take("a", 99.0) for _ in range(3)] == [0, 0, 0.5]
    for client in "bcd":
        rates.take(client, 99.0)
    assert rates.take("a", 99.0) == 0


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.4", False), ("fleet.example", False)],
)  # fmt: skip
def test_loopback_is_known_by_its_address(host, loopback):
    """An address counts as this machine's own only when nobody else reaches it."""
    assert is_loopback(host) is loopback
