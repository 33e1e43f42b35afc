"""The only entry: `python launcher/run.py recipe=ssp_full`. Without arguments it says what it can do."""

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the command line. Returns the exit code: 0, 2 for a user's mistake, else the worker's."""
    from launcher import cli, costs, local, plan
    from nemo_vibethinker.costs.memory import require_fit

    if not arguments or {"-h", "--help"} & set(arguments):
        print(cli.help_text())
        return 0
    try:
        command = cli.parse(arguments)
        if command.layouts:
            print(costs.render_layouts(command))
            return 0
        require_fit(command.config)
        if command.plan:
            print(plan.render(command))
            return 0
        cli.require_data(command.config)
        return local.execute(command.config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # works from a checkout that is not installed
    sys.exit(main(sys.argv[1:]))
