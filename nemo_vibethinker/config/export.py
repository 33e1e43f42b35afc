"""What the exported model's card says that no run can know."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class ExportConfig:
    """Licences as you state them; the card says "not stated" for one that is none.

    A finished run is exported again, with another card, by `recipe=export run.from_run=PATH export.license=NAME`.
    """

    license: str | None = None  # of the exported model, as the Hugging Face Hub names it, such as apache-2.0
    base_license: str | None = None  # of scale.model.path
    data_license: str | None = None  # of the training data
