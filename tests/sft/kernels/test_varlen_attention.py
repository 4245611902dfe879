"""Variable-length attention is SDPA of each document alone; a layer the kernel can't compute is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sft.kernels.packing import attend_by_document
from sft.kernels.varlen_attention import NotVarlen, attend_varlen, find_obstacle
from tests.varlen_reference import CALLS, register_varlen_reference

LENGTHS = (5, 1, 8, 3)
BOUNDS = torch.tensor([0, 5, 6, 14, 17], dtype=torch.int32)


class Layer(nn.Module):  # type: ignore[misc]
    """The part of an attention layer that SDPA's function reads."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def draw(heads: int, width: int, **options: Any) -> Tensor:
    return torch.randn(1, heads, sum(LENGTHS), width, requires_grad=not options, **options)


@pytest.fixture(autouse=True)
def reference() -> None:
    register_varlen_reference()
    CALLS.clear()
    torch.manual_seed(0)


@pytest.mark.parametrize("window", [None, 3, 8, 100])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("width", "value_width"), [(16, 16), (12, 12), (24, 16), (8, 12)])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_it_is_sdpa_of_each_document_alone(
    window: int | None, heads: int, key_heads: int, width: int, value_width: int, scaling: float | None
) -> None:
    module = Layer(heads // key_heads)
    parts = [draw(heads, width), draw(key_heads, width), draw(key_heads, value_width)]
    options = {"sliding_window": window, "cu_seq_lens_q": BOUNDS, "scaling": scaling}
    wanted, _ = attend_by_document(module, *parts, None, **options)
    seen = torch.randn_like(wanted)
    expected = torch.autograd.grad(wanted, parts, seen)
    found, _ = attend_varlen(module, *parts, None, max_length_q=8, **options)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(torch.autograd.grad(found, parts, seen), expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
    [call] = CALLS
    # A window that covers the longest document is plain causal attention, for which the kernel is faster.
    assert call["window"] == [2, 0] if window == 3 else [-1, 0]
    assert call["longest"] == 8


def test_without_bounds_a_row_is_one_text() -> None:
    parts = [draw(4, 16) for _ in range(3)]
    whole, _ = attend_varlen(Layer(1), *parts, None)
    wanted, _ = attend_by_document(Layer(1), *parts, None)
    assert torch.equal(whole, wanted)
    rows = [torch.randn(2, 4, 5, 16) for _ in range(3)]
    with pytest.raises(NotVarlen, match="several rows, or part of one, have no bounds"):
        attend_varlen(Layer(1), *rows, None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"softcap": 50.0}, "a layer's attention has softcap"),
        ({"s_aux": torch.ones(4)}, "a layer's attention has s_aux"),
        ({"position_bias": torch.ones(1, 4, 17, 17)}, "a layer's attention has position_bias"),
        ({"dropout": 0.1}, "drop attention weights"),
        ({"is_causal": False}, "attend to later tokens"),
    ],
)
def test_a_layer_that_the_kernel_would_compute_otherwise_is_refused(options: dict[str, Any], reason: str) -> None:
    parts = [draw(4, 16) for _ in range(3)]
    with pytest.raises(NotVarlen, match=reason):
        attend_varlen(Layer(1), *parts, None, cu_seq_lens_q=BOUNDS, max_length_q=8, **options)


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "reason"),
    [
        ((8, 0), torch.bfloat16, 128, None),
        ((9, 0), torch.float16, 256, None),
        ((8, 6), torch.bfloat16, 192, None),
        ((8, 9), torch.bfloat16, 256, "256 wide"),
        ((9, 0), torch.bfloat16, 264, "264 wide"),
        ((9, 0), torch.float32, 128, "needs bf16 or fp16"),
    ],
)
def test_on_cuda_the_kernel_gets_only_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype, width: int, reason: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    with FakeTensorMode(), torch.no_grad():
        parts = [torch.empty(1, heads, 17, width, dtype=dtype, device="cuda") for heads in (4, 2, 2)]
        bounds = torch.empty(5, dtype=torch.int32, device="cuda")

        def attend() -> Tensor:
            return attend_varlen(Layer(2), *parts, None, cu_seq_lens_q=bounds, max_length_q=8)[0]

        if reason is None:
            found = attend()
            assert (found.shape, found.dtype, found.device.type) == ((1, 17, 4, width), dtype, "cuda")
        else:
            with pytest.raises(NotVarlen, match=reason):
                attend()


def test_under_autocast_it_computes_in_autocasts_dtype_as_sdpa_does() -> None:
    parts = [draw(4, 16) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend_varlen(Layer(1), *parts, None, cu_seq_lens_q=BOUNDS, max_length_q=8)
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(("capability", "is_refused"), [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_cards_older_than_sm_80_do_not_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], is_refused: bool
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    found = find_obstacle(torch.device("cuda"))
    if is_refused:
        assert found == "it needs a GPU of compute capability 8.0, and this one has 7.5"
    else:
        assert found is None
