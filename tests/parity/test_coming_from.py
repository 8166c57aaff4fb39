"""docs/coming-from.md: its programs run, and it names nothing that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import flask_lifecycle
from flask_lifecycle import Lifecycle, checks
from flask_lifecycle._config import KEYS
from tests.live._process import Running
from tests.live.test_probes import probe_address

from .conftest import Own, ask, body_of

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
SECRET = "a secret of some length"
# A delay would only be waited for, and the port may be taken.
HERE = {'"LIFECYCLE_SHUTDOWN_DELAY"] = 5.0': '"LIFECYCLE_SHUTDOWN_DELAY"] = 0.0', "= 9000": "= 0"}


def program(peer: str) -> str:
    """The program that stands in a peer's section."""
    section = PAGE.split(f"\n## {peer}\n", 1)[1].split("\n## ", 1)[0]
    (ours,) = [block for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL) if "Lifecycle(app)" in block]
    for there, here in HERE.items():
        ours = ours.replace(there, here)
    return str(ours)


def serve(own: Own, home: Path, peer: str) -> Running:
    """Serve a peer's program as the page says."""
    path = home / "app.py"
    path.write_text(program(peer))
    return own.serve_file(path, {"HEALTH_TOKEN": SECRET, "DATABASE_URL": f"sqlite:///{home}/database"})


def test_coming_from_terminus(own: Own, tmp_path: Path) -> None:
    """The program for Terminus' users answers with their body at their path, and closes the pool."""
    running = serve(own, tmp_path, "Terminus")
    assert body_of(ask(running.address, "/health/ready")) == {"status": "ok", "database": "up"}
    assert running.stop() == 0
    assert "closing the pool" in running.log


def test_coming_from_lightship(own: Own, tmp_path: Path) -> None:
    """The program for Lightship's users has their three probes, on a port of their own, and the work elsewhere."""
    running = serve(own, tmp_path, "Lightship")
    probes = probe_address(running)
    assert [ask(probes, path).status for path in ("/health", "/live", "/ready", "/")] == [200, 200, 200, 404]
    assert ask(running.address, "/").body == b"hello"
    assert running.stop() == 0


def test_coming_from_spring_boot(own: Own, tmp_path: Path) -> None:
    """The program for users of the Actuator has their paths, a component's among them, and shows details by token."""
    running = serve(own, tmp_path, "Spring Boot Actuator")
    probes = probe_address(running)
    health = "/actuator/health"
    for path in (health, f"{health}/liveness", f"{health}/readiness"):
        assert body_of(ask(probes, path)) == {"status": "pass"}
    shown = body_of(ask(probes, f"{health}/queue", Authorization=f"Bearer {SECRET}"))
    assert shown["checks"]["queue"][0]["observed"] == {"depth": 0}
    assert ask(probes, f"{health}/queue").status == 404
    assert running.stop() == 0


def test_coming_from_django(own: Own, tmp_path: Path) -> None:
    """The program for users of django-health-check answers at their path."""
    running = serve(own, tmp_path, "django-health-check")
    assert body_of(ask(running.address, "/health/")) == {"status": "pass"}
    assert (tmp_path / "database").exists()  # it has been asked
    assert running.stop() == 0


def test_every_name_exists() -> None:
    """The settings, methods, signals, ready-made checks and options of checks that the page names are there."""
    assert set(re.findall(r"(?<![A-Z_])LIFECYCLE_[A-Z_]+", PAGE)) <= set(KEYS)
    names = set(re.findall(r"(?<![\w.])lifecycle\.(\w+)", PAGE))
    assert [name for name in sorted(names) if not hasattr(Lifecycle, name)] == []
    assert set(re.findall(r"\b(?:state|check|health)_changed|probe_refused", PAGE)) <= set(flask_lifecycle.__all__)
    assert set(re.findall(r"`([A-Z]\w+Check)`", PAGE)) <= set(checks.__all__)
    options = set(re.findall(r"`(groups|ttl|fail_ttl|interval|fail_after|scope)`", PAGE))
    assert options <= set(flask_lifecycle.Check.__dataclass_fields__)
