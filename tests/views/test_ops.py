"""Each operation against torchvision, sample by sample, on float images: atol 1e-5."""

import pytest
import torch
import torchvision.transforms.functional as tv

from selfsame.views import ops
from selfsame.views.resample import resized_crop

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
        (ops.brightness, tv.adjust_brightness, FACTORS),
        (ops.contrast, tv.adjust_contrast, FACTORS),
        (ops.saturation, tv.adjust_saturation, FACTORS),
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


def test_solarize():
    x = floats()
    expected = tv.solarize(x, 0.5)
    torch.testing.assert_close(ops.solarize(x, 0.5), expected, **TOLERANCE)


@pytest.mark.parametrize("kernel", [3, 5, 9, 13, 23])
def test_gaussian_blur(kernel):
    x = floats(side=27)
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
@pytest.mark.parametrize("size", [1, 5, 16, 24, 63])
def test_resized_crop(mode, size):
    images = torch.randint(
        0, 256, (len(BOXES), 3, 44, 53), dtype=torch.uint8, generator=generator()
    )
    mirror = torch.arange(len(BOXES)) % 2 == 1
    ours = resized_crop(images, torch.tensor(BOXES), size, mode, mirror)
    images[:, :, 37:] = 255 - images[:, :, 37:]  # padding, other than before
    images[:, :, :, 41:] = 0
    assert torch.equal(ours, resized_crop(images, torch.tensor(BOXES), size, mode, mirror))
    for image, box, flip, result in zip(images, BOXES, mirror, ours, strict=True):
        # float64: torchvision's float32 weights are off by 1e-5 on wide crops
        double = image[:, :37, :41].double() / 255
        interpolation = tv.InterpolationMode(mode)
        expected = tv.resized_crop(double, *box, [size, size], interpolation, antialias=True)
        expected = tv.hflip(expected) if flip else expected
        torch.testing.assert_close(result, expected.clamp(0, 1).float(), **TOLERANCE)


def test_resized_crop_of_a_large_image_matches_float32_torchvision():
    image = torch.randint(0, 256, (1, 3, 300, 411), dtype=torch.uint8, generator=generator())
    ours = resized_crop(image, torch.tensor([[13, 5, 280, 401]]), 112, "bicubic")
    expected = tv.resized_crop(
        image / 255, 13, 5, 280, 401, [112, 112], tv.InterpolationMode.BICUBIC, antialias=True
    )
    torch.testing.assert_close(ours, expected.clamp(0, 1), rtol=0.0, atol=5e-5)


def test_color_matrix_is_the_chain_without_clamps():
    x = 0.4 + 0.2 * torch.rand(24, 3, 8, 8, generator=generator())  # nothing reaches a clamp
    order = torch.stack([torch.randperm(4, generator=generator(i)) for i in range(24)])
    factors = torch.rand(24, 4, generator=generator()) * 0.4 + 0.8
    factors[:, 3] = 0.0
    gray = torch.arange(24) % 3 == 0
    matrix = ops.color_matrix(x.mean((2, 3)), order, factors, gray)
    ours = torch.baddbmm(matrix[..., 3:], matrix[..., :3], x.flatten(2)).view_as(x)
    chain = (ops.brightness, ops.contrast, ops.saturation)
    for i in range(24):
        y = x[i : i + 1]
        for operation in order[i].tolist():
            if operation < 3:
                y = chain[operation](y, factors[i : i + 1, operation])
        y = ops.grayscale(y) if gray[i] else y
        torch.testing.assert_close(ours[i], y[0], rtol=0.0, atol=1e-3)  # LUMA adds up to 0.9999


def test_hue_of_the_color_matrix_turns_the_same_way():
    x = torch.tensor([0.8, 0.4, 0.3]).view(1, 3, 1, 1)
    for turns in (-0.05, 0.05):
        factors = torch.tensor([[1.0, 1.0, 1.0, turns]])
        matrix = ops.color_matrix(
            x[:, :, 0, 0], torch.arange(4)[None], factors, torch.tensor([False])
        )
        ours = (matrix[..., :3] @ x.flatten(2) + matrix[..., 3:])[0, :, 0]
        theirs = ops.hue(x, torch.tensor([turns]))[0, :, 0, 0]
        assert (ours - x[0, :, 0, 0])[1:] @ (theirs - x[0, :, 0, 0])[1:] > 0
        assert (ours - theirs).abs().max() < 0.2


def test_full_turn_of_the_color_matrix_is_the_identity():
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.5]])
    args = torch.zeros(1, 3), torch.arange(4)[None], factors, torch.tensor([False])
    half = ops.color_matrix(*args)[0, :, :3]
    torch.testing.assert_close(half @ half, torch.eye(3), rtol=0.0, atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_solid_and_tiny_images_give_numbers(value):
    for side in (1, 2, 5):
        x = torch.full((2, 3, side, side), value)
        for operation in (ops.brightness, ops.contrast, ops.saturation, ops.hue):
            assert operation(x, torch.tensor([0.5, 0.1])).isfinite().all()
        blurred = ops.gaussian_blur(x, torch.tensor([0.5, 2.0]), 3)
        torch.testing.assert_close(blurred, x, **TOLERANCE)
