"""The fixture ``lifecycle_server``: a server in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from signal import SIGTERM
from typing import Any

from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder, TestResponse
from werkzeug.wrappers import Request

from .._config import TEST_SETTINGS
from .._verify.subject import MisuseError, ServerProcess, free_port, search_path

_HOST = "127.0.0.1"
_LOG_END = 6000  # characters of the log in an error
# Where a test runs is not where the application will run.
_NOT_INHERITED = ("KUBERNETES_SERVICE_HOST", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")


class _Result(Future[TestResponse]):
    """The response to a request that runs in the background; waiting for it is bounded."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def result(self, timeout: float | None = None) -> TestResponse:
        return super().result(self._seconds if timeout is None else timeout)


class Server:
    """A server in a process of its own, started by the fixture ``lifecycle_server``.

    Each wait takes at most ``timeout`` seconds; then it raises, with the end of the log where that helps.

    :ivar port: the free port that ``{port}`` was replaced by.
    :ivar probe_port: another one, for ``{probe_port}`` and ``LIFECYCLE_PROBE_PORT=0``.
    :ivar url: where the server listens, such as ``http://127.0.0.1:20123``.
    """

    def __init__(
        self,
        command: Sequence[str],
        home: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, str],
        timeout: float,
    ) -> None:
        self.port, self.probe_port = free_port(), free_port()
        self.url = f"http://{_HOST}:{self.port}"
        self.timeout = timeout
        self._home = home
        settings = {"LIFECYCLE_REPORT_FILE": str(home / "report-{pid}.json"), **settings}
        if settings.get("LIFECYCLE_PROBE_PORT") == 0:
            settings["LIFECYCLE_PROBE_PORT"] = self.probe_port
        environment = {**_environment(), **environment, TEST_SETTINGS: json.dumps(settings)}
        self._process = ServerProcess(command, (self.port, self.probe_port), environment, timeout)
        self.command = self._process.command
        self._opened = contextlib.ExitStack()  # connections and responses
        self._threads: list[threading.Thread] = []

    # -- requests -----------------------------------------------------------------------------------------------------

    def open(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> http.client.HTTPResponse:
        """Send a request and return its response as soon as the head has arrived, to read the body piece by piece.

        :param port: by default :attr:`port`.
        :raises OSError: the connection was refused or reset.
        :raises http.client.HTTPException: the connection ended too early; so does reading the body.
        """
        return self._respond(self._send(path, method, body, headers, port))

    def get(self, path: str, headers: Mapping[str, str] | None = None, port: int | None = None) -> TestResponse:
        """Send a request and return its whole response, as a test client does.

        The arguments, and what it raises, are those of :meth:`open`.
        """
        return _whole(self.open(path, headers=headers, port=port), path)

    def wait_status(self, path: str, status: int = 200, port: int | None = None) -> None:
        """Send requests until one is answered with a status.

        :raises AssertionError: none is in time, or the process has ended.
        """
        last: object = None

        def answered() -> bool:
            nonlocal last
            try:
                last = self.get(path, port=port).status_code
            except (OSError, http.client.HTTPException) as error:
                last = type(error).__name__
            return last == status

        if not self._process.wait_for(answered, self.timeout):
            raise self._error(f"'{path}' was not answered with {status}, but with {last}")

    def start_request(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Future[TestResponse]:
        """Send a request and return at once, when the kernel has it.

        ``result()`` of the future that is returned waits for the whole response. It raises what :meth:`open` raises, so
        a lost request fails the test. Where the test needs the view to run, wait for something that the view logs.
        """
        connection = self._send(path, method, body, headers, port)
        result = _Result(self.timeout)

        def receive() -> None:
            try:
                result.set_result(_whole(self._respond(connection), path))
            except BaseException as error:
                result.set_exception(error)

        thread = threading.Thread(target=receive, name=f"request {path}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return result

    def _send(
        self, path: str, method: str, body: bytes | None, headers: Mapping[str, str] | None, port: int | None
    ) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(_HOST, port or self.port, timeout=self.timeout)
        self._opened.callback(connection.close)
        connection.request(method, path, body, {"Connection": "close", **(headers or {})})
        return connection

    def _respond(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        response = connection.getresponse()
        self._opened.callback(response.close)
        return response

    # -- the process --------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """What the process has printed so far, standard error included; of more than 256 KB, the end."""
        return self._process.log

    def wait_log(self, pattern: str) -> re.Match[str]:
        """Wait until the log has a match of a regular expression.

        :raises AssertionError: it has none in time, or the process has ended without one.
        """
        found: list[re.Match[str]] = []

        def look() -> bool:
            found.extend(re.finditer(pattern, self.log, re.MULTILINE))
            return bool(found)

        if not self._process.wait_for(look, self.timeout):
            raise self._error(f"The log has no {pattern!r}")
        return found[0]

    def signal(self, number: int = SIGTERM) -> None:
        """Send a signal to the process that the command started, and do not wait."""
        self._process.signal(number)

    def wait(self) -> int:
        """Wait until the process has ended, and return its exit code; after a signal, its negative number.

        :raises AssertionError: it has not ended in time.
        """
        code = self._process.wait_gone(self.timeout)
        if code is None:
            raise self._error(f"The server has not ended within {self.timeout:g} s")
        return code

    def stop(self, number: int = SIGTERM) -> int:
        """Send a signal, wait until the process has ended, and return its exit code.

        :raises AssertionError: it has not ended in time.
        """
        self.signal(number)
        return self.wait()

    @property
    def reports(self) -> list[dict[str, Any]]:
        """The shutdown reports that its processes have written so far, as JSON, in the order of their shutdowns."""
        reports = [json.loads(path.read_bytes()) for path in self._home.glob("report-*.json")]
        return sorted(reports, key=lambda report: str(report["began"]))

    @property
    def report(self) -> dict[str, Any]:
        """The shutdown report, of a server with one process.

        :raises AssertionError: there is none, because the process has not stopped or was killed; or there are several.
        """
        reports = self.reports
        if len(reports) != 1:
            raise self._error(f"There are {len(reports) or 'no'} shutdown reports")
        return reports[0]

    def _error(self, what: str) -> AssertionError:
        state = f"; it ended with {self._process.wait_gone(0)}" if self._process.gone.is_set() else ""
        return AssertionError(f"{what}{state}. The log of {' '.join(self.command)}:\n{self.log[-_LOG_END:]}")

    def _end(self) -> None:
        """Kill all its processes and close all connections."""
        self._process.end()
        for thread in self._threads:
            thread.join(self.timeout)
        self._opened.close()


def _whole(response: http.client.HTTPResponse, path: str) -> TestResponse:
    with response:
        status = f"{response.status} {response.reason}"
        request = Request(EnvironBuilder(path).get_environ())
        return TestResponse([response.read()], status, Headers(response.getheaders()), request)


def _environment() -> dict[str, str]:
    """That of the tests, with what they import from and with the commands of their virtual environment."""
    environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
    installed = (os.path.dirname(os.__file__), os.path.dirname(sys.executable))
    paths = [path for path in map(os.path.abspath, sys.path) if os.path.isdir(path) and not path.startswith(installed)]
    own = [path for path in paths if not path.endswith("-packages")]
    return {**environment, "PYTHONPATH": os.pathsep.join(own), "PATH": search_path()}


class ServerFactory:
    """The fixture ``lifecycle_server``: starts servers and kills them at the end of the test.

    :param home: a directory for their reports.
    :param show: called with the name and the text of each log at the end.
    """

    def __init__(self, home: Path, show: Callable[[str, str], object]) -> None:
        self._home = home
        self._show = show
        self._servers: list[Server] = []

    def __call__(
        self,
        app: str | None = None,
        *,
        command: Sequence[str] | None = None,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        ready_path: str | None = "/readyz",
        timeout: float = 30.0,
    ) -> Server:
        """Start a server and wait until it is ready.

        The process imports what the test can import, and finds the commands of its virtual environment.

        :param app: an application as ``flask --app`` takes it, such as ``"shop:create_app"``, served by
            ``flask lifecycle run``.
        :param command: a server's command instead; ``{port}`` and ``{probe_port}`` in it become free ports.
        :param settings: ``LIFECYCLE_*`` settings, which override those of the application; JSON values. With
            ``LIFECYCLE_PROBE_PORT=0`` the probe listener is on :attr:`Server.probe_port`.
        :param env: more variables for the environment of the process.
        :param ready_path: the path that answers 200 once the server is ready; ``None`` not to wait.
        :param timeout: seconds that each wait may take.
        :raises AssertionError: the server does not become ready; the text has its log.
        :raises ValueError: neither or both of ``app`` and ``command`` were given, or the command has no ``{port}``.
        """
        if (app is None) == (command is None):
            raise ValueError("Give lifecycle_server either an application, as 'shop:create_app', or command=[...].")
        if app is not None:
            command = [sys.executable, "-m", "flask", "--app", app, "lifecycle", "run", "-p", "{port}"]
        if not isinstance(command, Sequence) or isinstance(command, str):
            raise ValueError("The command must be a list of words, such as ['waitress-serve', '--port={port}', ...].")
        if not any("{port}" in word for word in command):
            raise ValueError("The command has no '{port}', which is replaced by a free port; write it there.")
        home = self._home / f"server-{len(self._servers)}"
        home.mkdir()
        try:
            server = Server(command, home, settings or {}, env or {}, timeout)
        except MisuseError as error:
            raise AssertionError(str(error)) from None
        self._servers.append(server)
        if ready_path is not None:
            server.wait_status(ready_path)
        return server

    def close(self) -> None:
        """Kill the servers; the fixture does this at the end of the test."""
        for server in self._servers:
            server._end()
            self._show(f"log of {' '.join(server.command)}", server.log)
