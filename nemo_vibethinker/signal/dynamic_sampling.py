"""Dynamic sampling: more prompts are drawn until enough groups carry a gradient (DAPO, arXiv 2503.14476, 3.2)."""


def prompts_to_draw(*, wanted: int, useful: int, drawn: int, available: int, redraws: int, limit: int) -> int:
    """How many prompts to draw next for a step: as many as are missing; 0 when it has to do with what it has.

    Args:
        wanted: groups with reward variance that the step should have.
        useful: those it has.
        drawn: prompts drawn for this step so far; none is drawn twice in a step.
        available: prompts there are.
        redraws: draws after the first so far.
        limit: most of them.
    """
    return 0 if redraws >= limit else max(0, min(wanted - useful, available - drawn))
