"""An encoder: a trained backbone with everything that turns images into embeddings."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from selfsame import backbones, checkpoint, dist, machine, methods, sharded
from selfsame.backbones.lora import add_lora, merged
from selfsame.data import Images, open_source, place
from selfsame.data.levels import Levels
from selfsame.errors import DataError, UsageError
from selfsame.files import atomic, reason, refused
from selfsame.nn.classify import Classifier, restore
from selfsame.nn.positions import resize_positions
from selfsame.nn.taught import Taught, TaughtConfig
from selfsame.nn.teacher import Teacher
from selfsame.recipe import BackboneConfig, MethodConfig, Recipe
from selfsame.run import RunDirectory
from selfsame.types import Backbone, Batch, Features, Method, Norm, Source
from selfsame.views import eval_view
from selfsame.views.presets import eval_crop

CARD = "card.json"
EXPORT = "export.json"  # in the folders that ``selfsame.export`` writes
HEAD = "head.safetensors"
IMAGE_SIZE = 224  # pixels: of a named network, where nothing else is said
WEIGHTS = "backbone.safetensors"


class Encoder(nn.Module):
    """A backbone, the size and normalisation it was trained with, and the way in for pixels.

    Args:
        backbone: the network.
        config: its name and options, None for a user's own module.
        image_size: side of the square that the network sees, pixels.
        channels: channels of the input image.
        norm: mean and deviation of the pixels, the backbone's own where None.
        levels: raw values that are black and white in images of more than 8 bits, as ``Images``
            takes them.
        card: what ``save`` wrote of it.
        head: a classifier of pooled features, if it has one.
        classes: what the classifier calls its classes.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        config: BackboneConfig | None,
        image_size: int,
        channels: int = 3,
        norm: Norm | None = None,
        levels: Levels | None = None,
        card: dict[str, Any] | None = None,
        head: Classifier | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classes = None if classes is None else tuple(classes)
        self.config = config
        self.image_size = image_size
        self.channels = channels
        self.norm = norm or backbone.norm
        self.levels = levels
        self.card = card or {}

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return self.backbone.dim

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    def forward(self, x: Tensor) -> Features:
        """Features of normalised float images [B, C, S, S]."""
        features: Features = self.backbone(x)
        return features

    @torch.inference_mode()
    def features(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Pooled features, float32 [B, D], of uint8 canvases [B, C, H, W] with sizes [B, 2].

        The network runs in float32 and evaluation mode, as the kNN protocols do, whatever
        precision it was trained in.

        The centre square of each image, as large as ``eval_crop`` says, is resized to
        ``image_size``.
        """
        return self.pooled(self.view(images, sizes))

    @torch.inference_mode()
    def scores(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Scores of the classes, float32 [B, K], whose softmax is the share of each.

        Raises:
            UsageError: the encoder has no classifier.
        """
        if self.head is None:
            raise UsageError("this encoder has no classifier", tip="give it one: selfsame classify")
        found: Tensor = self.head(self.features(images, sizes))
        return found

    @torch.inference_mode()
    def layers(self, images: Tensor, sizes: Tensor, last: int) -> dict[str, Tensor]:
        """Features of the last blocks, as `features` makes them; of one, where there are no more.

        Returns:
            ``layers``, float32 [B, L, D], pooled after each of the ``last`` blocks, first to last;
            ``pooled``, [B, D], the last of them; ``patches``, [B, D], the mean of the last tokens
            (``pooled`` where there are none as wide).
        """
        with self.judging():
            x = self.view(images, sizes)
            many = "layers" in self.backbone.can
            found = self.backbone.layers(x, last) if many else [self.backbone(x)]
        layers = torch.stack([each.pooled for each in found], dim=1).float()
        tokens = found[-1].tokens
        alike = tokens is not None and tokens.shape[-1] == layers.shape[-1]
        patches = tokens.float().mean(1) if tokens is not None and alike else layers[:, -1]
        return {"layers": layers, "pooled": layers[:, -1], "patches": patches}

    def view(self, images: Tensor, sizes: Tensor) -> Tensor:
        """What the network sees of canvases, float32 [B, C, S, S] on its device."""
        crop = eval_crop(self.image_size)
        x = eval_view(images.to(self.device), sizes, self.image_size, self.norm, crop)
        return x.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def pooled(self, x: Tensor) -> Tensor:
        """Pooled features, float32 [B, D], of normalised images [B, C, S, S], as ``features``."""
        with self.judging():
            found: Tensor = self.backbone(x.contiguous(memory_format=torch.channels_last)).pooled
        return found.float()

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Evaluation mode and float32, whatever the mode and the autocast around it."""
        was_training = self.training
        self.eval()
        try:
            with torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            self.train(was_training)

    def embed(self, images: Any, *, batch_size: int = 256) -> Tensor:
        """Embeddings, float32 [B, D] on the CPU.

        Args:
            images: anything that data can be opened from: a folder, a path or a list of them, PIL
                images or a list of them, uint8 tensors or arrays [B, C, H, W] or [B, H, W, C].
            batch_size: images a forward pass.

        Raises:
            DataError: nothing readable, or an image in the list that cannot be read.
        """
        data = images_of(images, self)
        with data:
            found = [vectors for _, vectors in self.embed_batches(data, batch_size)]
        for bad in data.bad:
            raise DataError(f"cannot read {bad.name}: {bad.reason}", tip="leave it out")
        return torch.cat(found)

    def embed_batches(self, data: Images, batch_size: int = 256) -> Iterator[tuple[Batch, Tensor]]:
        """The readable images of a data set in order, in batches, with their embeddings.

        Yields:
            A batch and float32 [B, D] on the CPU. Images that cannot be read are left out; they
            are in ``data.bad``.
        """
        for batch in data.readable(batch_size):
            yield batch, self.features(batch.images, batch.sizes).cpu()

    def open(self, source: Source, cache_bytes: int | None = None) -> Images:
        """The images of a source, decoded as the network wants them."""
        return Images(
            source,
            canvas=canvas_for(self.image_size),
            channels=self.channels,
            levels=self.levels,
            cache_bytes=cache_bytes,
        )

    def fingerprint(self) -> str:
        """Hash of what its features and scores depend on besides images: network and weights.

        Of a user's own module the weights do not say what it computes with them.
        """
        name = self.config.model_dump_json() if self.config else type(self.backbone).__name__
        head = None if self.head is None else self.head.facts()
        facts = (name, self.image_size, self.channels, self.norm, self.levels, head)
        digest = hashlib.sha256(repr(facts).encode())
        for key, value in self.state_dict().items():
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(data.numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path, **card: Any) -> None:
        """Write ``backbone.safetensors``, ``card.json`` and a classifier's ``head.safetensors``.

        Each is complete or absent. Of several processes rank 0 does.
        """
        if not dist.is_main():
            return
        parts = {WEIGHTS: self.backbone, HEAD: self.head}
        for name, part in parts.items():
            if part is None:
                continue
            weights = {k: v.detach().cpu().contiguous() for k, v in part.state_dict().items()}
            try:
                with atomic(folder / name) as temporary:
                    save_file(weights, temporary)
            except Exception as error:  # safetensors has its own error for a failed write
                raise refused(str(folder / name), error) from error
        if self.head is not None:
            card = {"head": self.head.facts(), "classes": self.classes, **card}
        self.card = {
            "format": 1,
            "backbone": self.config.model_dump() if self.config else None,
            "dim": self.dim,
            "image_size": self.image_size,
            "channels": self.channels,
            "mean": list(self.norm.mean),
            "std": list(self.norm.std),
            "levels": self.levels,
            **card,
        }
        RunDirectory(folder).write_json(CARD, self.card)


def images_of(images: Any, encoder: Encoder) -> Images:
    """Open what ``Encoder.embed`` takes as data of the encoder's size."""
    if hasattr(images, "convert"):
        images = [images]  # one PIL image
    if isinstance(images, Sequence) and images and hasattr(images[0], "convert"):
        images = [(image, 0) for image in images]
    source = open_source(images)
    return encoder.open(source)


def canvas_for(image_size: int) -> int:
    """Side of the canvas, pixels, from which images are evaluated: twice the network's input."""
    return 2 * image_size


def load(
    model: str | Path | nn.Module,
    *,
    device: str | None = None,
    weights: str | Path | None = None,
    image_size: int | None = None,
    channels: int = 3,
    backbone: nn.Module | None = None,
) -> Encoder:
    """Load an encoder for evaluation and embedding.

    Args:
        model: a run directory (finished or not), an exported encoder (its folder or its file of
            weights), a ``timm/NAME``, ``torchvision/NAME`` or ``transformers/NAME`` with its
            pretrained weights, a folder that transformers saved, or a module.
        device: where to put it; the first GPU where there is one, else the CPU.
        weights: a file of weights (safetensors or a state dict) for a named network.
        image_size: input side, pixels, for a named network or a module; by default 224, or what
            a network of transformers was made for.
        channels: of the images, for a named network or a module. A pretrained stem is adapted.
        backbone: the network, where a run trained a module of the user's.

    Raises:
        UsageError: nothing can be loaded by that name.
    """
    chosen = machine.device(device)
    if not isinstance(model, nn.Module) and Path(model).name == WEIGHTS:
        model = Path(model).parent
    _refuse_options(model, weights, image_size)
    if isinstance(model, Encoder):
        encoder = model
    elif isinstance(model, nn.Module):
        size = image_size or IMAGE_SIZE
        network = backbones.build(model, image_size=size, channels=channels)
        encoder = Encoder(network, config=None, image_size=size, channels=channels)
    elif (Path(model) / CARD).is_file() and not _went_on(Path(model)):
        encoder = _exported(Path(model), backbone)
    elif (Path(model) / "recipe.toml").is_file():
        encoder = _unfinished(RunDirectory.open(model), backbone)
    elif (kind := _exported_for(Path(model))) not in (None, "transformers"):
        raise UsageError(
            f"{model} is an export for other programs (format {kind})",
            tip="name the run that it came from, or export that with --format safetensors",
        )
    elif (Path(model) / "config.json").is_file():
        encoder = _named(f"transformers/{model}", weights, image_size, channels)
    elif Path(model).exists():
        raise UsageError(
            f"{model} is neither a run nor an exported encoder",
            tip=f"a run has a recipe.toml, an export a {CARD}, a folder of transformers a "
            "config.json; weights of a named network go with --weights",
        )
    else:
        refuse_missing(model)
        encoder = _named(str(model), weights, image_size, channels)
    encoder = encoder.to(chosen).eval()
    return encoder.to(memory_format=torch.channels_last)


def random_like(encoder: Encoder, seed: int = 0) -> Encoder | None:
    """The same network at random initialisation: the control. None for a user's own module."""
    if encoder.config is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(encoder.config, encoder.image_size, encoder.channels, None)
    control = Encoder(
        network,
        config=encoder.config,
        image_size=encoder.image_size,
        channels=encoder.channels,
        norm=encoder.norm,
        levels=encoder.levels,
    )
    return control.to(encoder.device).eval()


def build_network(recipe: Recipe, module: nn.Module | None = None) -> Backbone:
    """The network of a recipe with the weights that it begins with.

    Args:
        recipe: resolved.
        module: the user's own network, in the place of the one that the recipe names.

    Raises:
        UsageError: it cannot be built, or the weights are not for it.
    """
    config = recipe.backbone
    network = backbones.build(
        config.name if module is None else module,
        image_size=recipe.image_size,
        channels=recipe.channels,
        options=config.options,
        pretrained=bool(config.pretrained),
        norm=recipe.norm,
    )
    if config.init is not None:
        begin_with(network, config.init, config.init_weights)
    if config.lora is not None:
        add_lora(network, config.lora)
    return network


def begin_with(network: Backbone, init: str, weights: str | None) -> None:
    """Load the weights of a run, an exported encoder or a file into a network, in place.

    Position embeddings of another grid are resized.

    Raises:
        UsageError: there are none, they are for another network, or not those of the hash
            ``weights``.
    """
    encoder, found = initial(init)
    state = _read_weights(Path(init)) if encoder is None else encoder.backbone.state_dict()
    if weights not in (None, found):
        raise UsageError(
            f"{init} holds other weights than those that this run began with",
            tip="begin a new run with another --out",
        )
    # of ours, the names are those of the wrapper; a file of timm's knows none
    target: nn.Module = getattr(network, "module", network) if encoder is None else network
    _load_state(target, state, init)


def initial(init: str) -> tuple[Encoder | None, str]:
    """The encoder that a run or a folder holds, None for a file of weights; and a hash of them."""
    if Path(init).is_file() and Path(init).name != WEIGHTS:
        return None, hashlib.sha256(Path(init).read_bytes()).hexdigest()[:16]
    encoder = load(init, device="cpu")
    return encoder, encoder.fingerprint()[:16]


def build_method(recipe: Recipe, network: Backbone, teacher: Encoder | None = None) -> Method:
    """The method of a recipe on a network; one that is taught with its teacher.

    Args:
        recipe: resolved.
        network: what is trained.
        teacher: whom it learns from; by default loaded as the recipe names it.

    Raises:
        UsageError: the teacher cannot be loaded, or does not say what the method compares.
    """
    method: Any = methods.find(recipe.method.name)
    if not method.taught:
        return cast(Method, method(recipe.method, network))
    config = recipe.method
    assert isinstance(config, TaughtConfig)
    encoder = teacher or load_teacher(config)
    taught = Teacher(
        encoder.backbone,
        image_size=encoder.image_size,
        student_size=recipe.image_size,
        norm=encoder.norm,
        head=encoder.head,
        name=f"the teacher {config.teacher}",
    )
    return cast(Method, method(config, network, taught))


def load_teacher(config: TaughtConfig) -> Encoder:
    """The encoder that a recipe names as the teacher.

    Raises:
        UsageError: none is named, none can be loaded, or it has other weights by now.
    """
    if not config.teacher:
        raise UsageError(
            f"{config.name} learns from a teacher, and none is named",
            tip=f"selfsame distill TEACHER DATA --loss {config.name}",
        )
    encoder = load(config.teacher, device="cpu")
    if asks_for_classes(config) and encoder.head is None and not Path(config.teacher).exists():
        found = backbones.pretrained_classifier(config.teacher)
        state = {} if found is None else found.state_dict()
        encoder.head = _classifier_among({f"fc.{k}": v for k, v in state.items()}, encoder.dim)
    if config.teacher_weights not in ("", encoder.fingerprint()[:16]):
        raise UsageError(
            f"{config.teacher} has other weights than the teacher that this run began with",
            tip="begin a new run with another --out",
        )
    return encoder


def asks_for_classes(config: MethodConfig) -> bool:
    """Whether a student learns what its teacher says of the classes."""
    if not isinstance(config, TaughtConfig):
        return False
    method = methods.find(config.name)
    return config.alpha > 0 or (issubclass(method, Taught) and "logits" in method.wanted(config))


def _build(
    config: BackboneConfig, image_size: int, channels: int, module: nn.Module | None
) -> Backbone:
    """The user's own module where there is one, else the network that ``config`` names."""
    return backbones.build(
        config.name if module is None else module,
        image_size=image_size,
        channels=channels,
        options=config.options,
    )


def _exported(folder: Path, backbone: nn.Module | None) -> Encoder:
    card = json.loads((folder / CARD).read_text("utf-8"))
    config = BackboneConfig.model_validate(card["backbone"]) if card["backbone"] else None
    size, channels = card["image_size"], card["channels"]
    if config is None and backbone is None:
        raise UsageError(
            f"{folder} holds the weights of a module of yours",
            tip="pass that module: selfsame.load(path, backbone=module)",
        )
    network = _build(config or BackboneConfig(), size, channels, backbone)
    try:
        network.load_state_dict(_tensors(folder / WEIGHTS))
    except RuntimeError as error:
        raise UsageError(
            f"the weights in {folder} are not those of its card: {reason(error)}",
            tip="write it again: a run's last step with --resume, an export with selfsame export",
        ) from None
    head = restore(card["head"], _tensors(folder / HEAD)) if card.get("head") else None
    return Encoder(
        network,
        config=config,
        image_size=size,
        channels=channels,
        norm=Norm(tuple(card["mean"]), tuple(card["std"])),
        levels=tuple(card["levels"]) if card.get("levels") else None,
        card=card,
        head=head,
        classes=card.get("classes"),
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors, which holds nothing else."""
    try:
        return dict(load_file(file))
    except Exception as error:  # safetensors has its own
        raise UsageError(
            f"cannot read the weights in {file}: {reason(error)}",
            tip="the file is damaged or another kind of file: copy or write it again",
        ) from None


def _exported_for(folder: Path) -> str | None:
    """The format of a folder that ``selfsame.export`` wrote, None of any other."""
    file = folder / EXPORT
    return str(json.loads(file.read_text("utf-8"))["format"]) if file.is_file() else None


def _refuse_options(
    model: str | Path | nn.Module, weights: str | Path | None, image_size: int | None
) -> None:
    """Raise a UsageError for options of named networks where they would be passed over."""
    module = isinstance(model, nn.Module)
    folder = None if isinstance(model, nn.Module) else Path(model)
    if folder and not any((folder / name).is_file() for name in (CARD, "recipe.toml")):
        return
    name = type(model).__name__ if module else model
    tip = "they are for the name of a network: timm/NAME"
    if weights is not None:
        raise UsageError(f"{name} has weights of its own, not those of {weights}", tip=tip)
    if image_size is not None and not module:
        raise UsageError(f"{name} has an input size of its own, not {image_size} px", tip=tip)


def refuse_missing(model: str | Path) -> None:
    """Raise a UsageError for what is written as a path, not as the name of a network."""
    text = str(model)
    library, slash, _ = text.replace("\\", "/").partition("/")
    named = slash and library in ("timm", "torchvision", "transformers")
    if named or not (slash or Path(text).suffix in (".pt", ".pth", ".bin", ".safetensors")):
        return
    try:
        place.require(text)
    except DataError as error:
        tip = f"{error.tip}; networks are timm/NAME, torchvision/NAME or transformers/NAME"
        raise UsageError(str(error), tip=tip) from None


def _went_on(folder: Path) -> bool:
    """Whether a run has a newer checkpoint than the encoder that it wrote when it was stopped."""
    newest = checkpoint.latest(RunDirectory(folder).checkpoints)
    if newest is None or not (folder / "recipe.toml").is_file():
        return False
    card = json.loads((folder / CARD).read_text("utf-8"))
    return checkpoint.step_of(newest) > int(card.get("step", 0))


def _unfinished(run: RunDirectory, backbone: nn.Module | None) -> Encoder:
    """The encoder in the newest checkpoint of a run that has not ended."""
    recipe = methods.read_recipe(run.recipe)
    config = recipe.backbone.model_copy(update={"init": None, "pretrained": None})
    network = build_network(recipe.model_copy(update={"backbone": config}), backbone)
    method = build_method(recipe, network)
    step = checkpoint.load_latest(
        run.checkpoints,
        lambda line: print(line, file=sys.stderr),
        lambda path: sharded.restore(path, method),
    )
    if step is None:
        raise UsageError(f"{run.path} has no checkpoint yet", tip="continue the run with --resume")
    encoder = of_recipe(method, recipe, named=backbone is None, classes=run.classes())
    encoder.card = {
        "method": recipe.method.name,
        "recipe": recipe.hash(),
        "data": run.info().get("data", {}).get("fingerprint"),
        "labels": method.labelled,
        "step": step,
    }
    return encoder


def of_recipe(
    method: Method, recipe: Recipe, *, named: bool, classes: Sequence[str] | None = None
) -> Encoder:
    """The encoder that a recipe trains; ``named`` where its network is not the user's module."""
    network, config = method.encoder(), recipe.backbone
    if config.lora is not None:
        network, config = merged(network), config.model_copy(update={"lora": None})
    return Encoder(
        network,
        config=config if named else None,
        image_size=recipe.image_size,
        channels=recipe.channels,
        norm=recipe.norm,
        levels=recipe.levels,
        head=method.encoder_head(),
        classes=classes,
    )


def _named(name: str, weights: str | Path | None, image_size: int | None, channels: int) -> Encoder:
    config = BackboneConfig(name=name)
    if image_size is None:
        image_size = backbones.own_size(name) or IMAGE_SIZE
    network = backbones.build(
        name, image_size=image_size, channels=channels, pretrained=weights is None
    )
    head = None
    if weights is not None:
        target: nn.Module = getattr(network, "module", network)
        rest = _load_state(target, _read_weights(Path(weights)), str(weights))
        head = _classifier_among(rest, network.dim)
    return Encoder(network, config=config, image_size=image_size, channels=channels, head=head)


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The state dict in a file: tensors alone, no code of the file is run."""
    state: dict[str, Any]
    try:
        if file.suffix == ".safetensors":
            state = dict(load_file(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"cannot read the weights in {file}: {error}") from None
    state = state.get("state_dict", state.get("model", state))
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _load_state(target: nn.Module, state: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Load weights into a network, which they may be more than; what is left of them.

    Raises:
        UsageError: a tensor of the network is missing, or has another shape.
    """
    own = target.state_dict()
    state = {key: _fitted(key, value, own.get(key), target) for key, value in state.items()}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    if missing:
        raise UsageError(
            f"{where} lacks {len(missing)} of the network's tensors, for example {missing[0]}",
            tip="check that the file holds the weights of this architecture",
        )
    wrong = [key for key, value in own.items() if key in state and state[key].shape != value.shape]
    if wrong:
        have, want = list(state[wrong[0]].shape), list(own[wrong[0]].shape)
        raise UsageError(
            f"{len(wrong)} tensors in {where} have another shape than the network's: {wrong[0]} is "
            f"{have}, not {want}",
            tip="name the network that the weights are of, with its options: --backbone, "
            "--set backbone.options.width=...",
        )
    target.load_state_dict({key: value for key, value in state.items() if key in own})
    return {key: value for key, value in state.items() if key not in own}


def _fitted(key: str, value: Tensor, own: Tensor | None, target: nn.Module) -> Tensor:
    """A learnt table of positions at the network's grid; anything else as it is."""
    if own is None or key.rpartition(".")[2] != "pos_embed" or value.shape == own.shape:
        return value
    inner = getattr(target, "module", target)
    prefix = getattr(inner, "prefix", getattr(inner, "num_prefix_tokens", 0))
    old, new = (round((x.shape[1] - prefix) ** 0.5) for x in (value, own))
    square = prefix + old * old == value.shape[1] and prefix + new * new == own.shape[1]
    if not square or value.shape[2] != own.shape[2]:
        return value
    table = resize_positions(value[:, prefix:], (old, old), (new, new))
    return torch.cat([value[:, :prefix], table], dim=1)


def _classifier_among(state: dict[str, Tensor], dim: int) -> Classifier | None:
    """The linear classifier of features of width ``dim`` in what a network did not take."""
    for key, weight in state.items():
        name, _, last = key.rpartition(".")
        bias = state.get(f"{name}.bias")
        if last == "weight" and weight.ndim == 2 and weight.shape[1] == dim and bias is not None:
            return restore(
                {"kind": "linear", "rows": len(weight)}, {"weight": weight, "bias": bias}
            )
    return None
