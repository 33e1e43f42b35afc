"""Command line and YAML files -> a checked Config.

Every scalar, from YAML or the command line, is read as text and parsed by the schema's type of its key. So nothing
depends on what YAML takes `on`, `12:30` or `1e-3` for.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launcher.evaluated_model import describe_model
from nemo_vibethinker.config import SIGNAL_STAGES, Config, resolve, validate
from nemo_vibethinker.data.readers.files import is_hub_name
from nemo_vibethinker.evaluation.protocols import chosen_benchmarks
from nemo_vibethinker.model.hf_folder import check_model_config

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
AXES = {"recipe": RECIPES, "scale": RECIPES / "scale", "cluster": RECIPES / "cluster"}
DEFAULT_NAMES = {"scale": "tiny", "cluster": "local"}
NAME_KEYS = {"recipe": "recipe", "scale": "scale.name", "cluster": "cluster.name"}
COMMAND_LINE = "command line"
ALGORITHM = "signal.algorithm"

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    config: Config
    sources: dict[str, str]  # dotted key -> the file that set it, or "command line"
    reference: Config  # the recipe, scale and cluster as their files have them
    plan: bool
    layouts: bool  # plan=layouts: the choice of layouts in place of the plan
    as_json: bool  # plan=json: for programs


def parse(arguments: list[str]) -> Command:
    """Compose schema < recipe < scale < cluster < command line, and check the result; see `merged` of the algorithm.

    Raises:
        ValueError: one line that names the place, the key and the fix.
    """
    given = split_arguments(arguments)
    asked = given.pop("plan", "false")
    layouts = asked == "layouts"
    as_json = asked == "json"
    plan = layouts or as_json or parse_value(bool, asked, f"{COMMAND_LINE}: plan")
    layers: list[tuple[str, dict[str, Any]]] = []
    names: dict[str, Any] = {}
    named_scale = {"scale": given["scale"]} if "scale" in given else {}
    for axis in AXES:
        name = given.pop(axis, DEFAULT_NAMES.get(axis))
        file = axis_file(axis, name)
        layers.append((_place(file), read_overlay(file)))
        names[NAME_KEYS[axis]] = name
    if "model" in given:
        given["eval.model"] = given.pop("model")
    typed = {key: _given_value(key, text) for key, text in given.items()}
    reference = build(merged(layers)[0] | names)
    resolve(reference)
    values, sources = merged([*layers, (COMMAND_LINE, typed)])
    config = build(values | names)
    if config.eval.model:
        describe_model(config, given | named_scale)
    resolve(config)
    validate(config)
    check_paths(config)
    return Command(config, sources, reference, plan, layouts, as_json)


def merged(layers: list[tuple[str, dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Dotted key -> value, and -> the place that set it, of layers (place, values) of which a later one overrules.

    `signal.algorithm` stands for the keys of its file, directly below the other keys of the layer that names it last.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    naming = [place for place, layer in layers if ALGORITHM in layer]
    for place, layer in layers:
        if naming and place == naming[-1]:
            preset = algorithm_keys(layer[ALGORITHM], place)
            values |= preset
            sources |= dict.fromkeys(preset, f"recipes/algorithm/{layer[ALGORITHM]}.yaml")
        values |= layer
        sources |= dict.fromkeys(layer, place)
    return values, sources


def algorithm_keys(name: str, where: str) -> dict[str, Any]:
    """Dotted key -> value of a file of recipes/algorithm/: keys of `every_stage`, then those of single stages.

    Raises:
        ValueError: there is none of that name, or it holds what is no key of a stage.
    """
    known = sorted(file.stem for file in (RECIPES / "algorithm").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{where}: {ALGORITHM}={name}: unknown{_nearest(name, known)}; there are: {', '.join(known)}")
    file = RECIPES / "algorithm" / f"{name}.yaml"
    place = _place(file)
    values: dict[str, Any] = {}
    for section, keys in _load_text(file.read_text(), place).items():
        if section not in ("every_stage", *SIGNAL_STAGES):
            raise ValueError(f"{place}: unknown section {section}; there are: every_stage, {', '.join(SIGNAL_STAGES)}")
        for stage in SIGNAL_STAGES if section == "every_stage" else (section,):
            for key, value in keys.items():
                dotted = f"signal.{stage}.{key}"
                values[dotted] = parse_value(key_type(dotted, place), value, f"{place}: {section}.{key}")
    return values


def _place(file: Path) -> str:
    return f"recipes/{file.relative_to(RECIPES)}" if file.is_relative_to(RECIPES) else str(file)


def _given_value(key: str, text: str) -> Any:
    kind = key_type(key, COMMAND_LINE)
    return parse_value(kind, parse_text(kind, text, key), f"{COMMAND_LINE}: {key}")


def split_arguments(arguments: list[str]) -> dict[str, str]:
    """`key=value` words -> {key: value}.

    Raises:
        ValueError: a word of another form, or a key given twice.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, found, value = argument.partition("=")
        if key.startswith("-"):
            fix = f"{key.lstrip('-')}={value if found else 'VALUE'}"
            raise ValueError(f"{COMMAND_LINE}: '{argument}': options have no dashes; write {fix}")
        if not found or not key:
            hint = f"; did you mean recipe={key}" if key in axis_names("recipe") else ""
            raise ValueError(f"{COMMAND_LINE}: '{argument}' is not of the form key=value{hint}")
        if key in given:
            raise ValueError(f"{COMMAND_LINE}: {key} is given twice; keep one of {key}={given[key]} and {argument}")
        given[key] = value
    return given


def axis_names(axis: str) -> list[str]:
    """The names that `recipe=`, `scale=` or `cluster=` can take."""
    return sorted(file.stem for file in AXES[axis].glob("*.yaml"))


def axis_file(axis: str, name: str | None) -> Path:
    """The YAML file of `axis=name`.

    Raises:
        ValueError: there is none of that name.
    """
    known = axis_names(axis)
    if name is None:
        raise ValueError(f"{COMMAND_LINE}: {axis}=NAME is missing; choose one of {', '.join(known)}")
    if name not in known:
        raise ValueError(
            f"{COMMAND_LINE}: unknown {axis} '{name}'{_nearest(name, known)}; there are: {', '.join(known)}"
        )
    return AXES[axis] / f"{name}.yaml"


class _TextLoader(yaml.BaseLoader):
    """YAML with every scalar as text, and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"the key {key} is there twice (line {node.start_mark.line + 1} and on)")
        return super().construct_mapping(node, deep=True)


_TextLoader.add_constructor("tag:yaml.org,2002:map", _TextLoader.construct_mapping)


def _load_text(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _TextLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ValueError(
            f"{where}: not valid YAML: {getattr(error, 'problem', error)}{f' (line {mark.line + 1})' if mark else ''}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read_overlay(file: Path) -> dict[str, Any]:
    """Dotted key -> value of a recipe, scale or cluster file.

    Raises:
        ValueError: an unknown key, a wrong type or a key that is there twice; names the file and the key.
    """
    where = _place(file)
    content = _load_text(file.read_text(), where)
    if content is None or content == "":
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{where}: expected keys and values")
    values: dict[str, Any] = {}

    def walk(prefix: str, mapping: dict[str, Any]) -> None:
        for name, value in mapping.items():
            key = prefix + name
            if key in SECTIONS and isinstance(value, dict):
                walk(f"{key}.", value)
            elif key in SECTIONS:
                raise ValueError(f"{where}: {key} is a section; expected keys below it")
            else:
                values[key] = parse_value(key_type(key, where), value, f"{where}: {key}")

    walk("", content)
    return values


def _schema(cls: type, prefix: str = "") -> tuple[dict[str, Any], set[str]]:
    leaves: dict[str, Any] = {}
    sections: set[str] = set()
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            below, deeper = _schema(kind, f"{prefix}{name}.")
            leaves |= below
            sections |= {prefix + name} | deeper
        else:
            leaves[prefix + name] = kind
    return leaves, sections


KEYS, SECTIONS = _schema(Config)  # dotted key -> type; dotted names of the sections


def key_type(key: str, where: str) -> Any:
    """The schema's type of a dotted key.

    Raises:
        ValueError: there is no such key, or it is a section, or it is set by an axis.
    """
    for axis, name_key in NAME_KEYS.items():
        if key == name_key:
            raise ValueError(f"{where}: {key} is the name of the file; choose it with {axis}=NAME")
    if key in KEYS:
        return KEYS[key]
    if key in SECTIONS:
        inside = [name for name in KEYS if name.startswith(f"{key}.")]
        raise ValueError(f"{where}: {key} is a section; set a key of it, like {inside[0]}=...")
    if "[" in key:
        raise ValueError(f"{where}: {key}: a list is set as a whole: {key.partition('[')[0]}=[1,2]")
    same_end = [name for name in KEYS if name.endswith(f".{key}")]
    hint = f"; did you mean {' or '.join(same_end[:3])}" if same_end else _nearest(key, [*KEYS, *AXES, "plan"])
    raise ValueError(f"{where}: unknown key {key}{hint}")


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}" if near else ""


def parse_text(kind: Any, text: str, key: str) -> Any:
    """Bring a command-line value into YAML's shape: lists as `[1,4]` or `1,4`, mappings as `{a: 1, b: 2}`."""
    bare = _without_none(kind)
    if typing.get_origin(bare) not in (list, dict) or not text or (bare is not kind and text in ("none", "null")):
        return text
    if typing.get_origin(bare) is list and not text.startswith("["):
        text = f"[{text}]"
    return _load_text(text, f"{COMMAND_LINE}: {key}={text}")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def parse_value(kind: Any, value: Any, where: str) -> Any:
    """Parse text (or lists and mappings of text) by type.

    Args:
        kind: a type of the schema: str, int, float, bool, list[...], dict[str, ...] or one of these | None.
        value: as `_TextLoader` gives it.
        where: file and key, for the message.

    Raises:
        ValueError: the value does not fit.
    """
    bare = _without_none(kind)
    if bare is not kind and value in ("none", "null"):
        return None
    origin = typing.get_origin(bare)
    if origin is list and isinstance(value, list):
        return [parse_value(typing.get_args(bare)[0], item, where) for item in value]
    if origin is dict and isinstance(value, dict) and value:
        return {name: parse_value(typing.get_args(bare)[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is None and isinstance(value, str):
        parsed = _parse_scalar(bare, value, where, optional=bare is not kind)
        if parsed is not None:
            return parsed
    raise ValueError(f"{where}={_show(value)}: expected {describe(kind)}")


def _parse_scalar(kind: type, text: str, where: str, optional: bool) -> Any:
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind is int and INTEGER.fullmatch(text):
        return int(text)
    if kind is float and NUMBER.fullmatch(text):
        return float(text)
    if kind is str and (text or not optional):
        if "${" in text:
            raise ValueError(f"{where}={text}: ${{...}} is not evaluated; write the value itself")
        return text
    return None


def describe(kind: Any) -> str:
    """What a value of this type looks like, for messages."""
    bare = _without_none(kind)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is list:
        text = f"a list of {describe(arguments[0]).split(' ', 1)[1]}s, like " + (
            "[1,4]" if arguments[0] is int else "[a,b]"
        )
    elif origin is dict:
        text = "a mapping to numbers, like '{algebra: .5, geometry: .5}'"
    else:
        text = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}[bare]
    return text + (" or none" if bare is not kind else "")


def _show(value: Any) -> str:
    return str(value).replace("'", "") if isinstance(value, list | dict) else str(value)


def build(values: dict[str, Any]) -> Config:
    """The schema's defaults with dotted keys set."""
    config = Config()
    for key, value in values.items():
        *sections, name = key.split(".")
        target: Any = config
        for section in sections:
            target = getattr(target, section)
        setattr(target, name, value)
    return config


def check_paths(config: Config) -> None:
    """Check what the run reads from disk, and make those paths absolute.

    Raises:
        ValueError: a file or folder is missing.
    """
    data = config.data
    data.sft, data.rl = (path and _dataset(f"data.{name}", path) for name, path in (("sft", data.sft), ("rl", data.rl)))
    data.probe = [_dataset("data.probe", path) for path in data.probe]
    data.evaluation = [_dataset("data.evaluation", path) for path in data.evaluation]
    for name in chosen_benchmarks(config.eval):
        if path := config.eval.path(name):
            getattr(config.eval, name).path = _dataset(f"eval.{name}.path", path)
    model = config.scale.model
    if model.path is not None and Path(model.path).exists():
        model.path = str(Path(model.path).resolve())
        data.vocab_size = check_model_config(model, Path(model.path))
    source = config.run.from_run
    if source is not None and not (Path(source) / "config.yaml").is_file():
        raise ValueError(f"run.from_run={source}: not a run folder (it has no config.yaml)")
    config.run.from_run = source and str(Path(source).resolve())
    replayed = config.debug.replay_rollouts
    if replayed is not None and not (Path(replayed) / "config.yaml").is_file():
        raise ValueError(f"debug.replay_rollouts={replayed}: not a run folder (it has no config.yaml)")
    config.debug.replay_rollouts = replayed and str(Path(replayed).resolve())
    if config.run.name in (".", "..") or "/" in config.run.name:
        raise ValueError(f"run.name={config.run.name}: a folder's name without '/'; set the place with run.root=PATH")
    if not config.run.root:
        raise ValueError("run.root is empty; name a folder, run.root=runs")


def require_data(config: Config) -> None:
    """Refuse to train a model of the user's on the generated problems, which are made for the tiny one.

    Raises:
        ValueError: `scale.model.path` is set and the run would generate its data.
    """
    path = config.scale.model.path
    if path is not None and "prepare" in config.stages and config.data.sft is None:
        raise ValueError(
            f"scale={config.scale.name} trains {path} on your data: set data.sft=DATASET (problems with solutions) "
            "and, where they differ, data.rl=DATASET (problems with answers or tests)"
        )


def _dataset(key: str, path: str) -> str:
    """The absolute path of a file or folder; a name of the hub as it is."""
    if is_hub_name(path):
        return path
    if not Path(path).exists():
        raise ValueError(f"{key}={path}: no such file or folder, and no hub name (owner/name)")
    return str(Path(path).resolve())


def help_text(commands: Mapping[str, str]) -> str:
    """What `--help` prints; `commands`: word -> what it does."""
    sections = "\n\n".join(f"{axis}=NAME  {_AXIS_HELP[axis]}\n{_listing(axis)}" for axis in AXES)
    words = "\n".join(f"  {word:<7}  {text}" for word, text in commands.items())
    files = sorted((RECIPES / "algorithm").glob("*.yaml"))
    algorithms = "\n".join(f"    {file.stem:<8} {_one_liner(file)}" for file in files)
    return _HELP.format(sections=sections, words=words, algorithms=algorithms)


def _listing(axis: str) -> str:
    names = axis_names(axis)
    width = max(len(name) for name in names) if names else 0
    return "\n".join(f"  {name:<{width}}  {_one_liner(AXES[axis] / f'{name}.yaml')}" for name in names)


def _one_liner(file: Path) -> str:
    first = file.read_text().partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


_AXIS_HELP = {
    "recipe": "which stages, with which method settings (required)",
    "scale": "how big: model, data, steps, parallel layout (default: tiny)",
    "cluster": "where (default: local)",
}

_HELP = """\
usage: python launcher/run.py recipe=NAME [scale=NAME] [cluster=NAME] [plan=true] [key=value ...]
       python launcher/run.py COMMAND [key=value ...]

Turns a base model into a reasoning model: supervised spectrum, fusion, reinforcement learning.
The same command resumes an interrupted run, and shows the result of a finished one.

{sections}

COMMAND, of a run that exists (run.root=PATH where it is not in runs):
{words}

Any key of the schema (nemo_vibethinker/config/) can be set:
  plan=true        print what would happen and what it would cost, and run nothing
  plan=json        the cost alone, for programs (nemo_vibethinker/costs/plan_json.py says what it holds)
  plan=layouts     compare the layouts of cluster.processes GPUs of the kind cluster.gpu, and run nothing
  run.name=NAME    folder of the run below run.root (default: <recipe>-<scale>-seed<seed>)
  run.root=PATH    default: runs
  run.from_run=PATH  finished run to start from; run.from_model=fused names the model of it (default: its last)
  budget.gpu_hours=NUMBER, budget.dollars_per_gpu_hour=NUMBER   default: 3900 and 2; process-hours where no GPU is
  budget.on_exceed=stop|warn   past the budget a run is refused, or saved and stopped; or goes on (default: stop)
  signal.algorithm=NAME   keys of the reinforcement-learning stages, below those given beside it (default: mgpo)
{algorithms}
  seed=INTEGER     default: 0
  model=MODEL      to evaluate (recipe=evaluate): a Hugging Face folder or hub name, a run folder[:MODEL], or a
                   checkpoint folder of a run; eval.protocol=paper_1p5b|paper_3b|quick eval.benchmarks=[aime24,math500]
  data.sft=DATASET   your own problems with solutions: a file, a folder, or a hub name, owner/name[:config[:split]]
  data.rl=DATASET    your own problems with answers or tests (default: those of data.sft)
  data.evaluation=[DATASET,...], data.probe=[DATASET,...]   default: held out of data.rl
                   formats: python -m nemo_vibethinker.data.readers --help

examples:
  python launcher/run.py recipe=ssp_full
  python launcher/run.py recipe=ssp_full plan=true
  python launcher/run.py recipe=spectrum seed=1 probe.ks=[1,4,8] fuse.weights='{{algebra: .4, geometry: .6}}'
  python launcher/run.py recipe=signal run.from_run=runs/spectrum-tiny-seed1 signal.math_16k.lambda_me=2"""
