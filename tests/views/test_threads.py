import os
import threading

import pytest
import torch

from selfsame.views.threads import spread


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_pieces_keep_their_order_and_operations_one_thread(threads):
    def work(i):
        return i, torch.get_num_threads(), threading.current_thread().name

    for _ in range(2):
        done = spread(work, range(20))
        assert [i for i, _, _ in done] == list(range(20))
        assert {n for _, n, _ in done} == {1}
        assert torch.get_num_threads() == threads
    inside = threading.current_thread().name
    assert all((name == inside) == (threads == 1) for _, _, name in done)


def test_what_a_thread_makes_is_as_if_made_here(threads):
    weight = torch.ones(2, requires_grad=True)
    assert not any(x.requires_grad for x in spread(lambda i: weight * i, range(4)))
    with torch.inference_mode():
        out = torch.zeros(4)
        spread(lambda i: out[i : i + 1].add_(i), range(4))
        assert out.is_inference()
    assert out.tolist() == [0, 1, 2, 3]


def test_errors_come_through(threads):
    with pytest.raises(ZeroDivisionError):
        spread(lambda i: 1 // i, [1, 0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own(threads):
    spread(str, range(4))
    child = os.fork()
    if child == 0:
        os._exit(0 if spread(str, range(4)) == ["0", "1", "2", "3"] else 1)
    assert os.waitpid(child, 0)[1] == 0
