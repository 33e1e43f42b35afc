"""Requests to an OpenAI-compatible endpoint (vLLM, SGLang, hosted models), many at a time, within a cost.

Retries with back-off are the `openai` client's: 408, 409, 429 (honouring Retry-After), 5xx, lost connections and
time-outs. What comes back unreadable is asked for again here. An attempt that timed out may still be billed by a
provider; only answers that arrive are counted.
"""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import openai

from nemo_vibethinker.spectrum.spending import Spending, Usage

UNREADABLE_ATTEMPTS = 3
FAILURES_IN_A_ROW = 20  # after which the endpoint, not the request, is taken to be at fault
_OF_THE_REQUEST = (openai.BadRequestError, openai.UnprocessableEntityError, openai.APITimeoutError)
_OVERHEAD_TOKENS = 64  # of a chat template, for the upper bound on a prompt's tokens


class EndpointError(RuntimeError):
    """The endpoint cannot be used: refused, unknown model, or failing again and again."""


class CostLimitReached(RuntimeError):
    """The next request could pass the limit on cost. What is answered is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`n` answers to `text`: one user turn of the chat API, or, with `is_chat` False, raw text to be continued.

    `version` names the wording of the prompt; `max_tokens` is per answer.
    """

    text: str
    version: str
    max_tokens: int
    is_chat: bool = True
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def key(self, model: str) -> str:
        """SHA-256 (hex) of everything that determines the answer."""
        return hashlib.sha256(json.dumps([model, asdict(self)], sort_keys=True).encode()).hexdigest()

    def most(self) -> Usage:
        """The most tokens it can use: a byte-level tokenizer makes at most one token of a byte."""
        return Usage(1, len(self.text.encode("utf-8", "surrogatepass")) + _OVERHEAD_TOKENS, self.n * self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The texts of one request, why each ended ("stop", "length", ...), and the tokens of all together."""

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without a usable answer after all retries.

    `is_request` where the request itself is the likely cause: refused as it stands, or too long in the answering.
    """

    reason: str
    is_request: bool = False


class Endpoint:
    """One model behind one base URL, such as `http://localhost:8000/v1`.

    Args:
        concurrency: requests in flight at a time.
        timeout_s: seconds one attempt may take.
        max_retries: further attempts after a retryable fault.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str = "",
        concurrency: int = 32,
        timeout_s: float = 600.0,
        max_retries: int = 5,
    ) -> None:
        if concurrency < 1 or timeout_s <= 0 or max_retries < 0:
            raise ValueError("concurrency and the time-out must be positive, and retries not negative")
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base url {base_url!r} must start with http:// or https://, as http://localhost:8000/v1")
        self.model = model
        self._concurrency = concurrency
        # Servers without keys accept any; the client insists on one.
        self._settings: dict[str, Any] = {
            "base_url": base_url,
            "api_key": api_key or "none",
            "timeout": timeout_s,
            "max_retries": max_retries,
        }
        self._failures_in_a_row = 0
        self._has_answered = False

    def served_from(self) -> str:
        """Where the server says that it has read the model from (`root` of /models, a vLLM field), or "".

        Raises:
            EndpointError: the endpoint does not answer, or serves other models.
        """
        try:
            with openai.OpenAI(**self._settings) as client:
                models = {entry.id: entry for entry in client.models.list().data}
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise EndpointError(f"the endpoint does not list its models: {_one_line(error)}") from error
        if self.model not in models:
            raise EndpointError(f"the endpoint serves {', '.join(models) or 'nothing'}, not {self.model}")
        return str((models[self.model].model_extra or {}).get("root") or "")

    def answer_all(
        self,
        requests: Sequence[Request],
        handle: Callable[[Request, Answer | Failure], None],
        spending: Spending,
    ) -> None:
        """Send every request; `handle` gets each result, in the order of arrival, one call at a time.

        Raises:
            CostLimitReached: after everything in flight has been handled.
            EndpointError: wrong key, unknown model, many failures in a row, or no answer at all so far.
        """
        asyncio.run(self._answer_all(requests, handle, spending))

    async def _answer_all(
        self,
        requests: Sequence[Request],
        handle: Callable[[Request, Answer | Failure], None],
        spending: Spending,
    ) -> None:
        waiting, running = deque(requests), set[asyncio.Task[Answer | Failure]]()
        turn = asyncio.Lock()
        last: Answer | Failure | None = None
        async with openai.AsyncOpenAI(**self._settings) as client:
            try:
                while waiting or running:
                    while waiting and len(running) < self._concurrency and spending.reserve(waiting[0].most()):
                        one = self._one(client, waiting.popleft(), handle, spending, turn)
                        running.add(asyncio.create_task(one))
                    if not running:
                        raise CostLimitReached(f"{len(waiting):,} requests left at --max-cost; so far {spending}")
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        last = task.result()
                        self._watch(last)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        if isinstance(last, Failure) and not (last.is_request or self._has_answered):
            raise EndpointError(f"no request was answered; the last: {last.reason}")

    async def _one(
        self,
        client: openai.AsyncOpenAI,
        request: Request,
        handle: Callable[[Request, Answer | Failure], None],
        spending: Spending,
        turn: asyncio.Lock,
    ) -> Answer | Failure:
        result, used = await self._ask(client, request)
        spending.settle(request.most(), used)
        async with turn:
            # In a thread: grading takes seconds, and must not keep other answers from being read.
            await asyncio.to_thread(handle, request, result)
        return result

    def _watch(self, result: Answer | Failure) -> None:
        """Raise EndpointError after many failures in a row."""
        self._failures_in_a_row = 0 if isinstance(result, Answer) else self._failures_in_a_row + 1
        self._has_answered |= isinstance(result, Answer)
        if isinstance(result, Failure) and self._failures_in_a_row >= FAILURES_IN_A_ROW:
            raise EndpointError(f"{self._failures_in_a_row} requests failed in a row; the last: {result.reason}")

    async def _ask(self, client: openai.AsyncOpenAI, request: Request) -> tuple[Answer | Failure, Usage]:
        """The result, and the tokens used; a server that gives fewer than `n` answers at a time is asked again."""
        parts: list[Answer] = []
        unreadable: list[str] = []
        while missing := request.n - sum(len(part.texts) for part in parts):
            if len(unreadable) == UNREADABLE_ATTEMPTS:
                return Failure(f"unreadable answer: {unreadable[-1]}"), _total(parts)
            try:
                parts.append(_read(await self._send(client, request, missing, request.seed + len(parts)), missing))
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise EndpointError(f"the endpoint refuses: {_one_line(error)}") from error
            except (openai.APIResponseValidationError, ValueError) as error:
                unreadable.append(_one_line(error))
            except openai.APIError as error:
                return Failure(_one_line(error), isinstance(error, _OF_THE_REQUEST)), _total(parts)
        texts = tuple(text for part in parts for text in part.texts)
        reasons = tuple(reason for part in parts for reason in part.finish_reasons)
        return Answer(texts=texts, finish_reasons=reasons, usage=_total(parts)), _total(parts)

    async def _send(self, client: openai.AsyncOpenAI, request: Request, n: int, seed: int) -> Any:
        common: dict[str, Any] = {
            "model": self.model,
            "n": n,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": seed,
        }
        if request.is_chat:
            messages: Any = [{"role": "user", "content": request.text}]
            return await client.chat.completions.create(messages=messages, **common)
        return await client.completions.create(prompt=request.text, **common)


def _read(response: Any, most: int) -> Answer:
    """The client does not check what it parses. ValueError if it is not what the API promises."""
    choices, usage = getattr(response, "choices", None), getattr(response, "usage", None)
    if not isinstance(choices, list) or not 1 <= len(choices) <= most:
        raise ValueError(f"not one to {most} choices: {str(response)[:80]!r}")
    prompt_tokens, completion_tokens = getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", None)
    if not isinstance(prompt_tokens, int) or not isinstance(completion_tokens, int):
        raise ValueError("no usage counts")
    return Answer(
        texts=tuple(_text(choice) for choice in choices),
        finish_reasons=tuple(str(choice.finish_reason) for choice in choices),
        usage=Usage(1, prompt_tokens, completion_tokens),
    )


def _text(choice: Any) -> str:
    """A message without content (a refusal, or a thought cut off) is the empty text."""
    message = getattr(choice, "message", None)
    text = getattr(choice, "text", None) if message is None else (getattr(message, "content", None) or "")
    if not isinstance(text, str):
        raise ValueError("a choice has no text")
    return text


def _total(parts: Sequence[Answer]) -> Usage:
    return sum((part.usage for part in parts), Usage())


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
