"""`plan=json`: the plan for programs. The schema grows; keys that are there keep their meaning.

{
  "schema": 1,
  "run": folder,  "recipe", "scale", "cluster": names,
  "device": "gpu" | "cpu",        what an hour is of: a GPU, or a process without one
  "gpu": name or "",
  "nodes", "processes_per_node", "processes": of the training stages,
  "budget": {"gpu_hours", "dollars_per_gpu_hour", "on_exceed"},
  "spent_hours": by the ledger, lost hours too,
  "total": {"hours", "low", "high", "dollars", "seconds"},   spent and to come; seconds of wall time of what is to come
  "exceeds": bool,                "refused": bool, with budget.on_exceed=stop
  "unknown": [stages to run without a figure; not in the total],
  "stages": [{
    "stage", "state": "done" | "to run",
    "nodes", "processes_per_node", "jobs", "jobs_at_once": of each job; how many there are, and side by side,
    "hours", "low", "high": forecast of the whole stage, null where unknown,   "paid_hours",
    "dollars": null without GPUs,   "seconds": wall time, null where unknown,
    "steps", "sampled_tokens", "trained_tokens", "memory_bytes": on the fullest process, null where no model works,
    "phases": {"start" | "sample" | "train" | "wait" | "move": hours},
    "figures": {name: {"value", "source", "measured": bool}},
    "note": what is not known, or ""
  }]
}
"""

import json
from typing import Any

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.forecast import StageForecast
from nemo_vibethinker.costs.run_plan import RunPlan, dollars, shape, stage_memory

SCHEMA = 1


def to_json(config: Config, plan: RunPlan) -> str:
    """The plan as JSON text, indented."""
    return json.dumps(to_dict(config, plan), indent=1)


def to_dict(config: Config, plan: RunPlan) -> dict[str, Any]:
    """The plan as JSON values, by the schema of this module."""
    nodes, each = shape(config, config.world_size)
    memory = stage_memory(config)
    total = {end: plan.total(end) for end in ("hours", "low", "high")}
    return {
        "schema": SCHEMA,
        "run": str(config.run_folder),
        "recipe": config.recipe,
        "scale": config.scale.name,
        "cluster": config.cluster.name,
        "device": plan.device,
        "gpu": config.cluster.gpu,
        "nodes": nodes,
        "processes_per_node": each,
        "processes": config.world_size,
        "budget": {
            "gpu_hours": config.budget.gpu_hours,
            "dollars_per_gpu_hour": config.budget.dollars_per_gpu_hour,
            "on_exceed": config.budget.on_exceed,
        },
        "spent_hours": plan.spent_hours,
        "total": total | {"dollars": dollars(config, plan, total["hours"]), "seconds": plan.seconds()},
        "exceeds": plan.exceeds,
        "refused": plan.exceeds and config.budget.on_exceed == "stop",
        "unknown": plan.unknown,
        "stages": [_stage(config, plan, found, memory.get(stage)) for stage, found in plan.stages.items()],
    }


def _stage(config: Config, plan: RunPlan, found: StageForecast, memory: int | None) -> dict[str, Any]:
    nodes, each = shape(config, found.processes)
    figures = found.figures.items()
    return {
        "stage": found.stage,
        "state": "done" if found.stage in plan.done else "to run",
        "nodes": nodes,
        "processes_per_node": each,
        "jobs": found.jobs,
        "jobs_at_once": found.side_by_side,
        "hours": found.hours,
        "low": found.low,
        "high": found.high,
        "paid_hours": plan.costs[found.stage].process_hours if found.stage in plan.costs else 0.0,
        "dollars": dollars(config, plan, found.hours),
        "seconds": found.seconds,
        "steps": found.work.steps,
        "sampled_tokens": found.sampled_tokens,
        "trained_tokens": found.work.trained_tokens,
        "memory_bytes": memory,
        "phases": dict(found.phases),
        "figures": {n: {"value": f.value, "source": f.source, "measured": f.is_measured} for n, f in figures},
        "note": found.unknown,
    }
