"""A small byte-level BPE tokenizer in the Qwen2 manner, and ChatML encoding of records.

The encoding functions work with any fast ChatML tokenizer, the published Qwen2 ones included. They render ChatML
themselves, so no default system prompt of a model's own template gets in.
"""

from collections.abc import Iterable, Iterator, Sequence
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


def _prompt_text(prompt: str, instruction: str) -> str:
    content = f"{prompt}\n{instruction}" if instruction else prompt
    return f"{IM_START}user\n{content}{IM_END}\n{IM_START}assistant\n"


def _encode(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str]) -> list[list[int]]:
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def encode_prompts(tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[str], instruction: str) -> list[list[int]]:
    """Token ids of each prompt as one user turn, up to and including the opening of the assistant's turn.

    `instruction`, if not empty, follows the prompt on a line of its own. ValueError if the tokenizer has no ChatML
    tokens.
    """
    if not {IM_START, IM_END} <= tokenizer.get_vocab().keys():
        raise ValueError(f"tokenizer has no {IM_START} and {IM_END} tokens; use a ChatML tokenizer such as Qwen2's")
    return _encode(tokenizer, [_prompt_text(prompt, instruction) for prompt in prompts])


def encode_examples(
    tokenizer: "PreTrainedTokenizerFast", records: Sequence[Record], instruction: str
) -> list[tuple[list[int], int]]:
    """(token ids, prompt length in tokens) of each record; the ids end with `<|im_end|>`, the end of the response."""
    prompts = encode_prompts(tokenizer, [record.prompt for record in records], instruction)
    responses = _encode(tokenizer, [record.response + IM_END for record in records])
    return [(prompt + response, len(prompt)) for prompt, response in zip(prompts, responses, strict=True)]
