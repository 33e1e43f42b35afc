from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import (
    encode_examples,
    encode_prompts,
    train_tokenizer,
)
from nemo_vibethinker.data.world import WorldSizes, generate_world

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


def sft_records(problems: int) -> list[Record]:
    sizes = WorldSizes(
        sft_problems_per_domain=problems,
        rl_per_domain=0,
        probe_per_domain=0,
        evaluation_per_domain=0,
        sft_code_problems=problems,
        rl_code=0,
        probe_code=0,
        evaluation_code=0,
    )
    return generate_world(7, sizes).sft


def texts(records: list[Record]) -> list[str]:
    return [text for record in records for text in (record.prompt, record.response)]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return sft_records(600)


@pytest.fixture(scope="module")
def tokenizer(records: list[Record]) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts(records), 512)


def test_size_and_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 512
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert tokenizer.encode("<|im_start|>user\n") == [1, *tokenizer.encode("user"), *tokenizer.encode("\n")]
    assert len(tokenizer.encode("<|im_start|>assistant\n")) == 3


def test_vocabulary_is_padded_to_a_multiple_of_64() -> None:
    small = train_tokenizer(["one tiny text"], 300)
    assert len(small) == 320
    assert "<|reserved_0|>" in small.get_vocab()
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["text"], 100)


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("1024=7") == ["1", "0", "2", "4", "=", "7"]
    merged = [token for token in tokenizer.get_vocab() if sum(c.isdigit() for c in token) and len(token) > 1]
    assert [token for token in merged if not token.startswith("<|reserved")] == []


@pytest.mark.parametrize(
    "text", ["  two  spaces\n\n\ttab \r\n", "\u00e9\u4f60\u597d \U0001f600 \u0000", "a , b . c 's", "", "\\boxed{12}"]
)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_deterministic(records: list[Record], tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(texts(records), 512)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_save_and_load(tokenizer: PreTrainedTokenizerFast, records: list[Record], tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert encode_examples(loaded, records[:50], "") == encode_examples(tokenizer, records[:50], "")
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|im_end|>")


@pytest.mark.parametrize("instruction", ["", INSTRUCTION])
def test_encoding_equals_the_chat_template(
    tokenizer: PreTrainedTokenizerFast, records: list[Record], instruction: str
) -> None:
    for record in records[::97]:
        content = f"{record.prompt}\n{instruction}" if instruction else record.prompt
        user = {"role": "user", "content": content}
        prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(
            [user, {"role": "assistant", "content": record.response}], return_dict=False
        )
        ((ids, prompt_length),) = encode_examples(tokenizer, [record], instruction)
        assert encode_prompts(tokenizer, [record.prompt], instruction) == [prompt] == [ids[:prompt_length]]
        assert ids == whole[:-1]  # the template closes the turn with one more line end
        assert ids[-1] == tokenizer.eos_token_id


def test_world_records_are_short(tokenizer: PreTrainedTokenizerFast, records: list[Record]) -> None:
    examples = encode_examples(tokenizer, records, "")
    responses = [len(ids) - prompt_length for ids, prompt_length in examples]
    assert sum(responses) / len(responses) < 55
    assert max(responses) < 150
    assert max(prompt_length for _, prompt_length in examples) < 60


def test_tokenizer_without_chatml_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers import Tokenizer, models

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="ChatML"):
        encode_prompts(plain, ["x"], "")
