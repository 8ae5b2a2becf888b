"""Augmented views: ``spec`` says what, ``draw`` how for each sample, ``render`` makes pixels."""

from selfsame.views.draw import Params, draw
from selfsame.views.render import eval_view, make_views, render
from selfsame.views.spec import View

__all__ = ["Params", "View", "draw", "eval_view", "make_views", "render"]
