"""Each operation against torchvision, sample by sample, on float images: atol 1e-5."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
import torchvision.transforms.v2.functional as v2

from selfsame.views import ops, resample
from selfsame.views.draw import BRIGHTNESS, CONTRAST, SATURATION
from selfsame.views.resample import DENSE, resized_crop

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def floats(n=8, side=19):
    """Noise, and images that branch: grays, saturated colours, black, white."""
    x = torch.rand(n, 3, side, side, generator=generator())
    x[1] = x[1, :1]
    x[2] = (x[2] > 0.5).float()
    x[3] = 0.0
    x[4] = 1.0
    x[5] = torch.tensor([0.2, 0.2, 0.7]).view(3, 1, 1)
    return x


FACTORS = torch.tensor([0.0, 0.2, 0.6, 1.0, 1.3, 1.8, 1.0, 0.9])
TURNS = torch.tensor([-0.5, -0.2, -0.01, 0.0, 0.1, 0.25, 0.5, 0.37])


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        (ops.hue, tv.adjust_hue, TURNS),
        (ops.hue, tv.adjust_hue, TURNS.flip(0)),
    ],
)
def test_color(ours, theirs, values):
    x = floats()
    before = x.clone()
    expected = torch.stack([theirs(a, v.item()) for a, v in zip(x, values, strict=True)])
    torch.testing.assert_close(ours(x, values), expected, **TOLERANCE)
    assert torch.equal(x, before)


def test_grayscale():
    x = floats()
    torch.testing.assert_close(ops.grayscale(x), tv.rgb_to_grayscale(x, 3), **TOLERANCE)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_color_steps_are_the_operations(channels):
    x = torch.rand(24, channels, 9, 9, generator=generator())
    order = torch.tensor(list(permutations(range(4))))
    factors = torch.rand(24, 4, generator=generator(1)) * 1.6 + 0.2
    on = torch.arange(24) % 5 != 0
    linear, lift = ops.color_steps(order, on, factors, channels)
    for slot in range(4):
        mapped = torch.baddbmm(
            lift[:, slot] * ops.mean_gray(x), linear[:, slot], x.flatten(2)
        ).view_as(x)
        for i in range(24):
            what, factor = int(order[i, slot]), factors[i, int(order[i, slot])].item()
            expected = x[i]
            if on[i] and what == BRIGHTNESS:
                each = [tv.adjust_brightness(plane[None], factor) for plane in x[i]]
                expected = torch.cat(each)
            elif on[i] and what == CONTRAST and channels == 3:
                expected = tv.adjust_contrast(x[i], factor)
            elif on[i] and what == CONTRAST:  # each channel as a gray image
                each = [tv.adjust_contrast(plane[None], factor) for plane in x[i]]
                expected = torch.cat(each)
            elif on[i] and what == SATURATION and channels == 3:
                expected = tv.adjust_saturation(x[i], factor)
            torch.testing.assert_close(mapped[i].clamp(0, 1), expected, **TOLERANCE)


def test_solarize():
    x = floats()
    expected = tv.solarize(x, 0.5)
    torch.testing.assert_close(ops.solarize(x, 0.5), expected, **TOLERANCE)


@pytest.mark.parametrize("side", [27, 70, 96])
@pytest.mark.parametrize("kernel", [3, 5, 9, 13, 23])
def test_gaussian_blur(kernel, side):
    x = floats(side=side)
    sigma = torch.tensor([0.1, 0.3, 0.5, 0.9, 1.0, 1.5, 2.0, 5.0])
    expected = torch.stack(
        [tv.gaussian_blur(a, kernel, s.item()) for a, s in zip(x, sigma, strict=True)]
    )
    torch.testing.assert_close(ops.gaussian_blur(x, sigma, kernel), expected, **TOLERANCE)


BOXES = [  # in a valid part of 37 x 41
    (0, 0, 37, 41),
    (36, 40, 1, 1),
    (0, 39, 37, 2),
    (5, 7, 16, 16),
    (3, 0, 11, 33),
    (20, 21, 17, 20),
    (0, 0, 8, 41),
]


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 5, 16, 24, 63, 65, 100])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resized_crop(mode, size, channels):
    shape = (len(BOXES), channels, 44, 53)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())
    mirror = torch.arange(len(BOXES)) % 2 == 1
    ours = resized_crop(images, torch.tensor(BOXES), size, mode, mirror)
    images[:, :, 37:] = 255 - images[:, :, 37:]  # padding, other than before
    images[:, :, :, 41:] = 0
    assert torch.equal(ours, resized_crop(images, torch.tensor(BOXES), size, mode, mirror))
    other_format = images.contiguous(memory_format=torch.channels_last)
    again = resized_crop(other_format, torch.tensor(BOXES), size, mode, mirror)
    assert (again.float() - ours.float()).abs().max() <= 2  # of 255: another kernel rounds
    for image, box, flip, result in zip(images, BOXES, mirror, ours.double(), strict=True):
        interpolation = tv.InterpolationMode(mode)
        settings = (*box, [size, size], interpolation, True)
        # float64: torchvision's float32 weights are off by 1e-5 on wide crops
        precise = tv.resized_crop(image[:, :37, :41].double(), *settings)
        precise = (tv.hflip(precise) if flip else precise).clamp(0, 255)
        if size <= DENSE:
            assert (result - precise).abs().max() < 0.501  # of 255: rounded once, at the end
        else:
            rounded = v2.resized_crop(image[:, :37, :41], *settings)
            rounded = tv.hflip(rounded) if flip else rounded
            assert torch.equal(result, rounded.double())


def test_every_way_to_resize_gives_the_same_picture():
    noise = 0.2 + 0.6 * torch.rand(6, 3, 9, 10, generator=generator())
    images = (255 * F.interpolate(noise, (80, 91), mode="bicubic").clamp(0, 1)).to(torch.uint8)
    box = torch.tensor([(0, 0, 80, 91), (3, 4, 5, 6), (10, 0, 40, 20), *[(1, 2, 60, 51)] * 3])
    mirror = torch.tensor([True, False] * 3)
    for size in (2, 7, 32, 64, 100):
        for mode in ("bilinear", "bicubic"):
            args = (images, box, size, mode, mirror)
            dense = resample._dense(*args).round().clamp(0, 255)
            alone = resample._one_by_one(*args).float()
            strips = resample._strips(*args).round().clamp(0, 255)
            assert (dense - strips).abs().max() <= 1
            assert (dense != strips).float().mean() < 0.03  # halves, rounded either way
            assert (dense - alone).abs().max() <= 2  # of 255: rounded after each axis
            assert (dense - alone).abs().mean() < 0.25


def mapped(x, matrix):
    """What ``color_matrix`` makes of images [B, 3, S, S]."""
    color = x.double().flatten(2)
    mean = color.mean(2, keepdim=True).expand_as(color)
    return (
        (matrix @ torch.cat([color, mean, torch.ones_like(color[:, :1])], dim=1)).view_as(x).float()
    )


def test_color_matrix_is_the_chain_without_clamps():
    x = 0.4 + 0.2 * torch.rand(24, 3, 8, 8, generator=generator())  # nothing reaches a clamp
    order = torch.stack([torch.randperm(4, generator=generator(i)) for i in range(24)])
    factors = torch.rand(24, 4, generator=generator()) * 0.4 + 0.8
    factors[:, 3] = 0.0
    gray = torch.arange(24) % 3 == 0
    ours = mapped(x, ops.color_matrix(order, factors, gray))
    chain = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for i in range(24):
        y = x[i]
        for operation in order[i].tolist():
            if operation < 3:
                y = chain[operation](y, factors[i, operation].item())
        y = tv.rgb_to_grayscale(y, 3) if gray[i] else y
        torch.testing.assert_close(ours[i], y, rtol=0.0, atol=1e-3)  # LUMA adds up to 0.9999


def test_hue_of_the_color_matrix_turns_the_same_way():
    x = torch.tensor([0.8, 0.4, 0.3]).view(1, 3, 1, 1)
    for turns in (-0.05, 0.05):
        factors = torch.tensor([[1.0, 1.0, 1.0, turns]])
        matrix = ops.color_matrix(torch.arange(4)[None], factors, torch.tensor([False]))
        ours = mapped(x, matrix)[0, :, 0, 0]
        theirs = ops.hue(x, torch.tensor([turns]))[0, :, 0, 0]
        assert (ours - x[0, :, 0, 0])[1:] @ (theirs - x[0, :, 0, 0])[1:] > 0
        assert (ours - theirs).abs().max() < 0.2


def test_full_turn_of_the_color_matrix_is_the_identity():
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    args = torch.arange(4)[None], factors, torch.tensor([False])
    half = ops.color_matrix(*args)[0, :, :3].float()
    torch.testing.assert_close(half @ half, torch.eye(3), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_solid_and_tiny_images_give_numbers(value):
    for side in (1, 2, 5):
        x = torch.full((2, 3, side, side), value)
        assert ops.hue(x, torch.tensor([0.5, 0.1])).isfinite().all()
        blurred = ops.gaussian_blur(x, torch.tensor([0.5, 2.0]), 3)
        torch.testing.assert_close(blurred, x, **TOLERANCE)
