import gc

import torch

from selfsame.reuse import Memory


def test_memory_comes_back_after_the_last_who_holds_it():
    memory = Memory()
    first = memory.empty((3, 5, 1000), torch.float32)
    assert first.shape == (3, 5, 1000)
    assert first.dtype == torch.float32
    address = first.data_ptr()
    part, array = first[1, 2:], first.numpy()[0]
    graph = (first.mean() * torch.ones(1, requires_grad=True)).sum()
    del first
    gc.collect()
    assert memory.empty((15, 1000), torch.float32).data_ptr() != address
    del part
    gc.collect()
    assert memory.empty((15, 1000), torch.float32).data_ptr() != address
    del array, graph
    gc.collect()
    found = [memory.empty((15, 1000), torch.float32) for _ in range(3)]
    assert sum(one.data_ptr() == address for one in found) == 1
    assert len({one.data_ptr() for one in found}) == 3


def test_only_a_few_pieces_are_kept_and_other_sizes_are_new():
    memory = Memory(keep=2)
    held = [memory.empty((100,), torch.uint8) for _ in range(5)]
    del held
    gc.collect()
    assert len(memory._free) == 2
    assert memory.empty((0, 3), torch.float32).shape == (0, 3)
    assert memory.empty((101,), torch.uint8).shape == (101,)
