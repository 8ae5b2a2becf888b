from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor

from selfsame import dist
from selfsame.backbones.vit import ViT
from selfsame.errors import UsageError
from selfsame.methods.data2vec2 import (
    Data2Vec2,
    Settings,
    d2v_loss,
    ema_decay,
    make_targets,
    recipe,
)
from selfsame.nn.decoders import Decoder2d
from selfsame.types import Progress
from selfsame.views.masks import inverse_block_count, inverse_block_masks

START = Progress(0, 10, 0, 0.0)
MASKS = 3


def small(**settings: Any) -> Data2Vec2:
    torch.manual_seed(0)
    backbone = ViT(
        "vit_tiny",
        image_size=32,
        patch=4,
        width=16,
        depth=3,
        heads=2,
        positions="mae",
        pre_norm=False,
    )
    values = {"masks": MASKS, "layers": 2, "decoder_groups": 4, "decoder_layers": 2} | settings
    return Data2Vec2(Settings(**values), backbone)


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 3, 32, 32, generator=generator), torch.arange(count) + 7


def views_of(method: Data2Vec2, x: Tensor, index: Tensor, epoch: int = 0) -> dict[str, Tensor]:
    views = {"global": x[None]}
    return views | dict(method.draw(views, index, seed=5, epoch=epoch))


def spread(teacher: torch.nn.Module) -> None:
    """Move the teacher away from the student."""
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))


def test_targets_are_normalised_over_tokens_then_over_channels() -> None:
    torch.manual_seed(0)
    scale = torch.logspace(-1, 2, 6)  # channels and images of very different scale
    layers = [torch.randn(3, 32, 6, dtype=torch.float64) * scale + k for k in range(4)]
    y = make_targets(layers)
    assert y.shape == (3, 32, 6)
    torch.testing.assert_close(y.mean(-1), torch.zeros(3, 32, dtype=torch.float64))
    only = make_targets(layers[:1], mean=())
    torch.testing.assert_close(only.mean(1), torch.zeros(3, 6, dtype=torch.float64))
    ones = torch.ones(3, 6, dtype=torch.float64)
    torch.testing.assert_close(only.std(1, correction=0), ones, rtol=0.05, atol=0)
    # a layer's scale does not count: layers are normalised before they are averaged
    louder = [100 * layers[0], *layers[1:]]
    torch.testing.assert_close(make_targets(louder), y, rtol=1e-2, atol=1e-2)
    both = make_targets(layers[:2], mean=())
    torch.testing.assert_close(both, (only + make_targets(layers[1:2], mean=())) / 2)
    # one image's targets do not depend on another's
    torch.testing.assert_close(make_targets([layer[:1] for layer in layers]), y[:1])


def test_targets_of_half_precision_layers_are_float32() -> None:
    layer = torch.randn(1, 8, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = make_targets([layer, layer])
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, make_targets([layer.float()]), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_square_times_the_root_of_the_width() -> None:
    x = torch.randn(5, 16, dtype=torch.float64)
    loss = d2v_loss(x, torch.zeros_like(x)).sum(-1).mean()
    assert loss.item() == pytest.approx(math.sqrt(16) * x.square().mean().item())
    huber = d2v_loss(torch.tensor([0.2, 3.0]), torch.zeros(2), beta=0.5, scale=1.0)
    assert huber.tolist() == pytest.approx([0.04, 2.75])
    half = torch.full((1, 4), 300.0, dtype=torch.float16)
    assert d2v_loss(half, torch.zeros_like(half), scale=1.0).tolist() == [[90_000.0] * 4]


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 4), (2, 9)])
def test_every_mask_shows_equally_many_tokens(grid: tuple[int, int]) -> None:
    n = grid[0] * grid[1]
    _, numbers = inverse_block_count(grid, 0.8, 3, 0.07)
    u = torch.rand(5, 2, numbers, dtype=torch.float64)
    mask = inverse_block_masks(u, grid, mask_ratio=0.8, adjust=0.07)
    assert mask.shape == (5, 2, *grid)
    assert ((~mask).flatten(-2).sum(-1) == int(n * (1 - 0.8))).all()


def test_a_mask_shows_the_block_around_its_centre() -> None:
    grid = (6, 6)
    blocks, numbers = inverse_block_count(grid, 0.75, 3, 0.0)
    assert (blocks, numbers) == (1, 37)
    u = torch.rand(numbers, dtype=torch.float64)
    for centre, cells in (
        ((2, 3), [(r, c) for r in (1, 2, 3) for c in (2, 3, 4)]),
        ((0, 5), [(0, 5), (0, 4), (1, 4), (1, 5)]),  # moved to the border, then filled up
    ):
        u[0] = (centre[0] * 6 + centre[1] + 0.5) / 36
        shown = set(map(tuple, (~inverse_block_masks(u, grid, mask_ratio=0.75)).nonzero().tolist()))
        assert len(shown) == 9
        assert shown >= set(cells)


def test_visible_tokens_form_blocks() -> None:
    grid, n = (14, 14), 500
    _, numbers = inverse_block_count(grid, 0.8, 3, 0.07)
    shown = ~inverse_block_masks(
        torch.rand(n, numbers, dtype=torch.float64), grid, mask_ratio=0.8, adjust=0.07
    )
    chance = torch.zeros(n, 196, dtype=torch.bool)
    chance = chance.scatter(1, torch.rand(n, 196).argsort(1)[:, :39], True).view(n, 14, 14)

    def pairs(x: Tensor) -> int:
        return int((x[:, 1:] & x[:, :-1]).sum() + (x[:, :, 1:] & x[:, :, :-1]).sum())

    assert pairs(shown) > 1.5 * pairs(chance)


def test_masks_are_those_of_the_image_the_epoch_and_their_number() -> None:
    method, (x, index) = small(), batch()
    whole, part = views_of(method, x, index), views_of(method, x[2:], index[2:])
    for key in ("keep", "hidden"):
        assert torch.equal(whole[key][:, 2:], part[key])
    keep, hidden = whole["keep"][0], whole["hidden"][0]
    assert keep.shape == (4, MASKS, 12)
    together = torch.cat([keep, hidden], -1).sort().values
    assert torch.equal(together, torch.arange(64).expand(4, MASKS, 64))
    assert len({tuple(row) for row in keep.flatten(0, 1).tolist()}) == 4 * MASKS  # none shared
    assert not torch.equal(keep, views_of(method, x, index, epoch=1)["keep"][0])
    more = small(masks=5)  # a mask does not depend on how many there are
    assert torch.equal(views_of(more, x, index)["keep"][0, :, :MASKS], keep)


def test_an_image_with_too_few_tokens_is_refused() -> None:
    method = small()
    with pytest.raises(UsageError, match="leaves none to see"):
        views_of(method, torch.zeros(1, 3, 8, 8), torch.arange(1))
    with pytest.raises(UsageError, match="groups do not divide") as caught:
        small(decoder_groups=5)
    assert "decoder_groups" in str(caught.value.tip)


def test_the_teacher_sees_each_image_once_and_whole_the_student_parts_of_it() -> None:
    method, (x, index) = small(), batch()
    seen: dict[str, list[tuple[int, ...]]] = {"teacher": [], "student": [], "patches": []}

    def note(name: str) -> Any:
        return lambda _, inputs: seen[name].append(tuple(inputs[0].shape[:2]))

    method.teacher.block[0].mlp.register_forward_pre_hook(note("teacher"))
    method.backbone.block[0].mlp.register_forward_pre_hook(note("student"))
    method.backbone.patch_embed.register_forward_pre_hook(note("patches"))
    method(views_of(method, x, index), START)
    assert seen == {
        "teacher": [(4, 65)],
        "student": [(4 * MASKS, 13)],
        "patches": [(4, 3)],  # projected once, not once a mask
    }


def test_masks_belong_to_their_images() -> None:
    """Each image keeps its masks, whatever its neighbours in the batch."""
    method, (x, index) = small(mask_noise=0.0, cls_loss=0.0), batch()
    views = views_of(method, x, index)
    spread(method.teacher)
    each = [
        method({key: value[:, i : i + 1] for key, value in views.items()}, START).loss
        for i in range(4)
    ]
    torch.testing.assert_close(torch.stack(each).mean(), method(views, START).loss)


def test_only_hidden_tokens_count() -> None:
    method, (x, index) = small(cls_loss=0.0), batch()
    views = views_of(method, x, index)
    outputs = []

    def note(_: object, __: object, out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    method.decoder.register_forward_hook(note)
    method(views, START).loss.backward()
    grad = outputs[0].grad.abs().amax(-1)  # [B * M, N]
    assert grad.gather(1, views["keep"].flatten(0, 2)).max() == 0
    assert grad.gather(1, views["hidden"].flatten(0, 2)).min() > 0


def test_tokens_come_back_to_their_places_among_noise() -> None:
    method, (x, index) = small(mask_noise=0.01), batch()
    views = views_of(method, x, index)
    inputs = []
    method.decoder.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    method(views, START)
    keep, hidden = views["keep"].flatten(0, 2), views["hidden"].flatten(0, 2)
    tokens = method.backbone(x, keep=keep).tokens
    assert torch.equal(inputs[0].gather(1, keep[..., None].expand_as(tokens)), tokens)
    noise = inputs[0].gather(1, hidden[..., None].expand(-1, -1, 16))
    assert noise.std().item() == pytest.approx(0.01, rel=0.05)


def test_the_student_never_sees_hidden_pixels_and_the_teacher_does() -> None:
    method, (x, index) = small(masks=1, mask_noise=0.0, cls_loss=0.0), batch(1)
    views = views_of(method, x, index)
    mask = torch.ones(1, 64).scatter(1, views["keep"][0, 0], 0.0).view(1, 1, 8, 8)
    pixels = torch.nn.functional.interpolate(mask, size=32) > 0
    outputs = []
    method.decoder.register_forward_hook(lambda _, __, out: outputs.append(out))
    other = views | {"global": torch.where(pixels, torch.randn_like(x), x)[None]}
    first, second = method(views, START), method(other, START)
    assert torch.equal(*outputs)
    assert first.loss != second.loss  # the targets changed


def test_the_class_loss_is_the_authors_at_their_batch_and_one_objective_at_any_other() -> None:
    x, index = batch()
    method = small(mask_noise=0.0, cls_images=4)
    spread(method.teacher)
    views = views_of(method, x, index)
    plain = small(mask_noise=0.0, cls_loss=0.0)
    plain.load_state_dict(method.state_dict())
    difference = method(views, START).loss - plain(views, START).loss

    keep = views["keep"].flatten(0, 2)
    mean = make_targets(method.teacher.feed_forwards(x, 2)).mean(1).repeat_interleave(MASKS, 0)
    total = d2v_loss(method.backbone(x, keep=keep).pooled, mean).sum()  # over 4 images x 3 masks
    torch.testing.assert_close(difference, 0.01 * total, rtol=1e-4, atol=1e-5)

    halves = [{k: v[:, i : i + 2] for k, v in views.items()} for i in (0, 2)]  # micro-batches
    parts = torch.stack([method(half, START).loss for half in halves])
    torch.testing.assert_close(parts.mean(), method(views, START).loss)


def test_the_decoder_keeps_to_the_grid() -> None:
    decoder = Decoder2d(4, 4, 2, 3, 1)
    x = torch.zeros(1, 15, 4)
    blank = decoder(x, (3, 5))
    x[0, 7] = torch.randn(4)  # row 1, column 2
    changed = (decoder(x, (3, 5)) - blank).abs().amax(-1)[0].view(3, 5) > 0
    assert changed.nonzero().tolist() == [[r, c] for r in range(3) for c in (1, 2, 3)]
    assert Decoder2d(4, 8, 2, 2, 2)(x, (3, 5)).shape == (1, 15, 4)  # an even kernel


def test_the_teacher_moves_once_a_step_and_never_in_forward() -> None:
    method, (x, index) = small(ema_decay=0.9, ema_end_decay=0.9), batch()
    spread(method.teacher)
    before = [p.clone() for p in method.teacher.parameters()]
    outs = [method(views_of(method, x, index), START) for _ in range(2)]
    assert all(map(torch.equal, before, method.teacher.parameters()))
    method.after_step(START, [out.carry for out in outs])  # two micro-batches
    for old, new, student in zip(
        before, method.teacher.parameters(), method.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)
    names = [key for key in method.state_dict() if key.startswith("teacher.")]
    assert {"teacher.patch_embed.proj.weight", "teacher.cls_token", "teacher.norm_pre.bias"} < set(
        names
    )
    assert not any("teacher" in key and p.requires_grad for key, p in method.named_parameters())


@pytest.mark.parametrize("total", [10, 1000])
def test_the_momentum_follows_the_length_of_the_run(total: int) -> None:
    method = small(ema_decay=0.5, ema_end_decay=1.0, ema_anneal=0.2)

    def kept(step: int) -> float:
        with torch.no_grad():
            method.teacher.cls_token.fill_(1.0)
            method.backbone.cls_token.fill_(0.0)
        method.after_step(Progress(step, total, 0, 0.0), [{}])
        return method.teacher.cls_token.mean().item()

    assert kept(0) == pytest.approx(0.5 + 0.5 / (0.2 * total))  # after the first update
    assert kept(total // 5 - 2) < 1
    assert kept(total // 5 - 1) == 1
    assert kept(total - 1) == 1
    assert ema_decay(0, 0.5, 1.0, 10) == 0.5


def test_a_teacher_follows_at_momenta_near_one() -> None:
    """The paper's last momentum moves a float32 weight by a hundred-thousandth of the way."""
    method = small(ema_decay=0.99999, ema_end_decay=0.99999)
    with torch.no_grad():
        method.teacher.cls_token.fill_(1.0)
        method.backbone.cls_token.fill_(0.0)
    for _ in range(100):
        method.after_step(START, [{}])
    assert method.teacher.cls_token.mean().item() == pytest.approx(0.99999**100, rel=1e-5)


def test_the_papers_numbers() -> None:
    paper = recipe("paper", 224)
    assert paper.method == Settings()
    assert paper.method.ema_anneal * paper.steps == pytest.approx(100_000)
    assert paper.optim.warmup * 1_281_167 / paper.batch_size == pytest.approx(50_040, rel=1e-3)
    blocks, _ = inverse_block_count((14, 14), 0.8, 3, 0.07)
    assert blocks == 5


def on_a_rank(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    method = small(mask_noise=0.0)
    mine = slice(2 * dist.rank(), 2 * dist.rank() + 2)
    loss = method(views_of(method, x[mine], index[mine]), START).loss
    loss.backward()
    return loss.detach(), method.backbone.patch_embed.proj.weight.grad


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    x, index = batch()
    (loss0, grad0), (loss1, grad1) = ranks(on_a_rank, x, index)
    method = small(mask_noise=0.0)
    loss = method(views_of(method, x, index), START).loss
    loss.backward()
    torch.testing.assert_close((loss0 + loss1) / 2, loss.detach())
    grad = method.backbone.patch_embed.proj.weight.grad
    torch.testing.assert_close((grad0 + grad1) / 2, grad)
