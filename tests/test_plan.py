from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import textures, tiny_recipe, write_photos

from selfsame import machine, methods, plan
from selfsame.data import Images
from selfsame.errors import UsageError
from selfsame.plan import Choices, Plan

CPU = "cpu"


def made(batch_size: int) -> Plan:
    recipe = tiny_recipe("simclr", batch_size=batch_size)
    return plan.make("simclr", textures(64), Choices(recipe=recipe), CPU)


def test_the_memory_estimate_grows_with_the_batch_and_leaves_no_trace() -> None:
    small, large = made(8), made(32)
    method = small.build()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    estimates = [p.memory(method) for p in (small, large)]
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    weights = sum(p.numel() * 4 for p in method.parameters())
    activations = [estimate - 4 * weights for estimate in estimates]
    assert activations[1] > 3 * activations[0] > 0
    # the input alone: two views of 8 images, kept for the first convolution's gradient
    assert activations[0] > 2 * 8 * 3 * 32 * 32 * 4


def test_many_images_get_the_papers_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MANY_IMAGES", 64)
    settings = ["batch_size=8", "backbone.name=resnet10", "epochs=1"]
    chosen = plan.make("simclr", textures(64), Choices(settings=settings), CPU)
    assert chosen.recipe.optim.name == "lars"
    assert any("recipe 'paper'" in note for note in chosen.notes)
    fewer = plan.make("simclr", textures(63), Choices(settings=settings), CPU)
    assert fewer.recipe.optim.name == "adamw"


def test_a_recipe_of_another_method_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(methods.recipe("supervised", "small", 32).to_toml())
    with pytest.raises(UsageError, match="is a recipe of supervised, not of simclr"):
        plan.make("simclr", textures(8), Choices(recipe=file), CPU)
    with pytest.raises(UsageError, match="says the size of its views") as caught:
        plan.make("supervised", textures(8), Choices(recipe=file, size=16), CPU)
    assert "views.size=16" in str(caught.value.tip)


def test_precision_is_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device(CPU)
    monkeypatch.setattr(machine, "native_bf16", lambda _: "AMX")
    assert machine.precision("auto", cpu) == ("bf16", "native here: AMX")
    assert machine.precision("fp32", cpu) == ("fp32", "as asked")
    monkeypatch.setattr(machine, "native_bf16", lambda _: None)
    assert machine.precision("auto", cpu)[0] == "fp32"
    assert machine.precision("bf16", cpu)[0] == "bf16"


def test_what_the_recipe_leaves_open_is_resolved_and_stays() -> None:
    chosen = made(8)
    assert chosen.recipe.canvas == 32
    assert chosen.recipe.precision == "fp32"
    again = plan.make("simclr", textures(64), Choices(recipe=chosen.recipe), CPU)
    assert again.recipe == chosen.recipe
    assert isinstance(chosen.images, Images)


def test_what_is_found_and_not_used_is_said(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / part, count=12, classes=2)
    (tmp_path / "train" / "readme.md").write_text("notes")
    recipe = tiny_recipe("simclr")
    chosen = plan.make("simclr", tmp_path, Choices(recipe=recipe), CPU)
    assert len(chosen.images) == 12
    assert any("train" in note and "test" in note for note in chosen.notes)
    assert any("1 .md" in note for note in chosen.notes)


def test_supervision_without_labels_is_refused() -> None:
    with pytest.raises(UsageError, match="learns from labels and the data has none") as caught:
        plan.make("supervised", textures(16), Choices(recipe=tiny_recipe("supervised")), CPU)
    assert "folder a class" in str(caught.value.tip)


def test_a_classifier_has_as_many_classes_as_the_data(tmp_path: Path) -> None:
    recipe = tiny_recipe("supervised")
    root = write_photos(tmp_path, count=12, classes=3)
    assert plan.make("supervised", root, Choices(recipe=recipe), CPU).recipe.method.classes == 3
    few = Choices(recipe=recipe, settings=("method.classes=2",))
    with pytest.raises(UsageError, match="classes is 2 and the data has 3"):
        plan.make("supervised", root, few, CPU)


@pytest.fixture
def masking(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfsame.methods.simclr import SimCLR

    monkeypatch.setattr(SimCLR, "needs", frozenset({"keep"}))


@pytest.mark.usefixtures("masking")
@pytest.mark.parametrize("backbone", ["resnet18", "timm/swin_tiny_patch4_window7_224"])
def test_a_network_that_cannot_is_refused_by_name_before_it_is_built(
    backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan.backbones, "build", lambda *_, **__: pytest.fail("it was built"))
    with pytest.raises(UsageError, match="can leave tokens out") as caught:
        plan.make("simclr", textures(32), Choices(recipe="small", backbone=backbone), CPU)
    assert "--backbone vit_tiny works" in str(caught.value.tip)


@pytest.mark.usefixtures("masking")
def test_vision_transformers_of_ours_and_timms_can_leave_tokens_out() -> None:
    for name in ("vit_tiny", "timm/deit_tiny_patch16_224", "timm/vit_tiny_patch16_224"):
        made = plan.make("simclr", textures(32), Choices(recipe="small", backbone=name), CPU)
        assert made.recipe.backbone.name == name


def test_a_network_that_takes_one_size_is_refused_for_crops_of_two() -> None:
    recipe = methods.recipe("simclr", "small", 224)
    local = recipe.views[0].model_copy(update={"name": "local", "size": 96})
    recipe = recipe.model_copy(update={"views": (*recipe.views, local)})

    def build(name: str) -> None:
        chosen = Choices(recipe=recipe, backbone=f"timm/{name}", settings=["batch_size=8"])
        plan.make("simclr", textures(32), chosen, CPU).build()

    build("convnext_atto")
    with pytest.raises(UsageError, match="fails on crops of 96 px") as caught:
        build("mixer_s32_224")
    assert "views.size=224" in str(caught.value.tip)


def test_another_network_of_the_family_keeps_what_the_method_asks_of_it() -> None:
    def options(backbone: str) -> dict[str, object]:
        chosen = Choices(recipe="small", backbone=backbone)
        return dict(plan.make("mae", textures(32), chosen, CPU).recipe.backbone.options)

    recipe = methods.recipe("mae", "small", 32)
    assert recipe.backbone.options["depth"] == 6
    small = options("vit_small")  # its own depth, the paper's positions
    assert small == {k: v for k, v in recipe.backbone.options.items() if k != "depth"} | {
        "patch": 4
    }
    assert options("timm/vit_tiny_patch16_224") == {}
