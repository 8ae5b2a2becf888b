import copy
import math
from types import ModuleType

import pytest
import torch
from ranks import Ranks
from torch import Tensor

from selfsame import backbones, dist, methods, optim
from selfsame.methods import dinov2, ibot
from selfsame.methods.dinov2 import DINOv2, Settings, koleo, layer_rate, nearest
from selfsame.nn.selfdistill import LENGTHS, cross_entropies, few_lengths, teacher_probabilities
from selfsame.types import Method, Progress

K = 12
START = Progress(0, 100, 0, 0.0)


def make(options: dict[str, object] | None = None, **settings: object) -> DINOv2:
    torch.manual_seed(0)
    small = {"width": 8, "depth": 3, "heads": 2, "patch": 4} | (options or {})
    backbone = backbones.build("vit_tiny", image_size=16, options=small)
    return DINOv2(Settings(**({"hidden": 8, "bottleneck": 4, "outputs": K} | settings)), backbone)


def crops(method: DINOv2, local: int = 2, batch: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = {"global": torch.randn(2, batch, 3, 16, 16, generator=generator)}
    if local:
        views["local"] = torch.randn(local, batch, 3, 8, 8, generator=generator)
    return views | dict(method.draw(views, torch.arange(batch), seed=0, epoch=0))


def unit(n: int, d: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )


def test_koleo_of_two_points_is_minus_the_log_of_their_distance() -> None:
    for angle in (0.1, 1.0, 3.0):
        x = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        expected = -math.log(2 * math.sin(angle / 2))
        assert koleo(x).item() == pytest.approx(expected, abs=1e-6)
        assert koleo(7 * x).item() == pytest.approx(expected, abs=1e-6)


def test_koleo_does_not_change_under_rotation() -> None:
    x = unit(20, 5)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    torch.testing.assert_close(koleo(x @ rotation), koleo(x), atol=1e-6, rtol=1e-6)


def test_nobody_is_its_own_neighbour() -> None:
    assert (nearest(unit(30, 4)) != torch.arange(30)).all()
    opposite = torch.tensor([[0.6, 0.8], [-0.6, -0.8]]) * 1.0000002  # a product below -1
    assert nearest(opposite).tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_koleo_takes_large_half_precision_values_duplicates_and_zeros(dtype: torch.dtype) -> None:
    x = (1e4 * torch.randn(6, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    x[3] = x[2]
    if dtype == torch.float32:
        x[5] = 0
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = koleo(x)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert x.grad.isfinite().all()


def test_koleo_in_groups_is_the_mean_over_them() -> None:
    x = torch.randn(12, 4, dtype=torch.float64)
    torch.testing.assert_close(koleo(x, 4), torch.stack([koleo(p) for p in x.split(4)]).mean())
    torch.testing.assert_close(koleo(x, 11), 11 / 12 * koleo(x[:11]))  # the last has no company


def test_koleo_of_one_image_is_zero() -> None:
    x = torch.randn(1, 5, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.abs().max() == 0


def test_koleo_spreads_points() -> None:
    x = torch.nn.Parameter(unit(8, 3))
    optimizer = torch.optim.SGD([x], 0.02)

    def gap() -> float:
        z = torch.nn.functional.normalize(x.detach())
        return torch.pdist(z).min().item()

    before = gap()
    for _ in range(100):
        optimizer.zero_grad()
        koleo(x).backward()
        optimizer.step()
    assert gap() > 2 * before


def test_koleo_regularises_one_global_view_or_both() -> None:
    both, first = make(), make(koleo_views=1)
    views = crops(both)
    values = [m.eval()(views, START).metrics["koleo"] for m in (both, first)]
    with torch.no_grad():
        mask = views["mask"].flatten(0, 1)
        x = both.backbone(views["global"].flatten(0, 1), replace=(mask, both.mask_token[0])).pooled
    torch.testing.assert_close(values[0], koleo(x[:6]) + koleo(x[6:]))
    torch.testing.assert_close(values[1], koleo(x[:6]))


@pytest.mark.parametrize("local", [0, 1, 3])
def test_the_class_loss_adds_the_authors_terms_and_divides_by_their_number(local: int) -> None:
    method = make(targets="centering", teacher_warmup=0).eval()
    views = crops(method, local)
    out = method(views, START)
    with torch.no_grad():
        x, mask = views["global"].flatten(0, 1), views["mask"].flatten(0, 1)
        p = teacher_probabilities(
            method.teacher_head(method.teacher(x).pooled), method.center, 0.07
        ).unflatten(0, (2, -1))
        student = method.backbone(x, replace=(mask, method.mask_token[0])).pooled
        student = method.head(student).unflatten(0, (2, -1))
        # both crops at once against the swapped targets, which counts twice
        terms = 2 * cross_entropies(p.flip(0).flatten(0, 1)[None], student.flatten(0, 1)[None], 0.1)
        if local:
            crop = method.head(method.backbone(views["local"].flatten(0, 1)).pooled)
            terms = terms + cross_entropies(p, crop.unflatten(0, (local, -1)), 0.1).sum()
    got = out.metrics["teacher_entropy"] + out.metrics["divergence"]
    torch.testing.assert_close(got, terms.sum() / (2 + 2 * local))


def test_the_loss_is_the_weighted_sum() -> None:
    method = make(class_weight=2.0, patch_weight=3.0, koleo_weight=0.5).eval()
    out = method(crops(method), START)
    m = out.metrics
    expected = 2 * (m["teacher_entropy"] + m["divergence"]) + 3 * m["patch_loss"] + m["koleo"] / 2
    torch.testing.assert_close(out.loss.detach(), expected)


@pytest.mark.parametrize("separate", [True, False])
def test_heads_are_shared_or_not_and_rest_for_the_first_epoch(separate: bool) -> None:
    method = make(separate_heads=separate)
    method(crops(method), START).loss.backward()
    assert (method.patch_head is not None) == separate
    resting = {id(p) for p in method.frozen(START)}
    last = {id(p) for name, p in method.named_parameters() if ".last_layer." in f".{name}"}
    teacher = {id(p) for name, p in method.named_parameters() if name.startswith("teacher")}
    assert resting == last - teacher
    assert not list(method.frozen(Progress(20, 100, 0, 2.0)))
    assert all(p.grad is None for name, p in method.named_parameters() if name[:7] == "teacher")


@pytest.mark.parametrize("targets", ["sinkhorn", "centering"])
def test_without_a_masked_patch_the_patch_centre_stays(targets: str) -> None:
    method = make(targets=targets, mask_probability=0.0)
    with torch.no_grad():
        method.patch_center.normal_()
    before = method.patch_center.clone()
    out = method(crops(method), START)
    out.loss.backward()
    method.after_step(START, [out.carry])
    torch.testing.assert_close(method.patch_center, before)
    assert out.metrics["patch_loss"] == 0
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_centres_move_once_a_step_after_use() -> None:
    method = make(targets="centering", center_momentum=0.9)
    views = crops(method)
    out = method(views, START)
    assert method.center.abs().max() == method.patch_center.abs().max() == 0
    with torch.no_grad():
        features = method.teacher(views["global"].flatten(0, 1))
        patches = method.teacher_patch_head(features.tokens[views["mask"].flatten(0, 1)])
        classes = method.teacher_head(features.pooled)
    other = {key: 3 * x for key, x in out.carry.items()}  # thrice the mean of class tokens,
    method.after_step(START, [out.carry, other])  # and thrice as many patches
    torch.testing.assert_close(method.center, 0.2 * classes.mean(0))
    torch.testing.assert_close(method.patch_center, 0.1 * patches.mean(0))


def test_all_teachers_follow_their_students() -> None:
    method = make(momentum=0.5)
    students = (method.backbone, method.head, method.patch_head)
    teachers = (method.teacher, method.teacher_head, method.teacher_patch_head)
    with torch.no_grad():
        for student in students:
            for p in student.parameters():
                p += 1
    carry = {"center": torch.zeros(K), "patch_sum": torch.zeros(K), "patch_count": torch.ones(())}
    method.after_step(START, [carry])
    for student, teacher in zip(students, teachers, strict=True):
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(theirs - ours, torch.full_like(ours, 0.5))


def test_rates_fall_towards_the_input() -> None:
    method = make(layer_decay=0.5, patch_rate=0.2)
    assert method.rate("backbone.last_norm.weight").scale == 1.0
    assert method.rate("head.mlp.0.weight").scale == 1.0
    assert method.rate("backbone.block.2.attn.proj.weight").scale == 0.5
    assert method.rate("backbone.pos_embed").scale == method.rate("mask_token").scale == 0.0625
    assert method.rate("backbone.patch_embed.proj.bias").scale == pytest.approx(0.0125)
    assert layer_rate("blocks.0.norm1.weight", 3, 1.0, 0.2) == 1.0


def test_the_paper_clips_backbone_and_heads_each_on_its_own() -> None:
    recipe = methods.recipe("dinov2", "paper")
    method = make()
    for p in method.parameters():
        p.grad = torch.full_like(p, 1e-9)
    method.head.last_layer.weight_v.grad[:] = 10.0
    method.backbone.cls_token.grad[:] = 0.1
    optim.clip(method, recipe.optim)
    head = torch.cat([p.grad.flatten() for p in method.head.parameters()])
    assert head.norm().item() == pytest.approx(3.0, rel=1e-4)
    torch.testing.assert_close(method.backbone.cls_token.grad, torch.full((1, 1, 8), 0.1))
    peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
    assert peak == pytest.approx(4e-3 * math.sqrt(2))
    assert peak * recipe.optim.final_lr == pytest.approx(1e-6)


def losses(views: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradient of this rank's images."""
    method = make(teacher_temperature_start=0.3).double()
    if dist.world_size() == 2:
        views = {name: x.chunk(2, dim=1)[dist.rank()] for name, x in views.items()}
    out = method(views, START)
    out.loss.backward()
    method.after_step(START, [out.carry])
    gradient = method.head.mlp[0].weight.grad
    return out.loss.detach(), gradient, method.center


def test_sinkhorn_on_two_ranks_equals_one(ranks: Ranks) -> None:
    views = crops(make())
    views = {name: x if x.dtype == torch.bool else x.double() for name, x in views.items()}
    (first, gradient0, center0), (second, gradient1, center1) = ranks(losses, views)
    loss, gradient, center = losses(views)
    torch.testing.assert_close((first + second) / 2, loss)
    torch.testing.assert_close((gradient0 + gradient1) / 2, gradient)
    assert torch.equal(center0, center1)
    torch.testing.assert_close(center0, center)


def test_places_of_masked_patches_have_few_lengths() -> None:
    assert len({len(few_lengths(torch.arange(n), 1000)) for n in range(1001)}) <= LENGTHS + 1
    assert few_lengths(torch.tensor([3, 5]), 4 * LENGTHS).tolist() == [3, 5, 0, 0]
    assert few_lengths(torch.arange(8), 4 * LENGTHS).tolist() == list(range(8))
    assert few_lengths(torch.arange(0), 1000).tolist() == []


def learnt(method: Method, views: dict[str, Tensor]) -> list[Tensor]:
    """The loss, what `after_step` gets, and all gradients."""
    method.zero_grad()
    out = method(views, START)
    out.loss.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return [out.loss.detach(), *out.carry.values(), *gradients]


@pytest.mark.parametrize("module", [dinov2, ibot])
def test_heads_see_few_numbers_of_patches_and_learn_the_same(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"width": 8, "depth": 2, "heads": 2, "patch": 2}
    torch.manual_seed(0)
    backbone = backbones.build("vit_tiny", image_size=16, options=small)
    config = module.Settings(hidden=8, bottleneck=4, outputs=K)
    method = methods.find(config.name)(config, backbone).double()
    plain = copy.deepcopy(method)
    seen, masked, images = [], set(), 2 * 4
    head = getattr(method, "patch_head", method.head)
    head.mlp[0].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    for seed in range(12):
        views = {"global": torch.randn(2, 4, 3, 16, 16, dtype=torch.float64)}
        views |= method.draw(views, torch.arange(4), seed=seed, epoch=0)
        masked.add(int(views["mask"].sum()))
        ours = learnt(method, views)
        with monkeypatch.context() as patch:
            patch.setattr(module, "few_lengths", lambda places, patches: places)
            theirs = learnt(plain, views)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    rows = [n for n in seen if n != images]  # iBOT's head sees the images' tokens, too
    assert len(rows) == 12
    assert len(set(rows)) < len(masked)
    assert all(n % (64 * images // LENGTHS) == 0 for n in rows)
