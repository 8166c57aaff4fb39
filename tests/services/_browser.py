"""A headless Chromium with one page, driven by the DevTools protocol over a pipe, without a driver.

Messages are JSON, each ended by a NUL, on descriptors 3 and 4. What the browser reports meanwhile is kept.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tests._needs import program
from tests.live._client import PATIENCE
from tests.live._process import wait_until

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
    "--no-startup-window",
)
# Puts the pipes where Chromium looks for them.
ON_PIPES = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One browser with one page; ``home`` is a directory of its own, for the profile."""

    def __init__(self, home: Path) -> None:
        found = program("chromium")
        self.console: list[str] = []  # what it has logged as a warning or an error
        self.requested: list[str] = []
        self.issues: list[dict[str, Any]] = []
        self.responses: list[tuple[int, str]] = []
        self._credentials: tuple[str, str] | None = None
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._number = 0
        self._session: str | None = None
        self._start(found, home)
        self._reader = threading.Thread(target=self._read, name="browser", daemon=True)
        self._reader.start()
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _start(self, chromium: str, home: Path) -> None:
        reads, self._write_to = os.pipe()
        self._read_from, writes = os.pipe()
        arguments = (str(reads), str(writes), chromium, f"--user-data-dir={home / 'profile'}", *FLAGS)
        with (home / "chromium.log").open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-c", ON_PIPES, *arguments),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(reads, writes), start_new_session=True,
                env={**os.environ, "HOME": str(home)},
            )  # fmt: skip
        os.close(reads)
        os.close(writes)

    def _attach(self) -> None:
        # A page of our own: the one that it begins with may not be there yet.
        page = self.send("Target.createTarget", url="about:blank")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits", "DOM", "CSS"):
            self.send(f"{domain}.enable")

    # -- the protocol -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._read_from, 1 << 20):
            *messages, rest = (rest + data).split(b"\0")
            for message in messages:
                self._take(json.loads(message))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers.put(message)
            return
        told = message["params"]
        if message["method"] == "Runtime.exceptionThrown":
            self.console.append(f"exception: {told['exceptionDetails']}")
        elif message["method"] == "Runtime.consoleAPICalled":
            self.console.append(f"console: {told['args']}")
        elif message["method"] == "Log.entryAdded":
            self.console.append(f"log: {told['entry']['text']} {told['entry'].get('url', '')}")
        elif message["method"] == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif message["method"] == "Network.responseReceived":
            self.responses.append((told["response"]["status"], told["response"]["url"]))
        elif message["method"] == "Audits.issueAdded":
            self.issues.append(told["issue"])
        elif message["method"] == "Fetch.requestPaused":
            self._post("Fetch.continueRequest", requestId=told["requestId"])
        elif message["method"] == "Fetch.authRequired":
            self._authenticate(told["requestId"])

    def _authenticate(self, request: str) -> None:
        answer = {"response": "CancelAuth"}
        if self._credentials is not None:
            user, password = self._credentials
            answer = {"response": "ProvideCredentials", "username": user, "password": password}
            self._credentials = None  # the next question means that they were wrong
        self._post("Fetch.continueWithAuth", requestId=request, authChallengeResponse=answer)

    def _post(self, method: str, **params: Any) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write_to, json.dumps(message).encode() + b"\0")
        return int(message["id"])

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = self._post(method, **params)
        while True:
            answer = self._answers.get(timeout=PATIENCE)
            if answer["id"] == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    # -- what a test does ---------------------------------------------------------------------------------------------

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, f"{expression}: {told['exceptionDetails']}"
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        try:
            wait_until(lambda: bool(self.run(expression)), f"{expression} in the page")
        except AssertionError as error:
            raise AssertionError(f"{error}; its text: {self.text}; its console: {self.console}") from None

    def open(self, url: str) -> None:
        """Load a page, wholly."""
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank' && !!document.body")

    def sign_in_as(self, user: str, password: str) -> None:
        """Answer the next question for a user and a password; further ones are cancelled."""
        self._credentials = (user, password)
        self.send("Fetch.enable", handleAuthRequests=True)

    def look(self, width: int, height: int, *, dark: bool = False, media: str = "") -> None:
        """Set the size of the window, the colour scheme and the medium."""
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)

    @property
    def text(self) -> str:
        """The text of the page, as it is seen."""
        return str(self.run("document.body && document.body.innerText"))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._write_to)
        os.close(self._read_from)
