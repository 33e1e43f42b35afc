"""The only entry: `python launcher/run.py recipe=ssp_full`. Without arguments it says what it can do."""

import importlib
import sys
from pathlib import Path

# Word -> the module whose `main(arguments) -> exit code` does it, and what `--help` says of it.
COMMANDS = {
    "doctor": ("launcher.doctor", "[scale=NAME] [cluster=NAME]: whether this machine can do such a run, with fixes"),
    "report": ("launcher.report", "run.name=NAME, or runs=a,b to compare: write the page; headline: print the table"),
    "status": ("launcher.status", "run.name=NAME: stages, attempts, progress, ETA and what the run has cost"),
    "logs": ("launcher.logs", "run.name=NAME [STAGE] [lines=40]: the end of a stage's log (default: the latest)"),
    "cancel": ("launcher.cancel", "run.name=NAME: stop it; what is saved stays, the same command goes on"),
}


def main(arguments: list[str]) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake, else the worker's."""
    arguments = _report_first(arguments)
    try:
        if arguments and arguments[0] in COMMANDS:
            return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])
        return _run(arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _report_first(arguments: list[str]) -> list[str]:
    """`run.name=NAME report=headline` is `report headline run.name=NAME`."""
    asked = [argument.partition("=")[2] for argument in arguments if argument.startswith("report=")]
    return ["report", *asked, *(a for a in arguments if not a.startswith("report="))] if asked else arguments


def _run(arguments: list[str]) -> int:
    from launcher import cli, costs, local, plan
    from launcher.slurm import submission
    from nemo_vibethinker.costs import plan_json
    from nemo_vibethinker.costs.memory import require_fit
    from nemo_vibethinker.costs.run_plan import plan_run, require_budget

    if not arguments or {"-h", "--help"} & set(arguments):
        print(cli.help_text({word: text for word, (_, text) in COMMANDS.items()}))
        return 0
    command = cli.parse(arguments)
    if command.layouts:
        print(costs.render_layouts(command))
        return 0
    require_fit(command.config)
    if command.as_json:
        print(plan_json.to_json(command.config, plan_run(command.config, command.config.run_folder)))
        return 0
    if command.plan:
        print(plan.render(command))
        return 0
    cli.require_data(command.config)
    require_budget(plan_run(command.config, command.config.run_folder), command.config.budget.on_exceed)
    place = local if command.config.cluster.scheduler == "none" else submission
    return place.execute(command.config, command.reference)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # works from a checkout that is not installed
    from launcher import run  # the commands import this module under its own name; run that copy

    sys.exit(run.main(sys.argv[1:]))
