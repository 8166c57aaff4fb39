"""The ledger of requests in flight and its middleware."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from werkzeug.test import create_environ
from werkzeug.wsgi import ClosingIterator

from flask_lifecycle import RequestInfo
from flask_lifecycle._core.inflight import Ledger, count_around, count_requests
from tests._fakes import BOUND, enter, in_child, raiser, running, until, whole

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
    return lambda _data: None


def gives(result: Any) -> WSGIApplication:
    """An application that returns this."""

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        return result  # type: ignore[no-any-return]

    return app


def counted(app: WSGIApplication, ledger: Ledger, **arguments: Any) -> WSGIApplication:
    """An application behind the middleware, whose start-up is over."""
    probes: dict[str, WSGIApplication] = arguments.get("probes", {})
    return count_requests(app, ledger, probes.get, arguments.get("before_first", lambda: True))


def call(app: WSGIApplication, path: str = "/work", wrapper: Any = None) -> Any:
    """Call an application, with a server's file wrapper if there is one, and return what the server would get."""
    environ = create_environ(path)
    if wrapper is not None:
        environ["wsgi.file_wrapper"] = wrapper
    return app(environ, start_response)


def begun(result: Any) -> tuple[Ledger, Any]:
    """A ledger with a request whose application returned this, and what the server got."""
    ledger = Ledger()
    return ledger, call(counted(gives(result), ledger))


class Chunks:
    """A result that writes down how it is closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.chunks)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("to_the_end", [True, False])
def test_counted_until_closed_or_iterated_to_the_end(to_the_end: bool) -> None:
    """A request is in flight from before the application is called until its body has come to its end or is closed."""
    ledger, chunks, during = Ledger(), Chunks(b"a", b"b"), list[int]()
    ledger.count_leavers()

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        during.append(len(ledger))
        return chunks

    body = call(counted(app, ledger))
    begun = iter(body)
    assert [next(begun), next(begun)] == [b"a", b"b"]
    assert (during, len(ledger)) == ([1], 1)
    if to_the_end:
        assert list(begun) == []
        assert (len(ledger), ledger.requests(), chunks.closed) == (0, (), 0)
    body.close()
    body.close()
    assert (len(ledger), chunks.closed, ledger.left) == (0, 1, 1), "counted out once"


def test_functions_called_by_close_count() -> None:
    """What the application does when its body is closed is part of the request, though the body has come to its end."""
    during: list[int] = []
    ledger, body = begun(ClosingIterator([b"a"], [lambda: during.append(len(ledger))]))
    assert (list(body), len(ledger)) == ([b"a"], 0)
    body.close()
    assert (during, len(ledger)) == ([1], 0)


def test_a_drain_waits_for_the_close_of_a_body_that_has_ended() -> None:
    """Servers send the last bytes between the end of the iteration and close(); a drain waits for that for a moment."""
    now = [100.0]
    ledger = Ledger(lambda: now[0])
    body = call(counted(gives([b"x"]), ledger))
    list(body)
    now[0] += 0.9
    assert not ledger.wait_idle(0.0)
    body.close()
    assert ledger.wait_idle(0.0)
    kept = call(counted(gives([b"x"]), ledger))
    list(kept)
    now[0] += 2.0
    assert ledger.wait_idle(0.0), "it is never closed"


def test_an_adapter_that_never_closes_leaves_nothing(ledger: Ledger) -> None:
    """Requests of an adapter that only iterates leave no entry behind, whether it comes to the end or breaks off."""
    app = counted(gives([b"a", b"b"]), ledger)
    for _chunk in call(app):
        pass
    for _chunk in call(app):
        break
    chunks = iter(call(app))
    assert (next(chunks), len(ledger)) == (b"a", 1)
    del chunks
    call(app)
    assert not ledger.active


@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("start_up", [True, False])
def test_what_raises_before_there_is_a_body(ledger: Ledger, error: BaseException, start_up: bool) -> None:
    """An application that raises, or its start-up, is counted out, and the exception goes on to the server."""
    app = gives([b"x"]) if start_up else raiser(error)
    before_first = raiser(error) if start_up else lambda: True
    with pytest.raises(type(error), match=whole(str(error))):
        call(counted(app, ledger, before_first=before_first))
    assert len(ledger) == 0


def test_a_body_and_a_close_that_raise() -> None:
    """A body that raises is in flight until the server closes it, and then no more, also if that raises."""

    class Raises(Chunks):
        __iter__ = raiser(ValueError("midway"))
        close = raiser(ValueError("close"))

    ledger, body = begun(Raises())
    with pytest.raises(ValueError, match=whole("midway")):
        list(body)
    assert len(ledger) == 1
    with pytest.raises(ValueError, match=whole("close")):
        body.close()
    assert len(ledger) == 0
    body.close()


@pytest.mark.parametrize("early", ["in the middle", "at the beginning"])
def test_a_server_that_closes_early(early: str) -> None:
    """A server that closes a body ahead of its end, or of its beginning (HEAD), ends the request and the generator."""
    states = ["not run"]

    def generate() -> Iterator[bytes]:
        try:
            yield b"x"
        finally:
            states.append("ended")

    ledger, body = begun(generate())
    if early == "in the middle":
        assert next(iter(body)) == b"x"
    body.close()
    assert len(ledger) == 0
    assert states[-1] == ("ended" if early == "in the middle" else "not run")


@pytest.mark.parametrize("drop", [True, False])
def test_the_ledger_keeps_no_environ(ledger: Ledger, drop: bool) -> None:
    """What a server put into the environ is free with the body, or when that is closed; also one that refers to it."""

    class Input:
        pass

    environ = {**create_environ("/work"), "wsgi.input": (given := Input())}
    body = environ["x.body"] = counted(gives([b"x"]), ledger)(environ, start_response)
    freed = weakref.ref(given)
    del environ, given
    if not drop:
        body.close()  # type: ignore[attr-defined]  # it has one
        assert freed() is None
    del body
    gc.collect()
    assert freed() is None
    assert not ledger.active


def test_many_threads_leave_nothing(ledger: Ledger) -> None:
    """Entering and leaving from many threads at once takes no lock and loses no count."""
    app = counted(gives([b"x"]), ledger)
    barrier = threading.Barrier(8, timeout=BOUND)

    def work() -> None:
        barrier.wait()
        for _ in range(300):
            body = call(app)
            assert len(ledger) >= 1
            body.close()

    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(running(work))
    assert len(ledger) == 0


def test_before_first_is_called_until_it_succeeds() -> None:
    """The start-up is asked for by every request until it has returned True once, and never again."""
    answers = iter([False, True])
    asked: list[bool] = []

    def before_first() -> bool:
        asked.append(next(answers))
        return asked[-1]

    app = counted(gives([b"x"]), Ledger(), before_first=before_first)
    for _ in range(4):
        call(app).close()
    assert asked == [False, True]


def test_requests_answered_around_the_middleware_are_counted() -> None:
    """What something around the middleware answers is in flight until it is closed; what it lets in counts once."""
    now = [100.0]
    ledger = Ledger(lambda: now[0])
    inner = counted(gives([b"inner"]), ledger, probes={"/livez": gives([b"alive"])})
    during: list[int] = []
    told: list[str] = []

    def around(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/socket":
            return inner(environ.copy(), start)
        during.append(len(ledger))
        now[0] += 5.0
        return [b"outer"]

    app = count_around(around, ledger, lambda: told.append("past"))
    ledger.count_leavers()
    body = call(app, "/socket")
    assert (during, len(ledger), told) == ([1], 1, ["past"])
    body.close()
    assert len(ledger) == 0
    body = call(app, "/work")
    assert len(ledger) == 1
    body.close()
    assert list(call(app, "/livez")) == [b"alive"]
    assert (len(ledger), len(ledger.active), ledger.left, told) == (0, 0, 2, ["past"])


def test_a_body_has_its_length_or_none() -> None:
    """A result has a length behind us if it had one, so a server frames it as before."""
    (_ledger, whole), (_other, stream) = begun([b"whole"]), begun(iter([b"a", b"b"]))
    assert len(whole) == 1
    assert not hasattr(stream, "__len__")


def test_chunks_cost_no_python() -> None:
    """Between the server and the chunks of the application no Python code runs."""
    _ledger, body = begun(ClosingIterator(iter([b"a", b"b"])))
    chunks = iter(body)
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _argument: calls.append(event))
    first = next(chunks)
    sys.setprofile(None)
    assert (first, calls.count("call")) == (b"a", 0)


class Closeless:
    """A file wrapper without a close of its own."""

    def __init__(self, filelike: Any, block_size: int = 8192) -> None:
        self.filelike = filelike

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"file"])


class ServerWrapper(Closeless):
    """The class that a server asks isinstance for, as waitress and Werkzeug have it."""

    def close(self) -> None:
        self.filelike.close()


def wraps(file: Any) -> WSGIApplication:
    """An application that answers with this file."""

    def app(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        return environ["wsgi.file_wrapper"](file)  # type: ignore[no-any-return]

    return app


# wsgiref's, as gunicorn's, sets ``close`` on the instance.
@pytest.mark.parametrize("wrapper", [ServerWrapper, FileWrapper, Closeless])
def test_file_wrapper_is_a_subclass_of_the_servers(wrapper: Any) -> None:
    """A file result is handed on as it is, an instance of the server's own class, and counted until its close."""
    ledger, file = Ledger(), Chunks(b"file")
    file.read = lambda size: b""  # type: ignore[attr-defined]
    results = [call(counted(wraps(file), ledger), wrapper=wrapper) for _ in range(2)]
    for number, result in enumerate(results):
        assert isinstance(result, wrapper)
        assert (type(result).__name__, result.filelike) == (wrapper.__name__, file)
        assert len(ledger) == 2 - number
        result.close()
        assert len(ledger) == 1 - number
        assert file.closed == (0 if wrapper is Closeless else number + 1)
    assert type(results[0]) is type(results[1]), "one class for each server, not for each request"


def test_file_wrapper_that_is_dropped(ledger: Ledger) -> None:
    """A file that is dropped is counted out at once: no circle keeps it until the garbage collector runs."""
    gc.disable()
    try:
        result = call(counted(wraps(None), ledger), wrapper=ServerWrapper)
        assert len(ledger) == 1
        del result
        assert len(ledger) == 0
    finally:
        gc.enable()


def test_file_wrapper_whose_close_raises() -> None:
    """A file whose close raises is counted out all the same."""
    ledger, file = Ledger(), Chunks()
    file.close = raiser(OSError("close"))  # type: ignore[method-assign]
    result = call(counted(wraps(file), ledger), wrapper=ServerWrapper)
    with pytest.raises(OSError, match=whole("close")):
        result.close()
    assert len(ledger) == 0


@pytest.mark.parametrize("hashable", [True, False])
def test_file_wrapper_that_is_no_class(ledger: Ledger, hashable: bool) -> None:
    """A wrapper that is a function (uWSGI's) is left as it is, and its result counted like any other."""

    class Function:
        __hash__ = object.__hash__ if hashable else None  # type: ignore[assignment]

        def __call__(self, file: Any, block_size: int = 8192) -> Iterator[bytes]:
            return iter([b"file"])

    result = call(counted(wraps(None), ledger), wrapper=Function())
    assert len(ledger) == 1
    assert list(result) == [b"file"]
    result.close()
    assert not ledger.active


@pytest.mark.parametrize(
    "result",
    [[b"one"], [b"one", b"two"], iter([b"generated"]), (b"tuple",), []],
    ids=lambda value: type(value).__name__,
)
def test_wsgiref_validate(ledger: Ledger, result: Any) -> None:
    """The middleware is a WSGI application to the server and a WSGI server to the application."""
    body = call(validator(counted(validator(gives(result)), ledger)), wrapper=FileWrapper)
    b"".join(body)
    body.close()
    assert len(ledger) == 0


def test_requests_oldest_first() -> None:
    """A snapshot tells method, path, age and thread, unless that has ended, oldest first."""
    now = [100.0]
    ledger = Ledger(lambda: now[0])
    app = counted(gives([b"x"]), ledger)
    first: Any = app(create_environ("/first", "http://x/mounted", method="POST"), start_response)
    now[0] = 102.0
    second = call(app, "/second")
    now[0] = 105.0
    thread = threading.current_thread().name
    assert ledger.requests() == (
        RequestInfo("POST", "/mounted/first", 5.0, thread, "running"),
        RequestInfo("GET", "/second", 3.0, thread, "running"),
    )
    first.close()
    second.thread = 0  # no thread's number
    assert [info.thread for info in ledger.requests()] == [""]
    second.close()
    assert ledger.requests() == ()


def test_a_request_writes_no_line_of_its_own() -> None:
    """What a client put into its path is in the log as it was on the wire, line ends and escapes quoted."""
    path = "/caf\u00e9 1\nERROR forged\x1b[31m"
    assert str(RequestInfo("GET", path, 3.21)) == "GET /caf%E9%201%0AERROR%20forged%1B%5B31m after 3.2 s (running)"


class Announcing(threading.Condition):
    """A condition that says when somebody sleeps in it, and lets a test step in before that."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = threading.Event()
        self.wakes = 0
        self.before_sleep: Callable[[], None] = lambda: None

    def wait(self, timeout: float | None = None) -> bool:
        self.before_sleep()
        self.asleep.set()
        return super().wait(timeout)

    def notify_all(self) -> None:
        self.wakes += 1
        super().notify_all()


@pytest.mark.parametrize("newcomer", [False, True])
def test_the_last_to_leave_wakes_the_waiter(ledger: Ledger, newcomer: bool) -> None:
    """A waiter that sleeps is woken by the last request to leave, and by no other, also if the last came meanwhile."""
    # waiter: writes watched, looks, sleeps; leaver: pops, sees watched, takes the lock, notifies.
    ledger._idle = condition = Announcing()
    first, last, woken = enter(ledger), None if newcomer else enter(ledger), list[bool]()
    with running(lambda: woken.append(ledger.wait_idle(BOUND))):
        assert condition.asleep.wait(BOUND)
        last = enter(ledger) if last is None else last
        first.close()
        assert (woken, condition.wakes) == ([], 0)
        last.close()
    assert (woken, condition.wakes) == ([True], 1)


def test_leaving_between_the_waiters_write_and_its_look(ledger: Ledger) -> None:
    """A request that leaves after the waiter's write and before its look: the waiter does not sleep."""
    # waiter: writes watched | leaver: pops, sees watched, wants the lock | waiter: looks, finds nothing.
    body = enter(ledger)
    popped = threading.Event()

    class Dict(dict[Any, None]):
        """Holds the waiter at its first look until the leaver has popped."""

        def __bool__(self) -> bool:
            if not popped.is_set() and ledger.watched:
                leaver.start()
                assert popped.wait(BOUND)
            return len(self) > 0

        def pop(self, *arguments: Any) -> Any:
            assert ledger.watched == 1
            gone = super().pop(*arguments)
            popped.set()
            return gone

    leaver = threading.Thread(target=body.close)
    ledger.active = Dict(ledger.active)
    assert ledger.wait_idle(0.0)
    leaver.join(BOUND)
    assert not leaver.is_alive()


def test_leaving_between_the_waiters_look_and_its_sleep(ledger: Ledger) -> None:
    """A request that leaves after the waiter's look and before its sleep waits for the lock, and then wakes it."""
    # waiter: writes watched, looks | leaver: pops, sees watched, wants the lock | waiter: sleeps, lets go of the
    # lock | leaver: notifies.
    body = enter(ledger)
    ledger._idle = condition = Announcing()
    leaver = threading.Thread(target=body.close)

    def step_in() -> None:
        if leaver.ident is None:
            leaver.start()
            until(lambda: not ledger.active)

    condition.before_sleep = step_in
    assert ledger.wait_idle(BOUND)
    leaver.join(BOUND)
    assert condition.wakes == 1


@pytest.mark.parametrize("lock", [True, False])
def test_fork_empties_the_childs_ledger(lock: bool) -> None:
    """A forked child begins with nothing in flight, and makes a lock anew that another thread held at the fork."""
    ledger, held, free = Ledger(), threading.Event(), threading.Event()
    body = enter(ledger)

    def hold() -> None:
        with ledger._idle if lock else contextlib.nullcontext():
            held.set()
            assert free.wait(BOUND)

    def child() -> int:
        assert len(ledger) == 0, "the parent's request"
        assert ledger.wait_idle(0.0)
        own = enter(ledger)
        assert len(ledger) == 1
        own.close()
        body.close()
        return len(ledger)

    with running(hold):
        assert held.wait(BOUND)
        assert in_child(child) == 0
        free.set()
    assert len(ledger) == 1
    body.close()
    assert ledger.wait_idle(0.0)
