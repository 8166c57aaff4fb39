"""Bad arguments of the ready-made checks: each is an error of one sentence, at construction, and shows no secret."""

from __future__ import annotations

import functools
import math
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery  # type: ignore[import-untyped]  # it has no types
from flask import Flask
from sqlalchemy import create_engine

from flask_lifecycle import checks
from tests._fakes import whole

# Without types: what is given to them is wrong.
made: Any = checks
NAN, INFINITE = math.nan, math.inf
CELERY = Celery("tests", broker="memory://", set_as_current=False)
SQLITE = create_engine("sqlite://")

SHARE = "a share of the whole greater than zero, at most 1"
BYTES = "a number of bytes greater than zero, not"
NEVER = "or it never warns:"
PATH = "'path' must name a file or directory; it is empty or contains a null character."
NO_HOST = "'host' must be the bare name or address of a host, without scheme, user, port or path."
PORT = "'port' must be a whole number from 1 to 65535, not"
LIMIT = "'limit' must be a number of seconds greater than zero, at most 3600, not"
DAYS = "a number of days greater than zero, not"
ONE_OF = "A CertificateCheck takes a 'host' or the 'path' of a file; give one of them."
NOT_ASCII = "The URL must be a string of printable ASCII characters without blanks; quote all others."
NO_SCHEME = "The URL must begin with 'http://' or 'https://' and name a host."
BAD_URL = "The URL is not valid; quote '/', '@', '?' and '#' in a password."
METHOD = "The method must be written in capital letters, as 'GET', not"
CONTAINS = "'contains' must be a text or bytes, at least one character, not"
NO_BODY = "'contains' cannot be combined with the method 'HEAD', whose answer has no body."
NOT_SECURE = "'context' is for https; the URL begins with 'http://', which has no certificate."
KINDS = "'kind' must be one of 'exists', 'file', 'directory', 'mount', 'writable', not 'dir'."
STATUSES = "'statuses' must be a status from 100 to 599, or several of them, not"
NO_NAME = "A name in 'headers' is not valid; use letters, digits and hyphens, and no value."
NO_VALUE = "The value of the header 'X' must be one line of Latin-1 characters."
EXPECTED = "'expected' must be an IP address or network, or several of them, not"
AGE = "'max_age' must be a number of seconds greater than zero, at most 31536000, not"
REQUESTS = "a number of requests greater than zero, not"
CLIENT = "'client' must be a Redis client or a function that returns one, not"
ASYNC_CLIENT = "'client' is asynchronous, and a check cannot await it; give it a synchronous client."
DB = "'db' must be a SQLAlchemy Engine or the db of Flask-SQLAlchemy, not 'str'."
ASYNC_DB = "'db' is an asynchronous engine, and a check cannot await it; give a synchronous one for the same database."
NO_BIND = "An engine has no bind 'other'; leave 'bind' out, or give the db of Flask-SQLAlchemy."
WARN_AT = "'warn_at' must be a share of the pool, more than 0 and at most 1, not"
DIRECTORY = "'directory' must be a path, an Alembic Config or a ScriptDirectory, not 'int'."
MINIMUM = "'minimum' must be a whole number of workers, at least 1, not"
REPLY = "'reply_timeout' must be a number of seconds greater than zero, not"


class AsyncEngine:
    """Has the attribute of SQLAlchemy's."""

    sync_engine = None


def bad(message: str, check: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, Callable[[], Any]]:
    """A row: the error, and the call that raises it."""
    return message, functools.partial(check, *arguments, **options)


ON_HOSTS = (made.TCPCheck, made.CertificateCheck)
ON_SQL = (made.DatabaseCheck, made.PoolCheck)
http = functools.partial(made.HTTPCheck, "http://host/")
celery = functools.partial(made.CeleryCheck, CELERY)
# fmt: off
VALUES = [
    *(bad(f"'warn_share' must be {SHARE}, not {share}.", made.DiskCheck, "/", warn_share=share) for share in (NAN, 90)),
    bad(f"'fail_share' must be {SHARE}, not 0.", made.DiskCheck, "/", fail_share=0),
    bad(f"'fail_free' must be {BYTES} -1.", made.DiskCheck, "/", fail_free=-1),
    bad(f"'warn_share' must not be more than 'fail_share', {NEVER} 0.9 and 0.8.", made.DiskCheck, "/", fail_share=0.8),
    bad(f"'warn_free' must not be less than 'fail_free', {NEVER} 5 and 10485760.", made.DiskCheck, "/", warn_free=5),
    bad(f"'warn_share' must be {SHARE}, not inf.", made.MemoryCheck, warn_share=INFINITE),
    bad(KINDS, made.PathCheck, "/", kind="dir"),
    *(bad(PATH, check, path) for check in (made.PathCheck, made.MaintenanceFileCheck) for path in ("", "a\0b")),
    bad(PATH, made.CertificateCheck, path=""),
    *(bad(NO_HOST, check, host, 1) for check in ON_HOSTS for host in ("", "https://user:s3cret@host", "ho\nst")),
    *(bad(f"{PORT} {port}.", check, "host", port) for check in ON_HOSTS for port in (0, 65536)),
    *(bad(NOT_ASCII, made.HTTPCheck, url)
      for url in ("http://h/\r\nX-Injected: 1", "http://h/a b", "http://h\u00f6st/", b"http://h/", "")),
    *(bad(NO_SCHEME, made.HTTPCheck, url) for url in ("ftp://user:s3cret@host/", "host:80/s3cret", "http:///s3cret")),
    *(bad(BAD_URL, made.HTTPCheck, url)
      for url in ("http://user:s3cret/x@host/", "http://[user:s3cret@host/", "http://host:99999/")),
    bad(f"{PORT} 0.", made.HTTPCheck, "http://host:0/"),
    bad(NO_HOST, made.HTTPCheck, f"http://{'a' * 64}.test/"),
    *(bad(f"{LIMIT} {limit!r}.", http, limit=limit) for limit in (0, NAN, INFINITE)),
    bad(f"{LIMIT} {str(10**400)[:57]}....", http, limit=10**400),
    *(bad(f"{METHOD} {method!r}.", http, method=method) for method in ("get", "GET / HTTP/1.1\r\nX: y\r\n\r\nGET")),
    *(bad(f"{CONTAINS} {text!r}.", http, contains=text) for text in ("", 5)),
    bad(NO_BODY, http, method="HEAD", contains="x"),
    *(bad(f"{STATUSES} {statuses!r}.", http, statuses=statuses) for statuses in ((), None, 99, "200")),
    *(bad(NO_NAME, http, headers={name: "1"}) for name in ("X Y", "X\r\nY", "Authorization: s3cret")),
    *(bad(NO_VALUE, http, headers={"X": value}) for value in ("s3cret\r\nY: 1", "s3cret \u20ac")),
    *(bad(f"The check sets the header '{name}' itself; leave it out.", http, headers={name: "x"})
      for name in ("Connection", "transfer-encoding")),
    bad(NOT_SECURE, http, context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
    *(bad(f"{EXPECTED} {expected!r}.", made.DNSCheck, "host", expected=expected)
      for expected in ("", "somewhere", [], ["10.0.0.1/8"], [None], 5.5)),
    bad(f"'warn_days' must not be less than 'fail_days', {NEVER} 3 and 14.",
        made.CertificateCheck, "host", warn_days=3, fail_days=14),
    bad(f"'warn_days' must be {DAYS} nan.", made.CertificateCheck, "host", warn_days=NAN),
    *(bad(f"{AGE} {age}.", made.Heartbeat, "importer", max_age=age) for age in (0, -1, NAN)),
    bad(f"{AGE} -1.", made.WorkerPoolCheck, max_age=-1),
    bad(f"'warn_queue' must be {REQUESTS} 0.", made.WorkerPoolCheck, warn_queue=0),
    bad(f"'fail_queue' must be {REQUESTS} nan.", made.WorkerPoolCheck, fail_queue=NAN),
    bad(f"'warn_queue' must not be more than 'fail_queue', {NEVER} 9 and 5.",
        made.WorkerPoolCheck, warn_queue=9, fail_queue=5),
    *(bad(NO_BIND, check, SQLITE, bind="other") for check in ON_SQL),
    *(bad(f"{WARN_AT} {share!r}; 0.8 is 80 %.", made.PoolCheck, SQLITE, warn_at=share)
      for share in (0, -0.5, 1.01, 80, NAN, True, "0.8", None)),
    *(bad(f"{MINIMUM} {count!r}.", celery, minimum=count) for count in (0, -1, 1.5, True, "1", None)),
    *(bad(f"{REPLY} {seconds!r}.", celery, reply_timeout=seconds)
      for seconds in (0, -1, INFINITE, NAN, True, "1", None)),
]
TYPES = [
    bad(f"'fail_share' must be {SHARE}, not True.", made.DiskCheck, "/", fail_share=True),
    bad(f"'fail_free' must be {BYTES} '10MB'.", made.DiskCheck, "/", fail_free="10MB"),
    bad("'path' must be a string or a path, not NoneType.", made.DiskCheck, None),
    *(bad("'host' must be a string, the name or address of a host, not bytes.", check, b"host", 1)
      for check in ON_HOSTS),
    *(bad(f"{PORT} {port!r}.", check, "host", port) for check in ON_HOSTS for port in ("80", True)),
    *(bad(f"{LIMIT} {limit!r}.", http, limit=limit) for limit in (True, "1")),
    bad(ONE_OF, made.CertificateCheck),
    bad(ONE_OF, made.CertificateCheck, "host", path="path"),
    bad("'path' must be a string or a path, not int.", made.CertificateCheck, path=5),
    bad(f"'fail_days' must be {DAYS} '3'.", made.CertificateCheck, "host", fail_days="3"),
    *(bad(f"{AGE} {age!r}.", made.Heartbeat, "importer", max_age=age) for age in ("60", None)),
    bad("'load' must be a function without arguments, not 5.", made.WorkerPoolCheck, 5),
    *(bad(message, check, client)
      # What a function returns is looked at when it is called.
      for check in (made.RedisCheck, lambda client: made.RedisCheck(lambda: client)())
      for client, message in (
          (5, f"{CLIENT} 'int'."), ("redis://", f"{CLIENT} 'str'."), (redis.asyncio.Redis(), ASYNC_CLIENT),
          *((kind, f"'client' is the class {kind.__name__!r}; give the client that the application uses.")
            for kind in (redis.Redis, Path)))),
    *(bad(DB, check, "postgresql://localhost") for check in (*ON_SQL, made.MigrationsCheck)),
    *(bad(ASYNC_DB, check, db)
      for check in ON_SQL for db in (AsyncEngine(), create_engine("postgresql+psycopg_async://"))),
    bad(DIRECTORY, made.MigrationsCheck, SQLITE, directory=5),
    bad("'app' must be a Celery application, not 'Flask'.", made.CeleryCheck, Flask("tests")),
]
# fmt: on


@pytest.mark.parametrize(
    ("kind", "message", "make"),
    [(kind, *row) for kind, rows in ((ValueError, VALUES), (TypeError, TYPES)) for row in rows],
    ids=range(len(VALUES) + len(TYPES)),
)
def test_bad_arguments(kind: type[Exception], message: str, make: Callable[[], Any]) -> None:
    """Each bad argument is an error of one sentence, whose cause does not say more: it may contain a password."""
    with pytest.raises(kind, match=whole(message)) as caught:
        make()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or "s3cret" not in repr(caught.value.__context__)


@pytest.mark.parametrize(
    ("module", "make", "package", "extra"),
    [
        ("sqlalchemy", made.DatabaseCheck, "SQLAlchemy", "sqlalchemy"),
        ("sqlalchemy", made.PoolCheck, "SQLAlchemy", "sqlalchemy"),
        ("alembic.config", made.MigrationsCheck, "Alembic", "migrate"),
        ("celery", made.CeleryCheck, "Celery", "celery"),
    ],
)
def test_not_installed(
    monkeypatch: pytest.MonkeyPatch, module: str, make: Callable[..., Any], package: str, extra: str
) -> None:
    """Without the package of a check, the error names the extra to install."""
    monkeypatch.setitem(sys.modules, module, None)
    message = f"{package} is not installed; install it with: pip install 'flask-lifecycle[{extra}]'"
    with pytest.raises(RuntimeError, match=whole(message)):
        make(SQLITE)
