"""What running out of memory looks like, in the words of those who say it."""

from __future__ import annotations

import errno
import mmap

import pytest
import torch

from deepseek_ocr.devices.memory import is_out_of_memory

REFUSED: list[Exception] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total …"),
    MemoryError(),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 15.78 GiB total …)"),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some "
        "other API call, so the stacktrace below might be incorrect."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB (NPU 0; 60.96 GiB total capacity"),
    RuntimeError(
        "MPS backend out of memory (MPS allocated: 8.88 GB, other allocations: 96.00 KB, max "
        "allowed: 9.07 GB). Tried to allocate 300.00 MB on private pool."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 36028797018963968 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you "
        "tried to allocate 9437184 bytes."
    ),
    RuntimeError("std::bad_alloc"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]

OTHERS: list[Exception] = [
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    RuntimeError(
        "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU tensor "
        "is pinned. Please use tensor.pin_memory() or allocate the tensor with pin_memory=True."
    ),
    RuntimeError(
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.cpp":'
        "1016, please report a bug to PyTorch."
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( … )`"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("out of resource: shared memory, Required: 106496, Hardware limit: 101376"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
    ValueError("out of memory"),
    OSError(errno.ENOENT, "No such file or directory"),
]


@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_a_refusal_of_memory_is_known(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_another_error_is_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_this_torch_and_this_system_raise_is_known() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**55)
    assert is_out_of_memory(of_torch.value)
    with pytest.raises(OSError, match="allocate memory") as of_the_system:
        mmap.mmap(-1, 2**60)
    assert is_out_of_memory(of_the_system.value)
