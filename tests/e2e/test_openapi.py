"""The API against its own OpenAPI document: schemathesis makes requests of it, sound ones and broken ones."""

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aggregator.spec import PARTS
from tests.e2e.server import TRACEBACK, Aggregator, small_bundle

EXAMPLES = 6  # requests of each operation and mode: some fifteen seconds in all
ENDLESS = ("/api/v1/events",)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


ROUTES = {
    ("get", "/me"),
    ("get", "/fleet"),
    ("get", "/fleet/devices"),
    ("get", "/fleet/why/{device}"),
    ("post", "/fleet/tags"),
    ("post", "/fleet/pause"),
    ("post", "/fleet/resume"),
    ("get", "/health"),
    ("get", "/ready"),
    ("put", "/devices/{device}/tags"),
    ("post", "/devices/{device}/pause"),
    ("post", "/devices/{device}/resume"),
    ("post", "/devices/{device}/forget"),
    ("post", "/jobs/{name}/unpromote"),
    ("get", "/bundles"),
    ("delete", "/bundles/{digest}"),
    ("post", "/jobs/validate"),
    ("post", "/jobs/{name}/pause"),
    ("post", "/jobs/{name}/resume"),
    ("delete", "/jobs/{name}"),
    ("get", "/jobs/{name}/versions/{number}/manifest"),
    ("post", "/jobs/{name}/versions/{number}/promote"),
    ("get", "/updates"),
    ("get", "/events"),
    ("get", "/events/recent"),
    ("get", "/metrics"),
    ("get", "/audit"),
    ("get", "/devices"),
    ("get", "/devices/{device}"),
    ("post", "/bundles"),
    ("get", "/bundles/{digest}"),
    ("post", "/testsets"),
    ("post", "/jobs"),
    ("get", "/jobs"),
    ("get", "/jobs/{name}"),
    ("get", "/jobs/{name}/participation"),
    ("post", "/jobs/{name}/stop"),
    ("get", "/jobs/{name}/versions"),
    ("get", "/jobs/{name}/versions/{number}"),
    ("get", "/jobs/{name}/model"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An aggregator with a job, which the requests may find."""
    server = Aggregator(tmp_path_factory.mktemp("openapi") / "state")
    server.start()
    try:
        with server.client() as client:
            digest = client.post("/bundles", content=small_bundle().to_bytes()).json()["digest"]
            client.post("/jobs", json={"name": "a", "bundle": digest, "dataset": "d"})
            yield server
        assert server.stop() == 0
    finally:
        server.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_one_that_the_document_promises(server, mode):
    """No request, sound or broken, gets a 5xx, an undocumented status or type, or a body of another form."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/api/v1/openapi.json")
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path in ENDLESS:
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def check(case):
            case.validate_response(case.call(), checks=CHECKS)

        try:
            check()
        except Unsatisfiable:  # a request without a parameter cannot be a broken one
            assert mode is GenerationMode.NEGATIVE
        else:
            tried += 1
    assert tried > (20 if mode is GenerationMode.POSITIVE else 10)
    assert TRACEBACK not in server.log.read_text()


def test_the_openapi_document_lists_every_route(server):
    """The OpenAPI document is JSON and knows each route with its words and bodies."""
    with server.client() as client:
        document = json.loads(client.get("/openapi.json").content)
    routes = {
        (method, path.removeprefix("/api/v1")): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }

    assert document["openapi"].startswith("3.")
    assert set(routes) == ROUTES
    assert [route for route, operation in routes.items() if not operation["description"]] == []
    body = routes["post", "/jobs"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["$defs"]) == {"JobSpec", *(kind.__name__ for kind in PARTS.values())}
