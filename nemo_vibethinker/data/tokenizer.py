"""A small byte-level BPE tokenizer in the Qwen2 manner, and ChatML encoding of records.

The encoding functions work with any fast ChatML tokenizer, the published Qwen2 ones included. They render ChatML
themselves, so no default system prompt of a model's own template gets in.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_vibethinker.data.records import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A word with at most one leading non-letter; a digit alone; a run of symbols; line ends; other white space.
SPLIT_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCABULARY_MULTIPLE = 64
_BATCH_CHARACTERS = 1_000_000  # encoded at a time; the library's encodings take some 100 bytes a token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Train byte-level BPE on prompts and responses; the same texts give the same tokenizer.

    Every digit is a token of its own. The vocabulary has `vocab_size` entries rounded up to a multiple of 64, filled
    with reserved tokens when the texts yield fewer merges. ValueError if `vocab_size` leaves no room for the 256 bytes
    and the special tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [END_OF_TEXT, IM_START, IM_END]
    size = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    if size < 256 + len(special):
        raise ValueError(
            f"vocab_size must be at least {256 + len(special)} (bytes and special tokens), got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(_with_roles(texts), trainer)
    missing = size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(missing)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=CHAT_TEMPLATE,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        clean_up_tokenization_spaces=False,
    )


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """Texts with the role names of ChatML, so that these become single tokens."""
    for text in texts:
        yield text
        yield "user\n"
        yield "assistant\n"


def user_turn(prompt: str, instruction: str) -> str:
    """What the user says: the prompt and, if there is one, the instruction on a line of its own."""
    return f"{prompt}\n{instruction}" if instruction else prompt


def prompt_text(prompt: str, instruction: str) -> str:
    """One user turn in ChatML, up to and including the opening of the assistant's turn."""
    return f"{IM_START}user\n{user_turn(prompt, instruction)}{IM_END}\n{IM_START}assistant\n"


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """A fast tokenizer from its folder; ValueError if there is none."""
    from transformers import PreTrainedTokenizerFast

    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"tokenizer {folder}: no tokenizer.json there; name the folder of a fast tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def chat_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast":
    """A base model's tokenizer, set up for ChatML: a response ends with `<|im_end|>`, padding is `<|endoftext|>`.

    Raises:
        ValueError: no fast tokenizer in `folder`, or one without these tokens.
    """
    tokenizer = load_tokenizer(folder)
    if missing := {END_OF_TEXT, IM_START, IM_END} - tokenizer.get_vocab().keys():
        raise ValueError(f"tokenizer {folder} has no {', '.join(sorted(missing))}; use a ChatML one such as Qwen2's")
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = IM_END, END_OF_TEXT, CHAT_TEMPLATE
    return tokenizer


def tokenizer_sha256(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Hash of everything that decides how a text is split into tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def encode_texts(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, nothing added; the library's threads share the texts."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def encode_prompts(tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str], instruction: str) -> list[list[int]]:
    """Token ids of each prompt as one user turn, up to and including the opening of the assistant's turn.

    `instruction`, if not empty, follows the prompt on a line of its own. ValueError if the tokenizer has no ChatML
    tokens.
    """
    if not {IM_START, IM_END} <= tokenizer.get_vocab().keys():
        raise ValueError(f"tokenizer has no {IM_START} and {IM_END} tokens; use a ChatML tokenizer such as Qwen2's")
    return encode_texts(tokenizer, [prompt_text(prompt, instruction) for prompt in prompts])


def encode_examples(
    tokenizer: "PreTrainedTokenizerFast", records: Sequence[Record], instruction: str
) -> list[tuple[list[int], int]]:
    """(token ids, prompt length in tokens) of each record; the ids end with `<|im_end|>`, the end of the response."""
    prompts = encode_prompts(tokenizer, [record.prompt for record in records], instruction)
    responses = encode_texts(tokenizer, [record.response + IM_END for record in records])
    return [(prompt + response, len(prompt)) for prompt, response in zip(prompts, responses, strict=True)]


def encode_stream(
    tokenizer: "PreTrainedTokenizerFast", records: Iterable[Record], instruction: str
) -> Iterator[tuple[Record, list[int], int]]:
    """(record, token ids, prompt length) as of `encode_examples`, a million characters at a time."""
    for batch in _batches(records):
        for record, (tokens, prompt_length) in zip(batch, encode_examples(tokenizer, batch, instruction), strict=True):
            yield record, tokens, prompt_length


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch, characters = [], 0
    for record in records:
        batch.append(record)
        characters += len(record.prompt) + len(record.response)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def sample_positions(count: int, size: int, limit: int, seed: int) -> list[int]:
    """Positions of the records that a tokenizer is trained on, ascending: all where `size` bytes are within `limit`.

    Of more, a seeded sample of about `limit` bytes.
    """
    if size <= limit:
        return list(range(count))
    return sorted(random.Random(f"{seed}/tokenizer").sample(range(count), max(1, count * limit // size)))
