"""The typed schema of a run. YAML files and dotted overrides are a thin overlay on these dataclasses.

Imports neither torch nor Megatron: a login node reads, checks and plans a run in milliseconds.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import OmegaConf

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
CODE_DOMAIN = "code"
SIGNAL_STAGES = ("math_16k", "math_32k", "code")
STAGES = ("prepare", "sft", "probe", "fuse", *(f"mgpo.{name}" for name in SIGNAL_STAGES), "evaluate", "export")


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


@dataclass(kw_only=True)
class ModelConfig:
    """Qwen2 (or dense Qwen3) architecture: RMSNorm, SwiGLU, grouped-query attention, RoPE."""

    path: str | None = None  # Hugging Face folder or hub name whose weights and tokenizer it starts from
    num_layers: int = 4
    hidden_size: int = 128
    ffn_hidden_size: int = 384
    num_attention_heads: int = 4
    num_query_groups: int = 2
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    qkv_bias: bool = True  # Qwen2; Qwen3 has none
    qk_norm: bool = False  # Qwen3: RMSNorm over each head's query and key
    tie_embeddings: bool = True
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    init_std: float = 0.02

    @property
    def kv_channels(self) -> int:
        """Channels of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(kw_only=True)
class ParallelConfig:
    """Layout of the processes: world size = tensor * pipeline * context * data."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1  # ranks that share the tokens of each sample
    data: int = 1  # 0: as many replicas as cluster.processes has room for, at least one
    virtual_pipeline: int = 1  # model chunks per pipeline stage; more than one is the interleaved schedule
    sequence: bool = False  # tensor-parallel ranks also share the activations between their matrix products
    distributed_optimizer: bool = True  # optimizer states sharded over the replicas (ZeRO-1)


@dataclass(kw_only=True)
class ScaleConfig:
    """How big: chosen by `scale=NAME`, overridden by `scale.model.num_layers=6` and the like."""

    name: str = "tiny"
    precision: str = "fp32"  # fp32 | bf16; gradients, master weights and optimizer states are fp32 under both
    fp8: str = "none"  # none | hybrid (gradients in e5m2) | e4m3: the layers' matrix products, by Transformer Engine
    fp8_recipe: str = "tensorwise"  # tensorwise (of the current tensor) | delayed (of past steps) | blockwise
    fp8_bf16_layers: int = 1  # layers at each end of the model that stay in bf16; delayed scaling knows none
    overlap_grad_reduce: bool = False  # gradients are reduced over replicas during the backward pass
    logprob_chunk: int = 1024  # tokens whose logits exist at one time in training; 0: all of a micro-batch
    recompute: str = "none"  # none | selective (attention) | full (every layer): activations computed again backward
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(kw_only=True)
class ClusterConfig:
    """Where: chosen by `cluster=NAME`."""

    name: str = "local"
    processes: int = 1  # that one run may use; a layout that needs more still gets them
    threads_per_process: int = 1  # OMP_NUM_THREADS; small models are fastest with one thread a process
    gpu: str = (
        ""  # of the table in costs/gpus.py, like H800-SXM: layouts that cannot fit it are refused; empty: no check
    )
    efficiency: float = 0.4  # assumed share of the GPU's BF16 peak that its kernels reach; for estimates only


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW as Megatron-Core runs it (distributed optimizer, fp32 states)."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0


@dataclass(kw_only=True)
class SftConfig:
    """One supervised run; its checkpoints are what the probe compares (VibeThinker-1.5B report, section 3.3)."""

    steps: int = 300
    global_batch_size: int = 8  # packed rows per optimizer step, over all ranks
    micro_batch_size: int = 4  # packed rows per forward pass and rank
    seq_length: int = 512  # tokens of one packed row
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup_fraction: float = 0.05
    min_lr: float = 8e-8
    checkpoint_interval: int = 50  # steps between the checkpoints that are probed
    first_checkpoint: int = 0  # earlier ones are kept for resume only, not probed


@dataclass(kw_only=True)
class SamplingConfig:
    """How responses are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_response_length: int = 128  # tokens


@dataclass(kw_only=True)
class ProbeConfig:
    """Pass@K per domain and checkpoint."""

    samples: int = 16  # n per problem
    ks: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    select_k: int = 8  # specialists are the argmax of Pass@select_k
    domains: list[str] = field(default_factory=list)  # empty: every maths domain of the probing set
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(kw_only=True)
class FuseConfig:
    """M_merge = sum_i w_i M_i*."""

    weights: dict[str, float] | None = None  # domain -> weight; None: uniform 1/N


@dataclass(kw_only=True)
class MgpoConfig:
    """One reinforcement-learning stage: GRPO with the entropy-deviation weight (report, section 3.4)."""

    steps: int = 20
    prompts_per_step: int = 32
    group_size: int = 8  # responses per prompt, G
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    lambda_me: float = 1.0  # 0 is GRPO
    std: str = "population"  # population | sample | none (none: Dr.GRPO)
    normalisation: str = "sequence_mean"  # sequence_mean (the paper's) | token_mean | dr_grpo
    clip_low: float = 0.2
    clip_high: float = 0.2
    updates_per_rollout: int = 1  # optimizer steps per rollout batch; 1 is on-policy
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    warmup_steps: int = 0
    tokens_per_micro_batch: int = 8192
    prefilter_samples: int = 8  # responses per prompt for dropping always/never solved prompts; 0: no filter
    prefilter_prompts: int = 0  # prompts drawn for the filter to score; 0: all
    save_interval: int = 10  # steps between resume points


@dataclass(kw_only=True)
class SignalConfig:
    """The reinforcement-learning stages in the paper's order; window lengths come from the scale."""

    math_16k: MgpoConfig = field(default_factory=MgpoConfig)
    math_32k: MgpoConfig = field(default_factory=MgpoConfig)
    code: MgpoConfig = field(default_factory=MgpoConfig)


@dataclass(kw_only=True)
class RewardConfig:
    """Graders. An ungraded response is never a zero: it is left out, counted, and stops the run past the limit."""

    math_deadline_s: float = 2.0
    code_wall_s: float = 5.0  # of one run: all calls and assertions, or one standard input
    code_memory_mb: int = 256  # of all processes of a program together
    sandbox: str = (
        "auto"  # auto | bubblewrap | landlock | none (none: no isolation, model-written code does as it likes)
    )
    workers: int = 2  # sandboxes at a time in the whole run
    max_ungraded_share: float = 0.02


@dataclass(kw_only=True)
class EvaluateConfig:
    """Held-out scores of every model on the way."""

    samples: int = 4
    ks: list[int] = field(default_factory=lambda: [1, 4])
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(kw_only=True)
class Config:
    """A whole run, resolved."""

    recipe: str = "ssp_full"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    seed: int = 0
    run: RunConfig = field(default_factory=RunConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def run_folder(self) -> Path:
        """`run.root/run.name`."""
        return Path(self.run.root) / (self.run.name or f"{self.recipe}-{self.scale.name}-seed{self.seed}")

    @property
    def world_size(self) -> int:
        """Number of processes of a training stage."""
        parallel = self.scale.parallel
        return parallel.tensor * parallel.pipeline * parallel.context * parallel.data


def load_config(path: Path) -> Config:
    """Read a resolved `config.yaml` written by `save_config`.

    Raises:
        ValueError: the file does not fit the schema (written by another version).
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    except omegaconf.errors.OmegaConfBaseException as error:
        raise ValueError(f"{path}: does not fit this version's schema: {str(error).splitlines()[0]}") from error
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML text."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value, for printing differences between two configurations."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for key, child in value.items() for k, v in walk(f"{prefix}.{key}", child).items()}
        return {prefix[1:]: value}

    return walk("", dataclasses.asdict(config))


def resolve(config: Config) -> None:
    """Replace what is derived from other keys by its value: the number of replicas."""
    parallel = config.scale.parallel
    if parallel.data == 0:
        model_ranks = parallel.tensor * parallel.pipeline * parallel.context
        parallel.data = max(1, config.cluster.processes // max(1, model_ranks))


def validate(config: Config) -> None:
    """Check what types alone cannot.

    Raises:
        ValueError: one line that names the key and the fix.
    """
    _check_stages(config)
    _check_data(config)
    _check_layout(config)
    _check_numbers(config)
    _check_choices(config)
    _check_precision(config)
    _check_lengths(config)


def _check_stages(config: Config) -> None:
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages: unknown stage '{unknown[0]}'; known: {', '.join(STAGES)}")
    if not config.stages or len(set(config.stages)) != len(config.stages):
        raise ValueError("stages: list at least one stage, each once")
    if "prepare" not in config.stages and config.run.from_run is None:
        raise ValueError(
            f"recipe {config.recipe} has no prepare stage: name the run it starts from, run.from_run=runs/NAME"
        )

    if config.run.from_model is not None and config.run.from_run is None:
        raise ValueError("run.from_model names a model of run.from_run; set that too")


def _check_data(config: Config) -> None:
    data = config.data
    for key, paths in (("probe", data.probe), ("evaluation", data.evaluation)):
        if paths and not (data.sft or data.rl):
            raise ValueError(f"data.{key} goes with your own training data: set data.sft or data.rl too")
        if len(set(paths)) != len(paths):
            raise ValueError(f"data.{key}: name each dataset once")


def _check_layout(config: Config) -> None:
    model, parallel = config.scale.model, config.scale.parallel
    for key, whole in (
        ("num_attention_heads", model.num_attention_heads),
        ("num_query_groups", model.num_query_groups),
    ):
        if whole % parallel.tensor:
            raise ValueError(f"scale.model.{key}={whole} is not divisible by scale.parallel.tensor={parallel.tensor}")
    if model.num_layers < parallel.pipeline:
        raise ValueError(
            f"scale.model.num_layers={model.num_layers} is less than scale.parallel.pipeline={parallel.pipeline}"
        )
    chunks = parallel.pipeline * parallel.virtual_pipeline
    if parallel.virtual_pipeline > 1 and (parallel.pipeline == 1 or model.num_layers % chunks):
        raise ValueError(
            f"scale.parallel.virtual_pipeline={parallel.virtual_pipeline}: needs pipeline > 1, and "
            f"scale.model.num_layers={model.num_layers} a multiple of pipeline*virtual_pipeline={chunks}"
        )
    if parallel.sequence and parallel.tensor == 1:
        raise ValueError("scale.parallel.sequence=true shares work between tensor-parallel ranks: set tensor > 1")
    if not model.head_dim and model.hidden_size % model.num_attention_heads:
        raise ValueError("scale.model: hidden_size must be a multiple of num_attention_heads, or head_dim be given")
    if model.num_attention_heads % model.num_query_groups:
        raise ValueError("scale.model: num_attention_heads must be a multiple of num_query_groups")
    if config.sft.first_checkpoint > config.sft.steps:
        raise ValueError(
            f"sft.first_checkpoint={config.sft.first_checkpoint} is past sft.steps={config.sft.steps}: "
            "no checkpoint would be probed"
        )
    rows = config.sft.micro_batch_size * parallel.data
    if config.sft.global_batch_size % rows:
        raise ValueError(
            f"sft.global_batch_size={config.sft.global_batch_size} is not a multiple of "
            f"sft.micro_batch_size*scale.parallel.data={rows}"
        )


_POSITIVE = [
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "max_position_embeddings",
    "rope_theta",
    "tensor",
    "pipeline",
    "context",
    "virtual_pipeline",
    "data",
    "processes",
    "threads_per_process",
    "steps",
    "global_batch_size",
    "micro_batch_size",
    "seq_length",
    "checkpoint_interval",
    "max_response_length",
    "samples",
    "select_k",
    "prompts_per_step",
    "group_size",
    "updates_per_rollout",
    "tokens_per_micro_batch",
    "save_interval",
    "workers",
    "math_deadline_s",
    "code_wall_s",
    "code_memory_mb",
    "efficiency",
    "vocab_size",
    "lr",
    "eps",
]


def _check_numbers(config: Config) -> None:
    for key, value in flatten(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{key}={value}: must be a finite number")
            if key.rsplit(".", 1)[-1] in _POSITIVE and value <= 0:
                raise ValueError(f"{key}={value}: must be greater than zero")
            if value < 0:
                raise ValueError(f"{key}={value}: must not be negative")


_CHOICES = {
    "precision": ("fp32", "bf16"),
    "fp8": ("none", "hybrid", "e4m3"),
    "fp8_recipe": ("tensorwise", "delayed", "blockwise"),
    "recompute": ("none", "selective", "full"),
    "sandbox": ("auto", "bubblewrap", "landlock", "none"),
    "std": ("population", "sample", "none"),
    "normalisation": ("sequence_mean", "token_mean", "dr_grpo"),
}


def _check_choices(config: Config) -> None:
    for key, value in flatten(config).items():
        choices = _CHOICES.get(key.rsplit(".", 1)[-1])
        if choices and value not in choices:
            raise ValueError(f"{key}={value}: choose one of {', '.join(choices)}")
        if key.endswith(("top_p", "efficiency")) and not 0 < value <= 1:
            raise ValueError(f"{key}={value}: must be in (0, 1]")
    for key, ks in (("probe.ks", config.probe.ks), ("evaluate.ks", config.evaluate.ks)):
        if not ks or min(ks) < 1:
            raise ValueError(f"{key}={ks}: list at least one k, each 1 or more")
    if max(config.probe.ks) > config.probe.samples or config.probe.select_k not in config.probe.ks:
        raise ValueError("probe: every k of probe.ks must be <= probe.samples, and probe.select_k one of probe.ks")
    if max(config.evaluate.ks) > config.evaluate.samples:
        raise ValueError("evaluate: every k of evaluate.ks must be <= evaluate.samples")
    weighed, probed = config.fuse.weights, config.probe.domains
    if weighed is not None and probed and set(weighed) != set(probed):
        raise ValueError(f"fuse.weights: give a weight to each of probe.domains: {', '.join(probed)}")
    for name in SIGNAL_STAGES:
        stage: MgpoConfig = getattr(config.signal, name)
        if stage.group_size < 2:
            raise ValueError(f"signal.{name}.group_size={stage.group_size}: a group needs two responses or more")
        if stage.prompts_per_step % (config.scale.parallel.data * stage.updates_per_rollout):
            raise ValueError(
                f"signal.{name}.prompts_per_step={stage.prompts_per_step} is not a multiple of "
                "scale.parallel.data*updates_per_rollout"
            )


def fp8_multiple(recipe: str) -> int:
    """What the sizes of FP8 matrix products must be multiples of: tensor cores take 16s, blockwise scaling 128s."""
    return 128 if recipe == "blockwise" else 16


def _check_precision(config: Config) -> None:
    scale, model, tensor = config.scale, config.scale.model, config.scale.parallel.tensor
    if scale.fp8 == "none":
        return
    if scale.precision != "bf16":
        raise ValueError(f"scale.fp8={scale.fp8} keeps weights in bf16: set scale.precision=bf16")
    if scale.fp8_recipe == "delayed" and scale.fp8_bf16_layers:
        raise ValueError("scale.fp8_recipe=delayed cannot keep layers in bf16: set scale.fp8_bf16_layers=0")
    if scale.fp8_bf16_layers > model.num_layers // scale.parallel.pipeline:
        raise ValueError(f"scale.fp8_bf16_layers={scale.fp8_bf16_layers} is more than a pipeline stage has layers")
    multiple = fp8_multiple(scale.fp8_recipe)
    query_key_value = (model.num_attention_heads + 2 * model.num_query_groups) * model.kv_channels
    sizes = {"hidden_size": model.hidden_size, "ffn_hidden_size": model.ffn_hidden_size // tensor}
    sizes |= {
        "num_attention_heads*head_dim": model.num_attention_heads * model.kv_channels // tensor,
        "(num_attention_heads + 2*num_query_groups)*head_dim": query_key_value // tensor,
    }
    for name, size in sizes.items():
        if size % multiple:
            raise ValueError(
                f"scale.fp8_recipe={scale.fp8_recipe} needs sizes in multiples of {multiple}; "
                f"scale.model.{name} gives {size} a tensor-parallel rank"
            )
    if config.cluster.name == "local":
        from nemo_vibethinker.megatron.capabilities import detect_machine, select_kernels

        select_kernels(config, detect_machine())  # refuses what this machine cannot do


def _check_lengths(config: Config) -> None:
    window = config.scale.model.max_position_embeddings
    for key, value in flatten(config).items():
        if key.rsplit(".", 1)[-1] in ("seq_length", "max_response_length") and value > window:
            raise ValueError(f"{key}={value} is past the model's window scale.model.max_position_embeddings={window}")
