"""The application of the live tests about checks: its checks do what the files beside its events say."""

from __future__ import annotations

import asyncio
import functools
import os
import threading

from live_app import HOME, PLAN, app, event, lifecycle, pass_gate

from flask_lifecycle import HealthCheckError, Lifecycle


def told(conduct: str, name: str) -> bool:
    """Whether the test has made the file that tells a check what to do."""
    return (HOME / f"{conduct}-{name}").exists()


def add_checks(lifecycle: Lifecycle) -> None:
    for name, options in PLAN.get("checks", {}).items():

        def check(name: str = name) -> dict[str, int]:
            event(f"check {name}")
            if told("hang", name):
                pass_gate(name)
            if told("fail", name):
                raise HealthCheckError(f"{name} was told to fail")
            return {"pid": os.getpid()}

        lifecycle.check(name, **options)(lambda check=check: check())

    for name in PLAN.get("async_checks", ()):

        async def async_check(name: str) -> None:
            event(f"check {name}")
            while told("hang", name):
                await asyncio.sleep(0.01)

        lifecycle.check(name, timeout=0.2)(functools.partial(async_check, name))


class Redirect:
    """A WSGI middleware that sends everybody to HTTPS, the kubelet too."""

    def __init__(self, app: object) -> None:
        self.app = app

    def __call__(self, environ, start_response):  # type: ignore[no-untyped-def]
        if environ["wsgi.url_scheme"] == "http":
            start_response("301 MOVED PERMANENTLY", [("Location", "https://example.test/"), ("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)  # type: ignore[operator]


@app.get("/threads")
def threads() -> dict[str, int]:
    names = [thread.name for thread in threading.enumerate()]
    return {"all": len(names), "checks": sum(name.startswith("lifecycle-check-") for name in names)}


add_checks(lifecycle)
if PLAN.get("redirect"):
    app.wsgi_app = Redirect(app.wsgi_app)  # type: ignore[method-assign]
