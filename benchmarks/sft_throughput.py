"""Tokens a second of this project's SFT step against transformers' Trainer and TRL's SFTTrainer.

    python benchmarks/sft_throughput.py --peer-python OTHER_VENV/bin/python
    python benchmarks/sft_throughput.py --scale vibethinker_1p5b --seq-length 16384 --mean-length 6000 --rows 8 --fp8

All arms train the same model (random weights, one Hugging Face folder) on the same samples with the same optimizer, and
take turns: a block of steps of each, again and again, in one run on one machine. Counted are the tokens of samples;
padding is not. The samples are random tokens of log-normal lengths, a fifth of each the prompt.

    ours                  stages.sft: rows packed by best fit, every sample attends to itself alone
    ours-fp8              the same in FP8 (--fp8; needs Transformer Engine and an FP8 GPU)
    transformers-rows     Trainer, the very rows of ours as one batch; sdpa with the block-diagonal mask it derives
    transformers-flat     Trainer, the same rows one at a time, gradients accumulated
    transformers-padded   Trainer without packing: samples of like length together, padded, as many tokens a step
    trl-flat              SFTTrainer, packing=True (bfd), a step's rows in one flattened batch
    trl-rows              SFTTrainer, packing=True (bfd), one row at a time, gradients accumulated

The peers run in their best settings known to us: sdpa (or --peer-attention), torch's fused AdamW, no logging, loader
workers by --peer-workers. They live in the environment of --peer-python; an arm that cannot run is named with its
reason. --baseline FILE compares the ratio ours / fastest peer with that of an earlier run (--out FILE) and exits with 1
where it fell by more than 5%.
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

from launcher.cli import parse
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.flops import segment_length, token_flops
from nemo_vibethinker.costs.gpus import find_gpu
from nemo_vibethinker.data.packing import PackedData
from nemo_vibethinker.model.hf_folder import hf_config_fields, hf_shapes

ARMS = Path(__file__).with_name("sft_arms.py")
PEERS = ("transformers-rows", "transformers-flat", "transformers-padded", "trl-flat", "trl-rows")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer-python", default=sys.executable, help="interpreter with transformers, accelerate and TRL"
    )
    parser.add_argument("--arms", help=f"comma-separated, of ours,ours-fp8,{','.join(PEERS)}")
    parser.add_argument("--scale", default="tiny", help="whose model, precision and optimizer (recipes/scale)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of our configuration")
    parser.add_argument("--seq-length", type=int, default=512, help="tokens of a packed row")
    parser.add_argument("--mean-length", type=float, default=100, help="of a sample, prompt included")
    parser.add_argument("--rows", type=int, default=4, help="rows a step over all processes")
    parser.add_argument("--processes", type=int, default=1, help="data-parallel processes (GPUs) of each arm")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of each process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each arm before the first round")
    parser.add_argument("--peer-attention", default="sdpa", help="sdpa, flash_attention_2, eager")
    parser.add_argument("--peer-workers", type=int, default=0, help="data-loader processes of the peers")
    parser.add_argument("--fp8", action="store_true", help="run ours-fp8 too")
    parser.add_argument("--out", type=Path, help="write the figures here (JSON)")
    parser.add_argument("--baseline", type=Path, help="an earlier --out")
    return parser.parse_args()


def main() -> int:
    """Run the arms in turn and print the table."""
    given = arguments()
    config, command = configuration(given)
    with tempfile.TemporaryDirectory() as scratch:
        task = make_task(given, config, command, Path(scratch))
        names = given.arms.split(",") if given.arms else ["ours", *PEERS]
        names += ["ours-fp8"] if given.fp8 and "ours-fp8" not in names else []
        arms, skipped = start_arms(names, ARMS, task, given, Path(scratch))
        try:
            peaks = take_turns(arms, given)
        finally:
            for arm in arms:
                arm.process.kill()
                arm.process.wait()
    result = summary(arms, skipped, config, task["segment"], given, peaks)
    print(table(result))
    if given.out:
        given.out.write_text(json.dumps(result, indent=1))
    return alarm(result, given.baseline) if given.baseline else 0


def configuration(given: argparse.Namespace) -> tuple[Config, list[str]]:
    """Our configuration, and the command-line words that make it."""
    command = [
        "recipe=spectrum",
        f"scale={given.scale}",
        f"scale.parallel.data={given.processes}",
        "scale.model.path=null",
        f"sft.seq_length={given.seq_length}",
        f"sft.global_batch_size={given.rows}",
        f"sft.micro_batch_size={given.rows // given.processes}",
        f"cluster.threads_per_process={given.threads}",
        *given.set,
    ]
    return parse(command).config, command


def make_task(given: argparse.Namespace, config: Config, command: list[str], scratch: Path) -> dict[str, Any]:
    """What all arms are told: the model's folder, samples, packed rows, optimizer."""
    samples = make_samples(given, config.data.vocab_size)
    packed = PackedData(samples, given.seq_length, config.seed)
    optimizer = config.sft.optimizer
    rows = [packed.row(i) for i in range(len(packed) - len(packed) % given.rows)]
    return {
        "command": command,
        "model": str(make_model(config, scratch / "model")),
        "vocab_size": config.data.vocab_size,
        "samples": samples,
        "rows": rows,
        "segment": segment_length([len(tokens) for tokens, _ in samples]),
        "seq_length": given.seq_length,
        "rows_per_process": given.rows // given.processes,
        "lr": optimizer.lr,
        "betas": [optimizer.beta1, optimizer.beta2],
        "weight_decay": optimizer.weight_decay,
        "clip_grad": optimizer.clip_grad,
        "precision": config.scale.precision,
        "recompute": config.scale.recompute,
        "peer_attention": given.peer_attention,
        "peer_workers": given.peer_workers,
    }


def make_samples(given: argparse.Namespace, vocab_size: int) -> list[tuple[list[int], int]]:
    """Enough samples for a few hundred rows, at most a row long."""
    rng = random.Random(0)
    count = max(8 * given.rows, 64) * given.seq_length // int(given.mean_length)
    lengths = [
        min(given.seq_length, max(8, round(given.mean_length * rng.lognormvariate(-0.08, 0.4)))) for _ in range(count)
    ]
    return [([rng.randrange(3, vocab_size) for _ in range(length)], max(1, length // 5)) for length in lengths]


def make_model(config: Config, folder: Path) -> Path:
    """A Hugging Face folder of random weights, as our model begins."""
    from nemo_vibethinker.model.hf_export import write_weights
    from nemo_vibethinker.model.hf_weights import random_hf_tensors

    folder.mkdir()
    fields = hf_config_fields(config.scale.model, config.data.vocab_size) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
    }
    (folder / "config.json").write_text(json.dumps(fields | {"use_sliding_window": False}))
    source = random_hf_tensors(config, config.data.vocab_size)
    names = hf_shapes(config.scale.model, config.data.vocab_size)
    write_weights(((name, source(name)) for name in names), folder, 2 << 30)
    return folder


def summary(
    arms: list[Arm],
    skipped: dict[str, str],
    config: Config,
    segment: float,
    given: argparse.Namespace,
    peaks: list[float],
) -> dict[str, Any]:
    """All figures of a run. The ratio is of each round's speeds, so that what slows a round slows both."""
    flops = token_flops(config.scale.model, config.data.vocab_size, segment).model
    peak, unit = peak_flops(given, peaks)
    peers = [arm for arm in arms if arm.name in PEERS]
    fastest = max(peers, key=lambda arm: statistics.median(arm.speeds), default=None)
    ratios = {
        arm.name: statistics.median(a / b for a, b in zip(arm.speeds, fastest.speeds, strict=True))
        for arm in arms
        if fastest is not None
    }
    speeds = {arm.name: statistics.median(arm.speeds) for arm in arms}
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/sft_throughput.py", *sys.argv[1:]]),
        "model": f"{config.scale.name}: {config.scale.model.num_layers} layers of {config.scale.model.hidden_size}",
        "flops_per_token": flops,
        "unit": unit,
        "peak_flops": peak,
        "arms": {
            arm.name: {
                "tokens_per_second": speeds[arm.name],
                "speeds": arm.speeds,
                "per_cpu_second": statistics.median(arm.cpu_speeds),
                "of_peak": speeds[arm.name] * flops / peak if peak else None,
                "ratio": ratios.get(arm.name),
                "first_loss": arm.first_loss,
                "versions": arm.versions,
            }
            for arm in arms
        },
        "fastest_peer": fastest.name if fastest else None,
        "skipped": skipped,
    }


def peak_flops(given: argparse.Namespace, peaks: list[float]) -> tuple[float, str]:
    """What the processes could do at best, and how that is known: the GPU's data sheet, or products measured here."""
    import torch

    if not torch.cuda.is_available():
        return statistics.median(peaks), "of the measured fp32 matrix-product rate"
    gpu = find_gpu(torch.cuda.get_device_name())
    return (gpu.bf16_tflops * 1e12 * given.processes if gpu else 0.0), "MFU (dense BF16 peak)"


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{result['date']}, {result['machine']}; {result['model']}; `{result['command']}`",
        "",
        f"| arm | tokens/s (each round) | a CPU second | {result['unit']} | ratio to fastest peer | first loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, arm in result["arms"].items():
        share = f"{arm['of_peak']:.0%}" if arm["of_peak"] else ""
        ratio = f"{arm['ratio']:.2f}" if arm["ratio"] else ""
        rounds = ", ".join(f"{speed:,.0f}" for speed in arm["speeds"])
        loss = f"{arm['first_loss']:.5f}" if arm["first_loss"] else ""
        speed, cpu = f"{arm['tokens_per_second']:,.0f} ({rounds})", f"{arm['per_cpu_second']:,.0f}"
        lines.append(f"| {name} | {speed} | {cpu} | {share} | {ratio} | {loss} |")
    lines += [f"| {name} | skipped: {reason} | | | | |" for name, reason in result["skipped"].items()]
    versions = {name: version for arm in result["arms"].values() for name, version in arm["versions"].items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions.items())])


def alarm(result: dict[str, Any], baseline: Path) -> int:
    """1 where the ratio to the fastest peer fell by more than 5% since the baseline."""
    before, now = (found["arms"]["ours"]["ratio"] for found in (json.loads(baseline.read_text()), result))
    if not before or not now:
        print("no alarm: a ratio needs ours and a peer in both runs", file=sys.stderr)
        return 0
    print(f"ratio {now:.3f}, baseline {before:.3f}: {now / before - 1:+.1%}")
    return int(now / before < ALARM)


if __name__ == "__main__":
    sys.exit(main())
