"""What the claims of distillation are measured with, and the loop that trains their students."""

from __future__ import annotations

import torch

from selfsame.claims import attention_transfer, canvases, crd, digits, rkd, students
from selfsame.methods.attention_transfer import attention
from selfsame.methods.crd import CRD, Settings
from selfsame.methods.rkd import angles, distances


def test_relations_do_not_know_rotation_and_scale() -> None:
    e = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    turned = 3 * e @ torch.linalg.qr(torch.randn(6, 6))[0]
    other = torch.randn(20, 6)
    for relation in (distances, angles):
        assert rkd.correlation(relation(e), relation(turned)) > 0.999
        assert rkd.correlation(relation(e), relation(other)) < 0.9


def test_recall_leaves_out_the_image_itself() -> None:
    e = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
    assert rkd.recall(e, torch.tensor([0, 0, 1, 1])) == 1.0
    assert rkd.recall(e, torch.tensor([0, 1, 0, 1])) == 0.0


def test_what_a_linear_map_gives_is_found() -> None:
    bank, test = torch.randn(100, 8), torch.randn(30, 8)
    bank[:, 0] = test[:, 0] = 0  # a unit that never fires
    to = torch.randn(8, 20)
    assert crd.found(bank, bank @ to + 1, test, test @ to + 1) == 1.0
    assert crd.found(bank, torch.randn(100, 20), test, torch.randn(30, 20)) < 0.4


def test_digits_are_where_canvases_say() -> None:
    data = canvases.of(test=True)
    side = canvases.DIGIT
    assert torch.equal(data.where.sum((1, 2)), torch.full((len(data.x),), float(side**2)))
    for i in (0, 1, len(digits.digits().test_y)):
        inside = data.x[i, 0][data.where[i] > 0].view(1, side, side)
        whole = students.image(digits.digits().test_x[i % len(digits.digits().test_y)])[0]
        assert torch.equal(inside, whole)
    assert not torch.equal(data.where[0], data.where[len(digits.digits().test_y)]), "copies differ"


def test_attention_on_the_digit_is_a_share() -> None:
    where = torch.zeros(1, 16, 16)
    where[:, :8, :8] = 1
    even = attention(torch.ones(1, 3, 4, 4))
    assert abs(attention_transfer.on_digit(even, where) - 0.25) < 1e-6
    assert abs(attention_transfer.on_digit(where.flatten(1), where) - 1) < 1e-6


def test_a_method_learns_with_its_memory() -> None:
    torch.manual_seed(0)
    data = students.images()
    teacher = students.teach(students.Perceptron((32,)), data.train_x, data.train_y, 20)
    config = Settings(images=digits.TRAIN, negatives=8, labels=1.0, classes=digits.CLASSES)
    method = CRD(config, students.Perceptron((16, 16), batchnorm=True), teacher)
    bank = method.teacher_bank.clone()
    curves = students.learn(method, data.train_x, data.train_y, 60)
    assert curves["hard"][-1][1] < 0.8 * curves["hard"][0][1]
    assert [step for step, _ in curves["hard"]] == list(range(1, 61))
    assert not torch.equal(bank, method.teacher_bank)
    assert (method.z > 0).all()
    assert not method.training
