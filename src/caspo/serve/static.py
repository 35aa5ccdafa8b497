"""The page at `/`: ask a question, watch its tree grow and be pruned. A few fixed files, and the headers they go out with.

The files lie in ``page/`` beside this module, those that show the model's text in `caspo.render`; which one is sent is
decided by the route, never by a part of the request. The page is a client of ``/v1/chat/completions`` like any other and has
no access of its own. It needs nothing from any other host: its content security policy forbids the browser to ask for it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from caspo.render import SCRIPTS, STYLE

__all__ = ["PATHS", "router"]

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Ask each time, so that an upgraded server is not met by an old page; the ETag keeps it cheap.
    "Cache-Control": "no-cache",
}
_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/tree.js": ("tree.js", "text/javascript"),
    "/stream.js": ("stream.js", "text/javascript"),
    f"/{STYLE}": (STYLE, "text/css"),
    **{f"/{name}": (name, "text/javascript") for name in SCRIPTS},
}
"""By route. The types are fixed: what Python guesses depends on its version and on the machine."""

PATHS = frozenset(_FILES)

router = APIRouter(include_in_schema=False)
_folder = StaticFiles(packages=[("caspo.serve", "page"), ("caspo.render", "assets")])


async def _send(request: Request) -> Response:
    name, media_type = _FILES[request.scope["route"].path]
    response = await _folder.get_response(name, request.scope)
    response.headers.update(_HEADERS)
    if isinstance(response, FileResponse):  # not where it is told that the file is unchanged
        response.headers["Content-Type"] = f"{media_type}; charset=utf-8"
    return response


for _route in _FILES:
    router.add_api_route(_route, _send, methods=["GET", "HEAD"])
