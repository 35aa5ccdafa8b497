"""A server with OpenAI's `/v1/completions` whose "model" is a formula, in the shapes of four real servers, and with faults.

A token is a character (its code), 0 is EOS; what follows a text depends on the text alone. The shapes are those of the
servers' documentation: vLLM (ids in place of texts, the last token and the reason of the end in one chunk, usage after
it), SGLang (texts, EOS among them), llama-cpp-python (texts, EOS not shown, the end in a chunk of its own) and llama.cpp.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

__all__ = ["EOS", "VOCABULARY", "FakeServer", "distribution", "serving"]

EOS = 0
VOCABULARY = 128
LETTERS = [ord(c) for c in "abcdefgh \n"]


def distribution(text: str) -> np.ndarray[Any, Any]:
    """(V,) log-probabilities of what follows; EOS becomes likely after 12 characters behind the prompt's last colon."""
    draw = random.Random(text)
    logits = np.full(VOCABULARY, -6.0) + np.array([draw.random() for _ in range(VOCABULARY)])
    for letter in LETTERS:
        logits[letter] = 3 * draw.random()
    if len(text.rpartition(":")[2]) >= 12:
        logits[EOS] = 8.0
    return np.asarray(logits - np.log(np.exp(logits).sum()))


class FakeServer:
    """What it is told to do next stands in ``faults``, one entry for each streamed request: None, or a name and a number.

    The number is of tokens sent before the fault. Names: `cut` (the connection breaks), `half` (half an event, then the
    end), `silence`, `nan`, `positive`, `none` (no log-probabilities), `fewer` (than tokens), `model` (another one's name),
    or an HTTP status, whose number then is the seconds of Retry-After.
    """

    def __init__(self, shape: str, scaled: bool = False, key: str = "", most: int = 1000, bos: str = "") -> None:
        self.shape, self.scaled, self.key, self.most, self.bos = shape, scaled, key, most, bos
        self.faults: list[tuple[str | int, float] | None] = []
        self.bodies: list[dict[str, Any]] = []
        """Of the streamed requests."""
        self.seen: list[tuple[str, str]] = []
        """Their prompts (`asked`), and what each had come to at its end (`written`), in the order of these moments."""
        self.pause = 0.0
        """Seconds before each token."""
        self.limit: int | None = None
        """Tokens of a continuation at most, whatever is asked for."""
        self.hung_up = 0
        """Streams that the client closed before their end."""
        self.streaming = self.most_streaming = 0
        self.url = ""
        self.quit = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    fake: FakeServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake = self.fake
        owner = {"vllm": "vllm", "sglang": "sglang", "llama-cpp-python": "me", "llama.cpp": "llamacpp"}[fake.shape]
        entry: dict[str, Any] = {"id": "fake", "object": "model", "owned_by": owner}
        if fake.shape in ("vllm", "sglang"):
            entry["max_model_len"] = 200
        if fake.shape == "llama.cpp":
            entry["meta"] = {"n_vocab": VOCABULARY, "n_ctx": 200}
        self._json(200, {"object": "list", "data": [entry]})

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
            self._json(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        elif self.path == "/v1/completions":
            self._complete(body)
        elif self.path == "/tokenize" and fake.shape in ("vllm", "llama.cpp"):
            text = body.get("content", body.get("prompt"))
            if fake.shape == "vllm" and "messages" in body:
                text = "".join(f"{m['role']}: {m['content']}\n" for m in body["messages"]) + "assistant:"
            if body.get("add_special_tokens" if fake.shape == "vllm" else "add_special") and "messages" not in body:
                text = fake.bos + text
            self._json(200, {"tokens": [ord(c) for c in text]})
        elif self.path == "/detokenize" and fake.shape in ("vllm", "llama.cpp"):
            text = "".join(map(chr, body["tokens"]))
            self._json(200, {"prompt": text} if fake.shape == "vllm" else {"content": text})
        else:
            self._json(404, {"detail": "Not Found"})

    def _complete(self, body: dict[str, Any]) -> None:
        fake = self.fake
        if body.get("logprobs", 0) > fake.most:
            self._json(400, {"error": {"message": f"logprobs must be at most {fake.most}"}})
            return
        prompt = body["prompt"]
        text = fake.bos + prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        if not body.get("stream"):
            token, logs = self._sampled(text, body, 0)
            choice = self._choice(body, [token], [logs]) | {"finish_reason": "length"}
            self._json(200, {"model": "fake", "choices": [choice], "usage": {"completion_tokens": 1}})
            return
        fake.bodies.append(body)
        fake.seen.append(("asked", text))
        fault, number = (fake.faults.pop(0) if fake.faults else None) or ("", 0.0)
        if isinstance(fault, int):
            self._json(fault, {"error": {"message": "later"}}, {"Retry-After": str(number)} if number else {})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        fake.streaming += 1
        fake.most_streaming = max(fake.most_streaming, fake.streaming)
        self.written = text
        try:
            self._stream(text, body, fault, int(number))
        except OSError:
            fake.hung_up += 1
        finally:
            fake.seen.append(("written", self.written))
            fake.streaming -= 1
            self.close_connection = True

    def _stream(self, text: str, body: dict[str, Any], fault: str, number: int) -> None:
        fake, sent = self.fake, 0
        while True:
            if fault in ("cut", "half", "silence") and sent == number:
                if fault == "half":
                    self.wfile.write(b'data: {"model": "fake", "choi')
                if fault == "silence":
                    fake.quit.wait(30)
                return
            time.sleep(fake.pause)
            token, logs = self._sampled(text, body, sent)
            text = self.written = text + chr(token)
            sent += 1
            reason = "stop" if token == EOS else "length" if sent == min(body["max_tokens"], fake.limit or 1000) else None
            choice = self._choice(body, [token], [logs])
            if fault and sent == number + 1:
                _spoil(choice, fault)
            if fake.shape in ("vllm", "sglang"):
                choice["finish_reason"] = reason
                self._event(choice, fault == "model")
            elif fake.shape == "llama.cpp" or token != EOS:
                self._event(choice, fault == "model")
            if reason is not None:
                if fake.shape not in ("vllm", "sglang"):
                    self._event({"index": 0, "text": "", "logprobs": None, "finish_reason": reason}, False)
                elif "stream_options" in body:
                    self._send({"model": "fake", "choices": [], "usage": {"completion_tokens": sent}})
                self.wfile.write(b"data: [DONE]\n\n")
                return

    def _sampled(self, text: str, body: dict[str, Any], at: int) -> tuple[int, np.ndarray[Any, Any]]:
        logs, temperature = distribution(text), body["temperature"]
        if temperature == 0:
            return int(logs.argmax()), logs
        scaled = logs / temperature
        scaled -= np.log(np.exp(scaled).sum())
        draw = random.Random(f"{body['seed']} {text}")
        token = draw.choices(range(VOCABULARY), weights=np.exp(scaled).tolist())[0]
        return token, scaled if self.fake.scaled else logs

    def _choice(self, body: dict[str, Any], tokens: list[int], lists: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
        shape, k = self.fake.shape, body["logprobs"]
        texts = ["" if token == EOS else chr(token) for token in tokens]
        choice: dict[str, Any] = {"index": 0, "text": "".join(texts), "finish_reason": None}
        best = [sorted(range(VOCABULARY), key=lambda t: -logs[t])[:k] for logs in lists]
        if shape == "llama.cpp":
            choice["logprobs"] = {
                "content": [
                    self._entry(token, logs) | {"top_logprobs": [self._entry(t, logs) for t in top]}
                    for token, logs, top in zip(tokens, lists, best, strict=True)
                ]
            }
            return choice
        as_ids = shape == "vllm" and body.get("return_tokens_as_token_ids")

        def name(token: int) -> str:
            return f"token_id:{token}" if as_ids else "<eos>" if token == EOS else chr(token)

        choice["logprobs"] = {
            "tokens": [name(token) for token in tokens],
            "token_logprobs": [float(logs[token]) for token, logs in zip(tokens, lists, strict=True)],
            "top_logprobs": [
                {name(t): float(logs[t]) for t in (*top, token)}
                for token, logs, top in zip(tokens, lists, best, strict=True)
            ],
        }
        if shape == "vllm" and body.get("return_token_ids"):
            choice["token_ids"] = list(tokens)
        return choice

    @staticmethod
    def _entry(token: int, logs: np.ndarray[Any, Any]) -> dict[str, Any]:
        text = "" if token == EOS else chr(token)
        return {"id": token, "token": text, "bytes": list(text.encode()), "logprob": float(logs[token])}

    def _event(self, choice: dict[str, Any], other: bool) -> None:
        self._send({"model": "another" if other else "fake", "choices": [choice]})

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _spoil(choice: dict[str, Any], fault: str) -> None:
    """Make a choice of an OpenAI-shaped server wrong."""
    logprobs = choice["logprobs"]
    if fault == "none":
        choice["logprobs"] = None
    elif fault == "fewer":
        logprobs["token_logprobs"] = []
    elif fault in ("nan", "positive"):
        value = math.nan if fault == "nan" else 0.5
        logprobs["token_logprobs"] = [value]
        logprobs["top_logprobs"] = [dict.fromkeys(logprobs["top_logprobs"][0], value)]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(shape: str, port: int = 0, **options: Any) -> Iterator[FakeServer]:
    """A running server."""
    fake = FakeServer(shape, **options)
    server = _Quiet(("127.0.0.1", port), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield fake
    finally:
        fake.quit.set()
        server.shutdown()
        server.server_close()
