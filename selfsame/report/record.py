"""What a run directory says of its run: read once, never written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from selfsame import checkpoint
from selfsame.data import steps_per_epoch
from selfsame.errors import RunError, UsageError
from selfsame.recipe import flat, read_toml
from selfsame.run import RunDirectory

Row = Mapping[str, Any]

APART = ("step", "protocol", "model", "data", "results")  # what is no score in a row of eval.jsonl


class Score(NamedTuple):
    """The headline of a protocol, a fraction."""

    value: float
    interval: tuple[float, float] | None  # 95 %, over test images; None where it was not measured
    on: str = "images of --val"  # what it was measured on, as `evaluate` says
    fingerprint: str | None = None  # of that


class Table(NamedTuple):
    """One evaluation: the model and its controls under one or several protocols."""

    step: int
    protocol: str
    data: str
    fingerprint: str | None  # of the data; None of an evaluation that did not write it
    seen: str | None  # a warning where the test images were trained on
    results: dict[str, dict[str, Any]]  # scores of the model, then of each control

    def headlines(self) -> list[str]:
        """Names of the scores that have an interval, in order."""
        keys = (key for scores in self.results.values() for key in scores)
        found = [key.removesuffix("_interval") for key in keys if key.endswith("_interval")]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Record:
    """A run as its directory tells it."""

    run: RunDirectory
    name: str  # the shortest end of the path that tells it from the other runs
    recipe: dict[str, Any]  # plain values
    info: dict[str, Any]  # run.json
    card: dict[str, Any]  # card.json; empty before the run has ended
    metrics: Sequence[Row]
    evals: Sequence[Row]
    bad: Sequence[Row]

    @property
    def path(self) -> Path:
        """The run directory."""
        return self.run.path

    @property
    def steps(self) -> int:
        """Optimiser steps that are known to be done."""
        rows = [int(row.get("step", 0)) for row in (*self.metrics, *self.evals)]
        newest = checkpoint.latest(self.run.checkpoints)
        saved = 0 if newest is None else checkpoint.step_of(newest)
        return max([saved, int(self.card.get("step", 0)), *rows])

    @property
    def total(self) -> int | None:
        """Optimiser steps of the whole run; None where its directory does not say."""
        if "steps" in self.card:
            return int(self.card["steps"])
        if "steps" in self.recipe:
            return int(self.recipe["steps"])
        images, batch = self.info.get("data", {}).get("images"), self.recipe.get("batch_size")
        if images is None or batch is None or images < batch or "epochs" not in self.recipe:
            return None
        return max(1, round(float(self.recipe["epochs"]) * steps_per_epoch(images, batch)))

    @property
    def seconds(self) -> float | None:
        """Time spent in training steps, from the throughput; evaluation and saving not counted."""
        spent, before, batch = 0.0, 0, self.recipe.get("batch_size", 0)
        for row in self.metrics:
            rate = row.get("images_per_second") or 0
            if rate > 0:
                spent += (row["step"] - before) * batch / rate
            before = row["step"]
        return spent or None

    @property
    def verdict(self) -> Row | None:
        """The newest verdict, if there is one."""
        return next((row for row in reversed(self.evals) if row["protocol"] == "verdict"), None)

    @property
    def health(self) -> dict[str, float]:
        """The numbers of the newest label-free health; empty where it was not measured."""
        rows = (row for row in reversed(self.evals) if row["protocol"] == "health")
        return numbers(next(rows, {}))

    def settings(self) -> dict[str, Any]:
        """The recipe with dotted keys, without its words about itself."""
        return {k: v for k, v in flat(self.recipe).items() if k not in ("source", "deviations")}

    def tables(self) -> list[Table]:
        """Evaluations with controls, newest first, one for each protocol and data set."""
        found: dict[tuple[str, str, str | None], Table] = {}
        for row in reversed(self.evals):
            results = row.get("results")
            if isinstance(results, dict) and results:
                key = str(row["protocol"]), str(row.get("data", "")), row.get("fingerprint")
                table = Table(int(row.get("step", 0)), *key, row.get("seen"), results)
                found.setdefault(key, table)
        return list(found.values())

    def online(self) -> dict[str, list[tuple[int, float]]]:
        """Numbers measured during the run beside health, by name: (step, value) each."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.evals:
            if row["protocol"] in ("health", "verdict") or "results" in row:
                continue
            for key, value in numbers(row).items():
                found.setdefault(key, []).append((int(row.get("step", 0)), value))
        return found

    def scores(self) -> dict[str, Score]:
        """The newest value of each headline of the model.

        Those of ``evaluate``; where there are none, what was measured during the run. kNN and the
        linear probe come first, whatever was asked for last.
        """
        found: dict[str, Score] = {}
        for table in self.tables():
            model = next(iter(table.results.values()))
            for key in table.headlines():
                if key in model:
                    score = _score(model, key)._replace(
                        on=table.data, fingerprint=table.fingerprint
                    )
                    found.setdefault(key, score)
        for row in reversed(self.evals):
            protocol = row["protocol"]
            if "results" not in row and isinstance(row.get(protocol), int | float):
                found.setdefault(protocol, _score(row, protocol))
        usual = [key for key in ("knn", "linear") if key in found]
        return {key: found[key] for key in dict.fromkeys([*usual, *found])}


def read(paths: Sequence[str | Path]) -> list[Record]:
    """Read run directories.

    Raises:
        UsageError: a path is no run directory, or is given twice.
        RunError: a file of it is damaged.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise UsageError("no run is given", tip="selfsame report runs/a")
    whole = [folder.resolve() for folder in folders]
    for i, folder in enumerate(whole):
        if folder in whole[:i]:
            raise UsageError(f"{folders[i]} is given twice", tip="name each run once")
        if not (folder / "recipe.toml").is_file():
            tip = "name the folder that pretrain --out wrote"
            if not folder.exists():
                raise UsageError(f"{folders[i]} does not exist", tip=tip)
            raise UsageError(f"{folders[i]} is no run directory: it has no recipe.toml", tip=tip)
    return [_read(folder, name) for folder, name in zip(folders, _names(whole), strict=True)]


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row, without its step. A null stands for one that is not finite."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in row.items()
        if key not in APART
        and (value is None or (isinstance(value, int | float) and not isinstance(value, bool)))
    }


def differences(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The keys at which recipes differ, with each run's value; None where it has none."""
    settings = [record.settings() for record in records]
    keys = dict.fromkeys(key for each in settings for key in each)
    values = {key: [each.get(key) for each in settings] for key in keys}
    return {key: each for key, each in values.items() if any(v != each[0] for v in each)}


def not_comparable(scores: Sequence[Mapping[str, Score]]) -> list[str]:
    """The scores that runs have from different data, so that their numbers say nothing together."""
    keys = dict.fromkeys(key for each in scores for key in each)
    return [
        key
        for key in keys
        if len({each[key].fingerprint or each[key].on for each in scores if key in each}) > 1
    ]


def _score(scores: Row, key: str) -> Score:
    interval = scores.get(f"{key}_interval")
    return Score(float(scores[key]), None if interval is None else (interval[0], interval[1]))


def _read(folder: Path, name: str) -> Record:
    run = RunDirectory.open(folder)
    card = folder / "card.json"
    try:
        return Record(
            run,
            name,
            read_toml(run.recipe),
            run.info(),
            dict(json.loads(card.read_text("utf-8"))) if card.is_file() else {},
            [row for row in run.rows("metrics") if "step" in row],
            [row for row in run.rows("eval") if isinstance(row.get("protocol"), str)],
            run.rows("bad_images"),
        )
    except (ValueError, AttributeError) as error:  # JSON that is cut, or that is no object
        raise RunError(
            f"a file of {folder} is damaged: {error}",
            tip="continue the run with --resume, which writes its rows anew",
        ) from None


def _names(folders: Iterable[Path]) -> list[str]:
    """The shortest ends of paths that are all different."""
    parts = [folder.parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part) for part in parts]


# Words and numbers for people, in the page and in the terminal. -------------------------------

TITLES = {
    "knn": "kNN (k=20)",
    "knn_top5": "kNN, top 5",
    "linear": "linear probe",
    "retrieval": "retrieval mAP",
    "cluster": "cluster accuracy",
    "cluster_nmi": "NMI",
    "cluster_ari": "ARI",
    "copies": "copies mAP",
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "rankme": "RankMe (effective rank)",
    "feature_std": "feature deviation",
    "feature_std_reference": "its reference, 1/sqrt(d)",
    "spread": "deviation of projections (1: isotropic, 0: collapsed)",
    "information": "information of prototypes about images, nats",
    "teacher_entropy": "teacher entropy, nats",
    "negatives": "entropy over negatives (1: all alike)",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "neighbor_distance": "distance to the nearest neighbour",
    "images_per_second": "images per second",
    "waiting": "share of time waiting for data",
    "weight_decay": "weight decay",
}


def title(key: str) -> str:
    """A name for people."""
    return TITLES.get(key, key.replace("_", " "))


def percent(value: float | None) -> str:
    """A fraction as per cent; None stands for what is not finite."""
    return "not finite" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def number(value: float | None) -> str:
    """A number in as few characters as it needs; None stands for what is not finite."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {whole % 60:02d} s"


def value(setting: Any) -> str:
    """A setting of a recipe nearly as TOML would write it, a dash where it is not set."""
    if setting is None:
        return "-"
    if isinstance(setting, list):
        return f"[{', '.join(map(value, setting))}]"
    if isinstance(setting, float):
        return f"{setting:.6g}"
    return json.dumps(setting, ensure_ascii=False)
