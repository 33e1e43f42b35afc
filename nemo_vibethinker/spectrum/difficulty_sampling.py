"""Sampling responses to measure difficulty: from an endpoint, or by transformers on this machine; and grading them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from nemo_vibethinker.config import SamplingConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import IM_END, encode_prompts, prompt_text, user_turn
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.spectrum.difficulty import Difficulty, known_pass_rate, prompt_hash, task_hash
from nemo_vibethinker.spectrum.endpoint import Answer, Endpoint, Failure, Request
from nemo_vibethinker.spectrum.spending import Spending, Usage

GRADER_PATIENCE = 32  # samples that the grader may leave ungraded from the start before the work stops


class GraderFailed(RuntimeError):
    """No response at all could be graded."""


class RecordGrader(Protocol):
    """What `reward.grader.Grader` does."""

    def grade(self, records: Sequence[Record], responses: Sequence[str]) -> list[Verdict]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingPlan:
    """How many responses a prompt gets, and how they are sampled; `instruction` follows every prompt.

    `is_chat` False sends the pipeline's own ChatML to the completions API, so that the model sees the same tokens as
    in training; True leaves the template, and any default system prompt, to the server.
    """

    samples: int
    sampling: SamplingConfig
    instruction: str
    seed: int = 0
    is_chat: bool = False

    def facts(self) -> dict[str, Any]:
        """What determines the responses, for the difficulty file."""
        return asdict(self.sampling) | {
            "instruction": self.instruction,
            "seed": self.seed,
            "api": "chat" if self.is_chat else "completions",
        }


Handle = Callable[[Record, Answer | Failure], None]
Sample = Callable[[Sequence[Record], Handle], None]


def sampling_requests(records: Sequence[Record], plan: SamplingPlan) -> list[Request]:
    """One request a record, in their order."""
    render = user_turn if plan.is_chat else prompt_text
    return [
        Request(
            text=render(record.prompt, plan.instruction),
            version=task_hash(record),  # records that differ in the answer alone are different requests
            max_tokens=plan.sampling.max_response_length,
            is_chat=plan.is_chat,
            n=plan.samples,
            temperature=plan.sampling.temperature,
            top_p=plan.sampling.top_p,
            seed=_prompt_seed(plan.seed, record),
        )
        for record in records
    ]


def sample_from_endpoint(
    endpoint: Endpoint, records: Sequence[Record], plan: SamplingPlan, handle: Handle, spending: Spending
) -> None:
    """Sample from what the endpoint serves; raises as `Endpoint.answer_all`."""
    asked = dict(zip(sampling_requests(records, plan), records, strict=True))
    endpoint.answer_all(list(asked), lambda request, result: handle(asked[request], result), spending)


def sample_locally(folder: Path, records: Sequence[Record], plan: SamplingPlan, handle: Handle) -> None:
    """Sample with transformers from a Hugging Face folder, on the GPU if there is one.

    A prompt's responses depend on the plan's seed and the task alone, so a resumed run gives the same ones.
    ValueError for a folder without a model or without a ChatML tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    except OSError as error:
        raise ValueError(f"{folder} is not a Hugging Face model folder: {str(error).splitlines()[0]}") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    # Built from nothing: a model's own generation config may hold a top-k or a repetition penalty.
    model.generation_config = GenerationConfig()
    ends = {tokenizer.convert_tokens_to_ids(IM_END), tokenizer.eos_token_id} - {None}
    settings = GenerationConfig(
        do_sample=plan.sampling.temperature > 0,
        temperature=plan.sampling.temperature or None,
        top_p=plan.sampling.top_p,
        top_k=0,
        max_new_tokens=plan.sampling.max_response_length,
        num_return_sequences=plan.samples,
        eos_token_id=sorted(ends),
        pad_token_id=min(ends),
    )
    for record in records:
        prompt = torch.tensor(encode_prompts(tokenizer, [record.prompt], plan.instruction), device=device)
        if prompt.size(1) + plan.sampling.max_response_length > model.config.max_position_embeddings:
            handle(record, Failure("prompt and --max-tokens do not fit the model's window", is_request=True))
            continue
        torch.manual_seed(_prompt_seed(plan.seed, record))
        with torch.inference_mode():
            output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
        responses = [_cut(row, ends) for row in output[:, prompt.size(1) :].tolist()]
        handle(record, _answer(tokenizer, prompt.size(1), responses, ends))


def _cut(tokens: list[int], ends: set[int]) -> list[int]:
    """Up to and including the first end token; the rest is padding."""
    first = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: first + 1]


def _answer(tokenizer: Any, prompt_tokens: int, responses: list[list[int]], ends: set[int]) -> Answer:
    return Answer(
        texts=tuple(tokenizer.batch_decode(responses, skip_special_tokens=True)),
        finish_reasons=tuple("stop" if tokens[-1] in ends else "length" for tokens in responses),
        usage=Usage(1, prompt_tokens, sum(len(tokens) for tokens in responses)),
    )


def _prompt_seed(seed: int, record: Record) -> int:
    """31 bits, as some servers take no larger seed; room is left for a server's own seed + sample."""
    return (int(task_hash(record)[:8], 16) ^ (seed * 0x9E3779B1)) & 0x3FFFFFFF


class DifficultyMeter:
    """Turns sampled answers into difficulties, and stops where nothing at all can be graded.

    Args:
        model: its name, for the rows; `model_hash` its SHA-256 or "".
    """

    def __init__(self, grader: RecordGrader, plan: SamplingPlan, model: str, model_hash: str) -> None:
        self._grader = grader
        self._plan = plan
        self._model, self._model_hash = model, model_hash
        self._sent, self._graded, self._reason = 0, 0, ""

    def measure(self, record: Record, answer: Answer) -> Difficulty:
        """Grade the responses that were not cut. Raises GraderFailed if nothing has been graded so far."""
        whole = [text for text, why in zip(answer.texts, answer.finish_reasons, strict=True) if why != "length"]
        verdicts = self._grader.grade([record] * len(whole), whole)
        reasons = [verdict.reason for verdict in verdicts if not verdict.is_graded]
        n, right = len(answer.texts), sum(verdict.is_right for verdict in verdicts)
        difficulty = Difficulty(
            id=record.id,
            task=task_hash(record),
            prompt=prompt_hash(record),
            n=n,
            right=right,
            ungraded=len(reasons),
            pass_rate=known_pass_rate(n, right, len(reasons)),
            mean_response_tokens=answer.usage.completion_tokens / n,
            truncated_share=(n - len(whole)) / n,
            prompt_tokens=answer.usage.prompt_tokens,
            model=self._model,
            model_hash=self._model_hash,
            sampling=self._plan.facts(),
            reason=reasons[0] if reasons else "",
        )
        self._sent += len(verdicts)
        self._graded += len(verdicts) - len(reasons)
        self._reason = difficulty.reason
        if self._sent >= GRADER_PATIENCE:
            self.check()
        return difficulty

    def check(self) -> None:
        """Raises GraderFailed if responses were sent to the grader and none was graded."""
        if self._sent and not self._graded:
            raise GraderFailed(f"the grader has graded none of {self._sent} responses; reason: {self._reason}")


def measure_all(
    sample: Sample, records: Sequence[Record], meter: DifficultyMeter, keep: Callable[[Difficulty], None]
) -> Counter[str]:
    """Sample and grade all records; `keep` gets each difficulty as soon as it is known.

    Returns:
        Reasons why prompts have no responses.

    Raises:
        GraderFailed: nothing could be graded. And whatever `sample` raises.
    """
    progress = Progress("difficulty", len(records), unit="problems")
    failed: Counter[str] = Counter()

    def handle(record: Record, result: Answer | Failure) -> None:
        if isinstance(result, Failure):
            failed[result.reason] += 1
        else:
            keep(meter.measure(record, result))
        progress.advance()

    if records:
        sample(records, handle)
    meter.check()
    return failed
