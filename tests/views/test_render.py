import sys

import pytest
import torch
import torchvision.transforms.functional as tv
from torch.nn.functional import pad

from selfsame.types import Batch, Norm
from selfsame.views import View, draw, eval_view, make_views, render
from selfsame.views.native import kernel
from selfsame.views.render import blur_side
from selfsame.views.resample import DENSE

NORM = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLAIN = Norm((0.0,), (1.0,))


@pytest.fixture(params=["compiled", "operations"], autouse=True)
def way(request, monkeypatch):
    """Both ways to the same pixels on a CPU."""
    if request.param == "operations":
        monkeypatch.setattr(sys.modules["selfsame.views.render"], "kernel", lambda: None)
    elif kernel() is None:
        pytest.skip("no C compiler")


def canvases(n, height, width, channels=3):
    generator = torch.Generator().manual_seed(n)
    noise = torch.randint(0, 256, (n, channels, 5, 5), dtype=torch.uint8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise.float(), (height, width), mode="bilinear")
    grain = torch.randint(-20, 21, smooth.shape, generator=generator)
    return (smooth + grain).clamp(0, 255).to(torch.uint8)


def sizes_of(images):
    full = torch.tensor(images.shape[2:], dtype=torch.int32)
    return full - torch.arange(len(images), dtype=torch.int32)[:, None] % 7


def drawn(view, images, **changes):
    defaults = {"seed": 3, "epoch": 0, "which": 0, "index": torch.arange(len(images))}
    return draw(view, **({"sizes": sizes_of(images)} | defaults | changes))


def resized(images, p, view):
    """The crops of a view, resized and mirrored; nothing else happens to them."""
    off, zero = torch.zeros_like(p.flip), torch.zeros_like(p.sigma)
    plain = View(size=view.size, interpolation=view.interpolation)
    p = p._replace(jitter=off, grayscale=off, blur=off, solarize=off, sigma=zero)
    return render(images, p, plain, PLAIN)


def with_torchvision(x, p, i, view, norm):
    """What torchvision makes of a resized crop with the parameters of sample ``i``."""
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for operation in p.order[i].tolist() if p.jitter[i] else []:
        x = adjust[operation](x, p.factors[i, operation].item())
    x = tv.rgb_to_grayscale(x, 3) if p.grayscale[i] else x
    x = tv.gaussian_blur(x, blur_side(view), p.sigma[i].item()) if p.blur[i] else x
    x = tv.solarize(x, view.solarize_threshold) if p.solarize[i] else x
    return tv.normalize(x, norm.mean, norm.std)


@pytest.mark.parametrize(
    "view",
    [
        View(size=40, solarize=0.3),
        View(size=16, interpolation="bilinear", blur=1.0, blur_kernel=0.5),
        View(size=24, hue=0.0, contrast=0.0, jitter=1.0, blur=0.0),
        View(size=80, solarize=0.3, blur=1.0),
    ],
)
def test_a_view_is_the_chain_of_torchvision(view):
    images = canvases(48, 41, 52)
    p = drawn(view, images)
    ours = render(images, p, view, NORM)
    assert ours.dtype == torch.float32
    # the resize has tests of its own: it rounds to 8 bits, and here a level would count for more
    small = resized(images, p, view)
    theirs = torch.stack([with_torchvision(x, p, i, view, NORM) for i, x in enumerate(small)])
    error = (ours - theirs).abs()
    # Solarising jumps at the threshold, where rounding decides: a few pixels in a million.
    assert (error > 2e-4).float().mean() < 1e-4
    assert error.median() < 1e-6


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 7, 32, 50, DENSE])
def test_small_crops_are_resized_and_rounded_once(size, mode):
    images = canvases(40, 41, 52)
    images[3], images[4] = 0, 255
    view = View(size=size, interpolation=mode, scale=(0.01, 1.0), ratio=(0.2, 5.0))
    p = drawn(view, images)
    ours = 255 * resized(images, p, view)
    torch.testing.assert_close(ours, ours.round(), rtol=0.0, atol=1e-4)
    for image, box, flip, result in zip(images, p.box.tolist(), p.flip, ours.double(), strict=True):
        precise = tv.resized_crop(
            image.double(), *box, [size, size], tv.InterpolationMode(mode), True
        )
        precise = (tv.hflip(precise) if flip else precise).clamp(0, 255)
        assert (result - precise).abs().max() < 0.501


@pytest.mark.parametrize("color", ["exact", "fast"])
@pytest.mark.parametrize(("side", "canvas"), [(32, (32, 32)), (33, (47, 38)), (96, (200, 250))])
def test_a_sample_gets_the_same_bits_in_any_batch(side, canvas, color):
    images = canvases(13, *canvas)
    view = View(size=side, solarize=0.2)
    index = torch.arange(13)

    def views_of(chosen, padding=0):
        some = pad(images[chosen], (0, padding, 0, padding), value=99)
        p = drawn(view, some, index=index[chosen], sizes=sizes_of(images)[chosen])
        return render(some, p, view, NORM, color=color)

    whole = views_of(index)
    for chosen in (index[:1], index[7:8], index[2:5], index.flip(0), index[torch.arange(40) % 13]):
        assert torch.equal(views_of(chosen), whole[chosen])
    # a larger canvas, because of some larger image
    for padding in (3, 300) if max(*canvas, side) > DENSE else (3, 16):
        assert torch.equal(views_of(index[4:6], padding), whole[4:6])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(views_of(index), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("color", ["exact", "fast"])
def test_no_images_give_no_views(color):
    images = canvases(1, 9, 9)[:0]
    view = View(size=8)
    assert render(images, drawn(view, images), view, NORM, color=color).shape == (0, 3, 8, 8)


def test_autocast_changes_nothing():
    images = canvases(6, 30, 30)
    view = View(size=24)
    p = drawn(view, images)
    for color in ("exact", "fast"):
        expected = render(images, p, view, NORM, color=color)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(render(images, p, view, NORM, color=color), expected)


def test_the_precision_of_products_changes_nothing():
    images = canvases(6, 60, 60)
    view = View(size=64)
    p = drawn(view, images)
    expected = render(images, p, view, NORM)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(render(images, p, view, NORM), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_fast_color_is_close_to_exact_color():
    images = canvases(64, 32, 32)
    view = View(size=32, blur=0.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    p = drawn(view, images)
    exact, fast = (render(images, p, view, PLAIN, color=c) for c in ("exact", "fast"))
    assert (exact - fast).abs().mean() < 0.03
    untouched = ~(p.jitter | p.grayscale)
    torch.testing.assert_close(fast[untouched], exact[untouched], rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("color", ["exact", "fast"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channels_keep_the_operations_that_mean_something(channels, color):
    images = canvases(8, 20, 20, channels)
    view = View(size=16, jitter=1.0, grayscale=1.0)
    p = drawn(view, images)
    x = render(images, p, view, PLAIN, color=color)
    assert x.shape == (8, channels, 16, 16)
    rgb_only = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
    without = View(size=16, jitter=1.0, **rgb_only)
    assert torch.equal(x, render(images, drawn(without, images), without, PLAIN, color=color))
    still = View(size=16, jitter=0.0, **rgb_only)
    assert not torch.equal(x, render(images, drawn(still, images), still, PLAIN, color=color))


def test_one_pixel_and_solid_images_give_numbers():
    for value in (0, 128, 255):
        for height, width in ((1, 1), (1, 9), (12, 12)):
            images = torch.full((16, 3, height, width), value, dtype=torch.uint8)
            sizes = torch.tensor([[height, width]]).expand(16, 2)
            for color in ("exact", "fast"):
                for side in (1, 2, 8):
                    view = View(size=side, jitter=1.0, blur=1.0, solarize=0.5)
                    p = drawn(view, images, sizes=sizes)
                    assert render(images, p, view, NORM, color=color).isfinite().all()


@pytest.mark.parametrize("side", [32, 48, 20])
def test_eval_view_is_resize_and_center_crop(side):
    images = canvases(3, 32, 32)
    sizes = torch.full((3, 2), 32)
    ours = eval_view(images, sizes, side, PLAIN, crop=1.0)
    x = tv.resize(images.double() / 255, [side], tv.InterpolationMode.BICUBIC)
    expected = tv.center_crop(x, [side, side]).clamp(0, 1).float()
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=0.501 / 255)
    normal = eval_view(images, sizes, side, NORM, crop=1.0)
    torch.testing.assert_close(normal, tv.normalize(ours, *NORM), rtol=0.0, atol=1e-5)


def test_eval_view_of_a_part_agrees_away_from_its_border():
    image = canvases(1, 64, 96)  # resize to 32 x 48, cut 28 x 28: a square of 56 in the middle
    ours = eval_view(image, torch.tensor([[64, 96]]), 28, PLAIN, crop=0.875)
    x = tv.resize(image.double() / 255, [32], tv.InterpolationMode.BICUBIC)
    expected = tv.center_crop(x, [28, 28]).clamp(0, 1).float()
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inner], expected[inner], rtol=0.0, atol=1.5 / 255)


def test_eval_view_ignores_the_padding():
    images = canvases(2, 40, 50)
    sizes = torch.tensor([[30, 50], [40, 21]])
    padded = pad(images, (0, 9, 0, 5), value=200)
    padded[0, :, 30:] = 7
    ours = eval_view(padded, sizes, 24, NORM)
    assert torch.equal(ours, eval_view(images, sizes, 24, NORM))


def test_make_views_stacks_by_name_in_the_order_of_the_recipe():
    images = canvases(5, 40, 40)
    batch = Batch(images, sizes_of(images), torch.arange(5) + 100)
    recipe = [
        View(size=32, blur=1.0),
        View(name="local", size=16, scale=(0.05, 0.4), count=3),
        View(size=32, blur=0.1, solarize=0.2),
    ]
    settings = {"seed": 1, "epoch": 2}
    views = make_views(recipe, batch, norm=NORM, device="cpu", **settings)
    assert list(views) == ["global", "local"]
    assert views["global"].shape == (2, 5, 3, 32, 32)
    assert views["local"].shape == (3, 5, 3, 16, 16)
    for name, position, view, which in (
        ("global", 0, recipe[0], 0),
        ("local", 0, recipe[1], 1),
        ("local", 2, recipe[1], 3),
        ("global", 1, recipe[2], 4),
    ):
        p = draw(view, index=batch.index, which=which, sizes=batch.sizes, **settings)
        assert torch.equal(views[name][position], render(images, p, view, NORM))
    assert not torch.equal(views["local"][0], views["local"][1])
    later = make_views(recipe, batch, norm=NORM, device="cpu", seed=1, epoch=3)
    assert not torch.equal(views["global"], later["global"])


def test_views_of_one_name_need_one_size():
    batch = Batch(canvases(2, 8, 8), torch.full((2, 2), 8), torch.arange(2))
    with pytest.raises(ValueError, match="one size"):
        make_views([View(size=8), View(size=9)], batch, seed=0, epoch=0, norm=NORM, device="cpu")


def test_the_side_of_the_blur():
    assert [blur_side(View(size=s)) for s in (224, 160, 96, 32, 5)] == [23, 17, 9, 3, 3]
