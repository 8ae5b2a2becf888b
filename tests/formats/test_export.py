"""The verb ``export``: what a user is told, what is written, and when nothing is."""

from __future__ import annotations

import json
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_fresh, write_photos
from torch import nn

import selfsame
from selfsame.cli import main
from selfsame.encoder import Encoder
from selfsame.errors import RunError, UsageError
from selfsame.formats import FORMATS, check, reader
from selfsame.formats.format import Format, Reading
from selfsame.formats.torchvision import Torchvision
from selfsame.nn.classify import KNN


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("export") / "photos", 24, 48, classes=3)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network every library with ResNets can express: of 64 channels."""
    out = tmp_path_factory.mktemp("export") / "run"
    settings = ["backbone.name=resnet10", "backbone.options.stem=imagenet", "views.size=64"]
    selfsame.pretrain(
        "simclr",
        photos,
        out=out,
        steps=2,
        batch_size=8,
        settings=[*settings, "precision=fp32"],
        val=photos,
        quiet=True,
    )
    return out


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading in this process, which is quicker; some versions of PyTorch warn of their own."""
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    monkeypatch.setattr(check, "run_apart", lambda place, library: reader.main(place))


QUICK = ("onnx",)  # needs no torch; the others take ten CPU seconds each


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FORMATS]
)
def test_what_is_printed_loads_it_without_selfsame(
    name: str, run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a folder" / name
    assert main(["export", str(run), "--format", name, "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "in a new process, on 8 images of the run's training data" in said.err
    lines = said.out.strip().splitlines()
    assert str(out) in said.out
    torches = name != "onnx"
    code = "import torch; x = torch.zeros(1, 3, 64, 64)" if torches else ""
    if not torches:
        code = "import numpy; x = numpy.zeros((1, 3, 64, 64), 'float32')"
    code += "\n" + "\n".join(lines)
    shows = "state['conv1.weight'].shape[0]" if name == "safetensors" else "tuple(pooled.shape)"
    code += f"\nimport sys; print({shows}, 'selfsame' in sys.modules)"
    assert (
        run_fresh(code).strip().endswith("64 False" if name == "safetensors" else "(1, 512) False")
    )
    assert not list(out.parent.glob(".tmp-*"))

    facts = json.loads((out / "export.json").read_text())
    card = (out / "README.md").read_text()
    source = json.loads((run / "run.json").read_text())
    assert facts["format"] == name
    assert facts["data"] == {"images": 24, "fingerprint": source["data"]["fingerprint"]}
    assert facts["recipe"] in card
    assert facts["data"]["fingerprint"] in card
    assert facts["method"] == "simclr"
    assert set(facts["scores"]) == {"knn", "linear"}
    assert f"{100 * facts['scores']['knn']['score']:.1f} %" in card
    assert "Licence of these weights: (fill in" in card
    assert facts["preprocess"]["size"] == 64
    assert facts["preprocess"]["interpolation"] == "bicubic"


@pytest.mark.usefixtures("here")
def test_safetensors_is_an_encoder_for_selfsame(run: Path, photos: Path, tmp_path: Path) -> None:
    done = selfsame.export(run, "safetensors", tmp_path / "a", quiet=True)
    ours, again = selfsame.load(run, device="cpu"), selfsame.load(tmp_path / "a", device="cpu")
    assert torch.equal(ours.embed(photos), again.embed(photos))
    assert again.card["recipe"] == ours.card["recipe"]
    assert done.findings.differences[0].largest == 0
    twice = selfsame.export(tmp_path / "a", "safetensors", tmp_path / "b", quiet=True)
    folders = (done.folder, twice.folder)
    first, second = (json.loads((each / "export.json").read_text()) for each in folders)
    assert first["scores"] == second["scores"]
    assert first["data"] == second["data"]


@pytest.mark.usefixtures("here")
def test_a_module_and_an_encoder_are_exported_as_they_are(photos: Path, tmp_path: Path) -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(3 * 8 * 8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.part(x.flatten(1))
            return y

    network = Mine().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    selfsame.export(network, "torch-export", tmp_path / "a", image_size=8, data=photos, quiet=True)
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    encoder = selfsame.load(network, image_size=8, device="cpu")
    bank = encoder.embed(photos)
    encoder.head, encoder.classes = KNN(bank, torch.arange(24) % 3, 3), ("a", "b", "c")
    done = selfsame.export(encoder, "torch-export", tmp_path / "b", data=photos, quiet=True)
    assert [d.what for d in done.findings.differences[:2]] == ["pooled", "scores"]
    assert "classes: a, b, c" in (tmp_path / "b" / "README.md").read_text()


def test_what_does_not_compute_the_same_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    write = Torchvision.write

    def wrong(self: Torchvision, encoder: Encoder, folder: Path) -> Any:
        reading = write(self, encoder, folder)
        state = torch.load(folder / "model.pth", weights_only=True)
        state["bn1.running_var"] *= 1.01
        torch.save(state, folder / "model.pth")
        return reading

    monkeypatch.setattr(Torchvision, "write", wrong)
    with pytest.raises(RunError, match="computes other pooled than the encoder"):
        selfsame.export(run, "torchvision", tmp_path / "a", quiet=True)
    assert not list(tmp_path.iterdir())


class Broken(Format):
    """A format whose library does not read what was written."""

    name, library = "broken", "numpy"

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        (folder / "model").write_text("nothing")
        load = ["import numpy as np", 'model = np.load("{at}/model", allow_pickle=False)']
        return Reading(load, ["pooled = model(x)"], ["pooled"], arrays="numpy")


def test_what_cannot_be_read_is_not_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="numpy cannot read what was written: ValueError: "):
        selfsame.export(run, f"{__name__}:Broken", tmp_path / "a", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_what_was_there(
    error: BaseException, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: None
) -> None:
    out = tmp_path / "a"
    selfsame.export(run, "safetensors", out, quiet=True)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    write = Torchvision.write

    def stopped(self: Torchvision, encoder: Encoder, folder: Path) -> Any:
        write(self, encoder, folder)
        raise error

    monkeypatch.setattr(Torchvision, "write", stopped)
    for name in ("a", "b"):
        with pytest.raises((KeyboardInterrupt, RunError)) as caught:
            selfsame.export(run, "torchvision", tmp_path / name, overwrite=True, quiet=True)
        assert isinstance(error, KeyboardInterrupt) or "No space left" in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before


@pytest.mark.usefixtures("here")
def test_only_exports_are_replaced_and_only_when_asked(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is not empty"):
            selfsame.export(run, "safetensors", mine, overwrite=overwrite, quiet=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        selfsame.export(run, "safetensors", tmp_path / "file", quiet=True)
    selfsame.export(run, "safetensors", tmp_path / "a", quiet=True)
    with pytest.raises(UsageError, match="holds an export already") as caught:
        selfsame.export(run, "safetensors", tmp_path / "a", quiet=True)
    assert "--overwrite" in str(caught.value.tip)
    selfsame.export(run, "safetensors", tmp_path / "a", overwrite=True, quiet=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "file", "mine"]


def test_errors_say_what_to_do(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selfsame.formats import format as formats

    def said(*words: str, code: int = 2) -> str:
        assert main(["export", str(run), "-o", str(tmp_path / "x"), *words]) == code
        return capsys.readouterr().err

    assert said("--format", "torchvison").startswith("error: unknown format 'torchvison'")
    assert said("--format", "timm", "--int8") == (
        "error: int8 is for onnx, not for timm\ntip: selfsame export MODEL --format onnx --int8\n"
    )
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name[:4] == "onnx" else object())
    assert said("--format", "onnx") == (
        "error: the format onnx needs the packages onnx and onnxruntime and onnxscript\n"
        'tip: pip install "selfsame[onnx]"\n'
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "export.json").write_text('{"format": "timm"}')
    assert main(["export", str(tmp_path / "timm"), "--format", "safetensors"]) == 2
    assert "is an export for other programs (format timm)" in capsys.readouterr().err


class Bomb:
    """A pickle that writes a file when it is loaded by a careless program."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(
    zipped: bool, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone_off = tmp_path / "gone-off"
    bomb = {"conv1.weight": torch.zeros(1), "x": Bomb(gone_off)}
    file = tmp_path / "weights.pth"
    if zipped:
        torch.save(bomb, file)
    else:
        file.write_bytes(pickle.dumps(bomb))
    arguments = ["--format", "safetensors", "-o", str(tmp_path / "out")]
    assert main(["export", "torchvision/resnet18", "--weights", str(file), *arguments]) == 2
    assert "error: cannot read the weights in" in capsys.readouterr().err
    assert main(["export", str(file), *arguments]) == 2
    assert "neither a run nor an exported encoder" in capsys.readouterr().err
    fake = tmp_path / "fake"  # an export whose weights are a pickle by another name
    fake.mkdir()
    (fake / "card.json").write_bytes((run / "card.json").read_bytes())
    (fake / "backbone.safetensors").write_bytes(file.read_bytes())
    assert main(["export", str(fake), *arguments]) == 2
    assert "error: cannot read the weights in" in capsys.readouterr().err
    assert not gone_off.exists()
    with suppress(Exception):  # it has gone off by then
        torch.load(file, weights_only=False)
    assert gone_off.exists(), "the bomb is a real one"


@pytest.mark.usefixtures("here")
def test_int8_is_written_beside_and_scored(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "a"
    done = selfsame.export(run, "onnx", out, int8=True, data=photos)
    assert done.int8 is not None
    assert done.int8["bytes"] < 0.35 * done.int8["float_bytes"]
    assert done.int8["cosine"] > 0.98
    assert {"knn", "float_knn"} <= set(done.int8)
    said = capsys.readouterr().err
    assert "kept" in said
    import onnxruntime

    session = onnxruntime.InferenceSession(out / "model-int8.onnx")
    assert [o.name for o in session.get_outputs()] == ["pooled", "tokens"]
    # scales of a convolutional network's activations are fixed: none is measured at a call
    import onnx

    kinds = {node.op_type for node in onnx.load(out / "model-int8.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    assert not kinds & {"DynamicQuantizeLinear", "ConvInteger"}
    card = (out / "README.md").read_text()
    assert "int8 beside it" in card
