"""The compiled pass against the operations that it stands for."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from selfsame.types import Norm
from selfsame.views import View, draw, native, render
from selfsame.views.draw import Params

NORM = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

needs_compiler = pytest.mark.skipif(native.kernel() is None, reason="no C compiler")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A cache folder of its own, and no memory of the library that is loaded."""
    monkeypatch.setenv("SELFSAME_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    forget()


def forget():
    native.kernel.cache_clear()
    native.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("color", ["exact", "fast"])
@pytest.mark.parametrize(
    "view",
    [
        View(size=1, jitter=1.0, blur=1.0),
        View(size=5, blur=1.0, blur_kernel=1.0, solarize=0.5),
        View(size=32, solarize=0.3),
        View(size=64, blur=0.0, hue=0.0),
        View(size=65, blur=1.0, blur_sigma=(0.1, 4.0)),
        View(size=130, solarize=0.2, grayscale=0.5),
        View(size=150, jitter=0.0, blur=1.0),
    ],
)
def test_one_pass_is_the_operations_one_after_the_other(view, color, monkeypatch):
    generator = torch.Generator().manual_seed(view.size)
    images = torch.randint(0, 256, (24, 3, 90, 81), dtype=torch.uint8, generator=generator)
    images[0], images[1], images[2, 1:] = 0, 255, 0
    sizes = torch.tensor([[90, 81]]).expand(24, 2)
    p = draw(view, seed=1, epoch=0, index=torch.arange(24), which=0, sizes=sizes)
    ours = render(images, p, view, NORM, color=color)
    monkeypatch.setattr(sys.modules["selfsame.views.render"], "kernel", lambda: None)
    error = (ours - render(images, p, view, NORM, color=color)).abs()
    # solarising jumps at its threshold, where rounding decides
    assert (error > 1e-4).float().mean() < 1e-4
    assert error.median() < 1e-6


@needs_compiler
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("planar", [False, True])
def test_it_resizes_as_pytorch_does_to_the_last_bit(interpolation, planar):
    generator = torch.Generator().manual_seed(7)
    off, zero = torch.zeros(6, dtype=torch.bool), torch.zeros(6)
    for height, width, size in (
        (66, 40, 17),
        (150, 90, 16),
        (71, 333, 96),
        (9, 5, 130),
        (97, 2, 2),
    ):
        noise = torch.randint(0, 256, (3, 3, height, width), dtype=torch.uint8, generator=generator)
        images = torch.cat([noise, (noise > 99).byte() * 255])  # with overshoot, too
        images = images if planar else images.contiguous(memory_format=torch.channels_last)
        whole = torch.tensor([0, 0, height, width])
        inner = torch.tensor([height // 3, width // 3, height // 2, (width + 1) // 2])
        box = torch.stack([whole, inner, torch.tensor([height - 1, 0, 1, width])]).repeat(2, 1)
        flip = torch.arange(6) % 2 == 1
        zeros = torch.zeros(6, 4)
        p = Params(box, flip, off, zeros.long(), zeros, off, off, zero, off)
        view = View(size=size, interpolation=interpolation)
        ours = (render(images, p, view, Norm((0.0,), (1.0,))) * 255).round()
        for one, image, place, mirrored in zip(ours, images, box.tolist(), flip, strict=True):
            top, left, h, w = place
            crop = image[None, :, top : top + h, left : left + w]
            theirs = torch.nn.functional.interpolate(
                crop, (size, size), mode=interpolation, antialias=True
            )
            assert torch.equal(one, (theirs.flip(-1) if mirrored else theirs)[0].float())


@needs_compiler
def test_it_is_compiled_once_and_kept(fresh):
    assert native.kernel() is not None
    (library,) = (fresh / "cache").iterdir()
    before = library.stat().st_mtime_ns
    forget()
    assert native.kernel() is not None
    assert library.stat().st_mtime_ns == before


@needs_compiler
def test_processes_may_compile_it_at_once(fresh):
    code = "from selfsame.views import native; assert native.kernel() is not None"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(list((fresh / "cache").iterdir())) == 1


@pytest.mark.parametrize("how", ["asked", "no compiler", "it fails", "no place", "no library"])
def test_without_it_views_are_made_all_the_same(how, fresh, monkeypatch):
    if how == "asked":
        monkeypatch.setenv("SELFSAME_NATIVE", "0")
    elif how == "no compiler":
        monkeypatch.setenv("CC", "no-such-compiler -O9")
    elif how == "it fails":
        monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(1)'")
    elif how == "no place":
        (fresh / "cache").write_text("a file, where the folder should be")
    else:  # a compiler that writes something else
        script = fresh / "cc"
        script.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho no > "$2"\n')
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CC", str(script))
    if how == "no library" and os.name == "nt":
        pytest.skip("a shell script stands for the compiler")
    assert native.kernel() is None
    images = torch.zeros(2, 3, 9, 9, dtype=torch.uint8)
    view = View(size=8)
    p = draw(view, seed=0, epoch=0, index=torch.arange(2), which=0, sizes=torch.full((2, 2), 9))
    assert render(images, p, view, NORM).isfinite().all()
