"""Export: the final policy as a Hugging Face folder, proven equal to the Megatron model."""

import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from torch.distributed import ProcessGroup

from nemo_vibethinker.config import Config
from nemo_vibethinker.data.records import read_jsonl
from nemo_vibethinker.data.tokenizer import encode_prompts
from nemo_vibethinker.evaluation.scores import scores_from_json
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.megatron.checkpoint import load_model
from nemo_vibethinker.megatron.distributed import (
    barrier,
    broadcast_object,
    context_parallel_group,
    tensor_parallel_group,
)
from nemo_vibethinker.megatron.micro_batch import MicroBatch, context_positions, pack_row
from nemo_vibethinker.megatron.train_step import run_forward_backward
from nemo_vibethinker.model.hf_export import hf_logits, write_hf_folder
from nemo_vibethinker.model.hf_weights import stream_hf_tensors
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.report.model_card import CardFacts, model_card
from nemo_vibethinker.run_folder import RunFolder, code_version
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # largest difference of a logit, relative to the largest logit or 1


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Write `folder/hf` with its model card; compare its logits under transformers with Megatron's on a prompt.

    Raises:
        RuntimeError: the logits differ by more than the tolerance; the export is not to be used.
    """
    tokenizer = load_tokenizer(inputs)
    chunks = build_run_model(config, inputs)
    load_model(chunks, inputs["policy"])
    record = read_jsonl(inputs["evaluation_data"])[0]
    tokens = encode_prompts(tokenizer, [record.prompt], config.data.instruction)[0]
    logits_TV = megatron_logits(chunks, tokens)
    tensors = stream_hf_tensors(chunks)
    difference = 0.0
    if context.is_main:
        write_hf_folder(config, tensors, tokenizer, folder / "hf")
        (folder / "hf" / "README.md").write_text(model_card(config, card_facts(config, inputs, context)))
        theirs = hf_logits(folder / "hf", torch.tensor([tokens]))[0]
        assert logits_TV is not None
        difference = float((theirs - logits_TV).abs().max() / theirs.abs().max().clamp(min=1))
        context.say(f"{folder / 'hf'}: largest logit difference to Megatron {difference:.1e}")
    else:
        deque(tensors, maxlen=0)  # every rank takes part in gathering them
    difference = broadcast_object(difference)
    if not difference <= TOLERANCE[config.scale.precision]:  # not a number is a difference too
        raise RuntimeError(f"the exported model's logits differ from Megatron's by {difference:.1e}")
    return StageResult(outputs={"hf": folder / "hf"}, metrics={"logit_difference": difference})


def card_facts(config: Config, inputs: dict[str, Path], context: StageContext) -> CardFacts:
    """What this run, and those it started from, have on record of the exported model."""
    labels = [name for name, path in inputs.items() if name.startswith("model.") and path == inputs["policy"]]
    costs = [cost for ledger in _ledgers(config, context) for cost in summarise(ledger) if cost.stage != "export"]
    return CardFacts(
        name=config.run_folder.name,
        model=labels[-1].removeprefix("model.") if labels else "",
        scores=scores_from_json(inputs["scores"].read_text()) if "scores" in inputs else [],
        funnel=json.loads(inputs["funnel"].read_text()) if "funnel" in inputs else None,
        costs=costs,
        versions=code_version(),
    )


def _ledgers(config: Config, context: StageContext) -> list[Path]:
    """This run's ledger after those of the runs that it started from."""
    own = [context.ledger.path] if context.ledger.path else []
    earlier: list[Path] = []
    while config.run.from_run:
        earlier.append(Path(config.run.from_run) / "ledger.jsonl")
        config = RunFolder.load(Path(config.run.from_run)).config
    return [*reversed(earlier), *own]


@torch.no_grad()
def megatron_logits(chunks: Sequence[GPTModel], tokens: list[int]) -> Tensor | None:
    """Full logits [T, V] in fp32 for a sequence, on the first rank; None elsewhere. All ranks call it together."""
    found: list[Tensor] = []

    def keep(share: MicroBatch, logits_1TV: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        context = context_parallel_group()
        logits_TV = torch.cat(_gathered(logits_1TV[0], tensor_parallel_group()), dim=-1)
        parts = torch.cat(_gathered(logits_TV, context))
        places = torch.cat([context_positions(share.lengths, rank, context.size()) for rank in range(context.size())])
        found.append(parts[places.argsort()][: len(tokens)].float().cpu())
        zero = torch.zeros((), device=logits_1TV.device)
        return zero, zero, {}

    for chunk in chunks:
        chunk.eval()
    run_forward_backward(chunks, [pack_row([(tokens, 1)], [0.0])], keep, forward_only=True)
    logits = broadcast_object(found[0] if found else None, source=torch.distributed.get_world_size() - 1)
    barrier()
    return logits if torch.distributed.get_rank() == 0 else None


def _gathered(tensor: Tensor, group: ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(group.size())]
    torch.distributed.all_gather(parts, tensor.contiguous(), group=group)
    return parts


if __name__ == "__main__":
    stage_main(__file__)
