"""Convolutions in fewer multiplications: the same numbers, where they pay and nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from enlarger.runtime.engines import winograd
from enlarger.runtime.engines.engine import EAGER
from enlarger.runtime.engines.winograd import WinogradConv2d, convolve
from tests.support.close import assert_close
from tests.support.random_weights import normal


@pytest.mark.parametrize("size", [(4, 4), (1, 9), (13, 6), (33, 70)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_the_same_numbers_at_any_size(
    size: tuple[int, int], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "BAND", 10)
    x, weight, bias = normal(2, 7, *size).to(memory_format=layout), normal(5, 7, 3, 3, seed=2), normal(5, seed=3)
    for with_bias in (bias, None):
        expected = F.conv2d(x.double(), weight.double(), None if with_bias is None else bias.double(), padding=1)
        found = convolve(x, weight, with_bias)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        assert_close(found.double(), expected, 1e-4)


def test_a_picture_is_the_same_in_any_batch() -> None:
    x, weight = normal(3, 8, 20, 24), normal(8, 8, 3, 3, seed=2)
    assert convolve(x, weight, None)[1:2].equal(convolve(x[1:2], weight, None))


def test_only_what_pays_is_transformed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[int]()

    def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        called.append(len(weight))
        return convolve(x, weight, bias)

    monkeypatch.setattr(winograd, "convolve", counting)
    wide, narrow, strided = (
        nn.Conv2d(384, 384, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(384, 384, 3, 2, 1),
    )
    network = nn.ModuleList([wide, narrow, strided, nn.Conv2d(384, 384, 1)]).eval()
    names, x = list(network.state_dict()), normal(1, 384, 32, 32)
    expected = F.conv2d(x, wide.weight, wide.bias, padding=1).detach()
    with EAGER.prepare(network), torch.inference_mode():
        assert [type(part) for part in network] == [WinogradConv2d, nn.Conv2d, nn.Conv2d, nn.Conv2d]
        assert_close(network[0](x), expected, 1e-5)
        assert called == [384]
        network[0](x[..., :16, :16])  # too small to pay
        assert network[0](x.bfloat16().float()).dtype == torch.float32 and called == [384, 384]
        network.bfloat16()
        network[0](x.bfloat16())
    network.float()
    assert network[0](x).requires_grad, "a gradient flows through torch's own"
    assert called == [384, 384] and list(network.state_dict()) == names
