"""The examples of deployments: what the manifest prints is in them, and the doctor and the schemas accept them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # its wheel does not say that it has types
import pytest
import yaml

from tests._fakes import ROOT

EXAMPLES = ROOT / "examples"
# What the first lines of the examples say to set.
DELAY = {"FLASK_LIFECYCLE_SHUTDOWN_DELAY": "2"}
PROBES = {"FLASK_LIFECYCLE_PROBE_PORT": "9000"}


def command(*words: str, given: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run ``flask lifecycle ...`` for the application that the examples deploy."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLASK_")}
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "factory", "lifecycle", *words],
        cwd=EXAMPLES, env={**inherited, "PYTHONPATH": str(ROOT), **environ}, input=given, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip


def manifest(kind: str, **environ: str) -> str:
    done = command("manifest", kind, **environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects() -> list[Any]:
    """What the kustomization names, as Kubernetes gets it."""
    base = yaml.safe_load((EXAMPLES / "kubernetes" / "kustomization.yaml").read_text())
    return [yaml.safe_load((EXAMPLES / "kubernetes" / name).read_text()) for name in base["resources"]]


def absent(wanted: Any, there: Any, path: str = "") -> list[str]:
    """Where something that is wanted is not there, or is another one; what else is there is no matter."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [gap for key, value in wanted.items() for gap in absent(value, there.get(key), f"{path}/{key}")]
    if isinstance(wanted, list) and isinstance(there, list) and len(wanted) <= len(there):
        return [gap for n, value in enumerate(wanted) for gap in absent(value, there[n], f"{path}/{n}")]
    return [] if wanted == there else [f"{path}: {wanted!r}, and not {there!r}"]


def test_kubernetes_and_envoy_have_the_manifest_s() -> None:
    """All that is printed for Kubernetes and for Envoy is in the examples, and nothing of it is another number."""
    assert absent(yaml.safe_load(manifest("kubernetes", **PROBES)), objects()[0]) == []
    envoy = yaml.safe_load((EXAMPLES / "envoy" / "envoy.yaml").read_text())
    assert absent(yaml.safe_load(manifest("envoy", **DELAY)), envoy["static_resources"]) == []


@pytest.mark.parametrize(
    ("kind", "file", "environ"),
    [("haproxy", "haproxy.cfg", DELAY), ("nginx", "nginx.conf", {}), ("systemd", "factory.service", {})],
)
def test_an_example_has_every_line_of_the_manifest(kind: str, file: str, environ: dict[str, str]) -> None:
    """With its reasons; where the program is and what comes before it is the example's own."""
    example = [line.strip() for line in (EXAMPLES / kind / file).read_text().splitlines()]
    printed = [line.strip() for line in manifest(kind, **environ).splitlines()]
    assert [line for line in printed if line not in example and not line.startswith("ExecStart=")] == []


def test_the_doctor_accepts_the_examples() -> None:
    """With the settings that they are for, no file has so much as a warning."""
    rendered = "\n---\n".join(map(yaml.safe_dump, objects()))
    for words, given, environ in (
        (("-",), rendered, PROBES),
        (("systemd/factory.service", "docker/Dockerfile", "gunicorn/gunicorn.conf.py"), "", {}),
    ):
        done = command("doctor", *words, given=given, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["ok"] * len(words)


@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_kubernetes_accepts_the_base(version: str) -> None:
    """Every object fits the strict schema of its kind, from the version that knows all its fields."""
    base = objects()
    for each in base:
        kubernetes_validate.validate(each, version, strict=True)
    assert [each["kind"] for each in base] == ["Deployment", "Service", "PodDisruptionBudget"]
    base[0]["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProbes"):
        kubernetes_validate.validate(base[0], version, strict=True)


def test_the_base_is_whole() -> None:
    """The kustomization, the service, the budget and the Deployment agree on files, image, pods and port."""
    home = EXAMPLES / "kubernetes"
    base = yaml.safe_load((home / "kustomization.yaml").read_text())
    assert sorted([*base["resources"], "kustomization.yaml"]) == sorted(path.name for path in home.iterdir())
    deployment, service, budget = (each["spec"] for each in objects())
    template = deployment["template"]
    (container,) = template["spec"]["containers"]
    assert [image["name"] for image in base["images"]] == [container["image"]]
    assert deployment["selector"] == budget["selector"] == {"matchLabels": service["selector"]}
    assert template["metadata"]["labels"] == service["selector"]
    assert [port["targetPort"] for port in service["ports"]] == ["http"]
    assert "http" in [port["name"] for port in container["ports"]]
    # Or the budget would hold up every node.
    assert deployment["replicas"] > budget["maxUnavailable"] > 0


def test_the_examples_are_short() -> None:
    """There are nine, and no file of them is longer than a reader's patience."""
    files = [path for path in EXAMPLES.glob("*/*") if path.is_file() and path.parent.name != "__pycache__"]
    assert len({path.parent for path in files}) == 9
    assert [path.name for path in files if len(path.read_text().splitlines()) > 80] == []
