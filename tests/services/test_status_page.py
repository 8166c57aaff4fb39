"""The status page in a real browser, from real processes, to the end of their stops."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.live._client import Connection
from tests.live._process import Running, Starter

from ._browser import Browser

SETTINGS = {"LIFECYCLE_DETAILS": "always", "LIFECYCLE_PROBE_HOST": "127.0.0.1", "LIFECYCLE_PROBE_PORT": 0}
# Every text against the first ground behind it, as they are painted: WCAG 2.2 wants 4.5 to 1.
CONTRAST = """
(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (e) => {
    const rgb = numbers(getComputedStyle(e).backgroundColor);
    return rgb.length === 3 || !e.parentElement ? rgb : ground(e.parentElement);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || e.closest('noscript, svg')) continue;
    const [a, b] = [luminance(numbers(getComputedStyle(e).color)), luminance(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (!(ratio >= 4.5)) found.push(ratio.toFixed(2) + ' ' + e.outerHTML);
  }
  return found;
})()
"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser of this test's own; it ends with the test, and has asked nobody but this machine."""
    home = tmp_path / "browser"
    home.mkdir()
    browser = Browser(home)
    yield browser
    browser.close()
    hosts = {urlsplit(url).hostname for url in browser.requested if not url.startswith(("data:", "about:"))}
    assert hosts <= {"127.0.0.1"}


def serve(live: Starter, server: str = "waitress", **more: Any) -> tuple[Running, str, str]:
    """A process, and its page on its own port and on its probe listener."""
    running = live.serve(server, settings=SETTINGS | more.pop("settings", {}), **more)
    probes = running.wait_log(r"probe listener on (http://[\d.]+:\d+)")[1]
    return running, f"http://127.0.0.1:{running.address[1]}/healthcheck", f"{probes}/healthcheck"


def begin(running: Running, path: str, told: str) -> Connection:
    """Begin a request that waits in the application."""
    client = Connection(running.address)
    client.ask(path)
    running.wait_event(told)
    return client


def end(running: Running, gate: str, *clients: Connection) -> None:
    """Let requests go on to their answers."""
    running.open_gate(gate)
    for client in clients:
        with client:
            assert client.answer().status == 200


def quiet(browser: Browser) -> None:
    """Nothing was logged in the console, and nothing is wrong with the page."""
    assert browser.console == []
    assert browser.issues == []


def unanswered(browser: Browser) -> None:
    """The console has the browser's own lines about requests without an answer, and no others."""
    assert all("net::ERR_" in line for line in browser.console)


def until_shown(browser: Browser, *texts: str) -> None:
    """Wait until the page shows something."""
    for text in texts:
        browser.wait(f"document.body.innerText.includes({json.dumps(text)})")


def test_what_it_shows(live: Starter, browser: Browser) -> None:
    """A failing check and requests in flight are shown, and what comes is shown without a reload."""
    running, _main, probes = serve(live, plan={"check": "raise"}, excuse="boom")
    browser.look(1200, 900)
    browser.open(probes)
    assert "fail" in browser.run("document.querySelector('h1').innerText")
    assert "ValueError" in browser.text
    client = begin(running, "/gate/one", "begin live one")
    until_shown(browser, "GET /gate/one", "/gate/<gate>", "running")
    end(running, "one", client)
    browser.wait("!document.body.innerText.includes('GET /gate/one')")
    # The one line is the browser's own, about the status of the page itself: a failing health check is a 503.
    assert [line for line in browser.console if "503" not in line] == []
    assert len(browser.console) == 1
    assert browser.issues == []
    assert {status for status, url in browser.responses if "/-/" in url} == {200}
    assert running.stop() == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_screens_and_colours(live: Starter, browser: Browser, width: int, dark: bool) -> None:
    """On a phone and on a desk, in the light, in the dark and in print, nothing is too wide and all has contrast."""
    running, _main, probes = serve(live, plan={"catch_all": True})
    path = "/" + "x" * 400
    client = begin(running, path, f"begin catch-all {path}")
    browser.look(width, 800, dark=dark)
    browser.open(probes)
    until_shown(browser, "GET /xxx")
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert browser.run(CONTRAST) == []
    browser.look(width, 800, dark=dark, media="print")
    assert browser.run(CONTRAST) == []
    quiet(browser)
    end(running, "catch-all", client)
    assert running.stop() == 0


def test_what_has_not_changed_stays(live: Starter, browser: Browser) -> None:
    """A refresh leaves nodes, focus, selection, what is open and the scroll position as they are."""
    running, _main, probes = serve(live, plan={"observed": True})
    clients = [begin(running, f"/gate/{name}", f"begin live {name}") for name in ("a", "b", "c")]
    browser.look(1200, 400)
    browser.open(probes)
    until_shown(browser, "GET /gate/a", "GET /gate/c")
    browser.wait("document.querySelector('details') !== null")
    browser.run("document.querySelectorAll('#requests tbody tr').forEach((row, at) => { row.number = at; })")
    browser.run("(() => { const e = document.querySelector('details'); e.marked = true; e.open = true; })()")
    browser.run(
        "(() => { const cell = document.querySelectorAll('#requests tbody tr')[2].querySelector('th');"
        " getSelection().selectAllChildren(cell); document.getElementById('pause').focus({preventScroll: true});"
        " scrollTo(0, 120); })()"
    )
    figure = "document.querySelector('details dd').textContent"
    before = browser.run(figure)
    running.open_gate("b")
    browser.wait("document.querySelectorAll('#requests tbody tr').length === 2")
    browser.wait(f"{figure} !== {json.dumps(before)}")
    assert browser.run("[...document.querySelectorAll('#requests tbody tr')].map((row) => row.number)") == [0, 2]
    assert browser.run("document.querySelector('details').open && document.querySelector('details').marked") is True
    assert browser.run("getSelection().toString().trim()") == "GET /gate/c"
    assert browser.run("document.activeElement.id") == "pause"
    assert browser.run("scrollY") == 120
    quiet(browser)
    for name, client in zip("abc", clients, strict=True):
        end(running, name, client)
    assert running.stop() == 0


def test_pause(live: Starter, browser: Browser) -> None:
    """A page that is paused does not ask, and one that goes on does."""
    running, _main, probes = serve(live)
    browser.open(probes)
    browser.wait("document.querySelector('#pause').hidden === false")
    browser.run("document.querySelector('#pause').click()")
    asked = len(browser.requested)
    running.wait_log("STARTING -> READY")
    assert (
        browser.run("new Promise((done) => setTimeout(() => done(document.querySelector('#pause').innerText), 2500))")
        == "Resume"
    )
    assert len(browser.requested) == asked
    browser.run("document.querySelector('#pause').click()")
    browser.wait("document.querySelector('#pause').innerText === 'Pause'")
    browser.wait("performance.getEntriesByType('resource').length > 0")
    quiet(browser)
    assert running.stop() == 0


def test_a_whole_drain(live: Starter, browser: Browser, server: str) -> None:
    """On the probe listener the page follows a stop through its phases, and then says that the process has stopped."""
    plan = {"hooks": {"shutdown": [["slow", "gate", None]]}}
    running, _main, probes = serve(live, server, plan=plan)
    client = begin(running, "/gate/one", "begin live one")
    browser.open(probes)
    until_shown(browser, "READY", "GET /gate/one")
    running.begin_stop()
    until_shown(browser, "DRAINING", "SIGTERM", "Time left")
    browser.wait("document.querySelector('[aria-current=step]')?.dataset.key === 'drain'")
    end(running, "one", client)
    until_shown(browser, "STOPPING")
    browser.wait("document.querySelector('[aria-current=step]')?.dataset.key === 'hooks'")
    running.open_gate("slow")
    assert running.wait_gone() == 0
    until_shown(browser, "The process has stopped, or closed this port. No answer since")
    assert browser.run("document.documentElement.className") == "stale"
    unanswered(browser)


def test_a_drain_on_the_own_port(live: Starter, browser: Browser, server: str) -> None:
    """On the application's own port the page says when that is closed, and holds up no stop."""
    running, main, _probes = serve(live, server, settings={"LIFECYCLE_SHUTDOWN_DELAY": 4.0})
    client = begin(running, "/gate/one", "begin live one")
    browser.open(main)
    until_shown(browser, "READY", "GET /gate/one")
    running.begin_stop()
    until_shown(browser, "DRAINING", "closed this port")
    end(running, "one", client)
    assert running.wait_gone() == 0
    unanswered(browser)


def test_a_process_that_is_killed(live: Starter, browser: Browser) -> None:
    """Of a process that is gone without a word the page keeps what it saw last, and says since when."""
    running, _main, probes = serve(live)
    browser.open(probes)
    until_shown(browser, "READY")
    running.send(signal.SIGKILL)
    browser.wait("document.documentElement.className === 'stale'")
    assert re.search(
        r"No answer since \d\d:\d\d:\d\d UTC, for \d+ s", browser.run("document.getElementById('live').innerText")
    )
    assert "READY" in browser.text
    unanswered(browser)
    assert running.wait_gone() == -signal.SIGKILL


def test_signing_in(live: Starter, browser: Browser) -> None:
    """Without the token there is the status and a way in; with it there is the page, and it goes on by itself."""
    settings = {"LIFECYCLE_DETAILS": "token", "LIFECYCLE_TOKEN": "hush-hush-hush-hush-hush"}
    running, _main, probes = serve(live, settings=settings)
    browser.open(probes)
    assert browser.text.split() == ["pass", "Sign", "in", "to", "see", "details."]
    browser.sign_in_as("anybody", "wrong")
    browser.run("document.querySelector('a').click()")
    until_shown(browser, "Sign in with any user name, and the token as the password.")
    browser.sign_in_as("anybody", settings["LIFECYCLE_TOKEN"])
    browser.console.clear()  # the browser's own lines about 401
    browser.open(f"{probes}?login")
    until_shown(browser, "READY")
    client = begin(running, "/gate/one", "begin live one")
    until_shown(browser, "GET /gate/one")
    assert {status for status, url in browser.responses if "/-/feed" in url} == {200}
    end(running, "one", client)
    assert [line for line in browser.console if "401" not in line] == []
    assert running.stop() == 0


@pytest.mark.parametrize("slash", ["", "/"])
def test_under_a_mount(live: Starter, browser: Browser, slash: str) -> None:
    """Behind a dispatcher the page and its files are below the mount, with and without a slash at the end."""
    running, main, _probes = serve(live, plan={"second": True})
    browser.open(main.replace("/healthcheck", "/second/healthcheck") + slash)
    until_shown(browser, "second", "READY")
    browser.wait("document.styleSheets.length === 1 && document.querySelector('#pause').hidden === false")
    quiet(browser)
    assert running.stop() == 0
