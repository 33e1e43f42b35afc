"""Fuse: the weighted average of the specialists (VibeThinker-1.5B report, section 3.3)."""

import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron.checkpoint import load_model_state, save_model_state
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.spectrum.fusion import fuse_state_dicts
from nemo_vibethinker.stages.common import build_run_model


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Average the specialists' weights, each rank its own part, in fp32."""
    specialists: dict[str, int] = json.loads(inputs["specialists"].read_text())
    weights = fusion_weights(config.fuse.weights, list(specialists))
    chunks = build_run_model(config, inputs)

    def states() -> Iterator[dict[str, Tensor]]:
        for domain in specialists:
            state = load_model_state(chunks, inputs[f"model.specialist.{domain}"])
            yield {name: value for name, value in state.items() if isinstance(value, Tensor)}

    fused = fuse_state_dicts(states(), list(weights.values()))
    save_model_state(chunks, fused, folder / "model")
    context.say(", ".join(f"{weights[d]:.3g} x {d} (step {step})" for d, step in specialists.items()))
    outputs = {"model.fused": folder / "model", "policy": folder / "model"}
    return StageResult(outputs=outputs, metrics={"weights": weights, "steps": specialists})


def fusion_weights(given: dict[str, float] | None, domains: list[str]) -> dict[str, float]:
    """The weight of each domain's specialist: uniform, or as given.

    Raises:
        ValueError: the domains of `given` are not those that were probed.
    """
    if given is None:
        return {domain: 1 / len(domains) for domain in domains}
    if set(given) != set(domains):
        raise ValueError(f"fuse.weights names {', '.join(sorted(given))}; the probe has {', '.join(sorted(domains))}")
    return {domain: given[domain] for domain in domains}


if __name__ == "__main__":
    stage_main(__file__)
