"""What happens to a picture before the network sees it, in the words of those who read exports."""

from __future__ import annotations

from typing import Any, NamedTuple

from selfsame.data.levels import Levels
from selfsame.encoder import Encoder
from selfsame.types import Norm
from selfsame.views.presets import eval_crop


class Preprocess(NamedTuple):
    """The view that an encoder is judged with: a centred square, resized, normalised."""

    size: int  # side of what the network sees, pixels
    crop: float  # side of the square that is cut, over the shorter side of the picture
    channels: int
    norm: Norm  # of pixels scaled to 0..1
    levels: Levels | None  # raw values of black and white in pictures of more than 8 bits
    interpolation: str = "bicubic"  # with antialiasing

    @classmethod
    def of(cls, encoder: Encoder) -> Preprocess:
        """The preprocessing of an encoder."""
        size = encoder.image_size
        return cls(size, eval_crop(size), encoder.channels, encoder.norm, encoder.levels)

    @property
    def resize(self) -> int:
        """The shorter side, pixels, for libraries that resize first and then cut ``size``."""
        return round(self.size / self.crop)

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "size": self.size,
            "crop": self.crop,
            "interpolation": self.interpolation,
            "antialias": True,
            "channels": self.channels,
            "scale": 1 / 255,
            "mean": list(self.norm.mean),
            "std": list(self.norm.std),
            "levels": None if self.levels is None else list(self.levels),
        }

    def words(self) -> str:
        """The same as one sentence."""
        levels = ""
        if self.levels is not None:
            low, high = self.levels
            levels = f"raw values {low:g} to {high:g} become 0 to 255, "
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in self.norm)
        share = "the whole" if self.crop == 1 else f"{self.crop:g} of it"
        return (
            f"upright pictures of {self.channels} channel{'s' * (self.channels > 1)}; {levels}"
            f"the centred square of the shorter side ({share}), {self.interpolation} with "
            f"antialiasing to {self.size} x {self.size}, divided by 255, minus ({mean}), over "
            f"({std})"
        )

    def pillow(self, tensor: bool = False) -> tuple[str, ...]:
        """Python that defines ``transform`` with Pillow and NumPy alone; nothing for N channels.

        ``tensor``: it gives a tensor of PyTorch rather than an array.
        """
        if self.channels not in (1, 3):
            return ()
        mode, c, s = "RGB" if self.channels == 3 else "L", self.channels, self.size
        square = "min(w, h)" if self.crop == 1 else f"round(min(w, h) * {self.crop:g})"
        result = "np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1), np.float32)"
        return (
            "import numpy as np",
            "from PIL import Image",
            *(("import torch",) if tensor else ()),
            "",
            f"mean = np.float32({_short(self.norm.mean)})",
            f"std = np.float32({_short(self.norm.std)})",
            "",
            f"def transform(image):  # an upright PIL image -> float32 [{c}, {s}, {s}]",
            f'    image = image.convert("{mode}")',
            "    w, h = image.size",
            f"    side = {square}",
            "    left, top = round((w - side) / 2), round((h - side) / 2)",
            "    box = (left, top, left + side, top + side)",
            f"    image = image.resize(({s}, {s}), Image.Resampling.BICUBIC, box=box)",
            f"    x = np.asarray(image, np.float32).reshape({s}, {s}, {c}) / 255",
            f"    return torch.from_numpy({result})" if tensor else f"    return {result}",
        )

    def torchvision(self) -> tuple[str, ...]:
        """Python that defines ``transform`` with torchvision; nothing for N channels."""
        if self.channels not in (1, 3):
            return ()
        gray = ("    T.Grayscale(),",) if self.channels == 1 else ()
        return (
            "from torchvision import transforms as T",
            "",
            "transform = T.Compose([  # an upright PIL image -> float32 "
            f"[{self.channels}, {self.size}, {self.size}]",
            *gray,
            f"    T.Resize({self.resize}, T.InterpolationMode.BICUBIC),",
            f"    T.CenterCrop({self.size}),",
            "    T.ToTensor(),",
            f"    T.Normalize({_short(self.norm.mean)}, {_short(self.norm.std)}),",
            "])",
        )


def _short(values: tuple[float, ...]) -> list[float]:
    """Values as a person writes them: of float32, so seven digits are enough."""
    return [float(f"{v:.7g}") for v in values]
