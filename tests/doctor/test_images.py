"""``flask lifecycle doctor``: Dockerfiles, and the command line and configuration of gunicorn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import flask_lifecycle.gunicorn
from tests.doctor.test_doctor import DEPLOYMENT, POD, PROVED, ROOM, RUN, SHELL, changed, compare, directory, said

__all__ = ["directory"]

IMAGE = f"""\
# syntax=docker/dockerfile:1
# the shop
ARG VERSION=3.13
FROM --platform=linux/amd64 python:${{VERSION}} AS base
RUN <<END cat <<"OTHER"
CMD flask run
END
nothing here
OTHER
CMD ["python"]
FROM base as web
ENV FLASK_LIFECYCLE_GRACE_PERIOD=10 HOME="/srv"
EXPOSE 8000
healthcheck --interval=10s --timeout=6s \\
    # a comment within

    CMD curl -f http://localhost:8000/healthcheck?verbose || exit 1
STOPSIGNAL SIGTERM
CMD {RUN}
"""
LIMIT = "and the limit is set at start-up: docker run --stop-timeout 12, or 10 s by default"
FORM = 'write it in exec form, ["program", "argument"].'
WEB = "stage 'web'"


def findings(text: str, file: str = "Dockerfile", **config: Any) -> list[str]:
    """The findings of a file without its name, but for what is right."""
    told = [line.removeprefix(f"{file}:") for line in said(text, file, **config)]
    return [line for line in told if ": ok:" not in line]


def test_an_image_that_is_right_is_proved() -> None:
    """The last stage is checked, with what Docker itself needs."""
    assert said(IMAGE, "Dockerfile") == [f"Dockerfile:19: ok: {WEB}: {ROOM}, {LIMIT}"]


@pytest.mark.parametrize("name", ["Dockerfile.web", "web.dockerfile", "Containerfile", "deploy/Dockerfile", "web"])
def test_an_image_is_known_by_its_name_or_its_first_instruction(name: str) -> None:
    """A Dockerfile is recognised by its name or its first instruction."""
    Path("deploy").mkdir()
    assert said(IMAGE, name)[0].startswith(f"{name}:19: ok:")


# fmt: off
IMAGES = [
    (f"CMD {RUN}", "CMD flask lifecycle run -h 0.0.0.0 -p 8000",
     f"19: error: {SHELL}; {FORM}"),
    (f"CMD {RUN}", "CMD exec flask lifecycle run -h 0.0.0.0 -p 8000"),
    (f"CMD {RUN}", f'ENTRYPOINT ["tini", "--"]\nCMD {RUN}'),
    (f"CMD {RUN}", f'CMD {RUN}\nENTRYPOINT ["/usr/bin/env"]'),
    (f"CMD {RUN}", "ENTRYPOINT flask lifecycle run -p 8000\nCMD ['x']",
     '20: error: CMD looks like the exec form but is not JSON, so a shell runs it; write it as ["program",'
     ' "argument"], with double quotes.',
     "19: error: the application listens on 127.0.0.1, which is not reachable from outside the container; add '-h"
     " 0.0.0.0' to the command.",
     f"19: error: {SHELL}; {FORM}"),
    (f"CMD {RUN}", 'ENTRYPOINT ["/sbin/tini", "-g"]\nCMD flask lifecycle run -h 0.0.0.0 -p 8000',
     f"20: error: {SHELL}; {FORM}"),
    (f"CMD {RUN}",
     f'SHELL ["bash", "-c"]\nSHELL ["bash", 1]\nENTRYPOINT {RUN[:-9]}]\nCMD ["8000"]'),
    ("STOPSIGNAL SIGTERM", "STOPSIGNAL 3",
     "18: error: SIGQUIT is sent to stop it, but the application handles SIGTERM; set STOPSIGNAL to SIGTERM."),
    ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGINT"),
    ("STOPSIGNAL SIGTERM", "STOPSIGNAL $SIGNAL\nENV FLASK_LIFECYCLE_READY $READY"),
    ("localhost:8000", "localhost:$PORT"),
    ("localhost:8000", "localhost:8000\nHEALTHCHECK NONE\n#"),
    ("--timeout=6s", "--timeout=soon",
     "14: error: --timeout is 'soon'; give it a duration such as '30s' or '1m30s'."),
    ("--timeout=6s", "--timeout=5s",
     "14: warning: timeout of healthcheck is 5 s, but the answer may take the 5 s of LIFECYCLE_PROBE_TIMEOUT; set it"
     " to 6 or more, or LIFECYCLE_PROBE_TIMEOUT below it."),
    ("GRACE_PERIOD=10", "GRACE_PERIOD 8",
     "12: warning: FLASK_LIFECYCLE_GRACE_PERIOD is '8 HOME=/srv' here, but the application was loaded with 10.0, which"
     " all rules use; run the doctor with FLASK_LIFECYCLE_GRACE_PERIOD in its environment."),
]
# fmt: on


@pytest.mark.parametrize("row", IMAGES, ids=range(len(IMAGES)))
def test_wrong_images(row: tuple[str, ...]) -> None:
    """Each rule finds its case in a Dockerfile, and only that."""
    compare(IMAGE, "Dockerfile", WEB, row)


def test_stages() -> None:
    """A stage inherits the command of the one below, until a new entry point resets it; --name selects a stage."""
    text = f"FROM a AS one\nCMD flask run\nFROM one AS two\nFROM one AS three\nENTRYPOINT {RUN}\nFROM two AS four\n"
    wrong = [f"2: error: stage 'four': {SHELL}; {FORM}"]
    assert [line for line in findings(text) if "error" in line and SHELL in line] == wrong
    assert said(text, "Dockerfile", "three") == [f"Dockerfile:5: ok: stage 'three': {ROOM}, {LIMIT}"]
    assert said(text, "Dockerfile", "nobody")[-1].partition(" stage")[2].startswith(" 'four'")


def test_an_image_without_a_command_has_that_of_its_base() -> None:
    """Without a command there is no finding about one; a backtick escapes if the first line says so."""
    assert said("# escape=`\nfrom a\nRUN `\n x\nCMD []\nVOLUME /a `", "Dockerfile") == [
        f"Dockerfile:2: ok: image: {ROOM}, {LIMIT}"
    ]


def command(*words: str) -> str:
    """The deployment with another command."""
    return changed(DEPLOYMENT, RUN, f"[gunicorn, {', '.join(words)}]")


@pytest.mark.parametrize("options", ["-b, '0.0.0.0:8000'", "-b:8000", "--bind, '[::]:8000'", "--bind=0.0.0.0"])
def test_the_address_of_gunicorn_is_read(options: str) -> None:
    """Each form of the option gives port 8000 and an address that others reach."""
    assert said(command(options, "shop:app")) == [PROVED]
    assert f"deploy.yaml:20: error: {POD}: readinessProbe asks port 8001" in "".join(
        said(changed(command(options, "shop:app"), "port: 8000}", "port: 8001}"))
    )


def test_other_addresses_of_gunicorn() -> None:
    """A loopback address is an error; a socket, a variable, several addresses and a configuration are unknown."""
    for options in ("-b, 'unix:/a'", "-b, '$(A):80'", "-b, ':80', -b, ':81'", "-c, a.py", "-b, ''"):
        assert said(command(options, "shop:app")) == [PROVED]
    assert said(command("--bind", "'127.0.0.1:8000'", "shop:app"))[1:] == [
        f"deploy.yaml:11: error: {POD}: the application listens on 127.0.0.1, which is not reachable from outside the"
        " container; set --bind to '0.0.0.0:8000'."
    ]


def test_a_graceful_timeout_in_a_command() -> None:
    """It must last from the end of the delay to that of the grace period; with "auto" there may be no delay."""
    assert said(command("--graceful-timeout", "'8'")) == [PROVED]
    assert said(command("--graceful-timeout=7"))[1:] == [
        f"deploy.yaml:11: error: {POD}: graceful_timeout is 7 s, and a worker may need 8 s after the delay; set it to 8"
        " or more."
    ]
    assert "may need 20 s" in said(
        command("--graceful-timeout=8"), LIFECYCLE_SHUTDOWN_DELAY="auto", LIFECYCLE_GRACE_PERIOD=20
    )[-1]  # fmt: skip
    assert said(command("--graceful-timeout=$A")) == [PROVED]


STAR = "from flask_lifecycle.gunicorn import *\n"
UNTOLD = "graceful_timeout is unknown without running the file, and a worker may need 8 s after the delay"
CONFIGURATIONS = [
    (f"{STAR}graceful_timeout = 7.5", [
        "2: error: gunicorn: graceful_timeout is 7.5 s, and a worker may need 8 s after the delay; set it to 8 or more."
    ]),
    (f"{STAR}graceful_timeout: int = 9\nif True:\n    graceful_timeout = 2 * 3\n", [
        f"4: warning: gunicorn: {UNTOLD}; set it to 8 or more."
    ]),
    (f"{STAR}graceful_timeout = True", [f"2: warning: gunicorn: {UNTOLD}; set it to 8 or more."]),
    (f"{STAR}a, graceful_timeout = 1, 2", [f"2: warning: gunicorn: {UNTOLD}; set it to 8 or more."]),
    ("graceful_timeout = 8\nb = '\\d'", [
        "1: warning: gunicorn: the hooks of flask_lifecycle are missing, so connections in the accept queue are lost"
        " during a shutdown; add 'from flask_lifecycle.gunicorn import *'."
    ]),
    (f"from flask_lifecycle import gunicorn as ours\n{STAR}def pre_fork(a, b):\n    ours.pre_fork(a, b)\n", []),
    ("import flask_lifecycle.gunicorn as ours\n", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CONFIGURATIONS, ids=range(len(CONFIGURATIONS)))
def test_wrong_configurations(text: str, expected: list[str]) -> None:
    """A configuration is parsed and not run; computed values are unknown."""
    assert findings(text, "gunicorn.conf.py") == expected


def test_the_default_timeout() -> None:
    """The default is right or a warning, because the command line may have another value."""
    assert said(STAR, "gunicorn.conf.py") == [
        "gunicorn.conf.py:1: ok: gunicorn: graceful_timeout is 30 s by default, and a worker may need 8 s after the"
        " delay"
    ]
    assert said(STAR, "gunicorn.conf.py", LIFECYCLE_GRACE_PERIOD=60) == [
        "gunicorn.conf.py:1: warning: gunicorn: graceful_timeout is 30 s by default, and a worker may need 58 s after"
        " the delay; set it to 58 or more."
    ]


@pytest.mark.parametrize("hook", flask_lifecycle.gunicorn.__all__)
def test_every_hook_is_known(hook: str) -> None:
    """The doctor finds a definition that replaces any of our hooks, although it imports nothing that it checks."""
    assert findings(f"{STAR}def {hook}(*arguments):\n    print()\n", "gunicorn.conf.py") == [
        f"2: error: gunicorn: '{hook}' replaces our hook and does not call it; call flask_lifecycle.gunicorn.{hook} in"
        " it."
    ]
