"""The layouts under which the memory model is compared with counted bytes; shared by the test and its worker."""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from nemo_vibethinker.config import ModelConfig, ScaleConfig

VOCAB = 512
MODEL = ModelConfig(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=160,
    num_attention_heads=4,
    num_query_groups=2,
    max_position_embeddings=1024,
)


@dataclass(frozen=True)
class Case:
    """A layout by dotted keys below `scale`, and the packed row it trains on."""

    name: str
    processes: int
    layout: dict[str, Any]
    lengths: list[int]
    micro_batches: int = 1

    def scale(self) -> ScaleConfig:
        """The tiny model under the layout."""
        config = OmegaConf.structured(ScaleConfig(model=MODEL))
        for key, value in self.layout.items():
            OmegaConf.update(config, key, value)
        made = OmegaConf.to_object(config)
        assert isinstance(made, ScaleConfig)
        return made


def _alone(recompute: str, precision: str, lengths: list[int], micro_batches: int = 1) -> Case:
    name = f"{recompute} {precision} {sum(lengths)}"
    return Case(name, 1, {"recompute": recompute, "precision": precision}, lengths, micro_batches)


# the other architectures: Qwen3's norms of query and key with their own head size, an output layer of its own
QWEN3 = {"model.qk_norm": True, "model.qkv_bias": False, "model.head_dim": 32, "model.tie_embeddings": False}
TENSOR = {"parallel.tensor": 2}
SEQUENCE = TENSOR | {"parallel.sequence": True}
CASES = [
    *(_alone(recompute, "fp32", [128, 128]) for recompute in ("none", "selective", "full")),
    *(_alone(recompute, "fp32", [100, 412, 256]) for recompute in ("none", "selective", "full")),
    *(_alone(recompute, "bf16", [128, 128], 2) for recompute in ("none", "selective", "full")),
    *(_alone(recompute, "bf16", [768], 2) for recompute in ("none", "selective", "full")),
    Case("qwen3", 1, QWEN3 | {"model.ffn_hidden_size": 96}, [128, 384]),
    Case("qwen3 bf16 full", 1, QWEN3 | {"precision": "bf16", "recompute": "full", "model.num_layers": 6}, [300]),
    Case("tensor 2", 2, TENSOR, [128, 128]),
    Case("tensor 2 sequence", 2, SEQUENCE, [128, 384]),
    Case("tensor 2 sequence full", 2, SEQUENCE | {"recompute": "full"}, [128, 128]),
    Case("tensor 2 sequence bf16", 2, SEQUENCE | {"recompute": "selective", "precision": "bf16"}, [512]),
    Case("context 2", 2, {"parallel.context": 2}, [128, 128]),
    Case("context 2 whole row", 2, {"parallel.context": 2}, [512]),
    Case("context 2 bf16", 2, {"parallel.context": 2, "recompute": "selective", "precision": "bf16"}, [512]),
    Case("pipeline 2", 2, {"parallel.pipeline": 2}, [128, 128], 4),
    Case("pipeline 2 interleaved", 2, {"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}, [128, 128], 4),
    Case("qwen3 pipeline 2", 2, QWEN3 | {"parallel.pipeline": 2, "model.num_layers": 3}, [200, 56], 2),
    Case("data 2 bf16", 2, {"parallel.data": 2, "precision": "bf16"}, [128, 128]),
    Case(
        "data 2 bf16 whole",
        2,
        {"parallel.data": 2, "precision": "bf16", "parallel.distributed_optimizer": False},
        [128, 128],
    ),
]
