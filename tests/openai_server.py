"""A small OpenAI-compatible server: real sampling from a transformers model, or a scripted reviewer of problems.

`python tests/openai_server.py --model HF_FOLDER --port 8000` serves a folder such as a run's `hf/`. Faults are asked
for by `POST /faults?kind=429&count=3`: the next requests get them. `GET /served` tells what was answered.
"""

import argparse
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Reply:
    """The answers to one request, why each ended, and the token counts."""

    texts: list[str]
    finish_reasons: list[str]
    prompt_tokens: int
    completion_tokens: int


Model = Callable[[str, bool, dict[str, Any]], Reply]  # (text, is_chat, request body)


class SampledModel:
    """Samples with transformers' `generate`, one request at a time."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self._lock = threading.Lock()

    def __call__(self, text: str, is_chat: bool, body: dict[str, Any]) -> Reply:
        if is_chat:
            messages = [{"role": "user", "content": text}]
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self._torch.tensor([self._tokenizer(text, add_special_tokens=False)["input_ids"]])
        with self._lock, self._torch.inference_mode():
            self._torch.manual_seed(body.get("seed", 0))
            output = self._model.generate(
                prompt,
                attention_mask=self._torch.ones_like(prompt),
                do_sample=body.get("temperature", 1.0) > 0,
                temperature=body.get("temperature", 1.0) or None,
                top_p=body.get("top_p", 1.0),
                top_k=0,
                max_new_tokens=body["max_tokens"],
                num_return_sequences=body.get("n", 1),
                eos_token_id=self._tokenizer.eos_token_id,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        responses = [self._until_end(row) for row in output[:, prompt.size(1) :].tolist()]
        return Reply(
            self._tokenizer.batch_decode(responses, skip_special_tokens=True),
            ["stop" if row[-1] == self._tokenizer.eos_token_id else "length" for row in responses],
            prompt.size(1),
            sum(map(len, responses)),
        )

    def _until_end(self, tokens: list[int]) -> list[int]:
        end = self._tokenizer.eos_token_id
        return tokens[: tokens.index(end) + 1] if end in tokens else tokens


class ScriptedReviewer:
    """Labels by keyword and solves "A + B" by adding: a stand-in for a capable model on a real connection.

    Words of the problem set it off: "prose" makes it answer prose, "once" prose at the first attempt only, "astrology"
    name an unknown domain, "vague" find the problem ill posed, "endless" run into the length limit.
    """

    KEYWORDS = (("triangle", "geometry"), ("integral", "calculus"), ("dice", "statistics"), ("equation", "algebra"))

    def __call__(self, text: str, is_chat: bool, body: dict[str, Any]) -> Reply:
        found = re.search(r"<problem-(\w{8})>\n(.*?)\n</problem-\1>", text, re.DOTALL)
        assert found, f"no delimited problem in {text!r}"
        mark, problem = found.groups()
        solves = "well_posed" in text
        answer = self._solution(problem, mark) if solves else self._label(problem, mark)
        if "prose" in problem or ("once" in problem and body["temperature"] == 0):
            answer = "I think this one is about geometry."
        reason = "length" if "endless" in problem else "stop"
        return Reply([answer], [reason], len(text.split()), len(answer.split()))

    def _label(self, problem: str, mark: str) -> str:
        domain = next((domain for word, domain in self.KEYWORDS if word in problem), "other")
        return json.dumps({"problem": mark, "domain": "astrology" if "astrology" in problem else domain})

    def _solution(self, problem: str, mark: str) -> str:
        numbers = re.search(r"(\d+) \+ (\d+)", problem)
        total = sum(map(int, numbers.groups())) if numbers else 0
        verdict = json.dumps({"problem": mark, "well_posed": "vague" not in problem})
        return f"<think>Perhaps \\boxed{{7}}?</think>The sum is \\boxed{{{total}}}.\n{verdict}"


@dataclass
class State:
    """What the server was asked and what is to go wrong next."""

    name: str
    model: Model
    root: str = ""
    delay_s: float = 0.0
    answered: list[str] = field(default_factory=list)  # "text/seed" of each answered request
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 0
    faults: deque[str] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def do_GET(self) -> None:
        state = self.state
        if self.path == "/v1/models":
            entry = {"id": state.name, "object": "model", "created": 0, "owned_by": "tests", "root": state.root}
            self._send(200, {"object": "list", "data": [entry]})
        elif self.path == "/served":
            facts = {"prompt_tokens": state.prompt_tokens, "completion_tokens": state.completion_tokens}
            self._send(200, facts | {"answered": state.answered, "attempts": state.attempts})
        else:
            self._send(404, {"error": {"message": f"no {self.path}"}})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if url.path == "/faults":
            query = parse_qs(url.query)
            self.state.faults.extend(query["kind"] * int(query.get("count", ["1"])[0]))
            self._send(200, {})
        elif url.path in ("/v1/chat/completions", "/v1/completions"):
            self._complete(url.path == "/v1/chat/completions", body)
        else:
            self._send(404, {"error": {"message": f"no {self.path}"}})

    def _complete(self, is_chat: bool, body: dict[str, Any]) -> None:
        state = self.state
        with state.lock:
            state.attempts += 1
            fault = state.faults.popleft() if state.faults else ""
        if fault == "hang":
            state.closing.wait(60)
        elif fault == "garbage":
            self._send_bytes(200, b'{"choices": [{"text": "half')
        elif fault == "other":
            self._send(200, {"object": "nothing"})
        elif fault.isdigit():
            self._send(int(fault), {"error": {"message": f"scripted {fault}"}}, {"Retry-After": "0.1"})
        elif body.get("model") != state.name:
            self._send(404, {"error": {"message": f"no model {body.get('model')}"}})
        else:
            self._answer(is_chat, body | ({"n": 1} if fault == "few" else {}))

    def _answer(self, is_chat: bool, body: dict[str, Any]) -> None:
        state = self.state
        text = body["messages"][0]["content"] if is_chat else body["prompt"]
        state.closing.wait(state.delay_s)
        reply = state.model(text, is_chat, body)
        choices = [
            {"index": i, "finish_reason": why}
            | ({"message": {"role": "assistant", "content": text}} if is_chat else {"text": text})
            for i, (text, why) in enumerate(zip(reply.texts, reply.finish_reasons, strict=True))
        ]
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        with state.lock:  # counted first: a client that is killed now has had its answer paid for
            state.answered.append(f"{text}/{body.get('seed')}")
            state.prompt_tokens += reply.prompt_tokens
            state.completion_tokens += reply.completion_tokens
        total = {"total_tokens": reply.prompt_tokens + reply.completion_tokens}
        self._send(200, {"id": "x", "model": state.name, "created": 0, "choices": choices, "usage": usage | total})

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(body).encode(), headers)

    def _send_bytes(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve(state: State, port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1 in a thread; gives the base URL."""
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        state.closing.set()
        server.shutdown()
        server.server_close()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="HF_FOLDER", help="without it, the scripted reviewer of problems answers")
    parser.add_argument("--name", default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    model = SampledModel(Path(options.model)) if options.model else ScriptedReviewer()
    with serve(State(options.name, model, root=str(options.model or "")), options.port) as url:
        print(f"serving {options.name} at {url}", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
