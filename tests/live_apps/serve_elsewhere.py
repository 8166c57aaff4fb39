"""The live app, served where a program of its own puts the server: ``serve_elsewhere.py WHERE SERVER PORT [HOST]``.

``WHERE`` is ``main`` (thread), ``child`` (of multiprocessing), ``grandchild`` (of two forks), or what the main thread
does beside a thread that serves and is no daemon: ``join``, ``end``, ``sleep``. The pid of the process that serves goes
to the event file, unless it is ``main``, and so does the exit code of one that is not this process.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import os
import sys
import threading

from live_app import LONGEST, app, event, lifecycle


def waitress(port: int) -> None:
    import waitress

    waitress.serve(app, host="127.0.0.1", port=port)


def app_run(port: int) -> None:
    app.run(port=port)


def make_server(port: int) -> None:
    from werkzeug.serving import make_server

    make_server("127.0.0.1", port, app, threaded=True).serve_forever()


def cheroot(port: int, host: str = "127.0.0.1") -> None:
    from cheroot.wsgi import Server

    Server((host, port), app, numthreads=4, timeout=60).start()


def gevent(port: int, host: str = "127.0.0.1", log: str | None = None) -> None:
    from gevent.pywsgi import WSGIServer

    WSGIServer((host, port), app, log=log).serve_forever()


def uvicorn(port: int) -> None:
    import uvicorn

    uvicorn.run(app, host="127.0.0.1", port=port, interface="wsgi")


def hypercorn(port: int) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    asyncio.run(serve(app, config, mode="wsgi"))


def wsgiref(port: int, host: str = "127.0.0.1") -> None:
    from wsgiref.simple_server import make_server

    make_server(host, port, app).serve_forever()


def run(port: int) -> None:
    lifecycle.run(app, port=port)


def fork(function: object, *arguments: object) -> int:
    """Call a function in a forked process, and give its exit code."""
    child = os.fork()
    if child == 0:
        assert callable(function)
        function(*arguments)
        sys.exit(0)
    event(f"pid {child}")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    where, name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    serve = globals()[name]
    atexit.register(event, "atexit")
    if where == "main":
        serve(port, *sys.argv[4:])
    elif where == "child":
        process = multiprocessing.get_context("fork").Process(target=serve, args=(port,))
        process.start()
        event(f"pid {process.pid}")
        process.join()
        event(f"exit {process.exitcode}")
    elif where == "grandchild":
        fork(lambda: event(f"exit {fork(serve, port)}"))
    else:
        event(f"pid {os.getpid()}")
        thread = threading.Thread(target=serve, args=(port,), name="serves")
        thread.start()
        if where == "join":
            thread.join()
        elif where == "sleep":
            threading.Event().wait(LONGEST)
