import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from selfsame.views import View, draw

N = 2500
VIEW = View()


def drawn(view=VIEW, n=N, size=(96, 128), **changes):
    index = changes.pop("index", torch.arange(n))
    sizes = torch.tensor([size], dtype=torch.int32).expand(len(index), 2)
    return draw(
        view, **({"seed": 1, "epoch": 0, "which": 0, "index": index, "sizes": sizes} | changes)
    )


def quantiles(x):
    return torch.quantile(x.double(), torch.linspace(0.02, 0.98, 13, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [
        ((96, 128), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((200, 50), (0.08, 1.0), (3 / 4, 4 / 3)),  # many attempts fail
        ((64, 300), (0.5, 1.0), (3 / 4, 4 / 3)),  # all fail: the centred fallback
        ((300, 64), (0.5, 1.0), (3 / 4, 4 / 3)),
        ((32, 32), (0.05, 0.4), (0.5, 2.0)),
        ((5, 7), (0.05, 0.4), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_are_distributed_as_in_torchvision(size, scale, ratio):
    box = drawn(View(scale=scale, ratio=ratio), size=size).box
    assert box.dtype == torch.int64
    assert (box[:, :2] >= 0).all()
    assert (box[:, 2:] >= 1).all()
    assert (box[:, :2] + box[:, 2:] <= torch.tensor(size)).all()
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    oracle = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(N)])
    for name, f, span in (
        ("area", lambda b: b[:, 2] * b[:, 3] / math.prod(size), 1.0),
        ("log ratio", lambda b: (b[:, 3] / b[:, 2]).log(), math.log(ratio[1] / ratio[0])),
        ("top", lambda b: b[:, 0] / size[0], 1.0),
        ("left", lambda b: b[:, 1] / size[1], 1.0),
        ("height", lambda b: b[:, 2] / size[0], 1.0),
        ("width", lambda b: b[:, 3] / size[1], 1.0),
    ):
        # 4 standard errors of a median of two samples of N, on a scale where densities are about 1;
        # one pixel more, since quantiles of whole pixels jump
        tolerance = span * (4 * 0.5 * math.sqrt(2 / N) + 1 / min(size))
        difference = (quantiles(f(box)) - quantiles(f(oracle))).abs().max()
        assert difference < tolerance, name
        assert abs(f(box).double().mean() - f(oracle).double().mean()) < span * 0.03, name


def test_the_fallback_is_the_boxes_of_torchvision():
    for size in ((300, 20), (20, 300), (7, 100), (1, 50), (1, 1)):
        view = View(scale=(1.0, 1.0))
        oracle = RandomResizedCrop.get_params(torch.empty(3, *size), view.scale, view.ratio)
        assert drawn(view, n=3, size=size).box.tolist() == [list(oracle)] * 3


def test_chances_ranges_and_orders():
    view = View(
        flip=0.3, jitter=0.6, grayscale=0.1, blur=0.7, solarize=0.2, brightness=1.4, hue=0.1
    )
    p = drawn(view)
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        assert abs(getattr(p, name).float().mean() - getattr(view, name)) < 0.025, name
    # brightness 1 +- 1.4 cut at 0; ColorJitter's ranges
    for column, (low, high) in enumerate([(0.0, 2.4), (0.2, 1.8), (0.2, 1.8), (-0.1, 0.1)]):
        f = p.factors[:, column].double()
        assert low <= f.min()
        assert f.max() <= high + 1e-6
        even = low + (high - low) * torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
        assert (quantiles(f) - even).abs().max() < 0.03 * (high - low)
    assert p.sigma.min() >= 0.1
    assert p.sigma.max() <= 2.0
    assert abs(p.sigma.mean() - 1.05) < 0.03
    orders, counts = p.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (counts - N / 24).abs().max() < 5 * math.sqrt(N / 24)
    flags = torch.stack([p.flip, p.jitter, p.grayscale, p.blur, p.solarize]).double()
    assert (torch.corrcoef(flags) - torch.eye(5)).abs().max() < 0.06


def test_a_sample_does_not_depend_on_its_batch():
    sizes = torch.tensor([[30, 40], [64, 64], [50, 20], [1, 1]], dtype=torch.int32).repeat(20, 1)
    index = torch.arange(80) * 2**27
    whole = drawn(index=index, sizes=sizes)
    some = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:17]
    for full, part in zip(whole, drawn(index=index[some], sizes=sizes[some]), strict=True):
        assert torch.equal(full[some], part)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"which": 1}])
def test_seeds_epochs_and_views_differ(change):
    a, b = drawn(n=500), drawn(n=500, **change)
    assert (a.box == b.box).all(1).float().mean() < 0.05
    for name in ("flip", "jitter", "blur"):
        assert 0.3 < (getattr(a, name) == getattr(b, name)).float().mean() < 0.8


def test_a_changed_setting_changes_nothing_else():
    a, b = drawn(View(), n=300), drawn(View(hue=0.1, blur=0.1, scale=(0.5, 1.0)), n=300)
    for name in ("flip", "jitter", "order", "grayscale", "sigma", "solarize"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert torch.equal(a.factors[:, :3], b.factors[:, :3])
