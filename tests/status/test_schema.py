"""The JSON Schema of the documentation describes what the probes answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]

from flask_lifecycle import CheckResult, HealthCheckError, Lifecycle
from tests._fakes import BOUND, enter, make_app, state_of

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "probes.schema.json").read_text(encoding="utf-8"))
PROBES = ["/livez", "/readyz", "/startupz", "/healthcheck"]


def closed(schema: Any) -> Any:
    """The schema without its permission of unknown keys, so that a key it does not describe is an error."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    known = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {key: closed(value) for key, value in schema.items()} | known


VALIDATOR = Draft202012Validator(closed(SCHEMA))


def serve(tmp_path: Path, **config: Any) -> tuple[Flask, Lifecycle]:
    """An application with a check for every kind of result."""
    app = make_app(**{"LIFECYCLE_CONTROL_DIR": str(tmp_path), "LIFECYCLE_LOG_REMOTE_ADDR": True, **config})
    lifecycle = Lifecycle(app)

    @lifecycle.check("number", critical=False)
    def number() -> CheckResult:
        return CheckResult("warn", "9 s behind", {"hosts": ["a", 1]}, 9, "s")

    @lifecycle.check("text")
    def text() -> CheckResult:
        return CheckResult(value="primary")

    @lifecycle.check("fails", affects=("/orders",))
    def fails() -> None:
        raise HealthCheckError("no answer", causes={"replica": "down"})

    @lifecycle.check("unsettled", fail_after=3)
    def unsettled() -> None:
        raise RuntimeError

    return app, lifecycle


def get(app: Flask, path: str) -> dict[str, Any]:
    """The answer to a probe, after a check against the schema."""
    answer = app.test_client().get(path, headers={"Accept": "application/json"}, buffered=True)
    document: dict[str, Any] = json.loads(answer.data)
    VALIDATOR.validate(document)
    return document


def test_the_schema_is_valid() -> None:
    """The schema itself follows JSON Schema 2020-12."""
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("query", ["", "?verbose"])
@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize("details", ["never", "always"])
def test_answers_follow_the_schema(tmp_path: Path, path: str, query: str, details: str) -> None:
    """Every probe follows the schema, with details and without them."""
    app, _lifecycle = serve(tmp_path, LIFECYCLE_DETAILS=details)
    document = get(app, path + query)
    assert (set(document) == {"status"}) == (details == "never")


def test_a_busy_application_follows_the_schema(tmp_path: Path) -> None:
    """The status document follows the schema with requests, work and startup tasks, and after a shutdown lost some."""
    app, lifecycle = serve(tmp_path, LIFECYCLE_DETAILS="always", LIFECYCLE_GRACE_PERIOD=0.5)
    during: list[dict[str, Any]] = []

    @lifecycle.on_shutdown
    def broken() -> None:
        during.append(get(app, "/healthcheck?verbose"))
        raise RuntimeError("broken")

    lifecycle.work("import", file="a.csv")
    enter(state_of(app).ledger)
    with lifecycle.startup_task("warm the cache"):
        document = get(app, "/healthcheck?verbose")
    assert all(document[key] for key in ("requests", "work", "startup_tasks"))
    with ThreadPoolExecutor(1) as pool:  # this thread owns the request and the work item, for which a shutdown waits
        pool.submit(lifecycle.shutdown, "for the test").result(BOUND)
    assert during[0]["phase"] == "hooks"
    report = get(app, "/healthcheck?verbose")["report"]
    assert all(report[key] for key in ("abandoned", "work", "phases", "hooks"))


def test_an_unknown_key_is_noticed() -> None:
    """The test above would fail if an answer had a key that the schema does not describe."""
    with pytest.raises(ValidationError, match="'new' was unexpected"):
        VALIDATOR.validate({"status": "pass", "new": 1})
    Draft202012Validator(SCHEMA).validate({"status": "pass", "new": 1})
