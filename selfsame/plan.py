"""The plan of a run: everything that is decided before the first step, and why."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsame import backbones, dist, machine, methods, optim
from selfsame.data import (
    Images,
    count_channels,
    measure_levels,
    measure_norm,
    open_source,
    steps_per_epoch,
    suggest_canvas,
)
from selfsame.encoder import (
    Encoder,
    asks_for_classes,
    build_method,
    build_network,
    initial,
    load,
    load_teacher,
    refuse_missing,
)
from selfsame.errors import DataError, UsageError
from selfsame.files import cache_folder
from selfsame.memo import Memo
from selfsame.nn.batchnorm import norms_of
from selfsame.nn.taught import Taught, TaughtConfig, check_names
from selfsame.parallel import Layout, check_compiler, check_layout, check_norm_groups
from selfsame.recipe import SCALES, BackboneConfig, Recipe, differences, with_settings
from selfsame.rng import key
from selfsame.run import RunDirectory
from selfsame.types import Backbone, Batch, Method, Progress, Source
from selfsame.views import eval_view, make_views
from selfsame.views.presets import eval_crop

MANY_IMAGES = 200_000  # at or above this many, the paper's recipe is the default
MIN_SIZE = 8  # pixels
SMALL_SIZE = 128  # pixels: view side of the small recipe for images larger than SMALL_IMAGE


@dataclass(frozen=True)
class Choices:
    """What the user asked for; None where they left the choice to us."""

    recipe: str | Path | Recipe | None = None
    backbone: str | nn.Module | None = None
    size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    precision: str | None = None
    settings: Sequence[str] = ()
    teacher: str | Path | nn.Module | None = None
    init: str | Path | None = None

    def as_settings(self) -> list[str]:
        """The choices that are fields of a recipe, as ``key=value`` settings."""
        found = []
        if self.epochs is not None:
            found.append(f"epochs={float(self.epochs)}")
        for name in ("steps", "batch_size", "seed", "precision"):
            value = getattr(self, name)
            if value is not None:
                found.append(f"{name}={value}")
        return [*found, *self.settings]


@dataclass
class Plan:
    """A resolved recipe, the data it is for, and the machine it runs on."""

    recipe: Recipe
    images: Images
    device: torch.device
    module: nn.Module | None  # the user's own backbone
    why: str  # this precision
    notes: list[str] = field(default_factory=list)  # choices made, in words
    layout: Layout = field(default_factory=Layout)
    teacher: Encoder | None = None  # whom the method learns from
    keep: bool = True  # what the teacher says of views that come again, on the disk

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the data."""
        return steps_per_epoch(len(self.images), self.recipe.batch_size)

    @property
    def share(self) -> int:
        """Images of a micro-batch: what goes through the networks at a time."""
        return self.recipe.batch_size // dist.world_size() // self.layout.accumulate

    @property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.total_steps(self.steps_per_epoch)

    @property
    def classes(self) -> Sequence[str] | None:
        """What the classifier that is trained calls its classes, where it trains one.

        A student that learns the teacher's classes calls them as the teacher does, whatever the
        folders of the data are called.
        """
        config = self.recipe.method
        if self.teacher is None or not asks_for_classes(config):
            return self.images.source.classes
        labels = isinstance(config, TaughtConfig) and config.labels
        return self.teacher.classes or (self.images.source.classes if labels else None)

    def lay_out(self, layout: Layout) -> None:
        """Choose how the run is laid out.

        Raises:
            UsageError: the batch cannot be divided so, the method not be sharded, or nothing be
                compiled here.
        """
        method = methods.find(self.recipe.method.name)
        check_layout(layout, self.recipe.batch_size, dist.world_size(), method)
        if layout.compile:
            check_compiler(self.device)
        self.layout = layout

    def agree(self) -> None:
        """Make sure that all processes mean the same run.

        Raises:
            UsageError: another recipe, or other data, on another process.
        """
        ours = {"recipe": self.recipe.hash(), "data": self.images.source.fingerprint()}
        for rank, theirs in enumerate(dist.everyone(ours)):
            for what, mine in ours.items():
                if theirs[what] != mine:
                    raise dist.once(
                        UsageError(
                            f"process {rank} has another {what} than process {dist.rank()}",
                            tip="start every process with the same command, on machines alike",
                        )
                    )

    def progress(self, step: int) -> Progress:
        """Where the run stands after ``step`` optimiser steps."""
        return Progress(
            step, self.total, step * self.recipe.batch_size, step / self.steps_per_epoch
        )

    def build(self) -> Method:
        """The method on its backbone, initialised from the seed alone, on the device.

        Raises:
            UsageError: the backbone lacks something that the method needs.
        """
        recipe = self.recipe
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(recipe.seed, 0))
            network = build_network(recipe, self.module)
            check_pair(recipe.method.name, recipe.backbone.name, network.can)
            check_sizes(network, recipe)
            built = build_method(recipe, network, self.teacher)
        check_norm_groups(built.norm_groups(), dist.world_size())
        if isinstance(built, Taught):
            built.teacher.to(self.device)
            built.teacher.images = len(self.images)
            built.teacher.memo = self.memo(built)
        return built.to(self.device).to(memory_format=torch.channels_last)

    def views(self, method: Method, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """What the method is given for a batch: its views, and labels where it reads them."""
        views = make_views(
            self.recipe.views,
            batch,
            seed=self.recipe.seed,
            epoch=self.recipe.view_epoch(epoch),
            norm=method.encoder().norm,
            device=self.device,
            color=self.recipe.color,
        )
        if method.labelled:
            if batch.label is None:
                raise UsageError(
                    f"{self.recipe.method.name} learns from labels and the data has none",
                    tip="put the images in one folder a class",
                )
            views["label"] = batch.label.to(self.device)
        if method.taught:
            views["set"] = torch.full_like(batch.index, self.recipe.view_epoch(epoch))
        drawn = method.draw(views, batch.index, seed=self.recipe.seed, epoch=epoch)
        return views | {name: value.to(self.device) for name, value in drawn.items()}

    def memo(self, method: Taught) -> Memo | None:
        """Where what the teacher says is kept, where views come again."""
        recipe, encoder = self.recipe, self.teacher
        if recipe.view_sets is None or encoder is None or not self.keep or method.mixes:
            return None
        if encoder.config is None:  # of a module of the user's, weights do not say what it computes
            return None
        views = sum(view.count for view in recipe.views)
        facts = (
            *(method.config.teacher_weights, sorted(method.asked)),
            self.images.source.fingerprint(),
            *(recipe.views, recipe.view_sets, recipe.seed, recipe.color, recipe.canvas),
            *(recipe.channels, recipe.levels, recipe.precision, self.device.type),
        )
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        shapes = method.teacher.shapes(method.asked, recipe.channels)
        count = len(self.images) * views * recipe.view_sets
        return Memo(cache_folder() / "teachers" / name, count, shapes)

    def sweep(self, method: Method) -> Iterator[tuple[Tensor, Tensor]]:
        """Images without augmentation, in batches, for ``before_epoch``: each on one rank."""
        norm, size = method.encoder().norm, self.recipe.image_size
        starts = range(0, len(self.images), self.recipe.batch_size)
        for start in starts[dist.rank() :: dist.world_size()]:
            index = torch.arange(start, min(start + self.recipe.batch_size, len(self.images)))
            batch = self.images.batch(index)
            images = batch.images.to(self.device, non_blocking=True)
            yield index, eval_view(images, batch.sizes, size, norm, eval_crop(size))

    def describe(self, method: Method | None = None) -> list[str]:
        """The plan in lines, for people, before the first step."""
        recipe, images = self.recipe, self.images
        peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
        scaled = recipe.optim.scaling != "none"
        options = ", ".join(f"{k}={v}" for k, v in recipe.backbone.options.items())
        sizes: Counter[int] = Counter()
        for view in recipe.views:
            sizes[view.size] += view.count
        lines = [
            f"data       {len(images):,} images, canvas {images.canvas} px",
            f"machine    {machine.describe(self.device)}",
            f"precision  {recipe.precision} ({self.why})",
            f"method     {recipe.method.name}, views "
            + " + ".join(f"{n}x{size} px" for size, n in sorted(sizes.items(), reverse=True)),
            f"backbone   {recipe.backbone.name}" + (f" ({options})" if options else ""),
            f"length     {self.total:,} steps of {recipe.batch_size} images = "
            f"{self.total / self.steps_per_epoch:.4g} epochs",
            f"optimiser  {recipe.optim.name}, peak learning rate {peak:.3g}"
            + (
                f" = {recipe.optim.lr:g} scaled ({recipe.optim.scaling}) from batch "
                f"{recipe.optim.reference_batch}"
                if scaled
                else ""
            ),
        ]
        lines += self._layout(method)
        if isinstance(method, Taught):
            lines += self._teacher(method)
        if method is not None:
            total = sum(p.numel() for p in method.parameters())
            encoder = sum(p.numel() for p in method.encoder().parameters())
            need, have = self.memory(method), machine.memory(self.device)
            lines += [
                f"weights    {total / 1e6:.1f} M, of them {encoder / 1e6:.1f} M in the encoder",
                f"memory     about {format_bytes(need)} for the step, {format_bytes(have)} free"
                + ("  WARNING: it may not fit" if have and need > have else ""),
            ]
        return lines + [f"note       {note}" for note in self.notes]

    def _teacher(self, method: Taught) -> list[str]:
        """Whom the method learns from, and what is kept of what it says."""
        encoder, memo, sets = self.teacher, method.teacher.memo, self.recipe.view_sets
        assert encoder is not None
        count = sum(p.numel() for p in encoder.parameters()) / 1e6
        classes = f", {method.teacher.classes} classes" if encoder.head is not None else ""
        lines = [
            f"teacher    {method.config.teacher}: {count:.1f} M weights, {encoder.dim} features"
            f"{classes}, images of {encoder.image_size} px"
        ]
        if memo is None:
            again = "" if sets else " (--view-sets N: N epochs' views come again, and are kept)"
            return [*lines, f"           sees the views of every step{again}"]
        need, free = format_bytes(memo.bytes), format_bytes(free_bytes(memo.folder))
        return [
            *lines,
            f"           sees {sets} set{'s' if sets != 1 else ''} of views once, "
            f"then its answers are read: {need} on the disk, {free} free",
            f"           kept in {memo.folder}",
        ]

    def _layout(self, method: Method | None) -> list[str]:
        """How a batch is divided, and what that changes."""
        world, parts = dist.world_size(), self.layout.accumulate
        if world * parts == 1:
            return []
        words = [f"{world} processes"] * (world > 1) + [f"{parts} micro-batches"] * (parts > 1)
        lines = [f"layout     {' of '.join(words)} of {self.share} images"]
        norms = 0 if method is None else len(norms_of(method))
        if parts > 1 and norms:
            each = "of all processes " if world > 1 else ""
            lines.append(
                f"note       {norms} BatchNorms normalise each micro-batch {each}on its own: not "
                "the run of one large batch (networks without BatchNorm are)"
            )
        return lines

    def memory(self, method: Method) -> int:
        """Estimate of a step's peak memory, bytes: weights, gradients, state and activations.

        What autograd keeps is counted for two images. What has the shape of a weight or of a
        buffer, such as a copy in bfloat16, is kept once; the rest grows with the batch.
        """
        once, each = self._kept(method, 2)
        activations = once + each * self.share // 2
        slots = {"sgd": 1, "lars": 1, "adamw": 2}[self.recipe.optim.name]
        weights = sum(
            p.numel() * p.element_size() * (2 + slots if p.requires_grad else 1)
            for p in method.parameters()
        )
        return activations + weights

    def _kept(self, method: Method, count: int) -> tuple[int, int]:
        """Bytes that autograd keeps for a forward pass of ``count`` images, besides the weights.

        Returns:
            Those of the shapes of weights and buffers, and those of others.
        """
        own = {x.shape for x in (*method.parameters(), *method.buffers())}
        kept: tuple[dict[int, int], dict[int, int]] = ({}, {})

        def count_bytes(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            fixed = x.shape in own or (x.ndim == 2 and x.mT.shape in own)
            kept[0 if fixed else 1][storage.data_ptr()] = storage.nbytes()
            return x

        batch = self.images.batch(torch.arange(count) % len(self.images))
        views = self.views(method, batch, 0)
        buffers = {name: buffer.clone() for name, buffer in method.named_buffers()}
        with (
            torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda x: x),
            machine.autocast(self.device, self.recipe.precision),
            torch.random.fork_rng(devices=[]),
        ):
            method(views, self.progress(0))
        with torch.no_grad():  # running statistics must not remember these images
            for name, buffer in method.named_buffers():
                buffer.copy_(buffers[name])
        weights = {p.untyped_storage().data_ptr() for p in method.parameters()}
        once, each = (
            sum(size for pointer, size in part.items() if pointer not in weights) for part in kept
        )
        return once, each


def check_pair(method: str, backbone: str, can: frozenset[str]) -> None:
    """Refuse a backbone that cannot do what the method asks of it.

    Raises:
        UsageError: with the reason, a backbone that can, and a method that asks for less.
    """
    lacking = methods.find(method).needs - can
    if not lacking:
        return
    what = {
        "keep": "leave tokens out",
        "replace": "put a mask token in the place of patches",
        "ffn": "show what its blocks' perceptrons return",
        "tokens": "return tokens",
        "maps": "return maps",
        "stages": "show the maps between its stages",
    }
    words = " and ".join(what[ability] for ability in sorted(lacking))
    raise UsageError(
        f"{method} needs a backbone that can {words}, and {backbone} cannot",
        tip=f"--student vit_tiny works with {method}; kd, rkd and distill work with {backbone}"
        if methods.find(method).taught
        else f"--backbone vit_tiny works with {method}; simclr and byol work with {backbone}",
    )


def check_sizes(network: Backbone, recipe: Recipe) -> None:
    """Refuse a network that cannot take the smaller views of a recipe.

    Raises:
        UsageError: with the network's own words.
    """
    was_training = network.training
    network.eval()
    for size in sorted({view.size for view in recipe.views} - {recipe.image_size}):
        try:
            with torch.no_grad():
                network(torch.zeros(1, recipe.channels, size, size))
        except (RuntimeError, AssertionError, ValueError, UsageError) as error:
            raise UsageError(
                f"{recipe.backbone.name} was built for views of {recipe.image_size} px and fails "
                f"on crops of {size} px: {error}",
                tip="resnet18 and vit_small take both; or give every view one size: "
                f"--set views.size={recipe.image_size}",
            ) from None
    network.train(was_training)


def free_bytes(folder: Path) -> int:
    """What is free where a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def format_bytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def make(method: str, data: Any, choices: Choices, device: str | None = None) -> Plan:
    """Decide a new run.

    Raises:
        UsageError: an unknown method, recipe, key or backbone, or a batch larger than the data.
        DataError: nothing to train on.
    """
    methods.find(method)
    notes: list[str] = []
    source = open_source(data, notes)
    return _plan(method, source, choices, machine.device(device), notes, base=None)


def resume(
    run: RunDirectory, method: str, data: Any, choices: Choices, device: str | None = None
) -> Plan:
    """The plan of an existing run, from its recipe and what is asked for anew.

    Raises:
        UsageError: what is asked for, or the data, is not what the run was started with.
    """
    stored = methods.read_recipe(run.recipe)
    source = open_source(data)
    if method != stored.method.name:
        raise UsageError(
            f"{run.path} is a run of {stored.method.name}, not of {method}",
            tip="start a new run with another --out",
        )
    if source.fingerprint() != run.info().get("data", {}).get("fingerprint"):
        raise UsageError(
            f"the data is not what {run.path} was started with "
            f"({run.info().get('data', {}).get('images')} images then, {len(source)} now)",
            tip="give the same data, or start a new run with another --out",
        )
    base = stored if choices.recipe is None else None
    plan = _plan(method, source, choices, machine.device(device), [], base)
    changed = differences(stored, plan.recipe)
    if base is not None and choices.size not in (None, stored.image_size):
        changed.append(f"size: {stored.image_size} -> {choices.size}")
    if changed:
        raise UsageError(
            f"{run.path} was started with another recipe: {'; '.join(changed)}",
            tip="leave the changed options out to continue it, or start a new run with another "
            "--out",
        )
    return plan


def _plan(
    method: str,
    source: Source,
    choices: Choices,
    device: torch.device,
    notes: list[str],
    base: Recipe | None,
) -> Plan:
    """Resolve what was asked for on top of ``base``, or of the recipe that was named."""
    side = suggest_canvas(source, 1 << 20)
    recipe = base or _base_recipe(method, choices, len(source), side, notes)
    module = choices.backbone if isinstance(choices.backbone, nn.Module) else None
    name = choices.backbone if module is None else f"module:{type(module).__name__}"
    if isinstance(name, str) and name != recipe.backbone.name:
        kept = backbones.shared_options(recipe.backbone.name, name, recipe.backbone.options)
        network = BackboneConfig(name=name, options=kept)
        recipe = recipe.model_copy(update={"backbone": network})
    if choices.init is not None:
        recipe = _begun(recipe, str(choices.init), choices)
    recipe = with_settings(recipe, choices.as_settings())
    precision, why = machine.precision(recipe.precision, device)
    recipe = recipe.model_copy(update={"precision": precision})
    recipe, teacher = _taught(recipe, choices, base)
    recipe = _resolve(recipe, choices, source, notes, module)
    config = recipe.method
    if teacher is not None and isinstance(config, TaughtConfig) and config.labels:
        check_names(source.classes, teacher.classes if asks_for_classes(config) else None)
    can = backbones.abilities(recipe.backbone.name)
    if can is not None:
        check_pair(recipe.method.name, recipe.backbone.name, can)
    assert recipe.canvas is not None
    images = Images(source, canvas=recipe.canvas, channels=recipe.channels, levels=recipe.levels)
    # of RGB, every network has the mean and deviation of ImageNet; of other channels, none
    untold = recipe.norm is None and recipe.channels != 3 and module is None
    if untold and not recipe.backbone.pretrained:
        recipe = recipe.model_copy(update={"norm": measure_norm(images)})
        notes.append("mean and deviation of each channel measured on the images")
    return Plan(recipe, images, device, module, why, notes, teacher=teacher)


def _begun(recipe: Recipe, init: str, choices: Choices) -> Recipe:
    """The recipe with the network and the input of the weights that it begins with.

    Raises:
        UsageError: the weights cannot be loaded, or are of another network than was asked for.
    """
    asked = choices.backbone
    hub = not Path(init).exists()
    if hub:
        refuse_missing(init)
    if hub or (Path(init) / "config.json").is_file():
        name = init if hub else f"{backbones.TRANSFORMERS}{init}"
        if hub and "/" not in init:
            name = f"{backbones.library_of(init)}/{init}"
        if asked not in (None, init, name):
            raise UsageError(
                f"the weights are those of {name}, not of {asked}", tip="leave --backbone out"
            )
        network = BackboneConfig(name=name, pretrained=True)
        return recipe.model_copy(update={"backbone": network})
    encoder, weights = initial(init)
    update: dict[str, Any] = {"init": init, "init_weights": weights}
    if encoder is None:  # a file, of the network that the recipe or --backbone names
        return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update=update)})
    if encoder.config is None:
        raise UsageError(
            f"{init} holds the weights of a module of yours", tip="load them into it yourself"
        )
    if asked not in (None, encoder.config.name):
        raise UsageError(
            f"{init} is a {encoder.config.name}, not a {asked}", tip="leave --backbone out"
        )
    own = backbones.standard_norm(encoder.channels)
    return recipe.model_copy(
        update={
            "backbone": encoder.config.model_copy(update=update),
            "channels": encoder.channels,
            "levels": recipe.levels or encoder.levels,
            "norm": recipe.norm or (None if encoder.norm == own else encoder.norm),
        }
    )


def _taught(recipe: Recipe, choices: Choices, base: Recipe | None) -> tuple[Recipe, Encoder | None]:
    """The recipe with its teacher's name and weights, and the teacher.

    Raises:
        UsageError: a teacher that cannot be loaded, or for a method that takes none.
    """
    config, given = recipe.method, choices.teacher
    if not methods.find(config.name).taught:
        if given is not None:
            raise UsageError(
                f"{config.name} takes no teacher",
                tip="selfsame distill TEACHER DATA --loss kd, for example",
            )
        return recipe, None
    assert isinstance(config, TaughtConfig)
    if isinstance(given, nn.Module):
        size, channels = recipe.image_size, recipe.channels
        encoder = load(deepcopy(given), image_size=size, channels=channels, device="cpu")
        name = f"module:{type(given).__name__}"
    else:
        name = str(given or config.teacher)
        if name.startswith("module:"):
            raise UsageError(
                "the teacher is a module of yours", tip="give it: distill(teacher=module, ...)"
            )
        weights = config.teacher_weights if base is not None else ""
        config = config.model_copy(update={"teacher": name, "teacher_weights": weights})
        encoder = load_teacher(config)
    update = {"teacher": name, "teacher_weights": encoder.fingerprint()[:16]}
    return recipe.model_copy(update={"method": config.model_copy(update=update)}), encoder


def _base_recipe(method: str, choices: Choices, count: int, side: int, notes: list[str]) -> Recipe:
    """The recipe that was named, or the one that the number of images suggests."""
    wanted = choices.recipe
    if choices.size is not None and wanted not in (None, *SCALES):
        raise UsageError(
            "a recipe of your own says the size of its views",
            tip=f"leave --size out, or write --set views.size={choices.size}",
        )
    if isinstance(wanted, Recipe):
        return wanted
    if wanted is None:
        wanted = "small" if count < MANY_IMAGES else "paper"
        notes.append(f"recipe '{wanted}', chosen for {count:,} images (--recipe overrides)")
    if str(wanted) not in SCALES:
        recipe = methods.read_recipe(Path(wanted))
        if recipe.method.name != method:
            raise UsageError(
                f"{wanted} is a recipe of {recipe.method.name}, not of {method}",
                tip=f"selfsame pretrain {recipe.method.name} ...",
            )
        return recipe
    size = choices.size
    if size is not None and size < MIN_SIZE:
        raise UsageError(f"views of {size} px are too small", tip=f"use {MIN_SIZE} px or more")
    if size is None:
        if side <= backbones.SMALL_IMAGE:
            size = side
        else:
            size = min(side, SMALL_SIZE if wanted == "small" else 224)
        notes.append(f"views of {size} px, the largest image is {side} px (--size overrides)")
    return methods.recipe(method, str(wanted), size)


def _resolve(
    recipe: Recipe,
    choices: Choices,
    source: Source,
    notes: list[str],
    module: nn.Module | None,
) -> Recipe:
    """Fill in what the recipe leaves to the data."""
    recipe = _of_pixels(recipe, source, notes)
    count = len(source)
    batch = recipe.batch_size
    asked = choices.batch_size is not None or any(
        s.startswith("batch_size") for s in choices.settings
    )
    if count < 2:
        raise DataError(f"{count} image is too few to train on", tip="give a folder with more")
    if batch > count and not asked:
        batch = 1 << (count.bit_length() - 1)
        notes.append(f"batch {batch}, not the recipe's {recipe.batch_size}: the data is small")
    steps_per_epoch(count, batch)  # refuses a batch that the data cannot fill
    backbone = recipe.backbone
    if backbone.pretrained and "/" not in backbone.name:  # ours are named alike and have no weights
        library = backbones.library_of(backbone.name)
        backbone = backbone.model_copy(update={"name": f"{library}/{backbone.name}"})
    added = backbones.default_options(backbone.name, recipe.image_size) if module is None else {}
    added = {key: value for key, value in added.items() if key not in backbone.options}
    if added:
        backbone = backbone.model_copy(update={"options": {**backbone.options, **added}})
        chosen = {"cifar": "CIFAR stem (3x3, stride 1, no pool)"}
        words = [chosen.get(str(v), f"{k} of {v} px") for k, v in added.items()]
        notes.append(f"{', '.join(words)}: views are {recipe.image_size} px")
    return recipe.model_copy(
        update={
            "batch_size": batch,
            "backbone": backbone,
            "method": recipe.method.for_data(len(source), source.classes),
            "canvas": recipe.canvas or suggest_canvas(source, recipe.image_size),
        }
    )


def _of_pixels(recipe: Recipe, source: Source, notes: list[str]) -> Recipe:
    """Fill in what the recipe leaves to the kind of pixels: channels and levels."""
    found: dict[str, Any] = {}
    channels = recipe.channels
    if channels == 3 and (own := count_channels(source)) is not None:
        found["channels"] = channels = own
        notes.append(f"images of {own} channels (--set channels=3 overrides)")
    if channels != 3 and any(v.saturation or v.hue or v.grayscale for v in recipe.views):
        notes.append(
            f"{channels} channel{'s' if channels > 1 else ''}: views keep brightness, contrast, "
            "blur and solarisation; saturation, hue and grayscale are for RGB"
        )
    if recipe.levels is None and (levels := measure_levels(source)) is not None:
        found["levels"] = levels
        notes.append(
            f"images of more than 8 bits: raw values {levels[0]:g} to {levels[1]:g} become 0 to "
            "255 (--set levels=[LOW,HIGH] overrides)"
        )
    return recipe.model_copy(update=found)
