"""What a format is: it writes an encoder into a folder and says how its library reads that."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from selfsame.encoder import Encoder
from selfsame.errors import UsageError

if TYPE_CHECKING:
    from selfsame.nn.classify import Linear


class Reading(NamedTuple):
    """How a library reads an export: lines of Python in which ``{at}`` stands for the folder.

    They are what a user is told, and what the check runs. ``x`` is float32 [B, C, S, S]; after
    ``use`` there are ``pooled`` [B, D] and, where ``outputs`` says so, ``tokens`` [B, N, D] and
    ``scores`` [B, K].
    """

    load: Sequence[str]
    use: Sequence[str]
    outputs: Sequence[str]
    transform: Sequence[str] = ()  # defines ``transform``: a PIL image -> [C, S, S]
    transformer: str = "Pillow"  # who does that
    arrays: Literal["torch", "numpy"] = "torch"  # what ``x`` is
    notes: Sequence[str] = ()  # what a user should know
    other: int | None = None  # another side, pixels, that it must take, too


class Format:
    """A way to write encoders.

    ``needs`` are packages, ``extra`` the extra of selfsame that brings them. ``tolerance`` is the
    largest difference between what the library computes and what the encoder does, over the
    largest absolute value of the encoder's: the measurements are in docs/export.md.
    """

    name: ClassVar[str]
    library: ClassVar[str]  # who reads it, for people
    needs: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-5

    def lacks(self, encoder: Encoder) -> str | None:
        """What the library has no words for, as "ResNet with ..."; None where it has them all."""
        return None

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write an encoder that `lacks` nothing, on the CPU and in evaluation mode.

        Args:
            encoder: what is written.
            folder: where to; it is there.

        Raises:
            UsageError: it cannot be written all the same.
        """
        raise NotImplementedError

    def available(self) -> None:
        """Raise a UsageError where a package is missing."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            what = f"selfsame[{self.extra}]" if self.extra else " ".join(missing)
            raise UsageError(
                f"the format {self.name} needs the package{'s' * (len(missing) > 1)} "
                f"{' and '.join(missing)}",
                tip=f'pip install "{what}"',
            )


def outputs_of(encoder: Encoder) -> list[str]:
    """Names of what an encoder computes."""
    found = ["pooled", "tokens"] if "tokens" in encoder.backbone.can else ["pooled"]
    return [*found, "scores"] if encoder.head is not None else found


def linear_head(encoder: Encoder) -> tuple[Linear | None, list[str]]:
    """The classifier, where it is linear as in libraries, and a note where it is another."""
    from selfsame.nn.classify import Linear

    if encoder.head is None or isinstance(encoder.head, Linear):
        return encoder.head, []
    kind = type(encoder.head).__name__
    return None, [f"without the {kind} classifier: onnx, torch-export and torchscript carry it"]


def tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of a state dict, each contiguous and on its own memory, as files want them."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}


def title(encoder: Encoder) -> str:
    """The network's name, or the class of a user's module."""
    module = getattr(encoder.backbone, "module", encoder.backbone)
    return encoder.config.name if encoder.config else type(module).__name__


def of_library(encoder: Encoder, library: str) -> bool:
    """Whether ``library`` built the network for us, by a name that we know."""
    module = getattr(encoder.backbone, "module", None)
    return encoder.config is not None and type(module).__module__.startswith(f"{library}.")
