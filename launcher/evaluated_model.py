"""`model=NAME` of the evaluate recipe: the run's architecture, precision and name are read from the model."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from nemo_vibethinker.config import Config, ModelConfig, load_config
from nemo_vibethinker.evaluation.model_source import HfModel, RunModel, model_source
from nemo_vibethinker.model.hf_folder import local_folder, read_model_config

_BF16 = ("bfloat16", "float16")


def describe_model(config: Config, given: Mapping[str, object]) -> None:
    """Fill in what `eval.model` says of itself; keys of `given` (dotted, on the command line) stay as they are.

    Raises:
        ValueError: it is no model, or one of an architecture that is not known here.
    """
    assert config.eval.model is not None
    source = model_source(config.eval.model)
    if isinstance(source, HfModel):
        config.eval.model = source.name
        model, vocab_size, precision = _of_hf(source)
    else:
        config.eval.model = _name(source)
        run = load_config(source.run / "config.yaml")
        model, vocab_size, precision = run.scale.model, run.data.vocab_size, run.scale.precision
    if "scale" not in given:
        config.scale.name = "model"  # its own size, not that of a scale file
        own = {key.removeprefix("scale.model."): key for key in given if key.startswith("scale.model.")}
        kept = {name: getattr(config.scale.model, name) for name in own}
        config.scale.model = dataclasses.replace(model, **kept)
        config.data.vocab_size = vocab_size
        if "scale.precision" not in given:
            config.scale.precision = precision
    config.run.name = config.run.name or _run_name(config, source)


def _of_hf(source: HfModel) -> tuple[ModelConfig, int, str]:
    folder = local_folder(source.name, "model", ("config.json",))
    model, vocab_size = read_model_config(folder)
    fields = json.loads((folder / "config.json").read_text())
    stored = fields.get("dtype") or fields.get("torch_dtype")
    return model, vocab_size, "bf16" if stored in _BF16 else "fp32"


def _name(source: RunModel) -> str:
    if source.checkpoint:
        return str(source.checkpoint)
    return f"{source.run}:{source.label}" if source.label else str(source.run)


def _run_name(config: Config, source: HfModel | RunModel) -> str:
    model = Path(source.name).name if isinstance(source, HfModel) else f"{source.run.name}-{source.label or 'last'}"
    index, count = config.eval.shard_index
    shard = f"-shard{index}of{count}" if count > 1 else ""
    return f"evaluate-{model}-{config.eval.protocol}-seed{config.seed}{shard}"
