"""`plan=true`: everything that would happen, as text. Runs nothing and creates nothing."""

from launcher.cli import Command
from launcher.costs import render_costs
from launcher.price import render_price
from launcher.slurm.plan import render_jobs
from nemo_vibethinker.config import MATH_DOMAINS, Config, MgpoConfig, flatten
from nemo_vibethinker.costs.parameters import parameter_count
from nemo_vibethinker.costs.run_plan import plan_run
from nemo_vibethinker.costs.work import filter_prompts, probed_checkpoints, token_bound
from nemo_vibethinker.evaluation.cost import benchmark_bounds
from nemo_vibethinker.megatron.capabilities import detect_machine, select_kernels
from nemo_vibethinker.metrics_log import STAGE_WIDTH
from nemo_vibethinker.pipeline import starting_artefacts, survey
from nemo_vibethinker.run_folder import RunFolder


def render(command: Command) -> str:
    """The plan of a run.

    Raises:
        ValueError: `run.from_run` is not finished.
    """
    config = command.config
    run = RunFolder(config.run_folder, config)
    notes: list[str] = []
    done = [stage for stage, manifest in survey(run, notes.append).items() if manifest]
    price = render_price(config, plan_run(config, run.path))
    parts = [_configuration(command), _facts(config, run), render_costs(config), _stages(config, done, notes), price]
    if config.cluster.scheduler == "slurm":
        parts.append(render_jobs(config, run.path, done))
    return "\n\n".join(parts) + "\n\nplan only: nothing was run or written"


def _configuration(command: Command) -> str:
    lines = ["configuration (* differs from the schema's default)"]
    defaults, values = flatten(Config()), flatten(command.config)
    width = max(len(f"{key}: {value}") for key, value in values.items() if len(str(value)) < 40)
    for key, value in values.items():
        entry = f"{key}: {value}"
        source = command.sources.get(key, "")
        lines.append(f"  {'*' if defaults.get(key) != value else ' '} {entry:<{width}}  {source}".rstrip())
    return "\n".join(lines)


def _facts(config: Config, run: RunFolder) -> str:
    parallel, scale = config.scale.parallel, config.scale
    count = parameter_count(scale.model, config.data.vocab_size)
    processes = f"{config.world_size} process{'es' if config.world_size > 1 else ''}"
    lines = [
        f"model       {count:,} parameters, vocabulary {config.data.vocab_size}",
        f"layout      {processes} = tensor {parallel.tensor} x pipeline {parallel.pipeline} x "
        f"context {parallel.context} x data {parallel.data}, "
        f"{config.cluster.threads_per_process} thread(s) each, {scale.precision}",
        *_kernels(config),
        f"run folder  {run.path} ({'exists' if run.path.exists() else 'new'})",
    ]
    if config.run.from_run:
        lines.append(f"starts from {config.run.from_run}: {', '.join(starting_artefacts(config, verify=False))}")
    return "\n".join(lines)


def _kernels(config: Config) -> list[str]:
    """What the run would use of this machine; a cluster's nodes are not seen from here."""
    if config.cluster.name != "local":
        return [f"kernels     by what its nodes have, layers' products in fp8: {config.scale.fp8}"]
    reasons = select_kernels(config, detect_machine()).reasons
    return [f"{'kernels' if i == 0 else '':<12}{name}: {reason}" for i, (name, reason) in enumerate(reasons.items())]


def _stages(config: Config, done: list[str], notes: list[str]) -> str:
    lines = ["stages"]
    for index, stage in enumerate(config.stages):
        state = "done" if stage in done else "to run"
        lines.append(f"  {index:02d} {stage:<{STAGE_WIDTH}}  {state:<6}  {_work(config, stage)}")
    return "\n".join([*lines, *(f"  note: {note}" for note in notes)])


def _work(config: Config, stage: str) -> str:
    bound = token_bound(config, stage)
    text = _amount(config, stage)
    return text + (f" (<= {bound:,} tokens)" if bound else "")


def _amount(config: Config, stage: str) -> str:
    data = config.data
    if stage == "prepare" and config.scale.model.path and not data.sft:
        return "needs data.sft=DATASET and data.rl=DATASET: the run is refused without"
    if stage == "prepare":
        sources = [f"{name} from {path}" for name, path in (("sft", data.sft), ("rl", data.rl)) if path]
        return (
            "read " + ", ".join(sources)
            if sources
            else (
                f"generate problems per domain: {data.sft_problems_per_domain} sft, {data.rl_problems_per_domain} rl, "
                f"{data.probe_problems_per_domain} probe, {data.evaluation_problems_per_domain} evaluation"
            )
        )
    if stage == "sft":
        return f"{config.sft.steps} steps x {config.sft.global_batch_size} rows x {config.sft.seq_length} tokens"
    if stage == "probe":
        problems = f"{_probed(config)} domains x {data.probe_problems_per_domain} problems"
        return f"{probed_checkpoints(config)} checkpoints x {problems} x {config.probe.samples} samples"
    if stage == "fuse":
        weights = config.fuse.weights
        return f"{_probed(config)} specialists, weights {weights or 'equal'}"
    if stage == "evaluate":
        return _evaluation_amount(config)
    if stage == "export":
        return "the last model in Hugging Face format"
    return _mgpo_amount(config, stage.removeprefix("mgpo."))


def _evaluation_amount(config: Config) -> str:
    held_out = f"per model and domain {config.data.evaluation_problems_per_domain} problems"
    parts = [] if config.eval.model else [f"{held_out} x {config.evaluate.samples} samples"]
    parts += [
        f"{each.name} {each.problems} x {each.samples} x {each.max_tokens:,}" for each in benchmark_bounds(config)
    ]
    return ", ".join(parts)


def _probed(config: Config) -> int | str:
    """Number of probed domains, where it is known before the data is read."""
    own_file = config.data.sft or config.data.rl
    return len(config.probe.domains) or ("all" if own_file else len(MATH_DOMAINS))


def _mgpo_amount(config: Config, name: str) -> str:
    mgpo: MgpoConfig = getattr(config.signal, name)
    text = f"{mgpo.steps} steps x {mgpo.prompts_per_step} prompts x {mgpo.group_size} samples"
    prompts = filter_prompts(config, name)
    if prompts == 0:
        return text
    return f"filter {'all' if prompts is None else prompts} prompts x {mgpo.prefilter_samples} samples, then {text}"
