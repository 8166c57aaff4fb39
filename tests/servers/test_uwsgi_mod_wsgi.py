"""uWSGI and mod_wsgi, which tests cannot import: with modules that stand for theirs."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

import pytest

from tests._fakes import BOUND

WHOLE = {
    "master": True,
    "enable-threads": True,
    "lazy-apps": True,
    "hook-master-start": b"unix_signal:15 gracefully_kill_them_all",
}


@pytest.fixture
def uwsgi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """uWSGI's module, as far as it is used, in the first of its workers; and ours for it."""
    module = types.SimpleNamespace(
        opt=dict(WHOLE),
        worker_id=lambda: 1,
        masterpid=lambda: 1,
        listen_queue=lambda: 0,
        workers=lambda: ({"id": 1, "status": b"idle"},),
    )
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.delitem(sys.modules, "flask_lifecycle._servers.uwsgi", raising=False)
    yield importlib.import_module("flask_lifecycle._servers.uwsgi")
    del sys.modules["flask_lifecycle._servers.uwsgi"]


@pytest.mark.parametrize(
    ("change", "lacking"),
    [
        ({}, []),
        ({"enable-threads": None, "threads": b"4", "lazy-apps": None, "py-call-osafterfork": True}, []),
        ({"master": None}, ["'master = true'"]),
        ({"enable-threads": None}, ["'enable-threads = true'"]),
        ({"lazy-apps": None}, ["'lazy-apps = true'"]),
        ({"hook-master-start": b"x"}, ["'hook-master-start = unix_signal:15 gracefully_kill_them_all'"]),
        ({"die-on-term": True}, ["no 'die-on-term'"]),
    ],
)
def test_what_a_configuration_of_uwsgi_lacks(uwsgi: Any, change: dict[str, Any], lacking: list[str]) -> None:
    """Each option without which a stop loses what runs is named."""
    assert uwsgi.missing({**WHOLE, **change}) == lacking


def test_uwsgis_queue_is_waited_for(uwsgi: Any) -> None:
    """The drain goes on when nobody has waited in the queue for a while, or at its bound."""
    subject, looks = uwsgi.Uwsgi(), iter([1, 1])
    uwsgi.uwsgi.listen_queue = lambda: next(looks, 0)
    subject.stop_accepting(BOUND)
    assert next(looks, None) is None
    uwsgi.uwsgi.listen_queue = lambda: 1
    subject.stop_accepting(0.05)


@pytest.mark.parametrize(("group", "guarantee"), [("shop", "accepted requests"), ("", "started requests")])
def test_an_embedded_mod_wsgi_guarantees_less(monkeypatch: pytest.MonkeyPatch, group: str, guarantee: str) -> None:
    """What Apache's own processes hold may be ended with them at any time."""
    monkeypatch.setitem(sys.modules, "mod_wsgi", types.SimpleNamespace(process_group=group))
    monkeypatch.delitem(sys.modules, "flask_lifecycle._servers.mod_wsgi", raising=False)
    module = importlib.import_module("flask_lifecycle._servers.mod_wsgi")
    assert module.find().guarantee == guarantee
    del sys.modules["flask_lifecycle._servers.mod_wsgi"]
