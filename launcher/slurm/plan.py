"""The jobs of a run and their scripts, as text for `plan=true`."""

from collections.abc import Collection
from pathlib import Path

from launcher.slurm.chain import PREFLIGHT, chain
from launcher.slurm.scripts import render_scripts
from nemo_vibethinker.config import Config


def render_jobs(config: Config, run_dir: Path, done: Collection[str]) -> str:
    """What would be submitted: each job with what it waits for, its options and command; the longest script in full."""
    jobs = chain(config, done)
    if not jobs:
        return "jobs        none: nothing is left to run"
    scripts = render_scripts(config, jobs, run_dir, run_dir / "slurm" / "code" / "HASH")
    lines = ["jobs"]
    for job in jobs:
        size = f"{job.nodes} x {job.gpus_per_node} GPUs"
        lines.append(f"  {job.title:<22}  {size:<10}  after {', '.join(job.after) or 'nothing'}")
    shown = max((job for job in jobs if job.name != PREFLIGHT), key=lambda job: job.nodes)
    lines += ["", f"script of {shown.name}, one of {len(jobs)} in {run_dir}/slurm/", *_indented(scripts[shown.name])]
    for name, text in scripts.items():
        if name != shown.name:
            options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
            command = next(line.strip() for line in text.splitlines() if " -m nemo_vibethinker." in line)
            lines += [f"  {name}: sbatch {' '.join(options)}", f"    {command.removesuffix(' &')}"]
    return "\n".join(lines)


def _indented(script: str) -> list[str]:
    return [f"  | {line}".rstrip() for line in script.splitlines()]
