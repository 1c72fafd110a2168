"""What a training step allocates and computes, watched operation by operation while nothing is computed."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_aten: Any = torch.ops.aten
_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_FUSED = {"gemm_4bit": 2, "int8_scaled_mm": 1}  # bitsandbytes' products: which argument has the weight's shape


@dataclass(frozen=True)
class Costs:
    """How often each operation is done, by its floating-point operations and the bytes that it reads and writes."""

    counts: dict[tuple[int, int], float]

    @property
    def flops(self) -> float:
        return sum(flops * count for (flops, _), count in self.counts.items())

    def seconds(self, rate: float, bandwidth: float) -> float:
        """How long it takes: each operation is bound by arithmetic or by memory.

        Args:
            rate: floating-point operations a second.
            bandwidth: bytes a second.
        """
        return sum(count * max(flops / rate, size / bandwidth) for (flops, size), count in self.counts.items())

    def mixed(self, others: Costs, share: float) -> Costs:
        """The mean where `share` of all times are as `others`."""
        keys = self.counts.keys() | others.counts.keys()
        return Costs({key: (1 - share) * self.counts.get(key, 0) + share * others.counts.get(key, 0) for key in keys})


class Watcher(TorchDispatchMode):
    """Memory by kind, floating-point operations, and bytes that operations read and write.

    A storage counts from the operation that made it until nothing holds it any more.

    Attributes:
        live: bytes by kind, now.
        at_peak: the same when their sum was the largest.
    """

    def __init__(self, vocabularies: set[int]) -> None:
        super().__init__()
        self.vocabularies = vocabularies  # widths by which logits are told from activations
        self.live: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self.peak = 0
        self.total = 0
        self._costs: Counter[tuple[int, int]] = Counter()
        self._known: dict[int, tuple[Any, int, str]] = {}

    def hold(self, tensor: torch.Tensor, kind: str) -> None:
        """Counts a tensor's storage as of this kind, from now on or instead of another one."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            _, size, before = self._known[key]
            self._known[key] = (self._known[key][0], size, kind)
            self.live[before] -= size
            self.live[kind] += size
            return
        size = storage.nbytes()
        self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), size, kind)
        self.live[kind] += size
        self.total += size
        self._mark()

    def _drop(self, key: int) -> None:
        _, size, kind = self._known.pop(key)
        self.live[kind] -= size
        self.total -= size

    def _mark(self, workspace: int = 0) -> None:
        if self.total + workspace > self.peak:
            self.peak = self.total + workspace
            self.at_peak = {kind: size for kind, size in self.live.items() if size}
            if workspace:
                self.at_peak["activations"] = self.at_peak.get("activations", 0) + workspace

    def restart(self) -> None:
        """Forgets the peak and what was computed; what is held stays."""
        self.peak = 0
        self._costs.clear()
        self._mark()

    def watch_gradients(self, module: nn.Module) -> None:
        """Counts gradients as such once they stand in their parameters."""

        def told(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self.hold(parameter.grad, "gradients")

        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(told)

    @property
    def costs(self) -> Costs:
        """Of all operations so far."""
        return Costs(dict(self._costs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        flops, workspace = _work(func, args, kwargs, made)
        if workspace:
            self._mark(workspace)
        for tensor in tensors:
            if tensor.untyped_storage()._cdata not in self._known:
                logits = tensor.ndim > 1 and tensor.shape[-1] in self.vocabularies
                self.hold(tensor, "logits" if logits else "activations")
        if not func.is_view:
            read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self._costs[flops, sum(tensor.numel() * tensor.element_size() for tensor in read + tensors)] += 1
        return made


def _work(func: Any, args: Any, kwargs: Any, made: Any) -> tuple[int, int]:
    """Floating-point operations, and bytes that are taken and given back inside."""
    packet = func._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=made)), 0
    name = packet.__name__
    if name == _FORWARD:
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape)), 0
    if name == _FORWARD + "_backward":
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))), 0
    if name in _FUSED and isinstance(made, torch.Tensor):
        shape = args[_FUSED[name]] if name == "gemm_4bit" else args[1].shape
        weight = prod(shape)  # on a CPU it is written out whole for the product
        return 2 * args[0].numel() * int(shape[0]), weight * (made.element_size() + 4)
    return 0, 0
