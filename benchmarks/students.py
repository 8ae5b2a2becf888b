"""Students of one teacher: a table of all losses, features without labels, a class never seen.

Everything learns from the CIFAR-10 sample that ships with selfsame: 8,000 images to learn from,
2,000 to test on, a ResNet-14 of width 64 as teacher and one of width 16 (a fifteenth of its work)
or 28 (a fifth) as student. Resumable: what is finished is kept in the folder.

    scripts/students [--seeds 3] [--folder runs/students] [--parts losses,features]

- losses: the teacher learnt from the labels. Each loss teaches the student for the same steps; the
  control is the student that learns from the labels alone.
- features: of a teacher that learnt without labels (SimCLR), and of the one that learnt from them,
  teach the student, which sees no label. It is compared with the teacher, with itself at random
  initialisation, and with itself after SimCLR for the same CPU time.
- missing: Fashion-MNIST, from the folder that ``SELFSAME_DATA`` names. The student never sees
  dresses, and knows them from what its teacher says of other clothes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "students.json"

TEACHER_WIDTH, SMALL, MIDDLE = 64, 16, 28
LOSSES: dict[str, list[str]] = {
    "kd": [],
    "dkd": [],
    "fitnets": [],
    "attention_transfer": [],
    "rkd": [],
    "crd": [],
    "kd + crd": ["method.alpha=0.9"],
    "seed": ["method.labels=1", "method.classes=10"],
    "distill": ["method.labels=1", "method.classes=10"],
}


def recipe_of(method: str, width: int, steps: int, seed: int, *settings: str) -> Any:
    """The small recipe of a method on the network of this table."""
    from selfsame import methods
    from selfsame.recipe import with_settings

    chosen = [f"backbone.options.{k}={v}" for k, v in (("stem", "patch"), ("width", width))]
    fixed = ["backbone.name=resnet14", *chosen, f"steps={steps}", f"seed={seed}"]
    return with_settings(methods.recipe(method, "small", 32), [*fixed, *settings])


def train(out: Path, method: str, recipe: Any, **more: Any) -> dict[str, Any]:
    """Train to the end and score: kNN, and the accuracy of the classifier where there is one."""
    from selfsame import api, demo
    from selfsame.evals import Data, Subject, evaluators, score

    done = out / "result.json"
    if done.is_file():
        return dict(json.loads(done.read_text("utf-8")))
    data = demo.sample()
    begin = time.process_time()
    result = api.pretrain(
        method, data.train, out=out, recipe=recipe, resume=True, quiet=True, device="cpu", **more
    )
    seconds = time.process_time() - begin
    encoder = result.encoder
    scores = score(Subject(encoder), Data(data), evaluators(["knn"], []).values())
    found: dict[str, Any] = {"knn": scores["knn"], "cpu_seconds": round(seconds, 1)}
    if encoder.head is not None:
        right = 0
        with encoder.open(data.test) as images:
            for batch in images.readable(500):
                guess = encoder.scores(batch.images, batch.sizes).argmax(1)
                right += int((guess == batch.label).sum())
        found["accuracy"] = right / len(data.test)
    done.write_text(json.dumps(found), "utf-8")
    return found


def flops(width: int) -> int:
    """Floating-point operations of a forward pass of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from selfsame import backbones

    options = {"stem": "patch", "width": width}
    built = backbones.build("resnet14", image_size=32, options=options).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(torch.zeros(1, 3, 32, 32))
    return int(counter.get_total_flops())


def supervised_teacher(folder: Path) -> Path:
    """The run of the network that learns from labels for ten epochs."""
    settings = ["method.classes=10", "batch_size=64"]
    recipe = recipe_of("supervised", TEACHER_WIDTH, 1250, 0, *settings)
    train(folder / "teacher-supervised", "supervised", recipe)
    return folder / "teacher-supervised"


def losses(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Students of a teacher that learnt from labels."""
    teacher = supervised_teacher(folder)
    found = {
        "teacher": train(teacher, "supervised", None),
        "labels alone": train(
            folder / f"labels-{seed}",
            "supervised",
            recipe_of(
                "supervised", SMALL, steps, seed, "method.classes=10", "batch_size=64", *SAME
            ),
        ),
    }
    for name, settings in LOSSES.items():
        method = name.rpartition(" ")[2]
        recipe = recipe_of(method, SMALL, steps, seed, *settings, "view_sets=5", *VIEWS)
        out = folder / f"{name.replace(' + ', '-')}-{seed}"
        found[name] = train(out, method, recipe, teacher=teacher)
    return found


# the supervised control gets the optimiser of the students, and all the same views
SAME = ["optim.lr=2e-3", "optim.scaling=sqrt", "optim.reference_batch=64", "view_sets=5"]
VIEWS = ["views.jitter=0", "views.grayscale=0", "views.blur=0", "views.scale=[0.4,1.0]"]


def features(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Students of a teacher that learnt without labels."""
    from selfsame import backbones, demo
    from selfsame.encoder import Encoder, random_like
    from selfsame.evals import Data, Subject, evaluators, score
    from selfsame.recipe import BackboneConfig

    simclr = demo.recipe()

    def like_demo(width: int, steps: int, seed: int) -> Any:
        options = {"stem": "patch", "width": width}
        backbone = BackboneConfig(name="resnet14", options=options)
        return simclr.model_copy(update={"backbone": backbone, "steps": steps, "seed": seed})

    teacher = folder / "teacher-simclr"
    found = {"teacher": train(teacher, "simclr", like_demo(TEACHER_WIDTH, 1200, 0))}
    recipe = recipe_of("distill", MIDDLE, 3 * steps, seed, "view_sets=8")
    # the views of the teacher's own training
    view = simclr.views[0].model_copy(update={"count": 1})
    recipe = recipe.model_copy(update={"views": (view,)})
    found["distill"] = train(folder / f"features-{seed}", "distill", recipe, teacher=teacher)
    better = supervised_teacher(folder)
    found["better teacher"] = train(better, "supervised", None)
    recipe = recipe_of("distill", MIDDLE, 3 * steps, seed, "view_sets=8", *VIEWS)
    out = folder / f"features-better-{seed}"
    found["distill, better teacher"] = train(out, "distill", recipe, teacher=better)
    # the same CPU time for SimCLR: its steps from the time that a few take
    budget = folder / "simclr.steps"
    if not budget.is_file():
        short = train(folder / "timing", "simclr", like_demo(MIDDLE, 40, 0))
        longer = train(folder / "timing2", "simclr", like_demo(MIDDLE, 120, 0))
        each = (longer["cpu_seconds"] - short["cpu_seconds"]) / 80
        budget.write_text(str(max(1, round(found["distill"]["cpu_seconds"] / each))), "utf-8")
    alone = int(budget.read_text("utf-8"))
    recipe = like_demo(MIDDLE, alone, seed)
    found[f"simclr alone, {alone:,} steps"] = train(folder / f"alone-{seed}", "simclr", recipe)
    config = BackboneConfig(name="resnet14", options={"stem": "patch", "width": MIDDLE})
    built = backbones.build(config.name, image_size=32, options=config.options)
    random = random_like(Encoder(built, config=config, image_size=32), seed)
    assert random is not None
    scores = score(Subject(random), Data(demo.sample()), evaluators(["knn"], []).values())
    found["random initialisation"] = {"knn": scores["knn"]}
    return found


def missing(folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """Hinton's experiment with a class that the student never sees (arXiv 1503.02531, section 3).

    Fashion-MNIST. The teacher learns ten classes; one student learns the teacher's probabilities on
    images of nine of them, the control their labels. Then the bias of the missing class is raised
    until it is predicted as often as it is.
    """
    import torch

    from selfsame import api, methods
    from selfsame.data.arrays import ArraySource
    from selfsame.recipe import with_settings

    arrays = fashion_mnist()
    classes = [str(name) for name in arrays["classes"]]
    x, y = arrays["train_x"][..., None], arrays["train_y"].astype("int64")
    test_x, test_y = arrays["test_x"][..., None], torch.from_numpy(arrays["test_y"].astype("int64"))
    some = y != MISSING
    every, nine = ArraySource(x, y, classes), ArraySource(x[some], y[some], classes)
    options = ["backbone.name=resnet8", "backbone.options.stem=patch", "batch_size=64", *VIEWS]

    def learn(name: str, method: str, source: Any, width: int, steps: int, *more: str) -> Any:
        chosen = [*options, f"backbone.options.width={width}", f"steps={steps}", f"seed={seed}"]
        recipe = with_settings(methods.recipe(method, "small", 28), [*chosen, *more])
        teacher = {} if method == "supervised" else {"teacher": folder / f"ten-{seed}"}
        return api.pretrain(
            method,
            source,
            out=folder / f"{name}-{seed}",
            recipe=recipe,
            resume=True,
            quiet=True,
            device="cpu",
            **teacher,
        ).encoder

    def judged(encoder: Any) -> dict[str, float]:
        with encoder.open(ArraySource(test_x)) as images:
            parts = [encoder.scores(b.images, b.sizes) for b in images.readable(500)]
        scores = torch.cat(parts)
        there = test_y == MISSING
        found = {}
        for name, bias in (("", 0.0), (" (bias raised)", raised(scores, there.float().mean()))):
            shifted = scores.clone()
            shifted[:, MISSING] += bias
            guess = shifted.argmax(1)
            found[f"accuracy{name}"] = (guess == test_y).float().mean().item()
            found[f"missing class{name}"] = (guess[there] == MISSING).float().mean().item()
        return found

    teacher = learn("ten", "supervised", every, 32, 900, "method.classes=10", *SAME[:-1])
    soft = ["method.alpha=1", "method.labels=0", "method.temperature=8", "view_sets=5"]
    student = learn("nine-soft", "kd", nine, 16, steps, *soft)
    control = learn("nine-hard", "supervised", nine, 16, steps, "method.classes=10", *SAME[:-1])
    found = {"teacher": teacher, "student of the teacher": student, "student of labels": control}
    return {name: judged(encoder) for name, encoder in found.items()}


def raised(scores: Any, share: Any) -> float:
    """What to add to the scores of the missing class for it to be predicted for this share."""
    import torch

    others = scores.clone()
    others[:, MISSING] = -torch.inf
    short_of = others.amax(1) - scores[:, MISSING]  # [N]: above this the class is predicted
    return float(short_of.quantile(share)) + 1e-6


def fashion_mnist() -> dict[str, Any]:
    """The arrays of the set in the folder that SELFSAME_DATA names."""
    import io
    import lzma

    import numpy as np

    file = Path(os.environ.get("SELFSAME_DATA", "")) / "fashion-mnist.npz.xz"
    return dict(np.load(io.BytesIO(lzma.open(file).read())))


MISSING = 3  # dresses

PARTS = {"losses": losses, "features": features, "missing": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="of a student; 3x for features")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "students")
    parser.add_argument("--parts", default="losses,features,missing")
    parser.add_argument("--one", help="run one part with one seed: PART:SEED")
    args = parser.parse_args()
    os.environ.setdefault("SELFSAME_CACHE", str(args.folder / "cache"))
    if args.one:
        part, seed = args.one.split(":")
        print(json.dumps(PARTS[part](args.folder, int(seed), args.steps)))
        return
    rows: dict[str, Any] = json.loads(ROWS.read_text("utf-8")) if ROWS.is_file() else {}
    rows["steps"] = args.steps
    for part in args.parts.split(","):
        runs = []
        for seed in range(args.seeds):
            command = [sys.executable, __file__, "--one", f"{part}:{seed}"]
            command += ["--steps", str(args.steps), "--folder", str(args.folder)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(part, seed, runs[-1], flush=True)
        rows[part] = {
            name: {
                key: [run[name][key] for run in runs if name in run and key in run[name]]
                for key in runs[0][name]
            }
            for name in runs[0]
        }
        for name, values in rows[part].items():
            words = [
                f"{key} {statistics.mean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}"
                for key, v in values.items()
            ]
            print(f"{name:28s} {', '.join(words)}", flush=True)
    rows["flops"] = {str(width): flops(width) for width in (TEACHER_WIDTH, MIDDLE, SMALL)}
    ROWS.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
