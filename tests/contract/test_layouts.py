"""The layout of a run does not change what is learnt: one process = two = three = micro-batches.

Every method of the table takes three real steps in float64 on 1, 2 and 3 processes, and with its
batch in 2 and 3 parts, through the functions of which the loop is made. Losses and gradients of
every step are those of one process with the whole batch; the gradients, and everything else that a
method remembers, are bit-equal between the ranks.

The bound is 1e-9 relative for each tensor of the gradient (sums of floats in another order: 1e-16
times the number of terms and the condition of the loss). The largest that were measured: 1.9e-13 on
2 and 3 processes (Barlow Twins), 3.8e-14 sharded (DINO).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe
from ranks import Ranks
from torch import Tensor

from selfsame import accumulate, dist, machine, methods, optim, parallel, plan
from selfsame.backbones.vit import Block
from selfsame.data import Loader
from selfsame.data.arrays import ArraySource
from selfsame.methods.barlow_twins import Standardize
from selfsame.nn.batchnorm import norms_of
from selfsame.optim import Optim
from selfsame.parallel import Layout
from selfsame.plan import Choices
from selfsame.recipe import with_settings
from selfsame.rng import key

BOUND = 1e-9
STEPS = 3
IMAGES, BATCH = 24, 12  # two steps an epoch: k-means runs before the first and the third

# name of a case -> method and settings; heads are narrow so that answers are quick to send
CASES: dict[str, tuple[str, list[str]]] = {
    **{name: (name, []) for name in methods.METHODS},
    "moco-shuffled": ("moco", ["method.bn_groups=6", "method.shuffle=true"]),
    "dinov2-centred": (
        "dinov2",
        ["method.targets=centering", "method.separate_heads=true", "method.koleo_group=4"],
    ),
    "dino-vit": ("dino", ["backbone.name=vit_tiny", "method.head_norm=false"]),
}
NARROW = {
    "method.hidden": 24,
    "method.output": 16,
    "method.outputs": 24,
    "method.bottleneck": 12,
    "method.queue": 30,
    "method.queue_start": 0,
    "method.projector": "[24,16]",
    "method.expander": "[24,16]",
    "method.classes": 4,
    "method.components": 8,
}


class Took(NamedTuple):
    """What the steps gave."""

    losses: list[float]
    gradients: list[list[np.ndarray]]  # of each step and parameter; rank 0 alone
    digests: list[str]  # of the gradients of each step, then of all that the method remembers


def recipe(case: str) -> Any:
    name, settings = CASES[case]
    options = {
        "backbone.options.width": 16,
        "backbone.options.depth": 2,
        "backbone.options.heads": 2,
        "backbone.options.patch": 8,
        "backbone.options.drop_path": 0.3,
    }
    # plain SGD: others divide by the size of a gradient, which magnifies the rounding of small ones
    sgd = Optim(name="sgd", lr=0.02, scaling="none", warmup=0, momentum=0.0)
    found = tiny_recipe(name, batch_size=BATCH, steps=8).model_copy(update={"optim": sgd})
    known = type(found.method).model_fields
    narrow = [f"{k}={v}" for k, v in NARROW.items() if k.removeprefix("method.") in known]
    found = with_settings(found, [*narrow, *settings])
    if "vit" in found.backbone.name:
        found = found.model_copy(
            update={"backbone": found.backbone.model_copy(update={"options": {}})}
        )
        if name == "deit":
            options["backbone.options.distilled"] = "true"
        found = with_settings(found, [f"{k}={v}" for k, v in options.items()])
    return found


def take_steps(
    case: str, layout: Layout, rest_norms: bool, gathered: Literal["fp32", "bf16"] | None = None
) -> Took:
    """Three steps of a method as the loop takes them.

    In float64; with ``gathered`` under the autocast of bfloat16, and FSDP gathering in that.
    """
    real = torch.float64 if gathered is None else torch.float32
    source = ArraySource(textures(IMAGES), np.arange(IMAGES) % 4, ["a", "b", "c", "d"])
    tiny = plan.make(CASES[case][0], source, Choices(recipe=recipe(case)), "cpu")
    tiny.lay_out(layout)
    parts = layout.accumulate
    seed = tiny.recipe.seed
    with tiny.images:
        method = tiny.build().to(real).train()
        torch.manual_seed(7)  # some scales start at zero and cut gradients off
        with torch.no_grad():
            for p in method.parameters():
                p.add_(0.05 * torch.randn_like(p))
        for norm in norms_of(method) if rest_norms else ():
            if not isinstance(norm, Standardize):  # which is a part of the loss
                norm.eval()
        parallel.prepare(method, layout, gathered or "fp32")
        optimizer = optim.build(method, tiny.recipe.optim, BATCH)
        rank, world = dist.rank(), dist.world_size()
        loader = Loader(tiny.images, BATCH, seed, 0, tiny.total, rank=rank, world=world)
        losses, gradients, digests = [], [], []
        for step in range(STEPS):
            t = tiny.progress(step)
            if step % tiny.steps_per_epoch == 0:
                torch.manual_seed(key(seed, 2, step))
                sweep = ((index, x.to(real)) for index, x in tiny.sweep(method))
                for parameter in method.before_epoch(t, sweep):
                    optimizer.state.pop(parameter, None)
            epoch, batch = loader.load(step)
            micro = accumulate.split(batch, parts)
            views = (in_type(real, tiny.views(method, part, epoch)) for part in micro)
            optimizer.zero_grad()
            out = accumulate.backward(
                method,
                views,
                t,
                count=parts,
                images=tiny.share,
                seed=key(seed, 1, step),
                autocast=lambda: machine.autocast(tiny.device, "bf16" if gathered else "fp32"),
            )
            losses.append(parallel.average(method, out.loss).item())
            grads = [full(p.grad) for p in method.parameters() if p.grad is not None]
            gradients.append([g.numpy().copy() for g in grads] if dist.is_main() else [])
            digests.append(digest(grads))
            for parameter in method.frozen(t):
                parameter.grad = None
            optimizer.step()
            method.after_step(t, out.carry)
        digests.append(digest([full(x) for x in method.state_dict().values()]))
    return Took(losses, gradients, digests)


def full(x: Tensor) -> Tensor:
    """A sharded tensor as a whole."""
    whole: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return whole


def in_type(real: torch.dtype, views: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.to(real) if v.is_floating_point() else v for k, v in views.items()}


def digest(tensors: list[Tensor]) -> str:
    found = hashlib.sha256()
    for x in tensors:
        found.update(x.contiguous().numpy().tobytes())
    return found.hexdigest()


def all_cases(
    layout: Layout, rest_norms: bool, cases: Sequence[str] = tuple(CASES), *gathered: Any
) -> dict[str, Took]:
    return {case: take_steps(case, layout, rest_norms, *gathered) for case in cases}


def error(took: Took, whole: Took) -> float:
    """The largest relative error of a loss, or of a tensor of a gradient, over all steps.

    A tensor that has no gradient but rounding (a bias before a BatchNorm) is compared with a
    millionth of the whole gradient.
    """
    worst = [abs(a - b) / abs(b) for a, b in zip(took.losses, whole.losses, strict=True)]
    for ours, theirs in zip(took.gradients, whole.gradients, strict=True):
        least = 1e-6 * np.sqrt(sum((g**2).sum() for g in theirs))
        worst += [
            float(np.linalg.norm(a - b) / max(np.linalg.norm(b), least))
            for a, b in zip(ours, theirs, strict=True)
        ]
    return max(worst)


@pytest.fixture(scope="module")
def whole() -> dict[str, Took]:
    return all_cases(Layout(), False)


@pytest.fixture(scope="module")
def divided(ranks: Ranks) -> dict[int, list[dict[str, Took]]]:
    return {world: ranks(all_cases, Layout(), False, world=world, timeout=300) for world in (2, 3)}


@pytest.fixture(scope="module")
def whole_without_norms() -> dict[str, Took]:
    return all_cases(Layout(), True)


@pytest.fixture(scope="module")
def accumulated(ranks: Ranks) -> dict[tuple[int, int], list[dict[str, Took]]]:
    """By processes and micro-batches."""
    return {
        (1, 2): [all_cases(Layout(2), True)],
        (1, 3): [all_cases(Layout(3), True)],
        (2, 3): ranks(all_cases, Layout(3), True, world=2, timeout=300),
    }


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes(
    case: str, world: int, divided: dict[int, list[dict[str, Took]]], whole: dict[str, Took]
) -> None:
    ours = [answer[case] for answer in divided[world]]
    assert error(ours[0], whole[case]) < BOUND
    for other in ours[1:]:
        assert other.losses == ours[0].losses
        assert other.digests == ours[0].digests, "the ranks differ"


@pytest.mark.parametrize("layout", [(1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("case", [case for case in CASES if case != "moco-shuffled"])
def test_micro_batches(
    case: str,
    layout: tuple[int, int],
    accumulated: dict[tuple[int, int], list[dict[str, Took]]],
    whole_without_norms: dict[str, Took],
) -> None:
    """BatchNorms of networks rest: they see a micro-batch at a time, which is another run."""
    ours = [answer[case] for answer in accumulated[layout]]
    assert error(ours[0], whole_without_norms[case]) < BOUND
    assert len({tuple(answer.digests) for answer in ours}) == 1, "the ranks differ"


@pytest.mark.parametrize("case", CASES)
def test_checkpointed_activations(case: str, whole: dict[str, Took]) -> None:
    """The same bits: gradients, and running statistics, which see each batch once."""
    ours = take_steps(case, Layout(checkpoint_activations=True), False)
    assert ours.losses == whole[case].losses
    assert ours.digests == whole[case].digests


SHARDED = ("mae", "ibot", "dinov2", "dinov2-centred", "dino", "dino-vit")


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 3}, {"checkpoint_activations": True}], ids=str
)
def test_fsdp_is_ddp(options: dict[str, Any], ranks: Ranks, whole: dict[str, Took]) -> None:
    """Weights, gradients and teachers in parts on two processes give what one process gives."""
    # micro-batches are normalised one by one: not for the ResNet
    cases = tuple(c for c in SHARDED if not ("accumulate" in options and c == "dino"))
    answers = ranks(all_cases, Layout(parallel="fsdp", **options), False, cases, timeout=300)
    for case in cases:
        ours = [answer[case] for answer in answers]
        assert error(ours[0], whole[case]) < BOUND, case
        assert ours[0].digests == ours[1].digests


HALF = ("mae", "ibot", "dinov2", "dino-vit")


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 3}, {"checkpoint_activations": True}], ids=str
)
def test_fsdp_gathers_what_autocast_rounds_in_bfloat16_to_the_same_bits(
    options: dict[str, Any], ranks: Ranks
) -> None:
    layout = Layout(parallel="fsdp", **options)
    whole, half = (
        ranks(all_cases, layout, False, HALF, gathered, timeout=300)[0]
        for gathered in ("fp32", "bf16")
    )
    for case in HALF:
        assert half[case].losses == whole[case].losses, case
        assert half[case].digests == whole[case].digests, case


def types_of_weights(precision: Any) -> dict[str, set[torch.dtype]]:
    """Of what the blocks of a sharded MAE, its decoder's too, compute with."""
    source = ArraySource(textures(IMAGES), None, None)
    tiny = plan.make("mae", source, Choices(recipe=recipe("mae")), "cpu")
    method, layout = tiny.build(), Layout(parallel="fsdp")
    tiny.lay_out(layout)
    parallel.prepare(method, layout, precision)
    found: dict[str, set[torch.dtype]] = {}

    def note(module: Any, *_: Any) -> None:
        kind = type(module).__name__.removeprefix("FSDP")
        found.setdefault(kind, set()).add(module.weight.dtype)

    for block in (block for block in method.modules() if isinstance(block, Block)):
        for part in (block.norm1, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            part.register_forward_hook(note, prepend=True)
    with tiny.images, machine.autocast(tiny.device, precision):
        loader = Loader(tiny.images, BATCH, 0, 0, 1, rank=dist.rank(), world=dist.world_size())
        method(tiny.views(method, loader.load(0)[1], 0), tiny.progress(0))
    return found


def test_fsdp_gathers_linear_layers_alone_in_bfloat16(ranks: Ranks) -> None:
    half, single = {torch.bfloat16}, {torch.float32}
    found = ranks(types_of_weights, "bf16")
    assert found == [{"Linear": half, "LayerNorm": single}] * 2
    assert ranks(types_of_weights, "fp32") == [{"Linear": single, "LayerNorm": single}] * 2


@pytest.mark.slow
def test_two_processes_share_a_part_of_the_batch_for_batch_norm(
    ranks: Ranks,
) -> None:
    """Two groups on four processes; three do not go."""
    settings = ["method.bn_groups=2", "method.shuffle=true"]
    answers = ranks(one_case, settings, world=4, timeout=300)
    assert error(answers[0], one_case(settings)) < BOUND
    assert len({tuple(answer.digests) for answer in answers}) == 1
    with pytest.raises(AssertionError, match="in 2 parts of the batch does not go with 3"):
        ranks(one_case, settings, world=3, timeout=300)


def one_case(settings: list[str]) -> Took:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CASES, "moco-pairs", ("moco", settings))
        return take_steps("moco-pairs", Layout(), False)
