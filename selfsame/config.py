"""The base of every typed configuration: frozen, strict about names, plain in and out."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen record of options. Unknown keys are refused; every value is validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
