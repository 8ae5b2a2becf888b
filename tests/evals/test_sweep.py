import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selfsame import backbones
from selfsame.evals.sweep import fit_heads


def test_heads_are_those_of_torchs_sgd() -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=g).double(), torch.arange(40) % 3
    rates = [0.5, 0.01]
    heads = fit_heads(x, y, 3, rates, steps=7, batch_size=16, seed=3)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    for k, rate in enumerate(rates):
        g = torch.Generator().manual_seed(3)
        probe = nn.Linear(6, 3).double()
        with torch.no_grad():
            probe.weight.copy_(0.01 * torch.randn(6, 3, generator=g).T)
            probe.bias.zero_()
        optimizer = torch.optim.SGD(probe.parameters(), lr=rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7)
        order = torch.cat([torch.randperm(40, generator=g)[:32] for _ in range(4)])
        for rows in order.split(16)[:7]:
            loss = F.cross_entropy(probe(standard[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(heads.weight[k], probe.weight.T, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(heads.bias[k, 0], probe.bias, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(heads.scores(x)[k], probe(standard), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "vit_tiny"])
def test_layers_are_those_of_timms_intermediate_layers(name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=3).eval()
    options = {"depth": 3} | ({"patch": 16} if name == "vit_tiny" else {})
    ours = backbones.build(name, image_size=32, options=options).eval()
    state = theirs.state_dict()
    if name == "vit_tiny":
        state = {
            key.replace("blocks.", "block.").replace("norm.", "last_norm.")
            if key.startswith(("blocks.", "norm."))
            else key: value
            for key, value in state.items()
        }
        ours.load_state_dict(state)
    else:
        ours.module.load_state_dict(state)  # type: ignore[union-attr, operator]
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs.get_intermediate_layers(x, n=2, norm=True, return_prefix_tokens=True)
        found = ours.layers(x, 2)
        last = ours(x)
    for each, (tokens, prefix) in zip(found, wanted, strict=True):
        torch.testing.assert_close(each.tokens, tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(each.pooled, prefix[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[-1].pooled, last.pooled)
    assert len(ours.layers(x, 9)) == 3
