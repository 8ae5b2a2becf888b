from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from selfsame import methods
from selfsame.errors import UsageError
from selfsame.recipe import Recipe, differences, with_settings
from selfsame.views.spec import View


@pytest.fixture
def recipe() -> Recipe:
    return methods.recipe("simclr", "small", 32)


def test_settings_change_typed_fields_and_nothing_else(recipe: Recipe) -> None:
    changed = with_settings(
        recipe,
        [
            "method.temperature=0.3",
            "optim.name=lars",
            "optim.weight_decay=0",
            "backbone.options.width=16",
            "views.size=48",
            "views.0.scale=[0.5, 1.0]",
        ],
    )
    assert changed.method.temperature == 0.3  # type: ignore[attr-defined]
    assert changed.optim.name == "lars"
    assert changed.backbone.options == {"width": 16}
    assert changed.views[0].size == 48
    assert changed.views[0].scale == (0.5, 1.0)
    assert len(differences(recipe, changed)) == 6
    assert with_settings(recipe, []) == recipe


def test_steps_replace_epochs_and_back(recipe: Recipe) -> None:
    assert recipe.epochs is not None
    by_steps = with_settings(recipe, ["steps=10"])
    assert (by_steps.epochs, by_steps.steps) == (None, 10)
    assert by_steps.total_steps(7) == 10
    by_epochs = with_settings(by_steps, ["epochs=2.5"])
    assert (by_epochs.epochs, by_epochs.steps) == (2.5, None)
    assert by_epochs.total_steps(4) == 10


@pytest.mark.parametrize(
    ("setting", "words", "tip"),
    [
        ("method.temprature=1", "no key 'method.temprature'", "method.temperature"),
        ("optm.lr=1", "no key 'optm.lr'", "'optim'"),
        ("views.1.size=8", "no key 'views.1.size'", "0"),
        ("method.temperature=hot", "method.temperature", None),
        ("method.temperature=-1", "method.temperature", None),
        ("optim.name=adam", "optim.name", None),
        ("batch_size=1", "batch_size", None),
        ("nonsense", "is not a setting", "key=value"),
        ("optim=3", "optim", None),
        ("seed=-1", "seed", None),
        ("views.scale=[0.9, 0.1]", "scale", None),
    ],
)
def test_wrong_settings_are_refused_by_name(
    recipe: Recipe, setting: str, words: str, tip: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        with_settings(recipe, [setting])
    assert words in str(caught.value)
    if tip is not None:
        assert tip in str(caught.value.tip)


def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    with pytest.raises(UsageError, match="no recipe file"):
        methods.read_recipe(file)
    file.write_text("this is = not = toml")
    with pytest.raises(UsageError, match="not valid TOML"):
        methods.read_recipe(file)
    file.write_text("batch_size = 8\n")
    with pytest.raises(UsageError, match="names no method"):
        methods.read_recipe(file)
    file.write_text('epochs = 1\nbatchsize = 8\n[method]\nname = "simclr"\n')
    with pytest.raises(UsageError, match=r"batchsize: no such key; did you mean 'batch_size'\?"):
        methods.read_recipe(file)
    file.write_text('epochs = 1\n[method]\nname = "simclr"\ntemperatur = 1\n')
    with pytest.raises(UsageError, match=r"method\.temperatur: no such key; did you mean"):
        methods.read_recipe(file)
    file.write_text('epochs = 1\nsteps = 1\n[method]\nname = "simclr"\n')
    with pytest.raises(UsageError, match="either epochs or steps"):
        methods.read_recipe(file)


def test_recipes_are_frozen_and_strict(recipe: Recipe) -> None:
    with pytest.raises(ValidationError):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        View(sise=3)  # type: ignore[call-arg]


def test_the_paper_recipe_has_the_papers_numbers() -> None:
    """Section 2.1, appendix A and table B.1 of arXiv 2002.05709."""
    paper = methods.recipe("simclr", "paper", 224)
    assert (paper.batch_size, paper.epochs) == (4096, 1000)
    assert (paper.optim.name, paper.optim.lr, paper.optim.scaling) == ("lars", 0.3, "linear")
    assert (paper.optim.weight_decay, paper.optim.warmup) == (1e-6, 10)
    assert paper.method.temperature == 0.1  # type: ignore[attr-defined]
    view = paper.views[0]
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (view.jitter, view.grayscale, view.blur, view.flip) == (0.8, 0.2, 0.5, 0.5)
    assert view.scale == (0.08, 1.0)
    cifar = methods.recipe("simclr", "paper", 32)
    assert cifar.views[0].blur == 0
    assert (cifar.views[0].brightness, cifar.views[0].hue) == (0.4, 0.1)
    assert cifar.method.temperature == 0.5  # type: ignore[attr-defined]
