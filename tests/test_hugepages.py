"""Weights lie in large pages of memory, and are what they would be in any other."""

from __future__ import annotations

import gc
import mmap

import pytest
import torch

from deepseek_ocr.devices import hugepages
from deepseek_ocr.devices.hugepages import HUGE_PAGE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
def test_a_tensor_in_whole_pages_holds_what_is_put_into_it(dtype: torch.dtype) -> None:
    shape = (3, 1000, 1801)
    made = hugepages.empty(shape, dtype)
    assert (made.shape, made.dtype, made.is_contiguous()) == (shape, dtype, True)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert made.data_ptr() % HUGE_PAGE == 0
    values = torch.randint(-100, 100, shape).to(dtype)
    made.copy_(values)
    part = made[1:]
    del made
    gc.collect()
    assert torch.equal(part, values[1:])  # a view keeps the memory


def test_small_tensors_and_other_devices_are_left_alone() -> None:
    assert hugepages.empty((10, 10), torch.float32).untyped_storage().nbytes() == 400
    meta = hugepages.empty((2000, 2000), torch.float32, torch.device("meta"))
    assert meta.is_meta


def test_a_system_without_large_pages_gives_ordinary_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    made = hugepages.empty((1 << 20,), torch.float32)
    assert made.fill_(2).sum() == 2 << 20
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert hugepages.empty((1 << 20,), torch.float32).fill_(1).sum() == 1 << 20
