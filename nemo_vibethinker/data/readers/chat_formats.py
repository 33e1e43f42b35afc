"""Conversations and the project's own records: chat messages, records, and the layout of verl's RL datasets."""

import json
from typing import Any

from nemo_vibethinker.data.code_tests import parse_tests
from nemo_vibethinker.data.readers.fields import Fields, Format, Kind, content_id, text
from nemo_vibethinker.data.records import DOMAINS, RECORD_FIELDS, checked_tests, record_from_dict, split_messages

# What DAPO-Math-17k and Skywork-OR1 write around a problem. The run has an instruction of its own, and no grader here
# reads an "Answer:" line.
_WRAPPERS = (
    (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n",
        '\n\nRemember to put your answer on its own line after "Answer:".',
    ),
    ("", "Let's think step by step and output the final answer within \\boxed{}."),
)


def _records(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    record = record_from_dict(row)
    return [{name: getattr(record, name) for name in RECORD_FIELDS if name != "source" or record.source}]


def _chat(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    prompt, response = split_messages(row.get("messages"))
    tests = checked_tests(row.get("tests")) if kind else ()
    domain = text(row, "domain") or ("code" if tests or "code" in str(row.get("source", "")) else "math")
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain}; known: {', '.join(DOMAINS)}")
    difficulty = row.get("difficulty", 0)
    return [
        {
            "domain": domain,
            "prompt": prompt,
            "response": response,
            "answer": text(row, "answer"),
            "tests": tests,
            "difficulty": difficulty if type(difficulty) is int else 0,
            "strategy": text(row, "strategy"),
        }
    ]


def _verl(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    """For RL equal prompts are one problem: DAPO-Math-17k repeats each a hundred times."""
    prompt = _unwrapped(split_messages(row.get("prompt"))[0])
    reward = row.get("reward_model")
    truth = reward.get("ground_truth") if isinstance(reward, dict) else None
    if kind and not truth:
        raise ValueError("no answer: reward_model has no ground_truth")
    fields: Fields = {"domain": "code" if "code" in text(row, "ability", "data_source").lower() else "math"}
    fields["prompt"] = prompt
    if kind == "rl":
        fields["id"] = content_id(text(row, "data_source") or "verl", prompt)
        fields |= {"tests": parse_tests(truth)} if fields["domain"] == "code" else {"answer": _single(truth)}
    return [fields]


def _unwrapped(prompt: str) -> str:
    for before, after in _WRAPPERS:
        if prompt.startswith(before) and prompt.endswith(after):
            return prompt[len(before) : len(prompt) - len(after)].strip()
    return prompt


def _single(truth: Any) -> str:
    """The answer; the first where accepted answers are listed, as Skywork-OR1 does in JSON."""
    if isinstance(truth, str) and truth.startswith('["'):
        try:
            truth = json.loads(truth)
        except ValueError:
            return truth.strip()
    return text({"ground_truth": truth[0] if isinstance(truth, list) and truth else truth}, "ground_truth")


FORMATS = (
    # huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k, Skywork/Skywork-OR1-RL-Data
    Format(
        name="verl",
        rule="prompt (a list of messages), reward_model",
        matches=lambda row: "reward_model" in row and isinstance(row.get("prompt"), list),
        read=_verl,
    ),
    # also huggingface.co/datasets/open-r1/Mixture-of-Thoughts
    Format(name="chat", rule="messages", matches=lambda row: "messages" in row, read=_chat),
    Format(
        name="records",
        rule="id, domain, prompt",
        matches=lambda row: {"id", "domain", "prompt"} <= row.keys() <= RECORD_FIELDS,
        read=_records,
    ),
)
