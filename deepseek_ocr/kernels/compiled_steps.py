"""Decoding steps through the compiled kernel: the structures of `decode.cpp`, filled."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_void_p
from typing import ClassVar

import torch

from deepseek_ocr.kernels import compiling
from deepseek_ocr.kernels.decoder_weights import DecoderWeights, Layer, Mlp
from deepseek_ocr.kernels.slot_cache import SlotCache
from deepseek_ocr.model.weight_matrix import Matrix

MOST = 64
"""Pages that `decode.cpp` takes in one call."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


class _Matrix(ctypes.Structure):
    _fields_: ClassVar = [("data", c_void_p), ("scale", c_void_p)]


class _Layer(ctypes.Structure):
    _fields_: ClassVar = [
        *[(name, c_void_p) for name in ("first_norm", "second_norm")],
        *[(name, _Matrix) for name in ("query", "key", "value", "output")],
        ("router", c_void_p),
        *[(name, _Matrix) for name in ("expert_in", "expert_out", "gate", "up", "down")],
        ("width", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class _Model(ctypes.Structure):
    _fields_: ClassVar = [
        *[(name, c_int64) for name in ("layers", "hidden", "heads", "dim", "vocabulary")],
        *[(name, c_int64) for name in ("experts", "chosen", "expert_width")],
        *[(name, c_float) for name in ("epsilon", "scaling", "routed_scale")],
        ("layer", c_void_p),
        ("norm", c_void_p),
        ("head", _Matrix),
        ("cosines", c_void_p),
        ("sines", c_void_p),
    ]


class _Step(ctypes.Structure):
    _fields_: ClassVar = [
        *[(name, c_int64) for name in ("count", "capacity", "threads", "scratch")],
        *[(name, c_void_p) for name in ("slots", "lengths", "states", "query", "key", "value")],
        *[(name, c_void_p) for name in ("mixed", "inner", "logits", "work")],
    ]


def can_run(device: torch.device, dtype: torch.dtype) -> bool:
    """True where the kernel knows this device and type, and can be had on this machine."""
    known = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return known and compiling.library() is not None


class CompiledSteps:
    """Steps over `weights` and `cache` through the compiled kernel; ask `can_run` first."""

    def __init__(self, weights: DecoderWeights, cache: SlotCache) -> None:
        library = compiling.library()
        assert library is not None
        self._run = library.decode_step
        self._run.argtypes = [c_void_p, c_void_p, c_int, c_int]
        self._weights, self._cache = weights, cache
        self._kinds = (_KINDS[weights.head.values.dtype], _KINDS[weights.dtype])
        self._kept: list[torch.Tensor] = []  # what only pointers know about
        self._layers = (_Layer * len(weights.layers))(*map(self._layer, weights.layers))
        self._model = self._describe()
        self._buffers: dict[str, torch.Tensor] = {}

    def __call__(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Logits `[n, V]` (float32) behind one more token in each of `slots`."""
        if len(ids) > MOST:
            first = self(slots[:MOST], ids[:MOST]).clone()  # the buffer is used again
            return torch.cat([first, self(slots[MOST:], ids[MOST:])])
        weights, cache = self._weights, self._cache
        states = weights.embedding[torch.tensor(ids)].float()
        step = self._prepare(slots, states)
        for at, layer in enumerate(self._layers):
            keys, values = cache.entries[at]
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        if self._run(ctypes.byref(self._model), ctypes.byref(step), *self._kinds):
            raise AssertionError("the compiled kernel refused what it was made for")
        return self._buffers["logits"][: len(ids)]

    def _prepare(self, slots: Sequence[int], states: torch.Tensor) -> _Step:
        """The arguments of one step in buffers that are kept while they are large enough."""
        weights, cache, count = self._weights, self._cache, len(slots)
        model = self._model
        each = model.chosen * model.expert_width + max(layer.width for layer in self._layers)
        wide = model.heads * model.dim
        pages = 2 * model.hidden + 2 * model.chosen + max(each, 2 * wide)
        scratch = max(cache.capacity + model.dim, model.experts + count * pages) + 16
        places = torch.tensor([list(slots), [cache.lengths[slot] for slot in slots]])
        self._buffers |= {"states": states, "slots": places[0], "lengths": places[1]}
        sizes = dict.fromkeys(("query", "key", "value", "mixed"), count * wide)
        threads = torch.get_num_threads()
        sizes |= {"inner": count * each, "work": threads * scratch}
        for name, size in sizes.items():
            if name not in self._buffers or self._buffers[name].numel() < size:
                self._buffers[name] = torch.empty(size)
        if len(self._buffers.get("logits", ())) < count:
            self._buffers["logits"] = torch.empty(count, weights.head.values.shape[0])
        pointers = {name: buffer.data_ptr() for name, buffer in self._buffers.items()}
        return _Step(count, cache.capacity, threads, scratch, **pointers)

    def _describe(self) -> _Model:
        weights = self._weights
        routed = next((layer.experts for layer in weights.layers if layer.experts), None)
        dim = weights.cosines.shape[1]
        return _Model(
            layers=len(weights.layers),
            hidden=weights.norm.shape[0],
            heads=weights.heads,
            dim=dim,
            vocabulary=weights.head.values.shape[0],
            experts=len(routed.router) if routed else 0,
            chosen=weights.chosen if routed else 0,
            expert_width=routed.outer.values.shape[-1] if routed else 0,
            epsilon=weights.epsilon,
            scaling=dim**-0.5,
            routed_scale=weights.routed_scale,
            layer=ctypes.addressof(self._layers),
            norm=self._floats(weights.norm),
            head=self._matrix(weights.head),
            cosines=self._floats(weights.cosines[:, : dim // 2]),
            sines=self._floats(weights.sines[:, : dim // 2]),
        )

    def _layer(self, layer: Layer) -> _Layer:
        mlp: Mlp = layer.mlp
        made = _Layer(
            first_norm=self._floats(layer.first_norm),
            second_norm=self._floats(layer.second_norm),
            width=mlp.gate.values.shape[0],
            **{name: self._matrix(getattr(layer, name))
               for name in ("query", "key", "value", "output")},
            **{name: self._matrix(getattr(mlp, name)) for name in ("gate", "up", "down")},
        )  # fmt: skip
        if layer.experts:
            made.router = self._floats(layer.experts.router)
            made.expert_in = self._matrix(layer.experts.inner)
            made.expert_out = self._matrix(layer.experts.outer)
        return made

    def _floats(self, values: torch.Tensor) -> int:
        return self._pointer(values.float())

    def _matrix(self, rows: Matrix) -> _Matrix:
        scale = None if rows.scales is None else self._pointer(rows.scales)
        return _Matrix(self._pointer(rows.values), scale)

    def _pointer(self, values: torch.Tensor) -> int:
        self._kept.append(values.contiguous())
        return self._kept[-1].data_ptr()
