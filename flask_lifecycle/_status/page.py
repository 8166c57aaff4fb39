"""The status page: the status document as one HTML page that its script keeps up to date.

The page is complete without its script and its style sheet. Both are separate files, so that a strict
Content-Security-Policy (:data:`HEADERS`) can forbid everything else: no text of a check and no path of a request could
run even if it were not escaped. All URLs are relative, because only the browser knows the prefixes in front of them.

While the page is visible, the script asks for the *feed* every two seconds. The feed is the same page; its status is
always 200, because a browser writes any other status into its console as an error.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from werkzeug import Response

from . import formatting

if TYPE_CHECKING:
    from jinja2 import Template

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
ASSETS = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}


class Asset(NamedTuple):
    """A file of the page; its URL ends with ``version``, so that browsers may cache it forever."""

    kind: str
    data: bytes
    version: str


@functools.cache
def asset(name: str) -> Asset:
    data = (Path(__file__).parent / "static" / name).read_bytes()
    return Asset(ASSETS[name], data, hashlib.sha256(data).hexdigest()[:12])


def asset_response(name: str, query: str) -> Response:
    """A file of the page. A URL with its version may be cached forever."""
    file = asset(name)
    caching = "public, max-age=31536000, immutable" if query == file.version else "no-cache"
    return Response(file.data, headers={"Cache-Control": caching}, content_type=file.kind)


def page_response(document: Mapping[str, Any], path: str) -> Response:
    """The page, at the path of the request."""
    assets = {name: asset(name) for name in ASSETS}
    page = _template().render(d=document, at=_below(path), assets=assets)
    return Response(page.encode("utf-8", "backslashreplace"), headers=HEADERS, mimetype="text/html")


def _below(path: str) -> str:
    """Where the files and the feed of a page are, relative to its path."""
    # "./" because a colon in the first part would make a scheme of it.
    return f"./{path.rpartition('/')[2]}/-/" if not path.endswith("/") else "./-/"


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= formatting.FILTERS
    return environment.get_template("status.html")
