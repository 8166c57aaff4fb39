"""mod_wsgi in Apache's daemon mode, with the configuration of the example."""

from __future__ import annotations

import contextlib
import os
import signal
import sysconfig
from pathlib import Path

from tests._needs import missing, program
from tests.live._client import answers, free_port, refuses
from tests.live._process import ROOT, Running, Starter
from tests.live._traffic import Kind, Traffic, wait_guarantee

MODULE = Path("/usr/lib/apache2/modules/mod_wsgi.so")
APACHE = """
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule wsgi_module /usr/lib/apache2/modules/mod_wsgi.so
ServerRoot {home}
DefaultRuntimeDir {home}
PidFile {home}/pid
ServerName localhost
Listen 127.0.0.1:{port}
ErrorLog /dev/stderr
"""


def apache(live: Starter, home: Path, port: int) -> Running:
    """Start Apache with the example; Debian's mod_wsgi has Debian's Python, which gets the packages of this one."""
    if not MODULE.exists():
        missing("Apache's mod_wsgi")
    path = f"python-path={sysconfig.get_path('purelib')}:{ROOT}:{ROOT / 'tests' / 'live_apps'}"
    example = (ROOT / "examples" / "mod_wsgi" / "shop.conf").read_text(encoding="utf-8")
    example = example.replace("/srv/shop", str(home)).replace("threads=4", f"threads=4 {path}")
    (home / "app.wsgi").write_text("from live_app import app as application\n")
    (home / "apache.conf").write_text(APACHE.format(home=home, port=port) + example)
    # Its daemon refuses to be root, and another user could not read what is ours.
    user = ("unshare", "--user", "--map-user=1000", "--map-group=1000") if os.geteuid() == 0 else ()
    command = (*user, program("apache2"), "-f", str(home / "apache.conf"), "-DFOREGROUND")
    running = live.start(*command, plan={"logging": True})
    running.wait_for(lambda: answers(("127.0.0.1", port), "/readyz"), "readiness")
    return running


def test_mod_wsgi_answers_what_it_has(live: Starter, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """Stopped by SIGWINCH Apache answers what it has accepted, and the hooks run once, after that."""
    port = free_port()
    home = tmp_path / "apache"
    home.mkdir()
    running = apache(live, home, port)
    wait_guarantee(running, "mod_wsgi", "accepted")
    traffic = Traffic(
        running, stack, Kind(slots=4, keeps=False, pipelines=False, chunks=False), address=("127.0.0.1", port)
    )
    traffic.hold()
    running.send(signal.SIGWINCH)
    running.wait_for(lambda: refuses(traffic.address), "the closed listener")
    traffic.finish()
    traffic.check_started()
    traffic.check_accepted()
    traffic.check_hooks()
    assert "outside the main thread" not in running.log
