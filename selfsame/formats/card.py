"""The model card of an export: ``README.md`` for people, ``export.json`` for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsame import __version__, checkpoint, methods
from selfsame.encoder import EXPORT, Encoder
from selfsame.evals import EVALUATORS, find
from selfsame.formats.check import Difference, Findings, Own, at
from selfsame.formats.format import Format, Reading
from selfsame.formats.preprocess import Preprocess
from selfsame.run import RunDirectory

LICENCE = "Licence of these weights: (fill in; selfsame's own licence says nothing about them)"


def facts_of(encoder: Encoder, model: Any) -> dict[str, Any]:
    """What is known of an encoder, from its card and the run that it lies in.

    ``scores`` maps protocols to the newest score and, as ``on``, what it was measured on.
    """
    card = encoder.card
    network = encoder.config.name if encoder.config else type(encoder.backbone).__name__
    options = dict(encoder.config.options) if encoder.config else {}
    if not encoder.config and hasattr(encoder.backbone, "module"):
        network = type(encoder.backbone.module).__name__
    facts = {
        "network": network,
        "options": options,
        "dim": encoder.dim,
        "method": card.get("method"),
        "recipe": card.get("recipe"),
        "step": card.get("step"),
        "steps": card.get("steps"),
        "data": {"fingerprint": card.get("data"), "images": None},
        "health": card.get("evaluation"),
        "scores": {},
        "preprocess": Preprocess.of(encoder).facts(),
        "classes": list(encoder.classes) if encoder.head is not None and encoder.classes else None,
        "selfsame": __version__,
    }
    if isinstance(model, str | Path) and (Path(model) / "recipe.toml").is_file():
        run = RunDirectory.open(model)
        known = run.info()
        facts["data"] = {
            "fingerprint": card.get("data") or known.get("data", {}).get("fingerprint"),
            "images": known.get("data", {}).get("images"),
        }
        facts["scores"] = _scores(run.rows("eval"))
        if facts["method"] is None:  # a run that is going on
            recipe, newest = methods.read_recipe(run.recipe), checkpoint.latest(run.checkpoints)
            facts |= {"method": recipe.method.name, "recipe": recipe.hash()}
            facts["step"] = None if newest is None else checkpoint.step_of(newest)
    elif isinstance(model, str | Path) and (Path(model) / EXPORT).is_file():
        before = json.loads((Path(model) / EXPORT).read_text("utf-8"))
        facts |= {key: before.get(key, facts[key]) for key in ("data", "scores")}
    return facts


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest headline of each protocol, from probes during the run and from ``evaluate``."""
    found: dict[str, Any] = {}
    for row in rows:
        names = [name for name in str(row.get("protocol", "")).split(",") if name in EVALUATORS]
        scores = row.get("results", {}).get("model", row)
        for name in names:
            if isinstance(scores.get(name), int | float):
                on = row.get("data") or (
                    f"{row.get('train_images', '?')} and {row.get('test_images', '?')} images "
                    "during the run"
                )
                found[name] = {"score": scores[name], "on": on, "step": row.get("step")}
                if f"{name}_interval" in scores:
                    found[name]["interval"] = scores[f"{name}_interval"]
    return found


def readme(
    kind: Format,
    reading: Reading,
    found: Findings,
    facts: Mapping[str, Any],
    pre: Preprocess,
    int8: Sequence[str] = (),
) -> str:
    """The card as Markdown."""
    here = at(reading, Path("."))
    data = facts["data"]
    trained = [
        f"* network: {facts['network']}{_options(facts['options'])}, {facts['dim']} features"
    ]
    if facts["method"]:
        trained += [
            f"* method: {facts['method']}, recipe `{facts['recipe']}`{_steps(facts)}",
            f"* data: {_count(data['images'])}fingerprint `{data['fingerprint']}`",
        ]
    else:
        trained.append("* training: not recorded (a network by its name, or a module)")
    if facts["classes"]:
        trained.append(f"* classes: {', '.join(facts['classes'])}")
    scores = [
        f"| {find(name).title or name} | {_score(value)} | {value['on']} |"
        for name, value in facts["scores"].items()
    ]
    if scores:
        scores = ["| protocol | score | on |", "|---|---:|---|", *scores]
    else:
        scores = ["Not evaluated yet: `selfsame evaluate RUN LABELLED/`."]
    if (facts["health"] or {}).get("rankme"):
        scores += [
            "",
            f"RankMe of the features: {facts['health']['rankme']:.1f} of {facts['dim']}.",
        ]
    checked = [f"Read by {found.version} in a process of its own, on {found.images}:", ""]
    checked += _table(kind, found)
    if found.own is not None:
        checked += ["", f"Pixels {own_words(reading, found.own)}."]
    use = _block(here.use) if here.use else []
    transform = _block(here.transform) if here.transform else []
    return "\n".join(
        [
            f"# {facts['network']}, {facts['method'] or 'exported'}",
            "",
            LICENCE,
            "",
            f"Written by selfsame {facts['selfsame']} for {kind.library}"
            + (f" ({'; '.join(reading.notes)})." if reading.notes else "."),
            "",
            "## Load",
            "",
            "In this folder:",
            "",
            *_block(here.load),
            *(["With `x`, float32 [B, C, S, S] as below:", "", *use] if use else []),
            "## Preprocessing",
            "",
            pre.words()[0].upper() + pre.words()[1:] + ".",
            "",
            *transform,
            "## Training",
            "",
            *trained,
            "",
            "## Scores",
            "",
            *scores,
            "",
            "## Check",
            "",
            *checked,
            *(["", "int8 beside it:", "", *(f"* {line}" for line in int8)] if int8 else []),
            "",
        ]
    )


def describe(kind: Format, reading: Reading, found: Findings) -> list[str]:
    """What the check has found, a line each, with a word in front."""
    if kind.tolerance == 0:
        return [f"same       {d.what}: every bit" for d in found.differences]
    lines = []
    for case in dict.fromkeys(d.on for d in found.differences):
        here = [d for d in found.differences if d.on == case]
        lines.append(f"same       {case}: {', '.join(map(_difference, here))}")
    if any(d.largest for d in found.differences):
        lines.append(
            "           the largest differences, in brackets over the largest value, where "
            f"{kind.tolerance:.0e} is allowed"
        )
    if found.own is not None:
        lines.append(f"pixels     {own_words(reading, found.own)}")
    return lines


def _difference(d: Difference) -> str:
    return f"{d.what} {d.largest:.1e} ({d.relative:.1e})" if d.largest else f"{d.what} equal"


def own_words(reading: Reading, own: Own) -> str:
    """How the library's preprocessing compares."""
    return (
        f"by {reading.transformer}: off by {own.mean:.2f} levels of 255 in the mean, "
        f"{own.largest:.0f} at most; cosine of the features {own.cosine:.4f} or more"
    )


def _table(kind: Format, found: Findings) -> list[str]:
    """The differences as Markdown."""
    if kind.tolerance == 0:
        return [f"{d.what[0].upper()}{d.what[1:]}: every bit the same." for d in found.differences]
    return [
        "| input | output | largest difference | over the largest value | allowed |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {d.on} | {d.what} | {d.largest:.1e} | {d.relative:.1e} | {kind.tolerance:.0e} |"
            for d in found.differences
        ),
    ]


def _block(lines: Sequence[str]) -> list[str]:
    return ["```python", *lines, "```", ""]


def _options(options: Mapping[str, Any]) -> str:
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return f" ({words})" if words else ""


def _steps(facts: Mapping[str, Any]) -> str:
    if facts["step"] is None:
        return ""
    return f", step {facts['step']:,}" + (f" of {facts['steps']:,}" if facts["steps"] else "")


def _count(images: int | None) -> str:
    return f"{images:,} images, " if images else ""


def _score(value: Mapping[str, Any]) -> str:
    text = f"{100 * value['score']:.1f} %"
    if "interval" in value:
        low, high = value["interval"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text
