"""What the stages that hold a model share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size
from nemo_vibethinker.model.hf_folder import HfFolder, check_model_config
from nemo_vibethinker.model.qwen2 import build_chunks
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.rollout.feeding_sampler import FeedingSampler
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.rollout.responses import Sampler
from nemo_vibethinker.rollout.vllm_engine import VllmEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(inputs: dict[str, Path]) -> "PreTrainedTokenizerFast":
    """The run's tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(inputs["tokenizer"])


def build_run_model(config: Config, inputs: dict[str, Path], *, pretrained: bool = False) -> list[GPTModel]:
    """This rank's chunks of the run's model: freshly initialised, or `pretrained`: the base model, if there is one."""
    base = inputs.get("base_model")
    if base is None:
        return build_chunks(config, len(load_tokenizer(inputs)))
    vocab_size = check_model_config(config.scale.model, base)
    return build_chunks(config, vocab_size, HfFolder(base, config.scale.model, vocab_size) if pretrained else None)


def make_grader(config: Config) -> Grader:
    """A grader with this replica's share of the run's grading processes."""
    _, replicas = data_parallel_rank_and_size()
    return Grader(config.reward, workers=max(1, config.reward.workers // replicas))


def make_sampler(
    config: Config, chunks: Sequence[GPTModel], tokenizer: "PreTrainedTokenizerFast", grader: Grader
) -> Sampler:
    """Samples, with the engine of `rollout.engine`, from the weights that the model had at the last `sync`."""
    assert isinstance(tokenizer.eos_token_id, int)
    assert isinstance(tokenizer.pad_token_id, int)
    if config.rollout.engine == "vllm":
        return FeedingSampler(config, VllmEngine(config, chunks, tokenizer.eos_token_id), tokenizer, grader)
    return Sampler(config, MegatronEngine(chunks, tokenizer.eos_token_id, tokenizer.pad_token_id), tokenizer, grader)
