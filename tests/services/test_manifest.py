"""What ``flask lifecycle manifest`` prints is a configuration that the balancers accept."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests._needs import program
from tests.doctor.test_manifest import IDS, SETTINGS, made


@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_the_balancer_accepts_it(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """With what is around it, the block is a configuration; for HAProxy one without a warning."""
    text = made(kind, config)
    file = tmp_path / kind
    if kind == "haproxy":
        around = "defaults\n    mode http\n    timeout client 5s\nfrontend f\n    bind 127.0.0.1:1\n"
        file.write_text(f"{around}    use_backend my-shop-1\n{text}")
        command = [program("haproxy"), "-c", "-dW", "-f", str(file)]
    else:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        own = "".join(f"{each}_temp_path {tmp_path}/{each};\n" for each in kinds)
        file.write_text(
            f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{own}{text}}}\n"
        )
        command = [program("nginx"), "-t", "-p", str(tmp_path), "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert kind == "nginx" or done.stderr == ""
