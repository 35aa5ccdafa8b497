"""A scripted `/v1/chat/completions` behind the real page, on loopback: what the question says decides how it answers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from caspo.serve.static import router

__all__ = ["HOSTILE", "KEY", "MARKED", "Fake", "serving"]

KEY = "sesame-1234"
HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script><b>bold</b> πάντα ῥεῖ 🙂'
MARKED = "Thus **x** is:\n\\[\n  x = \\frac{1}{2}\n\\]\n"
LONG = "antidisestablishmentarianism" * 120


def node(number: int, parent: int, depth: int, text: str, confidence: float, path: float, decision: str) -> dict[str, Any]:
    """A node of the wire's tree."""
    return {
        "id": number, "parent": parent, "depth": depth, "text": text, "confidence": confidence, "path_confidence": path,
        "tokens": len(text) // 3 + 1, "decision": decision, "final": decision == "finished", "thinking": False,
    }  # fmt: skip


TREE = [
    node(0, -1, 1, "Mia buys 3 bags with 6 pears each, so she buys 3 * 6 = 18 pears.\n", 0.97, 0.97, "expanded"),
    node(1, 0, 2, "With the 14 she had, that makes 14 + 18 = 32 pears.\n", 0.58, 0.5626, "expanded"),
    node(2, 1, 3, "She gives 5 away: 32 - 5 = 27.\n", 0.93, 0.5232, "expanded"),
    node(3, 2, 4, "The answer is 27.\n", 0.99, 0.518, "finished"),
    node(4, 0, 2, "With 5 given away, 18 - 5 = 13 pears.\n", 0.41, 0.3977, "expanded"),
    node(5, 4, 3, "Then she has 13 + 14 = 28", 0.09, 0.0358, "pruned"),
    node(6, 1, 3, "Giving 5 pears away leaves 32 - 5 = 27 pears.\n", 0.81, 0.4557, "expanded"),
    node(7, 6, 4, "The answer is 27.\n", 0.98, 0.4466, "finished"),
    node(8, 0, 2, "She had 14 pears before", 0.33, 0.3201, "dropped"),
    node(9, 4, 3, "Then 14 more pears, all in all, minus the bags", 0.22, 0.0875, "cut"),
]
ANSWER = (0, 1, 2, 3)


class Fake:
    """What was asked, and whether a client that hung up was noticed."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.hung_up = threading.Event()
        self.pause = 0.0
        """Seconds between the chunks."""
        self.app = FastAPI(openapi_url=None)
        self.app.include_router(router)
        self.app.add_api_route("/v1/models", self._models)
        self.app.add_api_route("/v1/chat/completions", self._chat, methods=["POST"])

    def _models(self) -> Any:
        return {"object": "list", "data": [{"id": "stories-tiny", "object": "model"}]}

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        question = body["messages"][-1]["content"]
        self.bodies.append(body)
        self.paths.append(str(request.url))
        if "key" in question and request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": {"message": "Give a key.", "type": "invalid_request_error"}}, 401)
        if "busy" in question:
            return JSONResponse({"error": {"message": "Too many."}}, 429, headers={"Retry-After": "7"})
        if "proxy" in question:
            return Response("<html>bad gateway</html>", 502, media_type="text/html")
        return StreamingResponse(self._stream(question), media_type="text/event-stream")

    async def _stream(self, question: str) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._chunks(question):
                # Cut in the middle of lines and of characters, as networks do.
                size = 13 if "hostile" in question else len(chunk) // 2 + 1
                for start in range(0, len(chunk), size):
                    yield chunk[start : start + size]
                    await asyncio.sleep(self.pause)
        except (asyncio.CancelledError, GeneratorExit):
            self.hung_up.set()
            raise

    async def _chunks(self, question: str) -> AsyncIterator[bytes]:
        nodes = grown(question)
        answer: dict[str, Any] = {
            "answer": HOSTILE if "hostile" in question else "27", "confidence": 0.8712, "abstained": False, "method": "cat",
            "generated_tokens": 214,
            "steps": [
                {"text": one["text"], "confidence": one["confidence"], "thinking": one["thinking"]}
                for one in map((nodes or TREE).__getitem__, ANSWER)
            ],
        }  # fmt: skip
        for place, one in enumerate(nodes[:10]):
            yield sse({"delta": {}, "caspo": {"nodes": [{**one, "decision": "dropped", "final": False}]}})
            yield b": keep-alive\n\n"
            yield sse({"delta": {}, "caspo": {"nodes": [one]}})
            if "lost" in question and place == 4:
                return
            if "error" in question and place == 4:
                yield b'data: {"error": {"message": "The engine failed: NaN.", "type": "server_error"}}\n\n'
                return
            while "forever" in question and place == 4:
                await asyncio.sleep(0.05)
                yield b": still here\n\n"
        if nodes[10:]:
            yield sse({"delta": {}, "caspo": {"nodes": nodes[10:]}})
        if "unsure" in question:
            answer |= {"answer": None, "abstained": True, "confidence": 0.1234, "steps": []}
            yield sse({"delta": {"refusal": "Confidence 0.1234 is below abstain_below, 0.5."}})
        else:
            for index, step in enumerate(answer["steps"]):
                yield sse(
                    {
                        "delta": {"reasoning_content" if step["thinking"] else "content": step["text"]},
                        "caspo": {"step": {"index": index, **{k: step[k] for k in ("confidence", "thinking")}}},
                    }
                )
        yield sse({"delta": {}, "finish_reason": "stop", "caspo": answer | {"tree": {"nodes": nodes, "prompt_tokens": 40}}})
        yield b'data: {"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 214}}\r\n\r\n'
        yield b"data: [DONE]\n\n"


def grown(question: str) -> list[dict[str, Any]]:
    """The nodes of the tree."""
    nodes = [dict(one) for one in TREE]
    if "hostile" in question:
        nodes[0]["text"], nodes[3]["text"] = HOSTILE + "\n", LONG
    if "thinking" in question:
        for one in nodes[:2]:
            one["thinking"] = True
    if "marked" in question:
        nodes[0]["text"] = MARKED
    if "thousands" in question:
        more = range(len(TREE), 3000 + len(TREE))
        nodes += [node(i, i - 1 if i % 3 else 0, 2, f"step {i}\n", 0.5, 0.5, "expanded") for i in more]
    if "undecided" in question:  # a method that decides nothing about single steps
        nodes = [one | {"decision": ""} for one in nodes]
    return [] if "silent" in question else nodes  # a method that tells nothing of its growth


def sse(choice: dict[str, Any]) -> bytes:
    chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "finish_reason": None, **choice}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


@contextmanager
def serving(fake: Fake) -> Iterator[str]:
    """Serve it on a free port of loopback; the page's address."""
    server = uvicorn.Server(uvicorn.Config(fake.app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(10)
