from __future__ import annotations

import torch
from torch import nn

from selfsame.backbones.vit import SampleDrop
from selfsame.nn import ema


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), SampleDrop(0.3))


def test_the_teacher_moves_towards_the_student_by_the_formula() -> None:
    net = student()
    teacher = ema.teacher_of(net)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    old = [p.clone() for p in teacher.parameters()]
    ema.update(teacher, net, 0.9)
    for before, now, new in zip(old, teacher.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * before + 0.1 * new)
    ema.update(teacher, net, 1.0)
    ema.update(teacher, net, 0.0)
    assert all(map(torch.equal, teacher.parameters(), net.parameters()))


def test_buffers_are_the_teachers_own_integers_among_them() -> None:
    net = student()
    teacher = ema.teacher_of(net)
    net[1](torch.randn(8, 4))
    ema.update(teacher, net, 0.5)
    assert teacher[1].num_batches_tracked == 0
    assert torch.equal(teacher[1].running_mean, torch.zeros(4))
    teacher[1](torch.randn(8, 4))  # in training mode it keeps statistics of its own batches
    assert teacher[1].num_batches_tracked == 1


def test_a_teacher_drops_nothing_and_is_out_of_reach() -> None:
    net = student()
    teacher = ema.teacher_of(net)
    assert teacher[2].p == 0.0
    assert teacher[3].drop_prob == 0.0
    assert net[2].p == 0.5
    assert net[3].drop_prob == 0.3
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not {p.data_ptr() for p in teacher.parameters()} & {
        p.data_ptr() for p in net.parameters()
    }


def test_a_short_run_has_a_teacher_that_follows_faster() -> None:
    assert ema.bounded(0.996, 100_000, 0.02) == 0.996  # a memory of 250 steps of 2,000 allowed
    assert ema.bounded(0.996, 1000, 0.02) == 0.95  # 20 steps
    assert ema.bounded(0.996, 10, 0.02) == 0.0
    assert ema.bounded(0.5, 1000, 0.02) == 0.5  # it never makes a teacher slower
    assert ema.bounded(0.996, 1000, 0.0) == 0.996
