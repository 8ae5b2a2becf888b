import pytest
import torch
from torch import nn

from selfsame import optim
from selfsame.backbones import build
from selfsame.methods import simsiam
from selfsame.methods.simsiam import SimSiam, simsiam_loss
from selfsame.types import Progress

T = Progress(0, 10, 0, 0.0)


def made(**settings: object) -> SimSiam:
    torch.manual_seed(0)
    backbone = build("resnet8", image_size=16, options={"width": 4, "stem": "patch"})
    config = simsiam.Settings(**{"output": 8, "bottleneck": 4, **settings})  # type: ignore[arg-type]
    return SimSiam(config, backbone).train()


@pytest.fixture
def views() -> dict[str, torch.Tensor]:
    return {"global": torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def random(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_parallel_orthogonal_and_opposite_vectors() -> None:
    one, other = torch.eye(4), torch.eye(4).roll(1, 0)
    assert simsiam_loss(3 * one, one, one, 0.2 * one).item() == pytest.approx(-1)
    assert simsiam_loss(one, one, other, other).item() == pytest.approx(0)
    assert simsiam_loss(one, one, -one, -one).item() == pytest.approx(1)
    assert simsiam_loss(one, other, one, one).item() == pytest.approx(-0.5)  # p2 misses z1


def test_each_view_predicts_the_other_in_any_order() -> None:
    p1, p2, z1, z2 = random(4, 5, 4)
    assert simsiam_loss(p1, p2, z1=p2, z2=p1).item() == pytest.approx(-1)
    torch.testing.assert_close(simsiam_loss(p2, p1, z2, z1), simsiam_loss(p1, p2, z1, z2))


def test_no_gradient_reaches_the_projections_as_targets() -> None:
    p1, p2, z1, z2 = (x.requires_grad_() for x in random(4, 5, 4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert p1.grad.abs().max() > 0
    assert p2.grad.abs().max() > 0


def test_projector_learns_through_the_predictor_only(views: dict[str, torch.Tensor]) -> None:
    method = made()
    with torch.no_grad():
        method.predictor[3].weight.zero_()  # predictions are a constant: nothing flows back
    method(views, T).loss.backward()
    assert method.projector[0].weight.grad.abs().max() == 0
    assert method.predictor[3].weight.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_dead_vectors_stay_finite(dtype: torch.dtype) -> None:
    p = (100 * torch.randn(4, 64)).to(dtype)
    p[0] = 0
    loss = simsiam_loss(p, p, p, p)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, simsiam_loss(*[p.float()] * 4))


@pytest.mark.parametrize("fixed", [True, False])
def test_learning_rate_of_the_predictor_stays_at_the_peak(fixed: bool) -> None:
    method = made(fix_predictor=fixed)
    recipe = simsiam.recipe("paper", 224)
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
    assert peak == pytest.approx(0.1)
    late = optim.rates(recipe.optim, recipe.batch_size, Progress(99, 100, 0, 99.0), 1.0)
    optim.set_rates(optimizer, late.lr, late.weight_decay, peak)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert all(lr[id(p)] == late.lr < 1e-3 for p in method.backbone.parameters())
    assert all(lr[id(p)] == late.lr for p in method.projector.parameters())
    expected = peak if fixed else late.lr
    assert all(lr[id(p)] == expected for p in method.predictor.parameters())


def test_everything_decays_in_the_paper_recipe() -> None:
    groups = optim.parameter_groups(made(), simsiam.recipe("paper", 224).optim)
    assert all(group["weight_decay"] == 1e-4 for group in groups)


def test_heads_are_the_papers() -> None:
    method = made()
    inner = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(m) for m in method.projector] == [*inner, *inner, nn.Linear, nn.BatchNorm1d]
    assert not method.projector[7].affine
    assert method.projector[3].weight.shape == (16, 16)  # hidden layers as wide as the encoder
    assert [type(m) for m in method.predictor] == [*inner, nn.Linear]
    assert method.predictor[0].weight.shape == (4, 8)
    assert method.predictor[3].bias is not None
    cifar = made(layers=2, hidden=32).projector
    assert [type(m) for m in cifar] == [*inner, nn.Linear, nn.BatchNorm1d]
    assert cifar[0].weight.shape == (32, 16)


def test_every_view_goes_through_batchnorm_alone(views: dict[str, torch.Tensor]) -> None:
    method = made()
    z1, p1 = method.branch(views["global"][0])
    seen: list[torch.Tensor] = []
    method.predictor.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    method({"global": views["global"] * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)}, T)
    assert torch.equal(seen[0], p1)
    torch.testing.assert_close(z1.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
