"""The shop as gunicorn serves it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import shop


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = json.dumps(shop.visit(environ["PATH_INFO"])).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
