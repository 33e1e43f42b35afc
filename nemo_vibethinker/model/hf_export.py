"""A Hugging Face folder from unsharded Megatron tensors, and the proof that it is the same model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_vibethinker.config import Config
from nemo_vibethinker.model.hf_weights import hf_config_fields, to_hf_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def write_hf_folder(
    config: Config, full: dict[str, Tensor], tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> None:
    """Write weights (safetensors), configuration, generation settings and tokenizer, for transformers and vLLM."""
    from safetensors.torch import save_file
    from transformers import GenerationConfig, Qwen2Config

    folder.mkdir(parents=True, exist_ok=True)
    dtype = next(iter(full.values())).dtype
    tokens: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields = hf_config_fields(config.scale.model, len(tokenizer))
    hf_config = Qwen2Config(**fields, **tokens, dtype=str(dtype).removeprefix("torch."))
    hf_config.architectures = ["Qwen2ForCausalLM"]
    hf_config.save_pretrained(folder)
    sampling = config.evaluate.sampling
    GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_response_length,
        **tokens,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in to_hf_tensors(full, config.scale.model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def hf_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V] in fp32 of the exported model under transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(tokens_BT).logits
