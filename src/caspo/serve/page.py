"""The page at `/`: ask a question, watch its tree grow and be pruned. Five fixed files, and the headers they go out with.

The files lie in ``page/`` beside this module and are read once, at import; which one is sent is decided by the route, never
by a part of the request. The page is a client of ``/v1/chat/completions`` like any other and has no access of its own. It
needs nothing from any other host: its content security policy forbids the browser to ask for it.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

__all__ = ["HEADERS", "router"]

HEADERS = {
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
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/tree.js": ("tree.js", "text/javascript; charset=utf-8"),
    "/stream.js": ("stream.js", "text/javascript; charset=utf-8"),
}

router = APIRouter(include_in_schema=False)


def _serve(route: str, name: str, media_type: str) -> None:
    content = resources.files("caspo.serve").joinpath("page", name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}

    def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    router.add_api_route(route, send, methods=["GET", "HEAD"], name=name)


for _route, (_name, _media_type) in _FILES.items():
    _serve(_route, _name, _media_type)
