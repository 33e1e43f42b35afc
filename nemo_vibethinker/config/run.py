"""The whole configuration of a run, and its forms as a file and as dotted keys."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import omegaconf
from omegaconf import OmegaConf

from nemo_vibethinker.config.benchmarks import EvalConfig
from nemo_vibethinker.config.budget import BudgetConfig
from nemo_vibethinker.config.cluster import ClusterConfig
from nemo_vibethinker.config.data import DataConfig, RunConfig
from nemo_vibethinker.config.debug import DebugConfig
from nemo_vibethinker.config.export import ExportConfig
from nemo_vibethinker.config.grading import EvaluateConfig, RewardConfig
from nemo_vibethinker.config.guards import GuardsConfig
from nemo_vibethinker.config.names import STAGES
from nemo_vibethinker.config.rollout import RolloutConfig
from nemo_vibethinker.config.scale import ScaleConfig
from nemo_vibethinker.config.signal import SignalConfig
from nemo_vibethinker.config.spectrum import FuseConfig, ProbeConfig, SftConfig


@dataclass(kw_only=True)
class Config:
    """A whole run, resolved."""

    recipe: str = "ssp_full"
    stages: list[str] = field(default_factory=lambda: list(STAGES))
    seed: int = 0
    loggers: list[str] = field(default_factory=list)  # tensorboard, wandb, mlflow: fed with the fields of run.jsonl
    run: RunConfig = field(default_factory=RunConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)

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
    """Replace what is derived from other keys by its value: the number of processes on a cluster, and of replicas."""
    parallel, cluster = config.scale.parallel, config.cluster
    if cluster.scheduler == "slurm":
        cluster.processes = cluster.nodes * cluster.gpus_per_node
    if parallel.data == 0:
        model_ranks = parallel.tensor * parallel.pipeline * parallel.context
        parallel.data = max(1, config.cluster.processes // max(1, model_ranks))
