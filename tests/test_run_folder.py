"""What a run folder promises: whole files, checked manifests, one configuration, one process."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import ClusterConfig, Config, RunConfig, flatten, load_config, to_yaml
from nemo_vibethinker.run_folder import (
    Artefact,
    Manifest,
    RunFolder,
    append_json_line,
    config_hash,
    hash_path,
    open_run,
    read_json_lines,
)


def make_config(root: Path) -> Config:
    return Config(run=RunConfig(name="r", root=str(root)))


def make_manifest(run: RunFolder, stage: str, outputs: dict[str, Path]) -> Manifest:
    return Manifest(
        stage=stage,
        inputs={},
        outputs={name: run.artefact(path) for name, path in outputs.items()},
        metrics={"loss": 0.5},
        seconds=2.0,
        gpu_hours=0.25,
        device="cpu",
        config_hash=config_hash(run.config),
        versions={},
    )


@pytest.fixture
def run(tmp_path: Path):
    opened = open_run(make_config(tmp_path))
    yield opened
    opened.unlock()


@pytest.fixture
def done(run: RunFolder) -> Path:
    """The output file of a finished prepare stage."""
    output = run.begin_stage("prepare", {}) / "data.jsonl"
    output.write_text("1\n")
    run.write_manifest(make_manifest(run, "prepare", {"sft_data": output}))
    return output


def test_atomic_write_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "one")
    atomic_write_text(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_write_that_fails_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a", "old")
    code = """
import resource, sys
from pathlib import Path
from nemo_vibethinker.atomic_files import atomic_write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
atomic_write_text(Path(sys.argv[1]), "x" * 5000)
"""
    outcome = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert "File too large" in outcome.stderr
    assert (tmp_path / "a").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_path(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_hash_of_a_folder_sees_names_and_contents_only(tmp_path: Path) -> None:
    for folder, order in (("x", "ab"), ("y", "ba")):
        for name in order:
            (tmp_path / folder / "sub").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "sub" / name).write_text(name)
    first = hash_path(tmp_path / "x")
    assert hash_path(tmp_path / "y") == first
    (tmp_path / "y" / "sub" / "a").write_text("c")
    changed = hash_path(tmp_path / "y")
    (tmp_path / "x" / "sub" / "a").rename(tmp_path / "x" / "a")
    assert len({first, changed, hash_path(tmp_path / "x")}) == 3


def test_hash_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_path(tmp_path / "none")


def test_torn_line_is_left_out_and_the_next_one_starts_afresh(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append_json_line(log, {"a": 1})
    with open(log, "a") as file:
        file.write('{"a": 2, "b')
    assert read_json_lines(log) == [{"a": 1}]
    append_json_line(log, {"a": 3})
    assert read_json_lines(log) == [{"a": 1}, {"a": 3}]
    assert read_json_lines(tmp_path / "none") == []


def test_stage_folder_is_numbered_by_the_runs_own_stages(tmp_path: Path) -> None:
    full, half = RunFolder(tmp_path, Config()), RunFolder(tmp_path, Config(stages=["mgpo.code", "evaluate"]))
    assert full.stage_folder("mgpo.math_16k") == tmp_path / "stages" / "04-mgpo.math_16k"
    assert half.stage_folder("evaluate") == tmp_path / "stages" / "01-evaluate"


def test_manifest_comes_back_as_written(run: RunFolder, done: Path) -> None:
    expected = make_manifest(run, "prepare", {"sft_data": done})
    assert run.read_manifest("prepare") == expected
    assert expected.outputs["sft_data"].path == "stages/00-prepare/data.jsonl"
    assert run.resolve(expected.outputs["sft_data"]) == done


def test_artefact_outside_the_run_keeps_its_absolute_path(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    assert run.artefact(tmp_path / "outside") == Artefact(str(tmp_path / "outside"), hashlib.sha256(b"x").hexdigest())


def test_absent_manifest_is_none_without_a_word(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.read_manifest("sft") is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ['{"stage": "prepare", "inp', "", "[]", '{"stage": "prepare"}'])
def test_torn_manifest_is_no_result(run: RunFolder, done: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (done.parent / "manifest.json").write_text(text)
    assert run.read_manifest("prepare") is None
    assert capsys.readouterr().out == "prepare: its manifest is unreadable; the stage runs again\n"


def test_missing_or_changed_output_is_named(run: RunFolder, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done.write_text("2\n")
    assert run.read_manifest("prepare") is None
    done.unlink()
    assert run.read_manifest("prepare") is None
    assert capsys.readouterr().out.splitlines() == [
        "prepare: its output sft_data has changed (stages/00-prepare/data.jsonl); the stage runs again",
        "prepare: its output sft_data is missing (stages/00-prepare/data.jsonl); the stage runs again",
    ]


def test_manifest_of_another_configuration_is_no_result(run: RunFolder, done: Path) -> None:
    assert RunFolder(run.path, replace(run.config, seed=1)).read_manifest("prepare", report=lambda _: None) is None


def test_interrupted_stage_keeps_its_folder_for_the_same_inputs_only(run: RunFolder, tmp_path: Path) -> None:
    inputs = {"sft_data": Artefact("/data", "hash-1")}
    checkpoint = run.begin_stage("sft", inputs) / "checkpoint"
    checkpoint.write_text("step 3")
    run.begin_stage("sft", inputs)
    assert checkpoint.read_text() == "step 3"
    run.begin_stage("sft", {"sft_data": Artefact("/data", "hash-2")})
    assert not checkpoint.exists()
    assert (run.path / "replaced" / "01-sft" / "checkpoint").read_text() == "step 3"


def test_stage_that_was_declared_done_starts_from_nothing(run: RunFolder, done: Path) -> None:
    run.begin_stage("prepare", {})
    assert not done.exists()
    assert run.read_manifest("prepare") is None


def test_config_is_stored_with_versions_and_command(run: RunFolder) -> None:
    text = (run.path / "config.yaml").read_text()
    assert text.startswith("# nemo_vibethinker ")
    assert "commit " in text.splitlines()[0]
    assert load_config(run.path / "config.yaml") == run.config
    assert config_hash(load_config(run.path / "config.yaml")) == config_hash(run.config)


@pytest.mark.parametrize("name", ["007", "on", "12:30", "1e3", "null", "~", " x", "a: b", "#", "'", '"', "\u00e9", "-"])
def test_awkward_texts_survive_the_stored_config(tmp_path: Path, name: str) -> None:
    config = make_config(tmp_path)
    config.data.instruction = name
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_same_config_opens_again(run: RunFolder) -> None:
    before = (run.path / "config.yaml").read_bytes()
    run.unlock()
    open_run(run.config).unlock()
    assert (run.path / "config.yaml").read_bytes() == before


def test_other_config_is_refused_with_the_keys_that_differ(run: RunFolder) -> None:
    run.unlock()
    other = load_config(run.path / "config.yaml")
    other.seed, other.sft.optimizer.lr = 3, 0.5
    other.fuse.weights = {"algebra": 1.0}
    with pytest.raises(ValueError, match="another configuration") as refused:
        open_run(other)
    for line in (
        "seed: 0 -> 3",
        "sft.optimizer.lr: 0.001 -> 0.5",
        "run.name=OTHER",
        "fuse.weights.algebra: None -> 1.0",
    ):
        assert line in str(refused.value)
    assert load_config(run.path / "config.yaml") == run.config


def test_place_of_the_run_may_change(run: RunFolder, tmp_path: Path) -> None:
    run.unlock()
    other = replace(run.config, cluster=ClusterConfig(threads_per_process=2))
    other.run.root = os.path.relpath(tmp_path)
    open_run(other).unlock()
    assert load_config(run.path / "config.yaml") == other
    assert set(asdict(other)) == set(asdict(run.config))
    assert config_hash(other) == config_hash(run.config)
    assert flatten(other) != flatten(make_config(tmp_path))


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="is not a run folder"):
        open_run(make_config(tmp_path))
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["thesis.tex"]


def test_config_of_another_version_is_refused(run: RunFolder) -> None:
    run.unlock()
    (run.path / "config.yaml").write_text("no_such_key: 1\n")
    with pytest.raises(ValueError, match="does not fit this version's schema"):
        open_run(run.config)


def test_run_belongs_to_one_process_and_is_free_after_its_kill(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from nemo_vibethinker.config import Config
from nemo_vibethinker.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]), Config())
run.lock()
print("locked", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"in use by process {holder.pid} on .*; wait for it"):
            open_run(make_config(tmp_path))
    finally:
        holder.kill()
        holder.communicate()
    open_run(make_config(tmp_path)).unlock()


def test_manifest_is_plain_json(run: RunFolder, done: Path) -> None:
    stored = json.loads((done.parent / "manifest.json").read_text())
    assert stored["status"] == "done"
    assert stored["device"] == "cpu"
    assert stored["outputs"]["sft_data"]["sha256"] == hash_path(done)
