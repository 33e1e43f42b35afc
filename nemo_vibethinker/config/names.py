"""Names that several sections of the schema share."""

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
CODE_DOMAIN = "code"
LOGGERS = ("tensorboard", "wandb", "mlflow")
SIGNAL_STAGES = ("math_16k", "math_32k", "code")
STAGES = ("prepare", "sft", "probe", "fuse", *(f"mgpo.{name}" for name in SIGNAL_STAGES), "evaluate", "export")
BENCHMARKS = ("aime24", "aime25", "hmmt25", "math500", "gpqa", "lcb_v5", "lcb_v6", "lcb_v6_454", "aime26", "brumo25")
PROTOCOLS = ("paper_1p5b", "paper_3b", "quick")
