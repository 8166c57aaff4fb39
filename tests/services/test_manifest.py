"""What ``flask lifecycle manifest`` prints is a configuration that the balancers accept."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests._needs import program
from tests.doctor.test_manifest import IDS, SETTINGS, made


@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
def test_haproxy_accepts_it(config: dict[str, Any], tmp_path: Path) -> None:
    """A frontend, a mode and the block are a configuration without a warning."""
    text, _ = made("haproxy", config)
    file = tmp_path / "haproxy.cfg"
    around = (
        "defaults\n    mode http\n    timeout client 5s\nfrontend f\n    bind 127.0.0.1:1\n    use_backend my-shop-1\n"
    )
    file.write_text(f"{around}{text}")
    done = subprocess.run(
        [program("haproxy"), "-c", "-dW", "-f", str(file)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("config", SETTINGS, ids=IDS)
def test_nginx_accepts_it(config: dict[str, Any], tmp_path: Path) -> None:
    """Within http it is a configuration."""
    text, _ = made("nginx", config)
    file = tmp_path / "nginx.conf"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    file.write_text(f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{own}{text}}}\n")
    done = subprocess.run(
        [program("nginx"), "-t", "-p", str(tmp_path), "-c", str(file)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
