"""The command line: what it takes, what it refuses and how it says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import cli, plan, run
from nemo_vibethinker.config import Config, ModelConfig

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe folder of the test's own that sets nothing, whatever the shipped files say."""
    folder = tmp_path / "recipes"
    for file in ("ssp_full.yaml", "signal.yaml", "scale/tiny.yaml", "cluster/local.yaml"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("# one-liner\n")
    shutil.copytree(cli.RECIPES / "algorithm", folder / "algorithm")
    monkeypatch.setattr(cli, "RECIPES", folder)
    axes = {"recipe": folder, "scale": folder / "scale", "cluster": folder / "cluster"}
    monkeypatch.setattr(cli, "AXES", axes)
    return folder


def parse(*arguments: str) -> Config:
    return cli.parse(["recipe=ssp_full", *arguments]).config


@pytest.mark.parametrize("recipe", cli.axis_names("recipe"))
@pytest.mark.parametrize("scale", cli.axis_names("scale"))
def test_shipped_recipes_fit_the_schema(tmp_path: Path, recipe: str, scale: str) -> None:
    (tmp_path / "config.yaml").touch()
    config = cli.parse([f"recipe={recipe}", f"scale={scale}", f"run.from_run={tmp_path}"]).config
    assert (config.recipe, config.scale.name, config.cluster.name) == (recipe, scale, "local")
    assert config.run_folder == Path("runs") / f"{recipe}-{scale}-seed0"


def test_every_shipped_file_starts_with_a_one_liner() -> None:
    for axis, folder in cli.AXES.items():
        for name in cli.axis_names(axis):
            assert cli._one_liner(folder / f"{name}.yaml"), name


def test_later_layers_win(recipes: Path) -> None:
    (recipes / "ssp_full.yaml").write_text("sft: {steps: 1, seq_length: 11}\nseed: 1\n")
    (recipes / "scale/tiny.yaml").write_text("sft:\n  steps: 2\n  seq_length: 12\nprobe: {ks: [1, 8]}\n")
    (recipes / "cluster/local.yaml").write_text("sft: {steps: 3}\n")
    command = cli.parse(["recipe=ssp_full", "sft.steps=4"])
    sft = command.config.sft
    assert (command.config.seed, sft.steps, sft.seq_length, command.config.probe.ks) == (1, 4, 12, [1, 8])
    assert sft.checkpoint_interval == Config().sft.checkpoint_interval
    assert command.sources["sft.steps"] == "command line"
    assert command.sources["sft.seq_length"] == "recipes/scale/tiny.yaml"
    assert command.sources["seed"] == "recipes/ssp_full.yaml"


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("run.name=007", "run.name", "007"),
        ("run.name=on", "run.name", "on"),
        ("run.name=1e3", "run.name", "1e3"),
        ("run.name=null", "run.name", "null"),
        ("run.name=", "run.name", ""),
        ("data.instruction=a=b: [c] #d", "data.instruction", "a=b: [c] #d"),
        ("data.instruction=12:30", "data.instruction", "12:30"),
        ("seed=007", "seed", 7),
        ("sft.optimizer.lr=1e-3", "sft.optimizer.lr", 1e-3),
        ("sft.optimizer.lr=.5", "sft.optimizer.lr", 0.5),
        ("signal.code.lambda_me=2", "signal.code.lambda_me", 2.0),
        ("signal.code.std=none", "signal.code.std", "none"),
        ("data.sft=none", "data.sft", None),
        ("run.from_run=null", "run.from_run", None),
        ("probe.ks=[1, 8]", "probe.ks", [1, 8]),
        ("probe.ks=1,8", "probe.ks", [1, 8]),
        ("probe.ks=8", "probe.ks", [8]),
        ("stages=prepare,sft", "stages", ["prepare", "sft"]),
        ("probe.domains=['algebra',\"geometry\"]", "probe.domains", ["algebra", "geometry"]),
        ("fuse.weights=none", "fuse.weights", None),
    ],
)
def test_value_is_taken_by_the_type_of_its_key(recipes: Path, argument: str, key: str, value: object) -> None:
    found = plan.flatten(parse(argument))[key]
    assert found == value
    assert type(found) is type(value)


def test_mapping_value(recipes: Path) -> None:
    weights = "{algebra: .5, geometry: 0.25, calculus: 1e-1, statistics: 2}"
    expected = {"algebra": 0.5, "geometry": 0.25, "calculus": 0.1, "statistics": 2.0}
    assert parse(f"fuse.weights={weights}").fuse.weights == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1e3"], "command line: seed=1e3: expected an integer"),
        (["seed=12:30"], "command line: seed=12:30: expected an integer"),
        (["seed=on"], "command line: seed=on: expected an integer"),
        (["seed="], "command line: seed=: expected an integer"),
        (["seed=1.0"], "command line: seed=1.0: expected an integer"),
        (["seed=none"], "command line: seed=none: expected an integer"),
        (["seed=-1"], "seed=-1: must not be negative"),
        (["sft.optimizer.lr=fast"], "command line: sft.optimizer.lr=fast: expected a number"),
        (["sft.optimizer.lr=nan"], "command line: sft.optimizer.lr=nan: expected a number"),
        (["sft.optimizer.lr=1e999"], "sft.optimizer.lr=inf: must be a finite number"),
        (["plan=on"], "command line: plan=on: expected true or false"),
        (["plan=True"], "command line: plan=True: expected true or false"),
        (["data.sft="], "command line: data.sft=: expected a text or none"),
        (["--seed=1"], "command line: '--seed=1': options have no dashes; write seed=1"),
        (["--plan"], "command line: '--plan': options have no dashes; write plan=VALUE"),
        (["signal"], "command line: 'signal' is not of the form key=value; did you mean recipe=signal"),
        (["=1"], "command line: '=1' is not of the form key=value"),
        (["seed=1", "seed=2"], "command line: seed is given twice; keep one of seed=1 and seed=2"),
        (["recipe=signal"], "command line: recipe is given twice; keep one of recipe=ssp_full and recipe=signal"),
        (["scale=tyni"], "command line: unknown scale 'tyni'; did you mean tiny; there are: "),
        (["cluster=mars"], "command line: unknown cluster 'mars'; there are: "),
        (["sft.step=1"], "command line: unknown key sft.step; did you mean sft.steps"),
        (["seq_length=1"], "command line: unknown key seq_length; did you mean sft.seq_length"),
        (["plann=true"], "command line: unknown key plann; did you mean plan"),
        (["zzz=1"], "command line: unknown key zzz"),
        (["+seed=1"], "command line: unknown key +seed; did you mean seed"),
        (["sft=1"], "command line: sft is a section; set a key of it, like sft.steps=..."),
        (["probe.ks[0]=5"], "command line: probe.ks[0]: a list is set as a whole: probe.ks=[1,2]"),
        (["probe.ks=1,x"], "command line: probe.ks=x: expected an integer"),
        (["probe.ks="], "command line: probe.ks=: expected a list of integers, like [1,4]"),
        (["probe.ks=[]"], "probe.ks=[]: list at least one k, each 1 or more"),
        (["probe.ks={a: 1}"], "command line: probe.ks={a: 1}: expected an integer"),
        (["probe.ks=[1"], "command line: probe.ks=[1: not valid YAML: "),
        (["fuse.weights=.5"], "command line: fuse.weights=.5: expected a mapping to numbers"),
        (["fuse.weights={algebra: x}"], "command line: fuse.weights.algebra=x: expected a number"),
        (["fuse.weights={a: 1, a: 2}"], "command line: fuse.weights={a: 1, a: 2}: the key a is there twice"),
        (
            ["fuse.weights={algebra: 1}", "probe.domains=algebra,geometry"],
            "fuse.weights: give a weight to each of probe.domains: algebra, geometry",
        ),
        (["run.name=${oc.env:HOME}"], "command line: run.name=${oc.env:HOME}: ${...} is not evaluated"),
        (["run.name=a/b"], "run.name=a/b: a folder's name without '/'"),
        (["run.name=.."], "run.name=..: a folder's name without '/'"),
        (["run.root="], "run.root is empty"),
        (["scale.name=big"], "command line: scale.name is the name of the file; choose it with scale=NAME"),
        (["data.sft=none.jsonl"], "data.sft=none.jsonl: no such file"),
        (["data.rl=./none"], "data.rl=./none: no such file"),
        (["run.from_run=."], "run.from_run=.: not a run folder"),
        (["scale.parallel.tensor=3"], "scale.model.num_attention_heads="),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    recipes: Path, arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["recipe=ssp_full", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == [recipes]


def test_recipe_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["scale=tiny"]) == 2
    assert (
        "recipe=NAME is missing; choose one of evaluate, export, signal, spectrum, ssp_full" in capsys.readouterr().err
    )


def test_recipe_without_prepare_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=signal"]) == 2
    assert "run.from_run=runs/NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft:\n  stepz: 1\n", "recipes/scale/tiny.yaml: unknown key sft.stepz; did you mean sft.steps"),
        ("sft:\n  steps: 1e3\n", "recipes/scale/tiny.yaml: sft.steps=1e3: expected an integer"),
        ("sft:\n  steps: on\n", "recipes/scale/tiny.yaml: sft.steps=on: expected an integer"),
        ("sft:\n  steps:\n", "recipes/scale/tiny.yaml: sft.steps=: expected an integer"),
        ("sft:\n  steps: 1\n  steps: 2\n", "recipes/scale/tiny.yaml: the key steps is there twice (line 2"),
        ("sft: {steps: 1}\nsft: {steps: 2}\n", "recipes/scale/tiny.yaml: the key sft is there twice"),
        ("sft: 5\n", "recipes/scale/tiny.yaml: sft is a section; expected keys below it"),
        ("sft: [steps\n", "recipes/scale/tiny.yaml: not valid YAML: "),
        ("- sft\n", "recipes/scale/tiny.yaml: expected keys and values"),
        ("scale: {name: x}\n", "recipes/scale/tiny.yaml: scale.name is the name of the file"),
        (
            "data: {instruction: '${seed}'}\n",
            "recipes/scale/tiny.yaml: data.instruction=${seed}: ${...} is not evaluated",
        ),
        (
            "stages: {prepare: 1}\n",
            "recipes/scale/tiny.yaml: stages={prepare: 1}: expected a list of texts, like [a,b]",
        ),
    ],
)
def test_mistake_in_a_file_names_the_file(
    recipes: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipes / "scale/tiny.yaml").write_text(text)
    assert run.main(["recipe=ssp_full"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_scalars_in_a_file_are_read_by_the_schema(recipes: Path) -> None:
    (recipes / "ssp_full.yaml").write_text("run: {name: 007}\nsft: {optimizer: {lr: 1e-3}}\nfuse: {weights: null}\n")
    config = parse()
    assert (config.run.name, config.sft.optimizer.lr, config.fuse.weights) == ("007", 1e-3, None)


def test_files_of_the_user_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert parse("data.sft=a.jsonl").data.sft == str(tmp_path / "a.jsonl")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["recipe=ssp_full", "--help"]])
def test_help_teaches_the_axes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments) == 0
    text = capsys.readouterr().out
    for axis in cli.AXES:
        assert f"\n{axis}=NAME  " in text
        for name in cli.axis_names(axis):
            assert f"\n  {name}" in text
    examples = [line for line in text.splitlines() if line.startswith("  python launcher/run.py ")]
    assert len(examples) == 4


def test_plan_prints_all_and_creates_nothing(recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "recipe=ssp_full",
        "plan=true",
        "sft.steps=120",
        "sft.checkpoint_interval=50",
        "sft.first_checkpoint=60",
    ]
    arguments += ["sft.global_batch_size=8", "sft.seq_length=512", "data.vocab_size=300"]
    assert run.main(arguments) == 0
    text = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [recipes]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "* sft.steps: 120 command line" in lines
    assert "seed: 0" in lines
    assert "01 sft to run 120 steps x 8 rows x 512 tokens (<= 491,520 tokens)" in lines
    assert any(line.startswith("02 probe to run 2 checkpoints x ") for line in lines)  # 100 and the last, 120
    assert [line.split()[1] for line in lines if line[:2].isdigit()] == parse().stages * 2  # and prices
    assert any(
        line.startswith("nothing has measured this machine yet: budget.gpu_hours=3,900 is watched") for line in lines
    )
    assert lines[-1] == "plan only: nothing was run or written"


def test_parameter_count_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = ModelConfig(num_layers=3, hidden_size=48, ffn_hidden_size=80, num_attention_heads=6, num_query_groups=2)
    theirs = transformers.Qwen2Config(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in transformers.Qwen2ForCausalLM(theirs).parameters())
    assert plan.parameter_count(model, 100) == count


def test_parameter_count_of_the_paper_model() -> None:
    qwen = ModelConfig(
        num_layers=28, hidden_size=1536, ffn_hidden_size=8960, num_attention_heads=12, num_query_groups=2
    )
    assert plan.parameter_count(qwen, 151936) == 1_543_714_304  # the size of Qwen2.5-Math-1.5B's checkpoint


def test_plan_needs_neither_torch_nor_a_second(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['launcher/run.py']; from launcher.run import main; "
        "code = main(['recipe=ssp_full', 'plan=true']); "
        "heavy = {'torch', 'transformers', 'numpy', 'megatron'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    outcome = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_entry_runs_as_a_script_from_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "launcher" / "run.py")]
    outcome = subprocess.run([*command, "recipe=ssp_full", "plan=true"], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert subprocess.run([*command, "recipe=none"], capture_output=True).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ([], 2),
        (["scale.parallel.tensor=2", "scale.parallel.pipeline=2"], 1),
        (["cluster.processes=8", "scale.parallel.tensor=2", "sft.global_batch_size=8"], 4),
        (["cluster.processes=8", "scale.parallel.context=4"], 2),
        (["scale.parallel.data=1"], 1),
    ],
)
def test_replicas_fill_the_processes(arguments: list[str], data: int) -> None:
    assert cli.parse(["recipe=ssp_full", *arguments]).config.scale.parallel.data == data


@pytest.mark.parametrize(
    "arguments",
    [
        ["scale.parallel.virtual_pipeline=2"],
        ["scale.parallel.virtual_pipeline=2", "scale.parallel.pipeline=2"],  # three layers do not make four chunks
        ["scale.parallel.sequence=true"],
        ["scale.parallel.context=0"],
        ["scale.recompute=some"],
    ],
)
def test_an_impossible_layout_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match=arguments[0].split("=")[0].replace(".", "[.]")):
        cli.parse(["recipe=ssp_full", *arguments])


# Presets of the algorithm


def test_the_schema_is_the_mgpo_preset() -> None:
    named = cli.parse(["recipe=ssp_full", "signal.algorithm=mgpo"])
    assert named.config == cli.parse(["recipe=ssp_full"]).config
    assert named.sources["signal.code.lambda_me"] == "recipes/algorithm/mgpo.yaml"
    assert named.sources["signal.algorithm"] == "command line"


@pytest.mark.parametrize("name", ["mgpo", "grpo", "dr_grpo", "dapo", "mgpo_3b"])
@pytest.mark.parametrize("scale", ["tiny", "single_gpu", "vibethinker_1p5b"])
def test_a_preset_sets_all_three_stages_at_every_scale(name: str, scale: str) -> None:
    signal = cli.parse(["recipe=ssp_full", f"scale={scale}", f"signal.algorithm={name}"]).config.signal
    stages = (signal.math_16k, signal.math_32k, signal.code)
    assert {stage.lambda_me for stage in stages} == {1.0 if name.startswith("mgpo") else 0.0}
    assert {stage.clip_high for stage in stages} == {0.28 if name == "dapo" else 0.2}
    assert {(stage.std, stage.normalisation) for stage in stages} == {
        {"dr_grpo": ("none", "dr_grpo"), "dapo": ("population", "token_mean")}.get(
            name, ("population", "sequence_mean")
        )
    }
    assert [stage.long2short for stage in stages] == ([0, 0.2, 0] if name == "mgpo_3b" else [0, 0, 0])
    assert stages[0].steps == cli.parse(["recipe=ssp_full", f"scale={scale}"]).config.signal.math_16k.steps


def test_a_given_key_overrules_the_preset_wherever_it_stands(recipes: Path) -> None:
    command = cli.parse(["recipe=ssp_full", "signal.code.clip_high=0.4", "signal.algorithm=dapo"])
    signal = command.config.signal
    assert (signal.code.clip_high, signal.math_16k.clip_high) == (0.4, 0.28)
    assert command.sources["signal.code.clip_high"] == "command line"
    assert command.sources["signal.math_16k.clip_high"] == "recipes/algorithm/dapo.yaml"


def test_a_recipe_may_name_the_preset_and_the_command_line_another(recipes: Path) -> None:
    (recipes / "ssp_full.yaml").write_text("signal: {algorithm: dapo, code: {lambda_me: 3}}\n")
    ours = parse().signal
    assert (ours.math_16k.normalisation, ours.math_16k.lambda_me, ours.code.lambda_me) == ("token_mean", 0.0, 3.0)
    other = parse("signal.algorithm=dr_grpo").signal
    assert (other.math_16k.normalisation, other.math_16k.dynamic_sampling) == ("dr_grpo", 0)  # nothing of dapo is left
    assert other.code.lambda_me == 0.0  # the command line is above the recipe


def test_unknown_preset_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=ssp_full", "signal.algorithm=drgrpo"]) == 2
    assert "signal.algorithm=drgrpo: unknown; did you mean dr_grpo; there are: dapo, dr_grpo" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "fix"),
    [
        ("signal.code.tis_cap=0.5", "must be 1 or more, or 0"),
        ("signal.code.overlong_buffer=1.5", "must be in (0, 1]"),
        ("signal.code.keep=best", "set signal.code.validate_interval"),
        ("signal.code.patience=2", "set signal.code.validate_interval"),
        ("signal.code.surrogate=ppo", "choose one of clip, gspo, cispo"),
        ("guards.truncation.action=panic", "choose one of off, warn, skip, rollback, stop"),
        ("guards.nonfinite.action=warn", "choose skip, rollback or stop"),
    ],
)
def test_mistakes_of_the_signal_phase(argument: str, fix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["recipe=ssp_full", argument]) == 2
    assert fix in capsys.readouterr().err
