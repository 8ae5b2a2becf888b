import pytest
import torch
import torch.nn.functional as F

from selfsame.backbones import vit


@pytest.mark.parametrize("tokens", [1, 7, 65])
def test_written_out_attention_is_the_fused_one(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = torch.randn(3, 2, 3, tokens, 8, generator=torch.Generator().manual_seed(0)).unbind()
    exact = F.scaled_dot_product_attention(q, k, v)
    short = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    y = vit.attend(*short)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.02, rtol=0.02)
    gradients = torch.autograd.grad(y.float().square().sum(), short)

    monkeypatch.setattr(vit, "WRITTEN_OUT", 0)  # too long for it: the fused kernel
    fused = vit.attend(*short)
    torch.testing.assert_close(fused, y, atol=0.02, rtol=0.02)
    expected = torch.autograd.grad(fused.float().square().sum(), short)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.06, rtol=0.06)
    torch.testing.assert_close(vit.attend(q, k, v), exact)  # float32 stays fused
