"""The shop as uvicorn serves it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import shop

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def fetch(path: str) -> None:
    reader, writer = await asyncio.open_connection(*shop.SETTINGS["service"].split(":"))
    try:
        writer.write(f"GET {path} HTTP/1.0\r\nFrom: {os.getpid()}\r\n\r\n".encode())
        shop.check(int((await reader.readline()).split()[1]))
    finally:
        writer.close()


@shop.breaker
async def decorated(path: str) -> None:
    await fetch(path)


async def visit(path: str) -> dict[str, object]:
    began = time.monotonic()
    outcome = "success"
    try:
        if path == "/decorated":
            await decorated(path)
        else:
            await shop.breaker.execute_async(fetch, path)
    except Exception as error:
        outcome = shop.name_of(error)
    return shop.answer(outcome, began)


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    body = json.dumps(await visit(scope["path"])).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    # uvicorn ends its workers by the signal that it was sent, and no exit handler runs.
    await asyncio.to_thread(shop.client.close)
    await send({"type": "lifespan.shutdown.complete"})
