import pytest
import torch

from selfsame import rng

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123 for philox4x32, 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    words = rng.philox(tuple(torch.tensor([c] * 9) for c in counter), key)
    for word, value in zip(words, expected, strict=True):
        assert word.tolist() == [value] * 9


def test_philox_leaves_its_counter_alone():
    counter = tuple(torch.arange(5) for _ in range(4))
    rng.philox(counter, (1, 2))
    assert all(torch.equal(c, torch.arange(5)) for c in counter)


def test_uniforms_are_uniform_and_uncorrelated():
    u = rng.uniforms(7, 3, torch.arange(20_000), view=1, op=2, n=6)
    assert u.shape == (20_000, 6)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    histogram = torch.histc(u, bins=64, min=0, max=1)
    expected = u.numel() / 64
    chi2 = ((histogram - expected) ** 2 / expected).sum()  # 63 degrees of freedom: 63 +- 11
    assert 25 < chi2 < 110
    correlation = torch.corrcoef(u.T) - torch.eye(6)
    assert correlation.abs().max() < 0.03  # 4 standard errors
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert neighbours.abs() < 0.03


BASE = {"seed": 5, "epoch": 1, "view": 0, "op": 0}


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"seed": 5 + 2**40}, {"seed": -5}, {"epoch": 2}, {"view": 1}, {"op": 1}],
)
def test_every_part_of_the_key_counts(change):
    index = torch.arange(5_000)
    a = rng.uniforms(index=index, n=4, **BASE)
    b = rng.uniforms(index=index, n=4, **(BASE | change))
    assert (a == b).float().mean() < 0.001
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 0.03


def test_uniforms_do_not_depend_on_the_batch_or_on_n():
    index = torch.tensor([3, 2**32 + 3, 2**40, 17, 0, 2**62])
    u = rng.uniforms(index=index, n=11, **BASE)
    assert len(u.unique()) == u.numel()  # the high word of the index counts
    for i in range(len(index)):
        assert torch.equal(rng.uniforms(index=index[i : i + 1], n=11, **BASE)[0], u[i])
    assert torch.equal(rng.uniforms(index=index.flip(0), n=11, **BASE).flip(0), u)
    assert torch.equal(rng.uniforms(index=index, n=3, **BASE), u[:, :3])


def test_uniforms_stay_as_they_are_between_versions():
    u = rng.uniforms(0, 0, torch.tensor([0]), view=0, op=0, n=4)
    words = torch.tensor([[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]])
    assert torch.equal(u, words.double() / 2.0**32)


@pytest.mark.parametrize("wrong", [{"epoch": -1}, {"view": 4096}, {"op": 256}, {"n": 16385}])
def test_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rng.uniforms(**({"index": torch.arange(2), "n": 1} | BASE | wrong))


def test_key_is_stable_and_mixes():
    assert rng.key(0) == rng.key(0)
    values = {
        rng.key(*parts) for parts in [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**64,)]
    }
    assert len(values) == 7  # 2**64 is 0 in 64 bits
    assert all(0 <= v < 2**63 for v in values)
    torch.Generator().manual_seed(rng.key(1, 2, 3))
    bits = [(rng.key(i) ^ rng.key(i + 1)).bit_count() for i in range(500)]
    assert 30 < sum(bits) / len(bits) < 33  # half of 63 bits flip
