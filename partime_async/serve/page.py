"""The page and its files, read once and served from memory, and the headers that keep a browser from loading more."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from partime_async.errors import ConfigurationError

STATIC = Path(__file__).with_name("static")
"""The page of the demonstration."""

VIEWER = Path(__file__).with_name("viewer")
"""A plain page for any network: the camera goes there, a video comes back."""

_INDEX = "index.html"
_LARGEST_BYTES = 32 * 1024 * 1024
_WORTH_PACKING = 1024

SECURITY_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every response."""


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    packed: bytes | None
    content_type: str
    tag: str


class Page:
    """The files of one folder, in memory: no request touches the disk, and none can name a file outside.

    Args:
        folder: With an ``index.html``. Reads all files in it.

    Raises:
        ConfigurationError: There is no page in the folder, or too much to hold; the caller's fault.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / _INDEX).is_file():
            raise ConfigurationError(f"{folder} has no {_INDEX}. Pass a folder with a page, or page=None for none.")
        self._files: dict[str, _File] = {}
        total = 0
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if not path.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            total += path.stat().st_size
            if total > _LARGEST_BYTES:
                raise ConfigurationError(f"{folder} holds more than {_LARGEST_BYTES} bytes. Serve it by other means.")
            self._files[name.as_posix()] = _loaded(path)

    def index(self, request: web.Request) -> web.Response:
        """Answer with the page itself."""
        return self._answer(request, _INDEX)

    def file(self, request: web.Request) -> web.Response:
        """Answer with one of its files.

        Raises:
            HTTPNotFound: There is none of this name.
        """
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        file = self._files.get(name)
        if file is None:
            raise web.HTTPNotFound(text="there is no such file.\n")
        # Asked about every time: a page and its scripts must be of one version.
        headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if file.tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        body = file.body
        if file.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = file.packed
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, headers={**headers, "Content-Type": file.content_type})


def _loaded(path: Path) -> _File:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if path.suffix in (".js", ".mjs"):
        kind = "text/javascript"  # some machines' tables say otherwise, and a module is then refused
    is_text = kind.startswith("text/") or kind in ("application/json", "image/svg+xml", "application/manifest+json")
    packed = gzip.compress(body, mtime=0) if is_text and len(body) > _WORTH_PACKING else None
    tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    return _File(body, packed, f"{kind}; charset=utf-8" if is_text else kind, tag)


TOKEN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>partime_async: token needed</title></head>
<body><main><h1>This server needs a token</h1>
<p>Open the address that it printed when it was started, or type the token here.</p>
<form method="get"><label>Token <input name="token" type="password" required autofocus></label>
<button>Enter</button></form></main></body></html>
"""
"""What a browser without a token sees."""
