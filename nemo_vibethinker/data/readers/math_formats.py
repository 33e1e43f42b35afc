"""Mathematics: GSM8K, MATH and what shares its columns, OpenR1-Math, OpenMathReasoning."""

import re
from typing import Any

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.readers.fields import MATH_SUBJECT_DOMAINS, Fields, Format, Kind, content_id, text

_BRACED_BOX = re.compile(r"\\boxed\s*\{")
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"\d+")
_NO_ANSWERS = {"proof", "notfound"}  # NuminaMath-1.5's and OpenR1-Math's words in the answer column
_LONGEST_ANSWER = 400  # characters; a longer text in an answer column is a solution, not a final answer


def _gsm8k(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    solution, mark, final = text(row, "answer").rpartition("####")
    answer = final.strip().replace(",", "")
    if kind and (not mark or not answer):
        raise ValueError("no answer: no '#### N' line")
    if "<<" in solution:
        solution = _CALCULATOR_MARK.sub("", solution)
    response = solution.strip()
    if response and kind:
        response = f"{response}\n\\boxed{{{answer}}}"
    return [{"domain": "math", "prompt": text(row, "question"), "response": response, "answer": answer}]


def _math(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    solution = text(row, "solution")
    answer = _final_answer(text(row, "answer", "final_answer") or last_boxed(solution) or "", kind)
    if kind and solution and answer and not _BRACED_BOX.search(solution):  # graders read neither \fbox nor "\boxed 5"
        solution = f"{solution}\n\\boxed{{{answer}}}"
    level = _NUMBER.search(str(row["level"])) if "level" in row else None
    return [
        {
            "domain": _domain(row, "subject", "type", "problem_type"),
            "prompt": text(row, "problem", "question"),
            "response": solution,
            "answer": answer,
            "difficulty": int(level.group()) if level else 0,
        }
    ]


def _final_answer(answer: str, kind: Kind | None) -> str:
    """The answer where it is one; without a kind nothing is asked of it."""
    fault = ""
    if not answer:
        fault = "no answer: no answer column and no \\boxed in the solution"
    elif answer.lower() in _NO_ANSWERS:
        fault = f"no answer: the answer column says {answer.lower()}"
    elif len(answer) > _LONGEST_ANSWER:
        fault = f"no answer: the answer column holds {len(answer)} characters of text"
    if fault and kind:
        raise ValueError(fault)
    return "" if fault else answer


def _domain(row: dict[str, Any], *columns: str) -> str:
    for column in columns:
        if column in row and (domain := MATH_SUBJECT_DOMAINS.get(str(row[column]))):
            return domain
    return "math"


def _openr1(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    """For RL the problem and its answer; for SFT a record for each complete generation that a check found correct."""
    problem = {"domain": _domain(row, "problem_type"), "prompt": text(row, "problem")}
    answer = text(row, "answer")
    if kind != "sft":
        return [problem | {"answer": _final_answer(answer, kind)}]
    generations = row.get("generations")
    if not isinstance(generations, list) or not all(isinstance(one, str) for one in generations):
        raise ValueError("column generations is not a list of texts")
    used = [number for number in range(len(generations)) if _is_correct(row, number) and generations[number].strip()]
    if not used:
        raise ValueError("no solution: none of the generations is complete and correct")
    identity = text(row, "uuid") or content_id("openr1", problem["prompt"])
    answer = "" if answer.lower() in _NO_ANSWERS else answer
    return [
        problem | {"id": f"{identity}#{number}", "response": generations[number].strip(), "answer": answer}
        for number in used
    ]


def _is_correct(row: dict[str, Any], number: int) -> bool:
    """Finished, and right by math-verify or, where that could not tell, by the model that judged."""

    def flag(column: str) -> Any:
        flags = row.get(column)
        return flags[number] if isinstance(flags, list) and number < len(flags) else None

    right = flag("correctness_math_verify") is True or flag("correctness_llama") is True
    return right and flag("is_reasoning_complete") is not False


def _open_math_reasoning(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    """A row is one generation. SFT uses the `cot` ones; RL takes each problem once, its id made from its text."""
    prompt, mode = text(row, "problem"), text(row, "inference_mode")
    if kind == "sft" and mode not in ("cot", ""):
        raise ValueError(f"inference_mode {mode}: only cot solutions stand alone")
    if kind == "rl" and mode == "genselect":
        raise ValueError("inference_mode genselect: chooses among solutions")
    fields: Fields = {"domain": "math", "prompt": prompt, "response": text(row, "generated_solution")}
    answer = text(row, "expected_answer")
    if kind == "rl":
        fields |= {"id": content_id("openmath", prompt), "response": "", "answer": _final_answer(answer, kind)}
    else:
        fields["answer"] = _final_answer(answer, None)
    return [fields]


FORMATS = (
    # huggingface.co/datasets/open-r1/OpenR1-Math-220k
    Format(
        name="openr1",
        rule="problem, generations",
        matches=lambda row: {"problem", "generations"} <= row.keys(),
        read=_openr1,
    ),
    # huggingface.co/datasets/nvidia/OpenMathReasoning
    Format(
        name="openmathreasoning",
        rule="problem, generated_solution",
        matches=lambda row: {"problem", "generated_solution"} <= row.keys(),
        read=_open_math_reasoning,
    ),
    # github.com/hendrycks/math and, with its columns, DeepScaleR, NuminaMath-1.5 and the hub's AIME sets
    Format(
        name="math",
        rule="problem, solution or answer or final_answer",
        matches=lambda row: "problem" in row and bool(row.keys() & {"solution", "answer", "final_answer"}),
        read=_math,
    ),
    # github.com/openai/grade-school-math
    Format(
        name="gsm8k",
        rule="question, answer that ends in '#### N'",
        matches=lambda row: {"question", "answer"} <= row.keys() and "####" in str(row["answer"]),
        read=_gsm8k,
    ),
    # huggingface.co/datasets/opencompass/AIME2025, zwhe99/DeepMath-103K
    Format(
        name="question-answer",
        rule="question, answer or final_answer",
        matches=lambda row: "question" in row and bool(row.keys() & {"answer", "final_answer"}),
        read=_math,
    ),
)
