"""Weights to begin with, and low-rank updates of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe, tiny_teacher
from safetensors.torch import save_file

import selfsame
from selfsame import backbones, plan
from selfsame.api import pretrain
from selfsame.backbones.lora import add_lora, merged
from selfsame.data.arrays import ArraySource
from selfsame.encoder import begin_with
from selfsame.errors import UsageError
from selfsame.plan import Choices
from selfsame.recipe import LoRA, lora_settings, with_settings
from selfsame.types import Method


def data() -> ArraySource:
    return ArraySource(textures(16), np.arange(16) % 4, ["a", "b", "c", "d"])


def begun(method: str, init: object, *settings: str, **choices: Any) -> Method:
    recipe = choices.pop("recipe", None) or with_settings(tiny_recipe(method), settings)
    made = plan.make(method, data(), Choices(recipe=recipe, init=str(init), **choices), "cpu")
    with made.images:
        return made.build()


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_run_begins_with_the_weights_of_another_and_so_does_its_teacher(tmp_path: Path) -> None:
    pretrain("simclr", data(), out=tmp_path / "a", recipe=tiny_recipe("simclr"), quiet=True)
    first = selfsame.load(tmp_path / "a", device="cpu")
    method = begun("byol", tmp_path / "a")
    assert equal(method.encoder(), first.backbone)
    assert equal(method.target.backbone, first.backbone)  # type: ignore[union-attr, arg-type]
    fresh = plan.make("byol", data(), Choices(recipe=tiny_recipe("byol")), "cpu")
    with fresh.images:
        assert not equal(fresh.build().encoder(), first.backbone)


def test_the_command_continues_and_resumes_and_tells_other_weights(tmp_path: Path) -> None:
    init, out = tiny_teacher(), tmp_path / "run"
    options: dict[str, Any] = {"recipe": tiny_recipe("simclr"), "quiet": True, "device": "cpu"}
    result = pretrain("simclr", data(), out=out, init=init, **options)
    config = result.encoder.config
    assert config is not None
    assert config.init == str(init)
    assert config.options == selfsame.load(init).config.options  # type: ignore[union-attr]
    again = pretrain("simclr", data(), out=out, resume=True, quiet=True, device="cpu")
    assert equal(again.encoder, result.encoder)
    network = backbones.build(config.name, image_size=32, options=config.options)
    with pytest.raises(UsageError, match="other weights than those that this run began with"):
        begin_with(network, str(init), "0123456789abcdef")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_of_a_library_begins_the_network_that_is_named(suffix: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(weights=None)  # with its classifier, which is left out
    file = tmp_path / f"weights{suffix}"
    save_file(theirs.state_dict(), file) if suffix == ".safetensors" else torch.save(
        theirs.state_dict(), file
    )
    recipe = with_settings(
        tiny_recipe("simclr"), ["backbone.options.width=64", "backbone.options.stem=imagenet"]
    )
    method = begun("simclr", file, recipe=recipe, backbone="resnet18")
    ours = method.encoder().state_dict()
    assert all(torch.equal(ours[k], v) for k, v in theirs.state_dict().items() if k[:3] != "fc.")


def test_positions_are_resized_to_the_grid(tmp_path: Path) -> None:
    options = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    small = backbones.build("vit_tiny", image_size=32, options=options)
    file = tmp_path / "w.safetensors"
    save_file(small.state_dict(), file)
    larger = backbones.build("vit_tiny", image_size=64, options=options)
    begin_with(larger, str(file), None)
    x = torch.randn(2, 3, 64, 64)
    # what the small one makes of a larger image, it makes of it by the same interpolation
    torch.testing.assert_close(larger(x).pooled, small(x).pooled, atol=1e-5, rtol=1e-5)


def test_a_pretrained_name_of_a_library_is_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def build(name: str, **kwargs: Any) -> backbones.Backbone:
        seen.update(kwargs, name=name)
        return real(name, **{**kwargs, "pretrained": False})

    real = backbones.build
    monkeypatch.setattr(backbones, "build", build)
    recipe = tiny_recipe("simclr").model_copy(update={"batch_size": 8})
    begun("simclr", "timm/resnet10t", recipe=recipe)
    assert (seen["name"], seen["pretrained"]) == ("timm/resnet10t", True)


def test_what_does_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(backbones.build("resnet10", image_size=32, options={"width": 16}).state_dict(), file)
    with pytest.raises(UsageError, match="another shape than the network's") as caught:
        begun("simclr", file)
    assert "--backbone" in str(caught.value.tip)
    save_file({"nothing": torch.zeros(1)}, file)
    with pytest.raises(UsageError, match="lacks"):
        begun("simclr", file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UsageError, match="cannot read the weights"):
        begun("simclr", file)
    with pytest.raises(UsageError, match="is a resnet10, not a resnet18"):
        begun("simclr", tiny_teacher(), backbone="resnet18")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("pwned"), "yes"))


def test_code_in_a_file_of_weights_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.pt"
    file.write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"conv1.weight": Evil()}, tmp_path / "w2.pt")
    for name in ("w.pt", "w2.pt"):
        with pytest.raises(UsageError, match="cannot read the weights"):
            begun("simclr", tmp_path / name)
    assert not (tmp_path / "pwned").exists()


# --- LoRA -----------------------------------------------------------------------------------------


def vit() -> backbones.Backbone:
    torch.manual_seed(0)
    options = {"width": 32, "depth": 2, "heads": 2, "patch": 8}
    return backbones.build("vit_tiny", image_size=32, options=options)


def test_updates_alone_learn_and_merge_into_the_same_function() -> None:
    pytest.importorskip("peft")
    network, plain = vit().eval(), vit().eval()
    add_lora(network, LoRA(r=4))
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network(x).pooled, plain(x).pooled)  # one of the two begins at zero
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learning
    assert all("lora" in name for name in learning)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name in learning:
                p.add_(0.1 * torch.randn_like(p))
    whole = merged(network).eval()
    assert whole.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(whole(x).pooled, network(x).pooled, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole(x).pooled, plain(x).pooled, atol=1e-3)
    in_double = merged(network.double())
    exact = in_double(x.double()).pooled
    torch.testing.assert_close(exact, network(x.double()).pooled, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("method", ["dino", "mae", "simclr"])
def test_a_run_with_lora_saves_an_ordinary_encoder_and_resumes(method: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    network = {
        "backbone.name": "vit_tiny",
        **{f"backbone.options.{k}": v for k, v in (("width", 32), ("depth", 2), ("patch", 8))},
    }
    recipe = tiny_recipe(method).model_copy(update={"backbone": tiny_recipe("mae").backbone})
    recipe = with_settings(recipe, [f"{k}={v}" for k, v in network.items()])
    options: dict[str, Any] = {"recipe": recipe, "quiet": True, "device": "cpu", "lora": "r=2"}
    result = pretrain(method, data(), out=tmp_path / "run", **options)
    assert not any("lora" in name for name in result.encoder.state_dict())
    loaded = selfsame.load(tmp_path / "run", device="cpu")
    images = textures(4)
    torch.testing.assert_close(loaded.embed(images), result.encoder.embed(images))
    (tmp_path / "run" / "card.json").unlink()  # as a run that was killed leaves it
    unfinished = selfsame.load(tmp_path / "run", device="cpu")
    torch.testing.assert_close(unfinished.embed(images), result.encoder.embed(images))


def test_words_that_lora_does_not_have_are_refused() -> None:
    assert lora_settings("r=4, alpha=8") == ["backbone.lora.r=4", "backbone.lora.alpha=8"]
    assert lora_settings(None) == []
    for wrong in ("8", "rank=8"):
        with pytest.raises(UsageError, match="not a setting of LoRA"):
            lora_settings(wrong)


def test_a_network_without_linear_layers_is_refused() -> None:
    pytest.importorskip("peft")
    with pytest.raises(UsageError, match="blocks have none"):
        add_lora(backbones.build("resnet10", image_size=32), LoRA())
