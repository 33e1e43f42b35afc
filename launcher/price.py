"""The price of a run as text: the last part of `plan=true`."""

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.forecast import StageForecast
from nemo_vibethinker.costs.run_plan import RunPlan, dollars, format_hours, shape, stage_memory
from nemo_vibethinker.metrics_log import STAGE_WIDTH
from nemo_vibethinker.progress import format_duration


def render_price(config: Config, plan: RunPlan) -> str:
    """Every stage's hours and what they rest on, the total against the budget, and the wall time."""
    unit = "GPU-hours" if plan.device == "gpu" else "process-hours"
    figures = _figures(plan)
    parts = [figures, _table(config, plan, unit), _verdict(config, plan, unit)]
    return "\n\n".join(part for part in parts if part)


def _figures(plan: RunPlan) -> str:
    """What the hours rest on, a line for each figure and the stages that it holds for."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for stage in plan.pending:
        for name, figure in plan.stages[stage].figures.items():
            found.setdefault((name, figure.source), {})[stage] = figure.value
    if not found:
        return ""
    lines = ["what the price rests on; assumptions are keys of the configuration, a finished run replaces them"]
    for (name, source), values in found.items():
        stages = "all" if len(values) == len(plan.pending) > 1 else ", ".join(values)
        shown = list(dict.fromkeys(_number(name, value) for value in sorted(values.values())))
        text = _FIGURES[name].format(shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}")
        lines.append(f"  {text:<48} {source} ({stages})")
    return "\n".join(lines)


_FIGURES = {
    "hours": "the whole stage: {} hours",
    "generate_tokens_per_second": "sampling, tokens/s a process: {}",
    "train_flops_per_second": "training, GFLOP/s a process: {}",
    "response_share": "mean response, % of the window: {}",
    "step_overhead": "neither sampling nor training, %: {}",
    "startup_seconds": "from start to first step, s: {}",
}
_UNITS = {"train_flops_per_second": 1e9, "response_share": 0.01, "step_overhead": 0.01}


def _number(name: str, value: float) -> str:
    return format_hours(value) if name == "hours" else f"{value / _UNITS.get(name, 1):,.0f}"


def _table(config: Config, plan: RunPlan, unit: str) -> str:
    is_gpu = plan.device == "gpu"
    memory = stage_memory(config)
    head = (
        f"   {'price':<{STAGE_WIDTH}}  state   {'jobs x nodes x GPUs' if is_gpu else 'processes':>19} x {'hours':>7} = "
    )
    head += f"{unit:>13}  {'interval':>17}{'  dollars' if is_gpu else ''}  {'steps':>6}  sampled  trained     memory"
    lines = [head.rstrip()]
    for index, (stage, found) in enumerate(plan.stages.items()):
        lines.append(f"{index:02d} {_row(config, plan, stage, found, memory.get(stage))}".rstrip())
    if len(plan.unknown) == len(plan.stages):
        return "\n".join(lines)
    low, high = (format_hours(plan.total(end)) for end in ("low", "high"))
    money = dollars(config, plan, plan.total())
    total = f"   {'total':<{STAGE_WIDTH}}  {'':6}  {'':>19}   {'':>7}   {format_hours(plan.total()):>13}"
    lines.append(f"{total}  {f'{low} to {high}':>17}{f'  {money:>7,.0f}' if money is not None else ''}")
    return "\n".join(lines)


def _row(config: Config, plan: RunPlan, stage: str, found: StageForecast, memory: int | None) -> str:
    is_gpu = plan.device == "gpu"
    done = stage in plan.done
    paid = plan.costs[stage].process_hours if stage in plan.costs else 0.0
    hours = paid if done else found.hours
    nodes, each = shape(config, found.processes)
    machines = f"{nodes} x {each}" if is_gpu else str(found.processes)
    machines = f"{found.jobs} x {machines}" if found.jobs > 1 else machines
    wall = f"{hours / found.processes / found.jobs:.2f}" if hours is not None else "?"
    interval = "paid" if done else _interval(found)
    money = dollars(config, plan, hours)
    columns = [
        f"{stage:<{STAGE_WIDTH}}  {'done' if done else 'to run':<6}  {machines:>19} x {wall:>7} = ",
        f"{format_hours(hours) if hours is not None else '?':>13}  {interval:>17}",
        f"  {'?' if money is None else f'{money:,.0f}':>7}" if is_gpu else "",
        f"  {found.work.steps or '':>6}  {_tokens(found.sampled_tokens):>7}  {_tokens(found.work.trained_tokens):>7}",
        f"  {f'{memory / 1e9:.1f} GB' if memory and memory > 1e9 else f'{memory / 1e6:.0f} MB' if memory else '':>9}",
        f"  {found.unknown}" if found.unknown and not done else "",
    ]
    return "".join(columns)


def _interval(found: StageForecast) -> str:
    if found.low is None or found.high is None:
        return "unmeasured"
    return f"{format_hours(found.low)} to {format_hours(found.high)}"


def _tokens(count: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}" if count else ""


def _verdict(config: Config, plan: RunPlan, unit: str) -> str:
    if not plan.pending:
        return f"nothing is left to run; {format_hours(plan.spent_hours)} {unit} were paid"
    budget = f"budget.gpu_hours={plan.budget_hours:,g}"
    nothing = len(plan.unknown) == len(plan.pending)
    lines = [_sentence(config, plan, unit, budget) + ("" if nothing else f"; {_wall(plan)}")]
    if plan.unknown:
        lines.append(f"unmeasured, and not in the total: {', '.join(plan.unknown)}{_hint(config)}")
    if plan.exceeds and config.budget.on_exceed == "stop":
        lines.append("REFUSED without plan=true: raise budget.gpu_hours, or say budget.on_exceed=warn")
    return "\n".join(lines)


def _hint(config: Config) -> str:
    if config.cluster.gpu:
        return ""
    if config.scale.model.path:
        return "; name the GPUs, cluster.gpu=H800-SXM cluster.processes=64"
    return "; the first run measures them"


def _sentence(config: Config, plan: RunPlan, unit: str, budget: str) -> str:
    total, high = plan.total(), plan.total("high")
    if len(plan.unknown) == len(plan.pending):
        return f"nothing has measured this machine yet: {budget} is watched while it runs"
    spent = f", {format_hours(plan.spent_hours)} of them spent" if plan.spent_hours else ""
    money = dollars(config, plan, total)
    price = f"{format_hours(total)} {unit}{spent}" + (f", ${money:,.0f}" if money is not None else "")
    if plan.exceeds:
        return f"{price}: over {budget} by {format_hours(max(0.0, total - plan.budget_hours))}"
    worst = f", but its upper end of {format_hours(high)} does not" if high > plan.budget_hours else ""
    return f"{price}: fits {budget}{worst}"


def _wall(plan: RunPlan) -> str:
    low, middle, high = (format_duration(plan.seconds(end)) for end in ("low", "hours", "high"))
    return f"wall time {middle} ({low} to {high}) for what is left, without waiting in queues"
