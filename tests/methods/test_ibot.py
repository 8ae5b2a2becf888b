import math

import pytest
import torch
from torch import Tensor

from selfsame import backbones
from selfsame.backbones.resnet import ResNet
from selfsame.backbones.vit import ViT
from selfsame.errors import UsageError
from selfsame.methods.ibot import IBOT, Settings
from selfsame.nn.selfdistill import entropy, masked_places, patch_loss, teacher_probabilities
from selfsame.plan import check_pair
from selfsame.types import Progress

K = 12
START = Progress(0, 100, 0, 0.0)


def make(**settings: object) -> IBOT:
    torch.manual_seed(0)
    small = {"width": 8, "depth": 2, "heads": 2, "patch": 4}
    backbone = backbones.build("vit_tiny", image_size=16, options=small)
    return IBOT(Settings(**({"hidden": 8, "bottleneck": 4, "outputs": K} | settings)), backbone)


def crops(method: IBOT, local: int = 2, batch: int = 6, epoch: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = {"global": torch.randn(2, batch, 3, 16, 16, generator=generator)}
    if local:
        views["local"] = torch.randn(local, batch, 3, 8, 8, generator=generator)
    return views | dict(method.draw(views, torch.arange(batch), seed=0, epoch=epoch))


def test_each_image_weighs_the_same_however_many_patches_it_lacks() -> None:
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    p = torch.eye(2).repeat(2, 1)  # certain: the loss of a patch is -log q
    student = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0]])

    def loss(margin: float) -> float:
        return math.log(1 + math.exp(-margin / 0.5))

    expected = (loss(2.0) + (loss(1.0) + loss(3.0) + loss(0.0)) / 3 + 0.0) / 3
    assert patch_loss(p, student, mask, masked_places(mask), 0.5).item() == pytest.approx(expected)


def test_no_masked_patch_costs_nothing() -> None:
    student = torch.zeros(0, K, requires_grad=True)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    loss = patch_loss(torch.zeros(0, K), student, mask, masked_places(mask), 0.1)
    loss.backward()
    assert loss.item() == 0
    method = make(mask_probability=0.0)
    out = method(crops(method), START)
    out.loss.backward()
    assert out.metrics["patch_loss"] == 0
    assert out.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_the_student_sees_masked_globals_and_whole_locals_the_teacher_whole_globals() -> None:
    method = make()
    views = crops(method)
    calls: dict[str, list[tuple[tuple[int, ...], object]]] = {"backbone": [], "teacher": []}
    for name, seen in calls.items():
        method.get_submodule(name).register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append((args[0].shape, kwargs.get("replace"))),
            with_kwargs=True,
        )
    method(views, START)
    (whole, replaced), (local, kept) = calls["backbone"]
    assert whole == (12, 3, 16, 16)
    assert torch.equal(replaced[0], views["mask"].flatten(0, 1))
    assert local == (12, 3, 8, 8)
    assert kept is None
    assert calls["teacher"] == [((12, 3, 16, 16), None)]


def test_what_masks_hide_does_not_reach_the_student() -> None:
    method = make(class_weight=0.0)
    views = crops(method, local=0)
    views["mask"][:] = True
    x = views["global"].requires_grad_()
    method(views, START).loss.backward()
    assert x.grad.abs().max() == 0


def test_patches_are_matched_within_a_view() -> None:
    """A student that ignores the masks, equal to its teacher, has the teacher's entropy."""

    class Blind(ViT):
        def forward(self, x: Tensor, *, keep: object = None, replace: object = None) -> object:
            return super().forward(x)

    method = make(student_temperature=0.5, teacher_temperature=0.5, teacher_warmup=0)
    blind = Blind("vit_tiny", image_size=16, patch=4, width=8, depth=2, heads=2)
    method = IBOT(method.config.model_copy(update={"teacher_patch_temperature": 0.5}), blind)
    views = crops(method, local=0)
    views["mask"][:] = True
    out = method(views, START)
    with torch.no_grad():
        tokens = method.teacher(views["global"].flatten(0, 1)).tokens
        logits = method.teacher_head.patches(method.teacher_head.embed(tokens))
        expected = entropy(teacher_probabilities(logits, method.patch_center, 0.5))
    torch.testing.assert_close(out.metrics["patch_loss"], expected)


@pytest.mark.parametrize("patch_outputs", [None, 7])
def test_class_and_patches_have_centres_of_their_own(patch_outputs: int | None) -> None:
    method = make(patch_outputs=patch_outputs, center_momentum=0.9, patch_center_momentum=0.5)
    views = crops(method)
    with torch.no_grad():
        features = method.teacher(views["global"].flatten(0, 1))
        classes = method.teacher_head(features.pooled)
        # all patches count, not only the masked ones
        patches = method.teacher_head.patches(method.teacher_head.embed(features.tokens))
    out = method(views, START)
    assert method.center.abs().max() == method.patch_center.abs().max() == 0
    method.after_step(START, [out.carry])
    torch.testing.assert_close(method.center, 0.1 * classes.mean(0))
    torch.testing.assert_close(method.patch_center, 0.5 * patches.mean((0, 1)))
    assert method.patch_center.shape == (patch_outputs or K,)
    assert {"center", "patch_center", "mask_token"} <= method.state_dict().keys()


def test_a_last_layer_of_its_own_rests_too() -> None:
    shared, own = make(), make(patch_outputs=7)
    assert len(list(shared.frozen(START))) == 2
    assert len(list(own.frozen(START))) == 4
    assert not list(own.frozen(Progress(20, 100, 0, 2.0)))


def test_masks_are_those_of_the_image_and_half_of_them_empty() -> None:
    method = make()
    views = {"global": torch.empty(2, 400, 3, 16, 16)}
    mask = method.draw(views, torch.arange(400), seed=0, epoch=0)["mask"]
    share = mask.float().mean(2)
    assert mask.shape == (2, 400, 16)
    assert 0.4 < (share == 0).float().mean() < 0.6
    assert share.max() <= 0.5
    part = {"global": torch.empty(2, 3, 3, 16, 16)}
    again = method.draw(part, torch.tensor([9, 300, 4]), seed=0, epoch=0)["mask"]
    assert torch.equal(again, mask[:, [9, 300, 4]])
    assert not torch.equal(mask[0], mask[1])
    other = method.draw(views, torch.arange(400), seed=0, epoch=1)["mask"]
    assert not torch.equal(other, mask)


def test_random_patches_and_a_late_start() -> None:
    method = make(mask_shape="random", mask_start=3, mask_probability=1.0, mask_ratio=(0.5, 0.5))
    assert not crops(method, epoch=2)["mask"].any()
    assert (crops(method, epoch=3)["mask"].sum(2) == 8).all()


def test_the_mask_token_starts_at_zero_and_learns() -> None:
    method = make()
    assert method.mask_token.abs().max() == 0
    method(crops(method), START).loss.backward()
    assert method.mask_token.grad.abs().max() > 0


def test_a_backbone_without_patches_is_refused() -> None:
    with pytest.raises(UsageError, match="mask token"):
        check_pair("ibot", "resnet18", ResNet.can)


def test_ratios_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        Settings(mask_ratio=(0.5, 0.1))
