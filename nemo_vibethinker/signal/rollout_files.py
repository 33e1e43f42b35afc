"""Rollouts on disk: what a step sampled, to look at or to train on again without an engine. Imports Megatron."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_bytes
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size, gather_over_data_parallel, is_main
from nemo_vibethinker.reward.verdict import Verdict
from nemo_vibethinker.rollout.engine import Sample
from nemo_vibethinker.rollout.responses import Group, Response
from nemo_vibethinker.signal.samples import Rollout


def save_rollout(folder: Path, step: int, rollout: Rollout) -> None:
    """Write the groups of all ranks, a JSON line each, in the order they were drawn; all ranks call it together."""
    rank, size = data_parallel_rank_and_size()
    mine = [_line(group, place, rank, size) for group, place in zip(rollout.groups, rollout.places, strict=True)]
    lines = sorted(
        (line for share in gather_over_data_parallel(mine) for line in share), key=lambda line: line["place"]
    )
    if is_main():
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write_bytes(_file(folder, step), gzip.compress(text.encode(), compresslevel=3, mtime=0))


def load_rollout(folder: Path, step: int, records: Mapping[str, Record]) -> tuple[list[Group], list[int]]:
    """This rank's groups of a saved step and their places: those it had itself, or its share under another layout.

    Args:
        records: the stage's prompts by id.

    Raises:
        ValueError: the step was not saved, or is of other data.
    """
    if not _file(folder, step).is_file():
        raise ValueError(f"debug.replay_rollouts: {_file(folder, step)} is missing; that run saved no such step")
    rank, size = data_parallel_rank_and_size()
    lines = [json.loads(line) for line in gzip.decompress(_file(folder, step).read_bytes()).splitlines()]
    mine = [line for line in lines if (line["rank"] if line["ranks"] == size else line["place"] % size) == rank]
    for line in mine:
        if line["id"] not in records:
            raise ValueError(
                f"debug.replay_rollouts: {_file(folder, step)} has a prompt {line['id']}, the data has not"
            )
    return [_group(line, records) for line in mine], [line["place"] for line in mine]


def _file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.jsonl.gz"


def _line(group: Group, place: int, rank: int, ranks: int) -> dict[str, Any]:
    responses = [
        {
            "tokens": response.sample.tokens,
            "logprobs": response.sample.logprobs,
            "finish_reason": response.sample.finish_reason,
            "text": response.text,
            "verdict": response.verdict.kind,
            "reason": response.verdict.reason,
        }
        for response in group.responses
    ]
    head = {"place": place, "rank": rank, "ranks": ranks, "id": group.record.id}
    return head | {"prompt": group.prompt, "responses": responses}


def _group(line: Mapping[str, Any], records: Mapping[str, Record]) -> Group:
    responses = [
        Response(
            Sample(found["tokens"], found["logprobs"], found["finish_reason"]),
            found["text"],
            Verdict(found["verdict"], found["reason"]),
        )
        for found in line["responses"]
    ]
    return Group(records[line["id"]], line["prompt"], responses)
