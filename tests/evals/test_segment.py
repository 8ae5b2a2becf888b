"""Dense probes: tokens at their places, every pixel counted, masks that fit."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import textures
from PIL import Image
from torch import Tensor, nn

import selfsame
from selfsame.data.masks import IGNORED, open_masked
from selfsame.errors import DataError
from selfsame.evals import Data, Subject, evaluators, score
from selfsame.evals.pixels import pixels
from selfsame.evals.segment import (
    cell_shares,
    confusion,
    extract_windows,
    iou,
    mean_iou,
    spread_argmax,
    windows_for,
)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write(folder: Path, masks: dict[str, np.ndarray], side: int = 32) -> Path:
    """Images with the given masks; each class has a colour of its own."""
    for k, (name, mask) in enumerate(masks.items()):
        colour = np.stack([(mask * 53) % 256, (mask * 101 + 40) % 256, (mask * 197 + 90) % 256], -1)
        image = 0.8 * colour + 0.2 * textures(1, mask.shape[0], seed=k)[0][:, : mask.shape[1]]
        save(folder / "images" / f"{name}.png", image.astype(np.uint8))
        save(folder / "masks" / f"{name}.png", mask.astype(np.uint8))
    return folder


def halves(left: int, right: int, side: int = 32) -> np.ndarray:
    mask = np.full((side, side), left)
    mask[:, side // 2 :] = right
    return mask


@pytest.fixture
def three(tmp_path: Path) -> Path:
    names = {
        **{f"train/{k}": halves(k % 3, (k + 1) % 3) for k in range(6)},
        **{f"test/{k}": halves((k + 1) % 3, k % 3) for k in range(3)},
    }
    return write(tmp_path / "three", names)


def test_classes_with_a_colour_are_segmented_from_pixels(three: Path) -> None:
    subject = Subject(pixels(), centred=True)
    scores = score(subject, Data(str(three)), evaluators(["segment"]).values())
    assert scores["segment"] > 0.9
    assert scores["segment_knn"] > 0.9
    each = [scores[f"segment_iou/class {k}"] for k in range(3)]
    assert scores["segment"] == pytest.approx(sum(each) / 3)
    low, high = scores["segment_interval"]
    assert low <= scores["segment"] <= high


def test_a_tar_is_its_folder(three: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "three.tar", "w") as tar:
        tar.add(three, arcname=".")
    one, two = open_masked(three), open_masked(tmp_path / "three.tar")
    assert one.classes == two.classes == ["class 0", "class 1", "class 2"]
    assert one.train.fingerprint() == two.train.fingerprint()
    assert np.array_equal(one.test.mask(1), two.test.mask(1))
    assert "6 train and 3 test images with masks of 3 classes" in one.how


def test_tokens_are_put_together_at_their_places(tmp_path: Path) -> None:
    """Of an image of 48 x 32 with two windows a side: the colour under each token."""

    class Colours(nn.Module):
        weight = nn.Parameter(torch.ones(()))

        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool2d(x, 4) * self.own

    image = textures(1, 48)[0][:32]  # 32 rows, 48 columns
    for part in ("train", "test"):
        save(tmp_path / "images" / part / "a.png", image)
        save(tmp_path / "masks" / part / "a.png", (np.mgrid[:32, :48][1] > 20).astype(np.uint8))
    encoder = selfsame.load(Colours(), image_size=16)
    source = open_masked(tmp_path).train
    assert windows_for(source, 16) == 2
    found = extract_windows(encoder, source, 2)
    assert found["grid"].tolist() == [[8, 12]]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in encoder.norm)
    x = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
    wanted = F.avg_pool2d(x, 4).flatten(1).T
    torch.testing.assert_close(found["tokens"], wanted, rtol=1e-4, atol=1e-4)


def test_shares_and_confusions_are_those_of_a_loop() -> None:
    g = torch.Generator().manual_seed(0)
    mask = torch.randint(-1, 3, (11, 17), generator=g)
    guess = torch.randint(3, (11, 17), generator=g)
    table = torch.zeros(3, 3)
    counts = torch.zeros(4, 5, 3)
    void = torch.zeros(4, 5)
    for row in range(11):
        for column in range(17):
            cell = row * 4 // 11, column * 5 // 17
            label = int(mask[row, column])
            if label == IGNORED:
                void[cell] += 1
                continue
            counts[cell][label] += 1
            table[label, int(guess[row, column])] += 1
    assert torch.equal(confusion(mask, guess, 3), table.double())
    total = counts.sum(-1, keepdim=True)
    wanted = torch.where(total[..., 0:1] >= void[..., None], counts / total.clamp(min=1), 0.0)
    torch.testing.assert_close(cell_shares(mask, 4, 5, 3), wanted.flatten(0, 1))


def test_iou_is_counted_pixel_by_pixel_and_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import jaccard_score

    g = torch.Generator().manual_seed(1)
    mask, guess = (torch.randint(4, (20, 20), generator=g) for _ in range(2))
    table = confusion(mask, guess, 4)
    for k, value in enumerate(iou(table).tolist()):
        both, either = (mask == k) & (guess == k), (mask == k) | (guess == k)
        assert value == pytest.approx((both.sum() / either.sum()).item())
    wanted = jaccard_score(mask.flatten(), guess.flatten(), average="macro")
    assert mean_iou(table) == pytest.approx(wanted)
    wider = confusion(mask, guess, 6)  # two classes that are neither there nor guessed
    assert mean_iou(wider) == pytest.approx(wanted)


def test_guesses_are_those_of_all_scores_interpolated() -> None:
    scores = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(scores[None], (19, 23), mode="bilinear")[0].argmax(0)
    assert torch.equal(spread_argmax(scores, (19, 23)), wanted)


def test_what_masks_may_say(tmp_path: Path) -> None:
    binary = write(tmp_path / "binary", {"a": halves(0, 255), "b": halves(255, 0)})
    found = open_masked(binary)
    assert list(found.classes) == ["background", "foreground"]
    assert set(np.unique(found.train.mask(0))) == {0, 1}
    assert "80/20" in found.how

    named = write(tmp_path / "named", {f"{p}/a": halves(1, 5) for p in ("train", "val")})
    facts = {"classes": ["water", "land", "road", "x", "y", "void"], "ignore_index": 5}
    (named / "classes.json").write_text(json.dumps(facts))
    found = open_masked(named)
    assert list(found.classes) == ["water", "land", "road", "x", "y"]
    assert set(np.unique(found.test.mask(0))) == {1, IGNORED}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no masks", "has no masks in a folder called masks"),
        ("one without", "image 'train/1' of '*' has no mask"),
        ("another size", "the mask of images/test/0.png is 16x16 px and the image 32x32"),
        ("colours", r"the mask of images/train/0.png has shape \[32, 32, 3\]"),
        ("one class", r"the masks have one class only \(class 0\)"),
        ("unseen", "the mask of images/test/0.png has the value 9, which is no class"),
        ("absent", "class 'class 3' is in masks of the test part and in none of the train part"),
        ("json", "cannot read classes.json"),
    ],
)
def test_masks_that_cannot_be_used(case: str, message: str, three: Path) -> None:
    masks = three / "masks"
    if case == "no masks":
        masks.rename(three / "other")
    elif case == "one without":
        (masks / "train" / "1.png").unlink()
    elif case == "another size":
        save(masks / "test" / "0.png", halves(0, 1, 16).astype(np.uint8))
    elif case == "colours":
        save(masks / "train" / "0.png", textures(1)[0])
    elif case == "one class":
        for file in masks.rglob("*.png"):
            save(file, np.zeros((32, 32), np.uint8))
    elif case == "unseen":
        save(masks / "test" / "0.png", halves(0, 9).astype(np.uint8))
    elif case == "absent":
        (three / "classes.json").write_text('["class 0", "class 1", "class 2", "class 3"]')
        save(masks / "test" / "0.png", halves(0, 3).astype(np.uint8))
    elif case == "json":
        (three / "classes.json").write_text('{"names": []}')
    subject = Subject(pixels(), centred=True)
    with pytest.raises(DataError, match=message.replace("'*'", ".*")) as caught:
        score(subject, Data(str(three)), evaluators(["segment"]).values())
    assert caught.value.tip


def test_a_damaged_image_or_mask_is_left_out_and_counted(three: Path) -> None:
    (three / "images" / "train" / "0.png").write_text("no picture")
    (three / "masks" / "test" / "1.png").write_text("no picture")
    subject = Subject(pixels(), centred=True)
    scores = score(subject, Data(str(three)), evaluators(["segment"]).values())
    assert scores["segment_refused"] == 2
    assert scores["segment"] > 0.9


def unpack(name: str, to: Path) -> Path:
    """A data set of ``SELFSAME_DATA`` in the layout of masks; instances become foreground."""
    folder = os.environ.get("SELFSAME_DATA")
    if not folder:
        pytest.skip("SELFSAME_DATA names no folder of data sets")
    with tarfile.open(Path(folder) / name) as tar:
        for member in tar:
            data = tar.extractfile(member)
            if data is None:
                continue
            path = to / member.name.replace("labels/", "masks/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.name.startswith("labels/"):
                instances = np.asarray(Image.open(io.BytesIO(data.read())))
                Image.fromarray((instances > 0).astype(np.uint8)).save(path)
            else:
                path.write_bytes(data.read())
    return to


@pytest.mark.slow
def test_nuclei_and_land_are_found_from_pixels(tmp_path: Path) -> None:
    """The control alone, whose numbers no seed changes (nuclei: 0 to 2, aerial: 0 and 1).

    Mean IoU of everything guessed as the commonest class, of the linear head and of neighbours:
    nuclei .426, .613 (foreground .358), .787; aerial .076, .342, .356. The bars are half way
    or above.
    """
    subject = Subject(pixels(), centred=True)
    nuclei = unpack("nuclei-dsb2018.tar", tmp_path / "nuclei")
    scores = score(subject, Data(str(nuclei)), evaluators(["segment"]).values())
    assert scores["segment_iou/foreground"] > 0.3
    assert scores["segment"] > 0.55
    assert scores["segment_knn"] > 0.61
    aerial = unpack("dubai-aerial-seg.tar", tmp_path / "aerial")
    data = Data(str(aerial))
    scores = score(subject, data, evaluators(["segment"]).values())
    assert "unlabeled" not in data.masked.classes
    assert scores["segment"] > 0.21
    assert scores["segment_knn"] > 0.22
