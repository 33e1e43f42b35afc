"""One whole RL step (rollout, grade, update) of this project against TRL's GRPOTrainer.

    python benchmarks/mgpo_step.py --peer-python OTHER_VENV/bin/python [--processes 2 --threads 1]

Same model (random weights, 3.1M parameters), prompts, group size, lengths, optimizer, fp32; the arms take turns, a
block of steps each, in one run. The reward costs nothing (parity of the sum of a response's token ids); a response that
fills its limit counts as whole. Tokens a second are those of responses.

    ours             the in-process engine and signal.loop.update: MGPO, one update a rollout
    trl              GRPOTrainer with transformers' generate, no reference model, the responses in one batch
    trl-accumulate   the same with gradients accumulated over four batches

The table gives the share of a step that each part takes, and what it reaches of this machine's own rate of fp32 matrix
products, measured in each round in as many processes and threads. FLOPs are those the method needs: of generation one
pass over prompts (once a prompt) and responses, of the update three over both.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from arms import ALARM, Arm, machine, start_arms, take_turns
from sft_throughput import make_model

from launcher.cli import parse
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.flops import token_flops

ARMS = Path(__file__).with_name("mgpo_arms.py")
BATCHES = 8  # of prompts, round and round
MODEL = {
    "num_layers": 4,
    "hidden_size": 256,
    "ffn_hidden_size": 704,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "init_std": 0.02,
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with TRL")
    parser.add_argument("--arms", default="ours,trl,trl-accumulate")
    parser.add_argument("--prompts", type=int, default=16, help="of a step, over all processes")
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="of a block")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of our configuration")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    parser.add_argument("--baseline", type=Path, help="an earlier --out: exit 1 where the ratio fell by 5%%")
    return parser.parse_args()


def configuration(given: argparse.Namespace) -> tuple[Config, list[str]]:
    """Our configuration, and the command-line words that make it."""
    stage = "signal.math_16k"
    command = [
        "recipe=ssp_full",
        *(f"scale.model.{key}={value}" for key, value in MODEL.items()),
        f"scale.parallel.data={given.processes}",
        "sft.micro_batch_size=1",
        f"sft.global_batch_size={given.processes}",
        f"{stage}.prompts_per_step={given.prompts}",
        f"{stage}.group_size={given.group_size}",
        f"{stage}.sampling.max_response_length={given.max_new_tokens}",
        f"cluster.threads_per_process={given.threads}",
        *given.set,
    ]
    return parse(command).config, command


def main() -> int:
    """Run the arms in turn and print the table."""
    given = arguments()
    config, command = configuration(given)
    vocab_size = config.data.vocab_size
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        task = {
            "command": command,
            "model": str(make_model(config, Path(scratch) / "model")),
            "vocab_size": vocab_size,
            "prompts": [
                [[rng.randrange(3, vocab_size - 1) for _ in range(given.prompt_tokens)] for _ in range(given.prompts)]
                for _ in range(BATCHES)
            ],
            "group_size": given.group_size,
            "max_new_tokens": given.max_new_tokens,
            "responses": given.prompts * given.group_size,
            "processes": given.processes,
            "lr": config.signal.math_16k.optimizer.lr,
        }
        arms, skipped = start_arms(given.arms.split(","), ARMS, task, given, Path(scratch))
        try:
            peaks = take_turns(arms, given)
        finally:
            for arm in arms:
                arm.process.kill()
                arm.process.wait()
    result = summary(arms, skipped, config, given, statistics.median(peaks))
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1))
    return alarm(result, given.baseline) if given.baseline else 0


def summary(
    arms: list[Arm], skipped: dict[str, str], config: Config, given: argparse.Namespace, peak: float
) -> dict[str, Any]:
    """All figures of a run."""
    peers = [arm for arm in arms if arm.name != "ours"]
    fastest = max(peers, key=lambda arm: statistics.median(arm.speeds), default=None)
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/mgpo_step.py", *sys.argv[1:]]),
        "peak_flops": peak,
        "arms": {arm.name: arm_figures(arm, fastest, config, given, peak) for arm in arms},
        "skipped": skipped,
    }


def arm_figures(
    arm: Arm, fastest: Arm | None, config: Config, given: argparse.Namespace, peak: float
) -> dict[str, Any]:
    """Medians over the rounds; the ratio is of each round's speeds, so that what slows a round slows both."""
    parts = {name: statistics.median(phase[name] for phase in arm.phases) for name in arm.phases[0]}
    seconds = statistics.median(arm.seconds)
    parts.setdefault("update", seconds - sum(parts.values()))
    tokens = statistics.median(speed * took for speed, took in zip(arm.speeds, arm.seconds, strict=True))
    length = given.prompt_tokens + tokens / given.prompts / given.group_size
    flops = token_flops(config.scale.model, config.data.vocab_size, length)
    needed = {
        "generate": flops.forward * (tokens + given.prompts * given.prompt_tokens),
        "update": flops.model * length * given.prompts * given.group_size,
    }
    speeds = zip(arm.speeds, fastest.speeds, strict=True) if fastest else []
    return {
        "seconds": seconds,
        "each": arm.seconds,
        "tokens_per_second": statistics.median(arm.speeds),
        "per_cpu_second": statistics.median(arm.cpu_speeds),
        "ratio": statistics.median([ours / theirs for ours, theirs in speeds] or [float("nan")]),
        "parts": parts,
        "of_peak": {name: work / parts[name] / peak for name, work in needed.items()} if peak else {},
        "whole_of_peak": sum(needed.values()) / seconds / peak if peak else None,
        "versions": arm.versions,
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{result['date']}, {result['machine']}; matrix products {result['peak_flops'] / 1e9:,.0f} GFLOP/s; "
        f"`{result['command']}`",
        "",
        "| arm | s a step (each round) | response tokens/s | a CPU second | ratio to fastest peer | generate (of peak) "
        "| update (of peak) | whole step of peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        parts = [
            f"{arm['parts'][part]:.2f} s" + (f" ({arm['of_peak'][part]:.0%})" if arm["of_peak"] else "")
            for part in ("generate", "update")
        ]
        whole = f"{arm['whole_of_peak']:.0%}" if arm["whole_of_peak"] else ""
        each = ", ".join(f"{seconds:.2f}" for seconds in arm["each"])
        figures = [
            f"{arm['seconds']:.2f} ({each})",
            f"{arm['tokens_per_second']:,.0f}",
            f"{arm['per_cpu_second']:,.0f}",
        ]
        lines.append(f"| {' | '.join([name, *figures, format(arm['ratio'], '.2f'), *parts, whole])} |")
    lines += [f"| {name} | skipped: {reason} | | | | | | |" for name, reason in result["skipped"].items()]
    versions = {name: version for arm in result["arms"].values() for name, version in arm["versions"].items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions.items())])


def alarm(result: dict[str, Any], baseline: Path) -> int:
    """1 where the ratio to the fastest peer fell by more than 5% since the baseline."""
    before, now = (found["arms"]["ours"]["ratio"] for found in (json.loads(baseline.read_text()), result))
    print(f"ratio {now:.3f}, baseline {before:.3f}: {now / before - 1:+.1%}")
    return int(now / before < ALARM)


if __name__ == "__main__":
    sys.exit(main())
