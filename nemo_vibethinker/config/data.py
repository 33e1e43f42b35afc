"""Where a run lives and what it reads."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class RunConfig:
    """Where the run lives. The folder is `root/name`."""

    name: str = ""  # empty: <recipe>-<scale>-seed<seed>
    root: str = "runs"
    from_run: str | None = None  # folder of a finished run whose artefacts this run starts from
    from_model: str | None = None  # which of its models training starts from, such as `fused`; None: its last


@dataclass(kw_only=True)
class DataConfig:
    """Generated world (default) or the user's own datasets.

    A dataset is a file (.jsonl, .jsonl.gz, .jsonl.zst, .json, .parquet), a folder of such files, or a name of the
    Hugging Face hub, owner/name[:config[:split]]; `python -m nemo_vibethinker.data.readers --help` lists the formats.
    """

    sft: str | None = None  # problems with solutions; None: the generated world
    rl: str | None = None  # problems with answers or tests; None with `sft` set: the same dataset
    probe: list[str] = field(default_factory=list)  # datasets with answers; empty: held out of `rl`
    evaluation: list[str] = field(default_factory=list)  # datasets with answers or tests; empty: held out of `rl`
    instruction: str = r"Let's think step by step and output the final answer within \boxed{}."
    vocab_size: int = 512  # of the tokenizer that is trained; with scale.model.path, the base model's
    sft_problems_per_domain: int = 1500  # of each of the four maths domains; every problem has two solutions
    rl_problems_per_domain: int = 400
    probe_problems_per_domain: int = 32
    evaluation_problems_per_domain: int = 100
    sft_code_problems: int = 300
    rl_code_problems: int = 300
    evaluation_code_problems: int = 60
