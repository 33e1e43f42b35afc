"""A Hugging Face folder from a stream of tensors, and its logits under transformers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_vibethinker.config import Config
from nemo_vibethinker.model.hf_folder import INDEX, hf_config_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD_BYTES = 512 << 20  # of one weights file; what a writing host holds besides the model


def write_hf_folder(
    config: Config,
    tensors: Iterable[tuple[str, Tensor]],
    tokenizer: "PreTrainedTokenizerFast",
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights (safetensors), configuration, generation settings and tokenizer, for transformers and vLLM.

    Args:
        tensors: Hugging Face (name, full tensor) pairs; at most `shard_bytes` of them are held at a time.
    """
    from transformers import GenerationConfig, Qwen2Config, Qwen3Config

    folder.mkdir(parents=True, exist_ok=True)
    vocab_size, dtype = write_weights(tensors, folder, shard_bytes)
    model = config.scale.model
    tokens: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    fields: dict[str, Any] = hf_config_fields(model, vocab_size) | tokens | {"dtype": str(dtype).removeprefix("torch.")}
    hf_config = Qwen3Config(**fields) if model.qk_norm else Qwen2Config(**fields)
    hf_config.architectures = ["Qwen3ForCausalLM" if model.qk_norm else "Qwen2ForCausalLM"]
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
    _write_for_older_readers(folder, model.rope_theta)


def _write_for_older_readers(folder: Path, rope_theta: float) -> None:
    """Say once more what transformers 5 writes in a new place: converters (GGUF) and older engines look in the old one.

    These are `rope_theta` beside `rope_parameters`, the tokenizer's class, its special tokens and the chat template.
    """
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_theta": rope_theta}, indent=2) + "\n")
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):  # a mapping in transformers 4
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    fields["chat_template"] = (folder / "chat_template.jinja").read_text()
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def write_weights(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES
) -> tuple[int, torch.dtype]:
    """Write safetensors files of about `shard_bytes` each, with their index where there are several.

    Returns:
        The number of rows of the embedding, and the type of the weights.
    """
    from safetensors.torch import save_file

    files: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total, vocab_size, dtype = 0, 0, torch.float32

    def flush() -> None:
        save_file(held, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
            flush()
        held[name] = tensor.cpu().contiguous()
        total, dtype = total + tensor.nbytes, tensor.dtype
        vocab_size = tensor.shape[0] if name == "model.embed_tokens.weight" else vocab_size
    flush()
    _name_files(folder, files, total)
    return vocab_size, dtype


def _name_files(folder: Path, files: list[list[str]], total_bytes: int) -> None:
    """Give the parts the names that transformers looks for, which tell how many there are."""
    count = len(files)
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors" for i in range(count)]
    for index, name in enumerate(names):
        (folder / f"part-{index}.safetensors").replace(folder / name)
    if count > 1:
        weight_map = {tensor: name for name, held in zip(names, files, strict=True) for tensor in held}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


@torch.no_grad()
def hf_logits(folder: Path, tokens_BT: Tensor) -> Tensor:
    """Logits [B, T, V] in fp32 of the exported model under transformers."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model(tokens_BT).logits
