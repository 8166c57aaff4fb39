"""Draw docs/stop.svg: a real run of the quickstart that gets SIGTERM in the middle of a request.

Run it as ``python docs/stop.py`` in an environment that has the package. It needs curl, and port 8000 free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
CURL = r"curl -sw 'HTTP %{http_code}\n' localhost:8000"
SERVE = "flask --app examples/quickstart.py lifecycle run -p 8000"
LINE, CHARACTER, MARGIN = 20, 8.0, 16
COLOURS = {"$": "#7ee787", "flask_lifecycle:": "#8b949e"}


def run(command: str) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout.splitlines()


def record() -> list[str]:
    """Run it, and return what the terminal shows, in order."""
    lines = [f"$ FLASK_LIFECYCLE_SHUTDOWN_DELAY=2 {SERVE} &"]
    server = subprocess.Popen(
        [sys.executable, "-m", *SERVE.split()], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FLASK_LIFECYCLE_SHUTDOWN_DELAY": "2"},
    )  # fmt: skip
    assert server.stderr
    ready = threading.Event()

    def read() -> None:
        for line in server.stderr or ():
            lines.append(line.rstrip())
            if "-> READY" in line:
                ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert ready.wait(30)
    lines.append(f"$ {CURL}/slow &        # takes five seconds")
    slow = threading.Thread(target=lambda: lines.extend(run(f"{CURL}/slow")))
    slow.start()
    time.sleep(1)
    lines.append("$ kill -TERM %1                                              # one second later")
    server.terminate()
    time.sleep(1)
    lines += [f"$ {CURL}/readyz        # as the load balancer asks", *run(f"{CURL}/readyz")]
    slow.join()
    reader.join()
    return [*lines, f"exit code {server.wait()}"]


def draw(lines: list[str]) -> str:
    width = MARGIN * 2 + CHARACTER * max(map(len, lines))
    height = MARGIN * 2 + LINE * len(lines)
    texts = [
        f'<text x="{MARGIN}" y="{MARGIN + LINE * (n + 0.7):.0f}" fill="{COLOURS.get(line.split()[0], "#ffffff")}" '
        f'xml:space="preserve" textLength="{CHARACTER * len(line):.0f}">{escape(line)}</text>'
        for n, line in enumerate(lines)
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-size="13" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace">',
        f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#0d1117"/>', *texts, "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    (ROOT / "docs" / "stop.svg").write_text(draw(record()), encoding="utf-8")
