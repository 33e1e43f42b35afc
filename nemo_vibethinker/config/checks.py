"""What types alone cannot say of a configuration."""

import math
import re

from nemo_vibethinker.config.cluster import check_cluster
from nemo_vibethinker.config.guards import ACTIONS
from nemo_vibethinker.config.names import BENCHMARKS, LOGGERS, PROTOCOLS, SIGNAL_STAGES, STAGES
from nemo_vibethinker.config.run import Config, flatten
from nemo_vibethinker.config.signal import MgpoConfig


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
    _check_guards(config)
    _check_precision(config)
    _check_lengths(config)
    _check_rollout(config)
    _check_benchmarks(config)
    check_cluster(config.cluster, config.world_size)


def _check_benchmarks(config: Config) -> None:
    settings = config.eval
    unknown = [name for name in settings.benchmarks if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"eval.benchmarks: unknown benchmark '{unknown[0]}'; known: {', '.join(BENCHMARKS)}")
    if settings.protocol not in PROTOCOLS:
        raise ValueError(f"eval.protocol={settings.protocol}: choose one of {', '.join(PROTOCOLS)}")
    if not re.fullmatch(r"\d+/\d+", settings.shard) or not settings.shard_index[0] < settings.shard_index[1]:
        raise ValueError(f"eval.shard={settings.shard}: give i/n with 0 <= i < n, such as 0/2")
    for key in ("samples", "max_tokens", "problems", "batch"):
        if (value := getattr(settings, key)) is not None and value < 1:
            raise ValueError(f"eval.{key}={value}: must be at least 1")
    if settings.model and (config.run.from_run or config.stages != ["evaluate"]):
        raise ValueError("eval.model goes with recipe=evaluate, in the place of run.from_run")


def _check_stages(config: Config) -> None:
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        raise ValueError(f"stages: unknown stage '{unknown[0]}'; known: {', '.join(STAGES)}")
    if not config.stages or len(set(config.stages)) != len(config.stages):
        raise ValueError("stages: list at least one stage, each once")
    if "prepare" not in config.stages and config.run.from_run is None and config.eval.model is None:
        raise ValueError(
            f"recipe {config.recipe} has no prepare stage: name the run it starts from, run.from_run=runs/NAME"
            f"{', or a model to evaluate, model=FOLDER_OR_HUB_NAME' * (config.stages == ['evaluate'])}"
        )

    strange = [name for name in config.loggers if name not in LOGGERS]
    if strange or len(set(config.loggers)) != len(config.loggers):
        raise ValueError(f"loggers={config.loggers}: list each once, of {', '.join(LOGGERS)}")
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
    if config.scale.overlap_param_gather and not (config.scale.overlap_grad_reduce and parallel.distributed_optimizer):
        raise ValueError(
            "scale.overlap_param_gather=true needs scale.overlap_grad_reduce=true and "
            "scale.parallel.distributed_optimizer=true"
        )
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
    if "sft" in config.stages and config.sft.global_batch_size % rows:
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
    "nodes",
    "gpus_per_node",
    "tasks_at_once",
    "stalled_requeues",
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
    "validate_prompts",
    "validate_samples",
    "workers",
    "math_deadline_s",
    "code_wall_s",
    "code_memory_mb",
    "efficiency",
    "tensor_parallel",
    "max_sequences",
    "bucket_mb",
    "canary_tolerance",
    "start_deadline_s",
    "call_deadline_s",
    "silence_deadline_s",
    "vocab_size",
    "lr",
    "eps",
    "gpu_hours",
    "generate_tokens_per_second",
    "checkpoint_gb_per_second",
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
    "on_exceed": ("stop", "warn"),
    "scheduler": ("none", "slurm"),
    "container": ("none", "pyxis", "apptainer"),
    "precision": ("fp32", "bf16"),
    "fp8": ("none", "hybrid", "e4m3"),
    "fp8_recipe": ("tensorwise", "delayed", "blockwise"),
    "recompute": ("none", "selective", "full"),
    "sandbox": ("auto", "bubblewrap", "landlock", "none"),
    "engine": ("megatron", "vllm"),
    "placement": ("colocated", "separate"),
    "std": ("population", "sample", "none"),
    "normalisation": ("sequence_mean", "token_mean", "dr_grpo"),
    "surrogate": ("clip", "gspo", "cispo"),
    "overlong": ("wrong", "mask", "soft"),
    "packing": ("balanced", "in_order"),
    "keep": ("last", "best"),
    "action": ACTIONS,
}


def _check_choices(config: Config) -> None:
    for key, value in flatten(config).items():
        choices = _CHOICES.get(key.rsplit(".", 1)[-1])
        if choices and value not in choices:
            raise ValueError(f"{key}={value}: choose one of {', '.join(choices)}")
        if key.endswith(("top_p", "efficiency", "gpu_memory", "response_share", "sample_share")) and not 0 < value <= 1:
            raise ValueError(f"{key}={value}: must be in (0, 1]")
    if config.budget.step_overhead >= 1:
        raise ValueError(f"budget.step_overhead={config.budget.step_overhead}: must be in [0, 1)")
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
        _check_signal(f"signal.{name}", stage)
        replicas = config.scale.parallel.data if f"mgpo.{name}" in config.stages else 1
        if stage.prompts_per_step % (replicas * stage.updates_per_rollout):
            raise ValueError(
                f"signal.{name}.prompts_per_step={stage.prompts_per_step} is not a multiple of "
                "scale.parallel.data*updates_per_rollout"
            )


def _check_guards(config: Config) -> None:
    if config.guards.nonfinite.action in ("off", "warn"):
        raise ValueError(
            f"guards.nonfinite.action={config.guards.nonfinite.action}: such an update spoils the weights; "
            "choose skip, rollback or stop"
        )


def _check_signal(key: str, stage: MgpoConfig) -> None:
    if 0 < stage.tis_cap < 1:
        raise ValueError(f"{key}.tis_cap={stage.tis_cap}: must be 1 or more, or 0 for no correction")
    if not 0 < stage.overlong_buffer <= 1:
        raise ValueError(f"{key}.overlong_buffer={stage.overlong_buffer}: must be in (0, 1]")
    if stage.keep == "best" and not stage.validate_interval:
        raise ValueError(f"{key}.keep=best is chosen by validation: set {key}.validate_interval")
    if stage.patience and not stage.validate_interval:
        raise ValueError(f"{key}.patience counts validations: set {key}.validate_interval")


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
    used = {_SECTIONS.get(stage.partition(".")[0]) for stage in config.stages} if not config.eval.model else set()
    for key, value in flatten(config).items():
        section, name = key.partition(".")[0], key.rpartition(".")[2]
        if section in used and name in ("seq_length", "max_response_length") and value > window:
            raise ValueError(f"{key}={value} is past the model's window scale.model.max_position_embeddings={window}")


_SECTIONS = {
    "sft": "sft",
    "probe": "probe",
    "mgpo": "signal",
    "evaluate": "evaluate",
}  # stage -> section of its lengths


def _check_rollout(config: Config) -> None:
    rollout, model = config.rollout, config.scale.model
    if rollout.engine == "megatron":
        for key in ("oversampling", "group_deadline_s", "partial_rollout"):
            if getattr(rollout, key):
                raise ValueError(f"rollout.{key} cuts groups, which only rollout.engine=vllm does: set that too")
        return
    if model.num_attention_heads % rollout.tensor_parallel:
        raise ValueError(
            f"scale.model.num_attention_heads={model.num_attention_heads} is not divisible by "
            f"rollout.tensor_parallel={rollout.tensor_parallel}"
        )
    for name in SIGNAL_STAGES:
        stage: MgpoConfig = getattr(config.signal, name)
        if stage.sampling.top_p < 1:
            raise ValueError(
                f"signal.{name}.sampling.top_p={stage.sampling.top_p:g}: vLLM's log-probs are those after the top-p "
                "cut, the trainer's before it; train with top_p=1 or rollout.engine=megatron"
            )
    if rollout.partial_rollout and not (rollout.oversampling or rollout.group_deadline_s):
        raise ValueError("rollout.partial_rollout resumes cut groups: set rollout.oversampling or group_deadline_s")
