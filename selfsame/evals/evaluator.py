"""Everything that scores is an ``Evaluator``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from selfsame.config import Config

if TYPE_CHECKING:
    from selfsame.evals.subject import Data, Subject

Scores = dict[str, Any]


class Evaluator(Config):
    """A protocol: its fields are the options, with the field's customary values as defaults.

    Called with a subject and data it returns ``Scores``, a flat dictionary of numbers that JSON can
    hold. A headline ``NAME`` is a fraction and has an interval beside it, ``NAME_interval``, a pair
    of fractions; the first one is called like the protocol. Other scores are fractions too, unless
    ``facts`` names them: choices and counts. What it cannot judge it answers with ``{}``.

    It sees features, labels and pixels, and nothing of what trained the encoder. Choices are made
    on the train part, never on the test part.
    """

    title: ClassVar[str] = ""  # of the headline, for people
    facts: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """Score a subject.

        Raises:
            DataError: the data does not have what this protocol needs.
        """
        raise NotImplementedError
