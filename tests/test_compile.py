"""Compiled blocks learn what written ones do, and leave no trace in what a run ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import textures, tiny_recipe

from selfsame import parallel
from selfsame.api import pretrain
from selfsame.errors import UsageError
from selfsame.methods.simclr import SimCLR
from selfsame.parallel import Layout, check_compiler, check_layout

# what the compiler of some versions imports is deprecated in the same version
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo hides it itself
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("simclr", {}),
        ("dino", {}),
        ("ibot", {"backbone__options__drop_path": 0.3}),
        ("mae", {"precision": "bf16"}),
    ],
)
def test_the_losses_are_those_of_a_run_that_is_not_compiled(
    method: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda block: (compiled.append(block), compile_block(block))
    )
    recipe = tiny_recipe(method, steps=4, **more)
    for name in ("plain", "compiled"):
        done = pretrain(
            method,
            textures(32),
            out=tmp_path / name,
            recipe=recipe,
            log_every=1,
            compile=name == "compiled",
            device="cpu",
            quiet=True,
        )
    assert compiled
    plain, ours = losses(tmp_path / "plain"), losses(tmp_path / "compiled")
    assert ours == pytest.approx(plain, rel=2e-2 if "precision" in more else 1e-4)
    assert all(block._compiled_call_impl is None for block in done.encoder.modules())
    counters = torch._dynamo.utils.counters["frames"]
    assert counters["ok"] >= 2

    # a checkpoint of one has the names of the other
    states = [
        torch.load(next((tmp_path / name).glob("checkpoints/*4/state.pt")), weights_only=True)
        for name in ("plain", "compiled")
    ]
    assert states[0]["method"].keys() == states[1]["method"].keys()
    assert json.loads((tmp_path / "compiled/run.json").read_text())["layout"]["compile"] is True


def test_names_stay_and_nothing_is_compiled_before_it_is_called() -> None:
    method = tiny_method()
    names = list(method.state_dict())
    parallel.prepare(method, Layout(compile=True))
    assert list(method.state_dict()) == names
    blocks = method.backbone.blocks()
    assert all(block._compiled_call_impl is not None for block in blocks)
    parallel.release(method)
    assert all(block._compiled_call_impl is None for block in blocks)


def tiny_method() -> SimCLR:
    from selfsame import plan as planning

    choices = planning.Choices(recipe=tiny_recipe("simclr"))
    return planning.make("simclr", textures(16), choices, "cpu").build()


def test_what_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="no C\\+\\+ compiler 'no-such-compiler'"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr(parallel.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs Triton for cuda"):
        check_compiler(torch.device("cuda"))
    both = Layout(compile=True, checkpoint_activations=True)
    with pytest.raises(UsageError, match="does not go with --checkpoint-activations"):
        check_layout(both, 8, 1, SimCLR)


def test_without_a_compiler_no_run_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UsageError, match="no C\\+\\+ compiler"):
        pretrain(
            "simclr", textures(16), out=tmp_path / "run", device="cpu", compile=True, quiet=True
        )
    assert not (tmp_path / "run").exists()
