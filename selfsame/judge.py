"""Judges a run while it goes and at its end: label-free health always, probes where labels are."""

from __future__ import annotations

from selfsame.console import Console
from selfsame.data import Labelled
from selfsame.encoder import Encoder, of_recipe
from selfsame.evals.online import Online
from selfsame.evals.verdict import Verdict
from selfsame.evals.watch import Watch
from selfsame.plan import Plan
from selfsame.run import RunDirectory
from selfsame.types import Method

EVALUATIONS = 10  # of a run, evenly spaced


def encoder_of(plan: Plan, method: Method) -> Encoder:
    """The encoder that a method trains."""
    return of_recipe(method, plan.recipe, named=plan.module is None, classes=plan.classes)


class Judge:
    """Judges a run while it goes and at its end, into its ``eval.jsonl``.

    Args:
        plan: of the run.
        run: where the rows go.
        console: where they are said.
        labelled: images for kNN and a linear probe, if any.
    """

    def __init__(
        self, plan: Plan, run: RunDirectory, console: Console, labelled: Labelled | None
    ) -> None:
        self.plan = plan
        self.run = run
        self.console = console
        self.every = max(1, plan.total // EVALUATIONS)  # steps between calls
        self.watch = Watch(run, plan.images, plan.recipe, plan.total, self.every)
        self.online = None if labelled is None else Online(labelled)

    def close(self) -> None:
        """Let go of the labelled images."""
        if self.online is not None:
            self.online.close()

    def __call__(self, method: Method, step: int) -> None:
        """Judge the method after ``step`` steps, unless that was done before a stop."""
        self._begin()
        encoder = encoder_of(self.plan, method)
        if self.watch.due(step):
            self.watch.measure(encoder, step)
        online, before = self.online, {(r["step"], r["protocol"]) for r in self.run.rows("eval")}
        if online is None or (step, "linear") in before:
            return
        if online.due(encoder, last=step == self.plan.total):
            found = online(encoder)
            rows = ({"step": step, "protocol": name, **found[name]} for name in found)
            self.run.append("eval", rows)
            said = f"kNN {found['knn']['knn']:.3f}, linear {found['linear']['linear']:.3f}"
            self.console.say(f"step {step:,}: {said}")

    def health(self, encoder: Encoder, steps: int) -> dict[str, float]:
        """Label-free health of what the run ended with."""
        self._begin()
        return self.watch.measure(encoder, steps)

    def verdict(self, steps: int, diverged: str | None = None) -> Verdict:
        """What all of it amounts to."""
        return self.watch.verdict(steps, diverged)

    def describe(self) -> list[str]:
        """How often labels were asked, in words."""
        asked = self.online is not None and self.online.count
        return [f"judged     {self.online.describe()}"] if self.online and asked else []

    def _begin(self) -> None:
        """Measure the start, though not before the first step: whoever waits sees it go."""
        if not self.watch.rows():
            start = self.plan.build()  # the same weights again
            self.watch.measure(encoder_of(self.plan, start), 0)
