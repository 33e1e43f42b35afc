"""Names that several sections of the schema share."""

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
CODE_DOMAIN = "code"
SIGNAL_STAGES = ("math_16k", "math_32k", "code")
STAGES = ("prepare", "sft", "probe", "fuse", *(f"mgpo.{name}" for name in SIGNAL_STAGES), "evaluate", "export")
