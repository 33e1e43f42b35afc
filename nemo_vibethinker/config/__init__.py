"""The typed schema of a run. YAML files and dotted overrides are a thin overlay on these dataclasses.

Imports neither torch nor Megatron: a login node reads, checks and plans a run in milliseconds.
"""

from nemo_vibethinker.config.benchmarks import BenchmarkConfig, EvalConfig
from nemo_vibethinker.config.budget import BudgetConfig
from nemo_vibethinker.config.checks import fp8_multiple, validate
from nemo_vibethinker.config.cluster import ClusterConfig
from nemo_vibethinker.config.data import DataConfig, RunConfig
from nemo_vibethinker.config.debug import DebugConfig
from nemo_vibethinker.config.export import ExportConfig
from nemo_vibethinker.config.grading import EvaluateConfig, RewardConfig
from nemo_vibethinker.config.guards import GuardConfig, GuardsConfig
from nemo_vibethinker.config.names import CODE_DOMAIN, LOGGERS, MATH_DOMAINS, SIGNAL_STAGES, STAGES
from nemo_vibethinker.config.rollout import RolloutConfig
from nemo_vibethinker.config.run import Config, flatten, load_config, resolve, to_yaml
from nemo_vibethinker.config.scale import ModelConfig, ParallelConfig, ScaleConfig
from nemo_vibethinker.config.signal import MgpoConfig, SignalConfig
from nemo_vibethinker.config.spectrum import FuseConfig, OptimizerConfig, ProbeConfig, SamplingConfig, SftConfig

__all__ = [
    "CODE_DOMAIN",
    "LOGGERS",
    "MATH_DOMAINS",
    "SIGNAL_STAGES",
    "STAGES",
    "BenchmarkConfig",
    "BudgetConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DebugConfig",
    "EvalConfig",
    "EvaluateConfig",
    "ExportConfig",
    "FuseConfig",
    "GuardConfig",
    "GuardsConfig",
    "MgpoConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ProbeConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SamplingConfig",
    "ScaleConfig",
    "SftConfig",
    "SignalConfig",
    "flatten",
    "fp8_multiple",
    "load_config",
    "resolve",
    "to_yaml",
    "validate",
]
