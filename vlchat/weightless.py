"""Models without weights: built by the same code as any other, from their configuration alone, in no memory.

Inside `weightless()` a floating-point tensor has a shape and a type, and no numbers: torch's meta tensors while a model
is built, its FakeTensors, which also have a place, where it is run. Integers, such as token ids and masks, are real, so
that what depends on them takes its true course. What a training step would allocate and compute can so be watched
without a byte of a checkpoint being read.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from transformers import AutoConfig

_SMALL = 1024  # numbers that a tensor may have to be made truly: tables and constants that code asks for
_aten: Any = torch.ops.aten
_BLOCK, _NESTED = 64, 256  # of nf4: weights that share a scale, and scales that do
_META = torch.device("meta")
_CHOOSING = (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)
_STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Weightless(TorchDispatchMode):
    """See the module. `device` is where models would be loaded to."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.running = False
        self._faking = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._faking or self.fake.in_kernel_invocation:
            return func(*args, **kwargs)  # torch's own mode comes after this one
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if not tensors:
            return self._made(func, args, kwargs)
        meta = any(tensor.is_meta for tensor in tensors)
        if not meta and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func is _aten._to_copy.default and kwargs.get("device") == _META:
                return func(*args, **{**kwargs, "device": None})
            return func(*args, **kwargs)
        first = tensors[0]
        if func._schema.is_mutable and first is args[0] and not _is_empty(first):
            return first  # numbers that are not known, into a tensor that has some
        if func in _CHOOSING:
            args = (args[0], _places(args[1]), *args[2:])  # how many are chosen, only the mask tells
        if meta and kwargs.get("device") is not None:
            kwargs["device"] = _META
        without = self._on_meta if meta else self._fake
        args, kwargs = tree_map_only(torch.Tensor, without, (args, kwargs))
        return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A tensor out of nothing: floating-point ones, unless they are small, without numbers."""
        given = kwargs.get("device")
        like: Any = func(*args, **{**kwargs, "device": _META}) if "device" in _names(func) else None
        if like is None or not like.is_floating_point() or like.numel() <= _SMALL:
            return func(*args, **({**kwargs, "device": None} if given == _META else kwargs))
        if not self.running:
            return like
        with self.fake:
            return func(*args, **kwargs)

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    def _on_meta(self, tensor: torch.Tensor) -> torch.Tensor:
        return (
            tensor
            if tensor.is_meta
            else torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
        )

    def empty_like(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its shape and type, in no memory, and as if on the CPU."""
        with self.placed():
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Inside, all new tensors are such as models run with."""
        before, self._faking = self._faking, True
        try:
            with self.fake:
                yield
        finally:
            self._faking = before

    def run(self, *modules: nn.Module) -> dict[int, nn.Parameter]:
        """Makes models ready to be run: their parameters and floating-point buffers are given a place. Tied ones stay
        tied. From now on new tensors have one, too. Returns what took the place of each parameter, by its `id`."""
        known: dict[int, nn.Parameter] = {}
        for part in (part for module in modules for part in module.modules()):
            if _is_quantized(part):
                _QUANTIZED[type(part).__name__](part, self)
            for name, parameter in part._parameters.items():
                if parameter is None or isinstance(parameter, FakeTensor):
                    continue
                if id(parameter) not in known:
                    known[id(parameter)] = nn.Parameter(self.empty_like(parameter), parameter.requires_grad)
                part._parameters[name] = known[id(parameter)]
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    part._buffers[name] = self.empty_like(buffer)
        self.running = True
        return known


_MODE: ContextVar[Weightless | None] = ContextVar("weightless", default=None)


@contextmanager
def weightless(device: str = "cpu") -> Iterator[Weightless]:
    """Inside, models are built without weights, as for a machine whose models go to `device`."""
    mode = Weightless(torch.device(device))
    token = _MODE.set(mode)
    try:
        with mode:
            yield mode
    finally:
        _MODE.reset(token)


def active() -> Weightless | None:
    """The mode that this code runs in, if models are to be built without weights."""
    return _MODE.get()


def from_pretrained(kind: Any, source: str | Path | Any, **options: Any) -> Any:
    """`kind.from_pretrained(source, **options)`, where `kind` is one of transformers' Auto classes; inside
    `weightless()` from the configuration alone."""
    mode = active()
    if mode is None:
        return kind.from_pretrained(source, **options)
    config: Any = options.get("config")
    if config is None:
        revision = options.get("revision") or "main"
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    stored = getattr(config, "quantization_config", None)
    quantization = options.get("quantization_config") or stored
    model = kind.from_config(config, dtype=_dtype(options.get("dtype"), config, source))
    if quantization is not None:
        _quantize(model, quantization, stored is not None)
    info: dict[str, Any] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    return (model, info) if options.get("output_loading_info") else model


def _dtype(wanted: str | torch.dtype | None, config: Any, source: str | Path) -> torch.dtype:
    if isinstance(wanted, torch.dtype):
        return wanted
    if wanted not in (None, "auto"):
        return getattr(torch, str(wanted))
    said = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if said is not None:
        return said if isinstance(said, torch.dtype) else getattr(torch, str(said))
    for file in sorted(Path(source).glob("*.safetensors")):  # only its header is read
        with safe_open(file, "pt") as tensors:
            return next((_STORED[kind] for name in tensors.keys()
                         if (kind := tensors.get_slice(name).get_dtype()) in _STORED), torch.float32)  # fmt: skip
    return torch.float32


def _quantize(model: Any, quantization: Any, stored: bool) -> None:
    """The layers that transformers' quantizer would put in, their weights as integers of the right number."""
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizer: Any = AutoHfQuantizer.from_config(quantization, pre_quantized=stored)
    quantizer.preprocess_model(model, device_map=None, dtype=model.dtype)
    for layer in model.modules():
        if _is_quantized(layer):
            layer.stored_dtype = model.dtype
            size, before = layer.out_features * layer.in_features, layer.weight
            nf4 = type(layer).__name__ == "Linear4bit"
            shape = ((size + 1) // 2, 1) if nf4 else (layer.out_features, layer.in_features)
            codes = torch.empty(shape, dtype=torch.uint8 if nf4 else torch.int8, device=_META)
            layer._parameters["weight"] = weight = nn.Parameter(codes, requires_grad=False)
            for name in ("compress_statistics", "quant_type", "quant_state", "CB", "SCB"):
                if hasattr(before, name):
                    setattr(weight, name, getattr(before, name))
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def _as_nf4(layer: Any, mode: Weightless) -> None:
    from bitsandbytes.functional import QuantState

    before, size = layer.weight, layer.out_features * layer.in_features
    blocks = -(-size // _BLOCK)
    with mode.placed():
        packed = torch.empty(((size + 1) // 2, 1), dtype=torch.uint8)
        nested: dict[str, Any] = {"absmax": torch.empty(blocks)}
        if before.compress_statistics:  # the scales' own scales
            outer = QuantState(
                absmax=torch.empty(-(-blocks // _NESTED)), code=torch.empty(256), blocksize=_NESTED, dtype=torch.float32
            )
            nested = {"absmax": torch.empty(blocks, dtype=torch.uint8), "offset": torch.empty(()), "state2": outer}
        layer.quant_state = QuantState(
            shape=torch.Size((layer.out_features, layer.in_features)),
            code=torch.empty(16),
            blocksize=_BLOCK,
            quant_type=before.quant_type,
            dtype=layer.stored_dtype,
            **nested,
        )
    layer._parameters["weight"] = weight = nn.Parameter(packed, requires_grad=False)
    weight.quant_state = layer.quant_state  # type: ignore[attr-defined]


def _as_int8(layer: Any, mode: Weightless) -> None:
    with mode.placed():
        codes = torch.empty((layer.out_features, layer.in_features), dtype=torch.int8)
        layer.state.SCB = torch.empty(layer.out_features)
    layer.state.CB = codes
    layer._parameters["weight"] = weight = nn.Parameter(codes, requires_grad=False)
    weight.CB = weight.SCB = None  # type: ignore[attr-defined]


_QUANTIZED = {"Linear4bit": _as_nf4, "Linear8bitLt": _as_int8}  # by name: bitsandbytes is imported where it is used


def _is_quantized(layer: nn.Module) -> bool:
    return type(layer).__name__ in _QUANTIZED and type(layer).__module__.startswith("bitsandbytes.")  # peft's, too


def _is_empty(tensor: torch.Tensor) -> bool:
    return tensor.is_meta or isinstance(tensor, FakeTensor)


@functools.cache
def _names(func: Any) -> frozenset[str]:
    return frozenset(argument.name for argument in func._schema.arguments)


def _places(indices: Any) -> list[Any]:
    """Indices with masks as the places that they choose."""
    found: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += index.nonzero().unbind(1)
        else:
            found.append(index)
    return found
