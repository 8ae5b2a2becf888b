"""Students of a teacher: each loss against its formula in float64, the teacher, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import textures, tiny_recipe, tiny_teacher
from torch import Tensor, nn

import selfsame
from selfsame import backbones, plan
from selfsame.data.arrays import ArraySource
from selfsame.encoder import Encoder
from selfsame.errors import UsageError
from selfsame.methods import attention_transfer, crd, distill, dkd, fitnets, rkd, seed
from selfsame.nn.classify import Linear
from selfsame.nn.taught import Taught, as_small, pairs, soft_targets
from selfsame.nn.teacher import Teacher
from selfsame.plan import Choices, Plan
from selfsame.recipe import with_settings
from selfsame.types import Norm, Progress

STUDENTS = ["distill", "seed", "kd", "dkd", "fitnets", "attention_transfer", "rkd", "crd", "deit"]


@pytest.fixture(autouse=True)
def float64() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a: Tensor | float, b: Tensor | float) -> bool:
    return bool(torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-9, atol=1e-12))


# --- responses ------------------------------------------------------------------------------------


def test_t_squared_keeps_the_size_of_the_gradient() -> None:
    student, teacher = (3 * torch.randn(64, 10)).requires_grad_(), 3 * torch.randn(64, 10)

    def size(temperature: float) -> float:
        loss = soft_targets(student, teacher, temperature)
        return float(torch.autograd.grad(loss, student)[0].norm())

    sizes = [size(t) for t in (1.0, 4.0, 20.0, 50.0)]
    assert max(sizes) / min(sizes) < 2  # without T^2: as 1 to 1/2500


def test_at_high_temperature_the_gradient_is_that_of_matching_logits() -> None:
    """Section 2.1 of Hinton et al.: for logits of zero mean, (z_S - z_T) / K."""
    student, teacher = (torch.randn(32, 10)).requires_grad_(), torch.randn(32, 10)
    (grad,) = torch.autograd.grad(soft_targets(student, teacher, 1000.0), student)
    difference = student - teacher
    difference = difference - difference.mean(1, keepdim=True)
    expected = difference.detach() / 10 / 32
    assert F.cosine_similarity(grad.flatten(), expected.flatten(), dim=0) > 0.99999
    torch.testing.assert_close(grad, expected, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_target_and_others_add_up_to_kd(temperature: float) -> None:
    """Equation 6 of DKD: KD = TCKD + (1 - p_t) NCKD, image by image."""
    student, teacher = 4 * torch.randn(8, 6), 4 * torch.randn(8, 6)
    label = torch.randint(0, 6, (8,))
    for i in range(8):
        one = slice(i, i + 1)
        p = (teacher[one] / temperature).softmax(1)[0, label[i]]
        both = dkd.target_loss(student[one], teacher[one], label[one], temperature)
        others = dkd.other_loss(student[one], teacher[one], label[one], temperature)
        whole = soft_targets(student[one], teacher[one], temperature)
        assert close(both + (1 - p) * others, whole)


def test_dkd_is_finite_where_the_teacher_is_sure() -> None:
    student = torch.randn(4, 5, dtype=torch.float32).requires_grad_()
    teacher = torch.zeros(4, 5, dtype=torch.float32)
    teacher[:, 2] = 200.0
    label = torch.full((4,), 2)
    loss = dkd.target_loss(student, teacher, label, 1.0)
    loss = loss + dkd.other_loss(student, teacher, label, 1.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


# --- features -------------------------------------------------------------------------------------


def test_attention_transfer_against_the_formula() -> None:
    s, t = torch.randn(3, 4, 5, 5), torch.randn(3, 7, 5, 5)

    def q(x: Tensor, i: int) -> np.ndarray:
        flat = (x[i].numpy() ** 2).sum(0).ravel()
        return flat / np.linalg.norm(flat)

    expected = np.mean([((q(s, i) - q(t, i)) ** 2).mean() for i in range(3)])
    assert close(attention_transfer.attention_loss(s, t), expected)


def test_attention_is_blind_to_scale_sign_and_the_order_of_channels() -> None:
    s = torch.randn(2, 6, 4, 4)
    for same in (3.7 * s, -s, s[:, torch.randperm(6)]):
        assert close(attention_transfer.attention_loss(s, same), 0.0)
    assert attention_transfer.attention_loss(s, torch.randn(2, 6, 4, 4)) > 1e-3
    dead = torch.zeros(2, 6, 4, 4, requires_grad=True)
    attention_transfer.attention_loss(dead, s).backward()
    assert torch.isfinite(dead.grad).all()  # type: ignore[union-attr]


def test_maps_of_two_sizes_meet_at_the_smaller() -> None:
    a, b = as_small(torch.ones(1, 2, 8, 8), torch.ones(1, 3, 4, 4))
    assert a.shape == (1, 2, 4, 4)
    assert b.shape == (1, 3, 4, 4)
    assert pairs([torch.ones(1)], [torch.ones(2), torch.ones(3)])[0][1].shape == (3,)


def test_a_hint_is_the_mean_squared_difference() -> None:
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert close(fitnets.hint_loss(a, b), ((a - b) ** 2).mean())


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_matching_against_the_formula(distance: distill.Distance) -> None:
    s, t = torch.randn(5, 7, 6), 9 * torch.randn(5, 7, 6) + 2
    if distance == "cosine":
        cosine = (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1))
        assert close(distill.matching(s, t, distance), (1 - cosine).mean())
    else:
        normed = (t - t.mean(-1, keepdim=True)) / (
            t.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        assert close(distill.matching(s, t, distance), ((s - normed) ** 2).mean())


def test_tokens_of_another_grid_are_resized() -> None:
    ramp = torch.arange(16.0).reshape(1, 16, 1)
    half = distill.on_grid(ramp, 4).flatten()
    assert half.argsort().tolist() == [0, 1, 2, 3]
    assert close(half.mean(), ramp.mean())
    assert distill.on_grid(ramp, 16) is ramp
    with pytest.raises(UsageError, match="cannot be laid over"):
        distill.on_grid(ramp, 5)


# --- relations ------------------------------------------------------------------------------------


def test_distances_and_angles_against_loops() -> None:
    e = torch.randn(5, 3)
    d = np.array([[float((a - b).norm()) for b in e] for a in e])
    np.testing.assert_allclose(rkd.distances(e), d / d[d > 0].mean(), rtol=1e-9, atol=1e-9)
    found = rkd.angles(e)
    for j, i, k in product(range(5), repeat=3):
        if j in (i, k):
            assert found[j, i, k] == 0
        else:
            a, b = e[i] - e[j], e[k] - e[j]
            assert close(found[j, i, k], a @ b / (a.norm() * b.norm()))


def test_relations_are_blind_to_a_scaled_rotation_and_to_the_width() -> None:
    s = torch.randn(12, 4)
    rotation, _ = torch.linalg.qr(torch.randn(9, 4))
    t = 7 * s @ rotation.T + 3  # [12, 9]
    assert rkd.distance_loss(s, t) < 1e-12
    assert rkd.angle_loss(s, t) < 1e-12
    assert rkd.distance_loss(s, torch.randn(12, 9)) > 1e-3


def test_equal_embeddings_give_finite_gradients() -> None:
    s = torch.ones(6, 4, dtype=torch.float32).requires_grad_()
    loss = rkd.distance_loss(s, torch.randn(6, 4, dtype=torch.float32))
    loss = loss + rkd.angle_loss(s, torch.randn(6, 4, dtype=torch.float32))
    loss.backward()
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_crd_against_loops() -> None:
    images, k, z = 20, 4, 31.0
    anchor, bank = F.normalize(torch.randn(3, 5), dim=1), F.normalize(torch.randn(images, 5), dim=1)
    rows = torch.stack([torch.randperm(images)[: k + 1] for _ in range(3)])
    expected = 0.0
    for i in range(3):
        p = [exp(float(bank[r] @ anchor[i]) / 0.07) / z for r in rows[i]]
        h = [x / (x + k / images) for x in p]
        expected -= (log(h[0]) + sum(log(1 - x) for x in h[1:])) / 3
    found = crd.nce_loss(crd.similarities(anchor, bank, rows, 0.07) / z, images)
    assert float(found) == pytest.approx(expected, rel=1e-4)  # the code adds 1e-7 to denominators


def test_seed_against_loops() -> None:
    s, t = (F.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    queue = F.normalize(torch.randn(6, 5), dim=1)
    expected = 0.0
    for i in range(3):
        keys = torch.cat([t[i : i + 1], queue])
        p, q = (keys @ t[i] / 0.05).softmax(0), (keys @ s[i] / 0.2).log_softmax(0)
        expected -= float((p * q).sum()) / 3
    assert close(seed.seed_loss(s, t, queue, 0.2, 0.05), expected)


# --- the teacher ----------------------------------------------------------------------------------


def planned(name: str, *settings: str, **choices: object) -> Plan:
    source = ArraySource(textures(16), np.arange(16) % 4, ["a", "b", "c", "d"])
    recipe = with_settings(tiny_recipe(name), settings)
    return plan.make(name, source, Choices(recipe=recipe, **choices), "cpu")


def built(name: str, *settings: str, **choices: object) -> Taught:
    torch.set_default_dtype(torch.float32)
    with (made := planned(name, *settings, **choices)).images:
        method = made.build()
    assert isinstance(method, Taught)
    return method


def views(count: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(1)
    index = torch.arange(count)
    x = torch.randn(1, count, 3, 32, 32, dtype=torch.float32)
    rows = torch.randint(0, 16, (count, 15))
    return {"global": x, "index": index, "set": 0 * index, "label": index % 4, "rows": rows}


T = Progress(step=10, total=100, images=60, epoch=5.0)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_teacher_learns_nothing_and_stays_in_evaluation_mode(name: str) -> None:
    method = built(name).train()
    teacher = method.teacher
    before = {k: v.clone() for k, v in teacher.backbone.state_dict().items()}
    method(views(), T).loss.backward()
    assert all(p.grad is None for p in teacher.backbone.parameters())
    for key, value in teacher.backbone.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} moved"
    assert not any("teacher" in key and "head" not in key for key in method.state_dict()) or (
        name == "crd"  # whose bank of the teacher's embeddings is its memory
    )


@pytest.mark.parametrize("name", [n for n in STUDENTS if n not in ("distill", "seed")])
def test_labels_count_only_where_they_have_a_weight(name: str) -> None:
    x, other = views(), views() | {"label": (torch.arange(6) + 1) % 4}

    def loss(method: Taught, given: dict[str, Tensor]) -> float:
        torch.manual_seed(0)
        return method.train()(given, T).loss.item()

    with_labels = built(name)
    assert loss(with_labels, x) != loss(with_labels, other)
    without = built(name, "method.labels=0")
    assert not without.labelled
    assert loss(without, x) == loss(without, other)


def test_data_without_labels_needs_no_weight() -> None:
    source = ArraySource(textures(16))
    for name in STUDENTS:
        with (made := plan.make(name, source, Choices(recipe=tiny_recipe(name)), "cpu")).images:
            assert made.recipe.method.labels == 0  # type: ignore[attr-defined]
            assert not made.build().labelled


def test_the_teacher_sees_pixels_as_it_was_trained() -> None:
    class Mean(backbones.Backbone):
        dim, stride, can = 3, None, frozenset()
        norm = Norm((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))

        def forward(self, x: Tensor) -> backbones.Features:
            seen.append(x)
            return backbones.Features(x.mean((2, 3)), None, (0, 0))

    seen: list[Tensor] = []
    teacher = Teacher(Mean(), image_size=64, student_size=32)
    pixels, norm = torch.rand(2, 3, 32, 32), Norm((0.1, 0.2, 0.3), (0.6, 0.5, 0.4))

    def normalised(x: Tensor, by: Norm) -> Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in by)
        return (x - mean) / std

    teacher(normalised(pixels, norm), norm, {"pooled"})
    assert seen[0].shape == (2, 3, 64, 64)  # twice the student's, as its own images were
    up = F.interpolate(pixels, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], normalised(up, Mean.norm))
    teacher(normalised(pixels, Mean.norm)[..., :16, :16], Mean.norm, {"pooled"})
    assert seen[1].shape == (2, 3, 32, 32)  # a smaller view stays in proportion


def test_deits_encoder_scores_with_both_tokens() -> None:
    method = built("deit").eval()
    x = torch.randn(5, 3, 32, 32, dtype=torch.float32)
    pooled = method.encoder()(x).pooled
    first, second = pooled.chunk(2, dim=1)
    head = method.encoder_head()
    assert head is not None
    expected = (method.head(first) + method.head_dist(second)) / 2
    torch.testing.assert_close(head(pooled), expected)


def test_deits_teacher_reaches_one_token_alone() -> None:
    method = built("deit", "method.labels=0").train()
    method(views(), T).loss.backward()
    method = built("deit", "method.alpha=0", "method.labels=1").train()
    method(views(), T).loss.backward()
    assert float(method.head_dist.weight.grad.abs().max()) == 0


def test_fitnets_two_stages() -> None:
    method = built("fitnets", "method.hints=0.3", "method.alpha=1").train()
    x = views()
    early, late = (method(x, Progress(step, 100, 0, 1.0)) for step in (10, 40))
    assert early.loss.item() == pytest.approx(100 * early.metrics["hint"].item(), rel=1e-5)
    expected = late.metrics["soft"] + late.metrics["hard"]
    assert late.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # a gradient of zero would empty Adam's second moments of what rests, and let it leap afterwards
    early.loss.backward()
    assert all(p.grad is None for p in method.classifier.parameters())
    method.zero_grad(set_to_none=True)
    late.loss.backward()
    assert all(p.grad is None for p in method.regressor.parameters())
    assert all(p.grad is not None for p in method.backbone.parameters())


def test_crds_constant_is_found_once() -> None:
    method = built("crd").train()
    x = views()
    first = method(x, T)
    assert (method.z == 0).all()  # forward changes nothing
    method.after_step(T, [first.carry])
    z = method.z.clone()
    assert (z > 0).all()
    bank = method.student_bank.clone()
    method.after_step(T, [method(x, T).carry])
    assert torch.equal(method.z, z)
    moved = (method.student_bank != bank).any(1)
    assert moved[:6].all()
    assert not moved[6:].any()
    torch.testing.assert_close(method.student_bank[:6].norm(dim=1), torch.ones(6))


# --- what does not fit ----------------------------------------------------------------------------


class Plain(nn.Module):
    """A network without maps, tokens or classes."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 5, 3, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).amax((2, 3))


def headless(tmp_path: object) -> Encoder:
    encoder = selfsame.load(tiny_teacher(), device="cpu")
    encoder.head = None
    return encoder


@pytest.mark.parametrize(
    ("name", "teacher", "message"),
    [
        ("kd", Plain, "has no classifier"),
        ("deit", Plain, "has no classifier"),
        ("attention_transfer", Plain, "gives no maps of its stages"),
        ("distill --set method.tokens=1", Plain, "gives no tokens"),
    ],
)
def test_a_teacher_that_does_not_say_what_a_loss_compares(
    name: str, teacher: Callable[[], nn.Module], message: str
) -> None:
    name, *settings = name.split(" --set ")
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UsageError, match=message):
        built(name, *settings, teacher=teacher())


def test_a_student_without_maps_is_refused() -> None:
    torch.set_default_dtype(torch.float32)
    for name in ("attention_transfer", "fitnets"):
        with pytest.raises(UsageError, match="show the maps between its stages") as caught:
            built(name, "method.alpha=0", backbone=Plain())
        assert "--student vit_tiny" in str(caught.value.tip)
    with pytest.raises(UsageError, match="no distillation token"):
        built("deit", backbone=Plain())


def test_another_number_of_classes_is_refused() -> None:
    torch.set_default_dtype(torch.float32)
    with pytest.raises(UsageError, match=r"4 classes.*tells 3 apart") as caught:
        built("kd", f"method.teacher={tiny_teacher(3)}")
    assert "method.labels=0" in str(caught.value.tip)
    built("kd", f"method.teacher={tiny_teacher(3)}", "method.labels=0")


def test_channels_that_the_teacher_does_not_see_are_refused() -> None:
    torch.set_default_dtype(torch.float32)
    gray = ArraySource(textures(16)[..., :1])
    recipe = with_settings(tiny_recipe("distill"), ["channels=1"])
    with (
        pytest.raises(UsageError, match="sees images of 3 channels, the data has 1"),
        (made := plan.make("distill", gray, Choices(recipe=recipe), "cpu")).images,
    ):
        made.build()


def test_no_teacher_and_a_needless_one_are_refused() -> None:
    with pytest.raises(UsageError, match="none is named"):
        planned("kd", 'method.teacher=""')
    with pytest.raises(UsageError, match="takes no teacher"):
        planned("simclr", teacher=Plain())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_librarys_classifier_comes_with_its_network(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the weights lay in the library's cache: the same for every call."""
    import timm
    from torchvision import models

    torch.set_default_dtype(torch.float32)
    module, name = {"timm": (timm, "create_model"), "torchvision": (models, "get_model")}[library]
    real = getattr(module, name)

    def cached(model: str, **options: object) -> nn.Module:
        given = ("pretrained", "weights", "num_classes")
        known = {k: v for k, v in options.items() if k not in given}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            whole = real(model, **known)
        if options.get("num_classes") == 0:
            whole.reset_classifier(0)
        return whole

    monkeypatch.setattr(module, name, cached)
    method = built("kd", f"method.teacher={library}/resnet18", "method.labels=0")
    assert method.teacher.classes == 1000
    whole = cached("resnet18").eval()
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(
        method.teacher.say(x, {"logits"})["logits"], whole(x), atol=1e-3, rtol=1e-3
    )


def test_any_module_can_teach_and_stays_as_it_is() -> None:
    torch.set_default_dtype(torch.float32)
    teacher = Plain()
    method = built("distill", teacher=teacher).train()
    method(views(), T).loss.backward()
    assert all(p.requires_grad for p in teacher.parameters())
    assert teacher.training


def test_a_classifier_of_numpy_labels_goes_with_a_headless_teacher() -> None:
    torch.set_default_dtype(torch.float32)
    method = built("rkd", teacher=Plain())
    assert isinstance(method.classifier, Linear)
    assert method.classifier.out_features == 4
