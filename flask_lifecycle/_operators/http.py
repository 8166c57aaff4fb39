"""Operators' requests by HTTP: ``POST /lifecycle/drain``, ``/cordon`` and ``/uncordon``.

Only the probe listener serves them, which is not meant for the public, and only with the token: any other request gets
the same answer as for a path that does not exist, so that it reveals nothing. The method must be POST: a kubelet's
``preStop`` and a followed link send GET.

Each action names the state that the process is to have. So a request that a proxy sends twice leads to the same state
and gets the same answer. The second cordon lasts as long as the first, from its own arrival.
"""

from __future__ import annotations

import functools
from typing import Any

from werkzeug import Request, Response

from .._config import shown
from .._core.feature import Feature
from .._probes.endpoints import text_response
from .cordon import LONGEST_CORDON, Control, check_name, parse_duration

_PARAMETERS = {"drain": ("by",), "cordon": ("by", "for"), "uncordon": ("by",)}
_LONGEST_QUERY = 2048  # characters; a query has a name and a duration


class Operators(Feature):
    """Adds the handlers to the probe listener of an application."""

    def __init__(self, application: Any) -> None:
        probes, prefix = application.probes, application.probes.fold(application.settings.url_prefix)
        for action in _PARAMETERS:
            answer = functools.partial(_respond, application.control, action)
            probes.operators[f"{prefix}/lifecycle/{action}"] = answer


def _respond(control: Control, action: str, request: Request) -> Response:
    if request.method != "POST":
        return text_response(405, "This needs a POST request; nothing was done.", {"Allow": "POST"})
    peer = request.remote_addr or "-"
    way = f"HTTP from {peer}"
    try:
        given = _parameters(request, _PARAMETERS[action])
        by = check_name(given.get("by", "" if action == "cordon" else peer))
        seconds = parse_duration("for", given.get("for", ""), LONGEST_CORDON) if action == "cordon" else 0.0
    except ValueError as error:
        return text_response(400, str(error))
    try:
        if action == "cordon":
            return text_response(200, control.cordon(seconds, by, way).reason)
        if action == "uncordon":
            control.uncordon(by, way)
            return text_response(200, "uncordoned")
    except RuntimeError as error:  # a shutdown has begun
        return text_response(409, str(error))
    response = text_response(202, "draining")
    # After the response was sent, or could not be: an idle process would be gone before.
    response.call_on_close(lambda: control.drain(by, way))
    return response


def _parameters(request: Request, known: tuple[str, ...]) -> dict[str, str]:
    """The parameters of a query.

    :raises ValueError: one of them is unknown or given twice, or the query is too long.
    """
    if len(request.query_string) > _LONGEST_QUERY:
        raise ValueError(f"The query string has more than {_LONGEST_QUERY} characters; give each parameter once.")
    for name, values in request.args.lists():
        if name not in known:
            listed = " and ".join(f"'{each}'" for each in known)
            raise ValueError(f"The parameter {shown(name)} is unknown; the parameters are {listed}.")
        if len(values) > 1:
            raise ValueError(f"The parameter '{name}' is given twice; give it once.")
    return request.args.to_dict()
