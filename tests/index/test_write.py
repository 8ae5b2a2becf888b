from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from embedding import Listed, Slow, write_model
from helpers import textures, write_photos
from ranks import Ranks

import selfsame
from selfsame.errors import DataError, RunError, UsageError
from selfsame.index import write
from selfsame.index.write import Hashed, digest

COUNT = 40  # images of the tests with processes: 10 parts of a batch of 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def facts(path: Path) -> dict:
    return json.loads(pq.read_schema(path).metadata[b"selfsame"])


def parts_of(out: Path) -> list[Path]:
    return sorted(out.parent.glob(f".{out.name}.parts/part-*.parquet"))


def test_an_index_holds_ids_paths_hashes_vectors_and_where_they_come_from(
    model: Path, tmp_path: Path
) -> None:
    folder = write_photos(tmp_path / "photos", count=11)
    (folder / "010.png").write_text("no picture")
    out = tmp_path / "e.parquet"
    done = selfsame.embed(model, str(folder), out, batch_size=4, device="cpu")
    assert done == {"images": 10, "refused": 1, "dim": 64}
    table = pq.read_table(out)
    files = sorted(folder.iterdir())[:10]
    assert table["path"].to_pylist() == [file.name for file in files]
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert table["sha256"].to_pylist() == sums
    encoder = selfsame.load(model, device="cpu")
    vectors = torch.tensor(table["vector"].to_pylist())
    torch.testing.assert_close(vectors, encoder.embed(files), rtol=1e-4, atol=1e-5)
    known = facts(out)
    assert known["model"]["fingerprint"] == encoder.fingerprint()
    assert known["model"]["name"] == str(model)
    assert known["data"]["paths"] == [str(folder)]
    assert (known["dim"], known["image_size"], known["images"]) == (64, 32, 10)
    assert known["refused"]["first"][0][0] == "010.png"
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_float16_is_the_rounded_float32(model: Path, tmp_path: Path) -> None:
    images = textures(6)
    vectors = {}
    for dtype in ("float32", "float16"):
        selfsame.embed(model, images, tmp_path / dtype, dtype=dtype, device="cpu")
        column = pq.read_table(tmp_path / dtype)["vector"].combine_chunks()
        vectors[dtype] = column.flatten().to_numpy()
    assert vectors["float16"].dtype == np.float16
    np.testing.assert_array_equal(vectors["float16"], vectors["float32"].astype(np.float16))


def test_hashes_of_arrays_are_of_their_pixels_and_every_way_in_gives_them() -> None:
    images = textures(3)
    plain = Hashed(selfsame.index.write.open_source(images))
    assert plain.digest(1) == digest(images[1])
    listed = Hashed(Listed(plain.original))
    listed.source.read(2)
    assert listed.found == {2: digest(images[2])}
    assert listed.digest(2) == digest(images[2])
    assert digest(images[1]) != digest(images[1].reshape(16, 64, 3))


def test_killed_at_any_part_it_goes_on_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    program = str(Path(__file__).parent / "embedding.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, program, str(model), str(out), str(COUNT), str(seconds)]
        return subprocess.Popen(command, env=environment)

    process = start(0.05)
    deadline = time.monotonic() + 120
    while len(parts_of(out)) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = parts_of(out)
    assert 3 <= len(left) < 10
    assert not out.exists()
    times = [file.stat().st_mtime_ns for file in left[:-1]]

    damaged = left[-1]  # a disk that lost the end of a file
    damaged.write_bytes(damaged.read_bytes()[:100])
    seen = []
    original = write.Work._rows

    def rows(self: write.Work, batch: object, hashed: Hashed) -> object:
        seen.append(batch.index.tolist())  # type: ignore[attr-defined]
        return original(self, batch, hashed)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write.Work, "_rows", rows)
        patch.setattr(write, "remove", lambda folder: None)  # to look at what was used
        torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        source = Listed(Slow(textures(COUNT), 0))
        selfsame.embed(model, source, out, batch_size=4, device="cpu")
    assert seen[0][0] == 4 * (len(left) - 1)  # the damaged part and what follows it
    assert [file.stat().st_mtime_ns for file in left[:-1]] == times
    whole = tmp_path / "whole.parquet"
    selfsame.embed(model, source, whole, batch_size=4, device="cpu")
    torch.set_num_threads(torch_threads)
    assert out.read_bytes() == whole.read_bytes()
    assert not parts_of(whole)


def embed_here(model: str, out: str) -> dict[str, int]:
    return selfsame.embed(model, Listed(Slow(textures(COUNT), 0)), out, batch_size=4, device="cpu")


def test_two_processes_write_the_file_of_one(model: Path, tmp_path: Path, ranks: Ranks) -> None:
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    answers = ranks(embed_here, str(model), str(two))
    assert answers == [{"images": COUNT, "refused": 0, "dim": 64}] * 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    embed_here(str(model), str(one))
    torch.set_num_threads(threads)
    assert one.read_bytes() == two.read_bytes()


def refuse_here(model: str, out: str) -> str:
    try:
        selfsame.embed(model, textures(3), out, dtype="int8", device="cpu")
    except UsageError as error:
        return str(error)
    return ""


def test_an_error_of_processes_is_one_of_all(model: Path, tmp_path: Path, ranks: Ranks) -> None:
    assert ranks(refuse_here, str(model), str(tmp_path / "x")) == ["unknown dtype 'int8'"] * 2


def test_what_another_command_began_is_not_continued(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    images = textures(12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write.Work, "assemble", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            selfsame.embed(model, images, out, batch_size=4, device="cpu")
    assert len(parts_of(out)) == 3
    other = write_model(tmp_path / "other", seed=1)
    for changed, arguments in {
        "model": (other, images, {}),
        "data": (model, images[::-1].copy(), {}),
        "dtype": (model, images, {"dtype": "float16"}),
        "batch size": (model, images, {"batch_size": 3}),
    }.items():
        chosen, data, more = arguments
        more = {"batch_size": 4} | more
        with pytest.raises(UsageError, match=f"begun with another {changed}") as caught:
            selfsame.embed(chosen, data, out, device="cpu", **more)
        assert "delete" in str(caught.value.tip)
    selfsame.embed(model, images, out, batch_size=4, device="cpu")
    assert len(selfsame.Index(out)) == 12
    assert not parts_of(out)


def test_errors_say_what_is_wrong(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        selfsame.embed(model, textures(3), tmp_path, device="cpu")
    with pytest.raises(UsageError, match="cannot write"):
        selfsame.embed(model, textures(3), tmp_path / "no" / "e.parquet", device="cpu")
    with pytest.raises(UsageError, match="batch size 0"):
        selfsame.embed(model, textures(3), tmp_path / "e", batch_size=0, device="cpu")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_text("no picture")
    with pytest.raises(DataError, match="none of the 1 images is readable"):
        selfsame.embed(model, bad, tmp_path / "e", device="cpu")
    encoder = selfsame.load(model, device="cpu")
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    with pytest.raises(RunError, match=r"features of array\[0\] are not finite"):
        selfsame.embed(encoder, textures(3), tmp_path / "f", device="cpu")


class Large(torch.nn.Module):
    dim, stride, norm, can = 2, None, None, frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1e6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] * 0 + self.weight


def test_vectors_that_do_not_fit_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="too large for float16") as caught:
        selfsame.embed(Large(), textures(2), tmp_path / "e", dtype="float16", device="cpu")
    assert caught.value.tip == "use --dtype float32"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
def test_memory_does_not_grow_with_the_data(model: Path, tmp_path: Path) -> None:
    """Eight times the images: 666 and 683 MiB, nearly all of it PyTorch itself."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peaks = []
    for count in (4_000, 32_000):
        out = tmp_path / f"{count}.parquet"
        program = str(Path(__file__).parent / "embedding.py")
        command = [sys.executable, program, str(model), str(out), str(count)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
        print(f"{count:,} images: {peaks[-1]:.0f} MiB")
    assert peaks[1] - peaks[0] < 25
