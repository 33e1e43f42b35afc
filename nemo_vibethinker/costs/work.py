"""What each stage of a run has to do, counted from the configuration alone."""

from dataclasses import dataclass

from nemo_vibethinker.config import CODE_DOMAIN, MATH_DOMAINS, Config, MgpoConfig
from nemo_vibethinker.costs.parameters import parameter_count
from nemo_vibethinker.evaluation.cost import benchmark_bounds


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage has to do.

    Attributes:
        steps: as its progress counts them.
        responses: sampled in its steps, at most `window` tokens each.
        filter_responses: sampled before its first step, of the same window.
        window: tokens.
        trained_tokens: of all optimizer steps, all replicas; those of packed rows, or of responses of mean length.
        segment: mean length of what is trained on, as attention sees it.
        models: loaded one after the other.
        moved_bytes: weights and optimizer states that are written and read.
        open: what the user's data decides, in words; then the figures are of the rest.
    """

    steps: int = 0
    responses: int = 0
    filter_responses: int = 0
    window: int = 0
    trained_tokens: float = 0.0
    segment: float = 0.0
    models: int = 0
    moved_bytes: float = 0.0
    open: str = ""

    def sampled_tokens(self, share: float) -> float:
        """Tokens of all responses, where their mean length is this share of the window."""
        return (self.responses + self.filter_responses) * self.window * share


def stage_work(config: Config, stage: str, response_share: float) -> Work:
    """The work of a stage, by the mean length of a response over its window.

    Not counted: prompts, which are short beside responses; responses of groups without variance that need no training.
    """
    if stage.startswith("mgpo."):
        return _mgpo_work(config, stage.removeprefix("mgpo."), response_share)
    counted = {"sft": _sft_work, "probe": _probe_work, "evaluate": _evaluate_work, "fuse": _fuse_work}
    if stage in counted:
        return counted[stage](config)
    return Work(models=1, moved_bytes=2 * model_bytes(config)) if stage == "export" else Work()


def _sft_work(config: Config) -> Work:
    sft = config.sft
    kept = len(kept_steps(config))
    return Work(
        steps=sft.steps,
        trained_tokens=sft.steps * sft.global_batch_size * sft.seq_length,
        segment=sft.seq_length * config.budget.sample_share,
        models=1,
        moved_bytes=model_bytes(config) + kept * (model_bytes(config) + resume_bytes(config)),
    )


def _probe_work(config: Config) -> Work:
    checkpoints = probed_checkpoints(config)
    problems = len(config.probe.domains or MATH_DOMAINS) * config.data.probe_problems_per_domain
    return Work(
        steps=checkpoints,
        responses=checkpoints * problems * config.probe.samples,
        window=config.probe.sampling.max_response_length,
        models=checkpoints,
        moved_bytes=checkpoints * model_bytes(config),
    )


def _evaluate_work(config: Config) -> Work:
    """Of every model that this run trains, each taken for another than the rest; benchmarks of the last one, or of all.

    `window` is the mean of those of all responses.
    """
    models = 0 if config.eval.model else evaluated_models(config)
    problems = len(MATH_DOMAINS) * config.data.evaluation_problems_per_domain + config.data.evaluation_code_problems
    held_out = models * problems * config.evaluate.samples
    bounds = benchmark_bounds(config)
    scored = max(1, models) if config.eval.every_model else 1
    benchmarks = scored * sum(bound.problems * bound.samples for bound in bounds)
    tokens = held_out * config.evaluate.sampling.max_response_length + scored * sum(bound.tokens for bound in bounds)
    return Work(
        steps=models + benchmarks,
        responses=held_out + benchmarks,
        window=-(-tokens // (held_out + benchmarks)),
        models=max(1, models),
        moved_bytes=max(1, models) * model_bytes(config),
    )


def _fuse_work(config: Config) -> Work:
    specialists = len(config.probe.domains or MATH_DOMAINS)
    return Work(models=1, moved_bytes=(specialists + 1) * model_bytes(config))


def _mgpo_work(config: Config, name: str, response_share: float) -> Work:
    mgpo: MgpoConfig = getattr(config.signal, name)
    prompts = filter_prompts(config, name)
    responses = mgpo.steps * mgpo.prompts_per_step * mgpo.group_size
    window = mgpo.sampling.max_response_length
    saves = (mgpo.steps - 1) // mgpo.save_interval
    return Work(
        steps=mgpo.steps,
        responses=responses,
        filter_responses=(prompts or 0) * mgpo.prefilter_samples,
        window=window,
        trained_tokens=responses * window * response_share,
        segment=window * response_share,
        models=1,
        moved_bytes=2 * model_bytes(config) + saves * resume_bytes(config),
        open="the filter samples all prompts of the data" if prompts is None else "",
    )


def stage_processes(config: Config, stage: str) -> int:
    """Processes (GPUs) of a stage's job: on Slurm training takes all nodes, others what one model needs."""
    if stage == "prepare":
        return 1
    cluster, parallel = config.cluster, config.scale.parallel
    if cluster.scheduler == "none" or stage == "sft" or stage.startswith("mgpo."):
        return config.world_size
    each = cluster.gpus_per_node
    return each * smallest_whole_nodes(parallel.tensor * parallel.pipeline * parallel.context, each)


def smallest_whole_nodes(model_ranks: int, gpus_per_node: int) -> int:
    """The fewest nodes whose GPUs are a multiple of those that hold one copy of the model."""
    nodes = 1
    while nodes * gpus_per_node % model_ranks:
        nodes += 1
    return nodes


def kept_steps(config: Config) -> set[int]:
    """Steps of the supervised stage whose model is kept: every `checkpoint_interval`, and the last."""
    sft = config.sft
    return {*range(sft.checkpoint_interval, sft.steps + 1, sft.checkpoint_interval), sft.steps}


def probed_checkpoints(config: Config) -> int:
    """Number of checkpoints of the supervised stage that the probe compares."""
    return sum(step >= config.sft.first_checkpoint for step in kept_steps(config))


def filter_prompts(config: Config, name: str) -> int | None:
    """Prompts that the filter before a reinforcement-learning stage samples; None where the user's file decides."""
    stage: MgpoConfig = getattr(config.signal, name)
    if stage.prefilter_samples == 0:
        return 0
    if stage.prefilter_prompts:
        return stage.prefilter_prompts
    if name == CODE_DOMAIN:
        return config.data.rl_code_problems
    own_file = config.data.rl or config.data.sft
    return None if own_file else len(MATH_DOMAINS) * config.data.rl_problems_per_domain


def evaluated_models(config: Config) -> int:
    """Models that `evaluate` scores at most: the last of SFT, a specialist of each domain, the fused, each RL stage's.

    Those of `run.from_run` come on top of a run's own: at least the one that it starts from.
    """
    specialists = len(config.probe.domains or MATH_DOMAINS)
    counts = {"sft": 1, "probe": specialists, "fuse": 1}
    own = sum(counts.get(stage, int(stage.startswith("mgpo."))) for stage in config.stages)
    return own + (config.run.from_run is not None)


def model_bytes(config: Config) -> int:
    """Bytes of the model's weights."""
    size = 2 if config.scale.precision == "bf16" else 4
    return size * parameter_count(config.scale.model, config.data.vocab_size)


def resume_bytes(config: Config) -> int:
    """Bytes of a resume point: weights, fp32 master weights where they are needed, and two moments."""
    states = 12 if config.scale.precision == "bf16" else 8
    return model_bytes(config) + states * parameter_count(config.scale.model, config.data.vocab_size)


def token_bound(config: Config, stage: str) -> int | None:
    """Upper bound of the tokens that a stage trains on or samples, where every response fills its window.

    None for stages without a model at work, or whose amount the user's file decides.
    """
    work = stage_work(config, stage, 1.0)
    return None if work.open else int(work.sampled_tokens(1.0) or work.trained_tokens) or None
