"""FSDP2: weights, gradients and optimizer state in shards, one on each process, as Accelerate's configuration asks.

What every row runs through is cut in shards: the blocks of the language model, each gathered when it is its turn, and
what trains around them, gathered once a pass. Tower, connector and heads stay whole on every process and their
gradients are summed, so that a process whose rows have no picture owes the others nothing. All processes make equally
many passes (`Stepper`), and each pass goes backward through every block.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import distributed, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from train.batches import Batch, Plan
from train.memory import LeftOthers, is_out_of_memory
from train.ranks import rank, world_size
from vlchat.errors import ConfigError

Result = TypeVar("Result")


def requested() -> bool:
    """Whether `accelerate launch` says that FSDP is to be used."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def asked(precision: str, optimizer: str, processes: int) -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch` says of FSDP; None where nothing is to be sharded, and for one process alone.

    Args:
        precision: of the run: "no", "bf16" or "fp16".
        optimizer: its name.
        processes: how many there are.

    Raises:
        ConfigError: a setting that this training does not follow.
    """
    if not requested() or processes == 1:
        return None
    plugin = FullyShardedDataParallelPlugin()
    refused = {
        "fsdp_version is 1": (plugin.fsdp_version != 2, "set it to 2, as configs/accelerate/fsdp2.yaml does"),
        "fsdp_offload_params is true": (
            isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "set it to false; objective.quantize=nf4 and objective.checkpointing=true take less memory",
        ),
        "fsdp_cpu_ram_efficient_loading is true": (
            plugin.cpu_ram_efficient_loading, "set it to false: every process reads the weights"
        ),
        "fsdp_activation_checkpointing is true": (
            plugin.activation_checkpointing, "set it to false, and objective.checkpointing=true in the run"
        ),
    }  # fmt: skip
    for what, (wrong, instead) in refused.items():
        if wrong:
            raise ConfigError(f"Accelerate's configuration: {what}, which is not supported here: {instead}.")
    if precision == "fp16":
        raise ConfigError("loop.precision is fp16, whose gradient scaler knows no shards: use bf16 with FSDP2.")
    if optimizer != "adamw":
        raise ConfigError(f"optim.name is {optimizer}, which needs whole matrices: use adamw with FSDP2.")
    return plugin


def refuse_contradictions(precision: str) -> None:
    """Raises ConfigError where Accelerate's configuration says otherwise than the run what the run alone says."""
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", precision):
        raise ConfigError(
            f"Accelerate's configuration has mixed_precision {launched}, and the run computes in "
            f"{'float32' if precision == 'no' else precision}: add loop.precision={launched}, or take it out there."
        )
    if os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1") not in ("1", "auto"):
        raise ConfigError(
            "Accelerate's configuration has gradient_accumulation_steps: take it out there. loop.batch and "
            "loop.micro_batch say how many rows a step has, and how many are taken at once."
        )


def shard(objective: Any, plugin: FullyShardedDataParallelPlugin, accelerator: Accelerator) -> str:
    """Cuts the objective's parameters in shards, in place; names and shapes stay. Returns what was done, for people.

    Quantized weights stay whole: they are small, frozen, and no shard of them can be read by bitsandbytes.

    Args:
        objective: with `shards()`: blocks that any rows run through once a pass, and modules whose other parameters
            any rows use.

    Raises:
        ConfigError: an objective without them.
    """
    if not hasattr(objective, "shards"):
        raise ConfigError(
            f"objective.type={objective.name} trains a model that fits one process, and can't be sharded: start it "
            "with configs/accelerate/ddp.yaml."
        )
    blocks, around = objective.shards()
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    used = {id(parameter) for module in around for parameter in module.parameters() if parameter.requires_grad}
    whole = {
        parameter
        for parameter in objective.parameters()
        if not parameter.is_floating_point() or id(parameter) not in inside | used
    }
    mesh = distributed.device_mesh.init_device_mesh(accelerator.device.type, (world_size(),))
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    # Autocast sees to the inputs. Gradients are summed in float32.
    policy = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(
            block, mesh=mesh, mp_policy=policy, ignored_params=whole,
            reshard_after_forward=bool(plugin.reshard_after_forward),
        )  # fmt: skip
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=whole)
    for module in objective.modules():
        if isinstance(module, FSDPModule):  # the loss is a sum over processes, not a mean
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    blocks[0].register_forward_pre_hook(_go_backward, with_kwargs=True)
    objective.work_of = lambda work: work()
    register_fsdp_forward_method(objective, "work_of")
    cut = sum(parameter.numel() for parameter in objective.parameters() if isinstance(parameter, DTensor))
    return (
        f"FSDP2: {cut / 1e6:,.1f} million parameters in {world_size()} shards, "
        f"{sum(parameter.numel() for parameter in whole) / 1e6:,.1f} million whole on each process."
    )


def is_sharded(objective: nn.Module) -> bool:
    """Whether `shard` was called on it. All processes must then run its blocks equally often."""
    return isinstance(objective, FSDPModule)


def others(
    objective: Any, plan: Plan, step: int, batches: Sequence[Batch], told: Sequence[dict[str, Any]]
) -> Sequence[Batch]:
    """What this process, with fewer micro-batches than another one, passes through a sharded model beside them.

    Args:
        batches: its own micro-batches of the step.
        told: `pieces`, how many there are, of every process; some process has one.
    """
    missing = max(one["pieces"] for one in told) - len(batches)
    if not missing or not is_sharded(objective):
        return ()
    if batches:
        return [batches[-1]] * missing
    following = itertools.count((step + 1) * plan.batch)
    return [next(batch for batch in (objective.batch([row]) for row in following) if batch["ids"])] * missing


def working(objective: Any, work: Callable[[], Result]) -> Result:
    """`work()`, in which parts of the objective may be called by themselves. All processes must do the same work.

    Raises:
        LeftOthers: see there.
    """
    if not is_sharded(objective):
        return work()
    try:
        return objective.work_of(work)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise LeftOthers(
            f"Process {rank()} has too little memory to look at the held-out rows. Lower heldout.batch or "
            "heldout.tokens, and --resume auto goes on."
        ) from error
    finally:
        objective.reshard()


def regrouped(groups: list[dict], names: dict[int, str], objective: nn.Module) -> list[dict]:
    """Parameter groups of an objective that was sharded since.

    Args:
        names: of the parameters before, by their id.
    """
    now = dict(objective.named_parameters())
    found = []
    for group in groups:
        members = [now[names[id(parameter)]] for parameter in group["params"]]
        for cut in (False, True):  # one kernel can't take both
            if some := [member for member in members if isinstance(member, DTensor) is cut]:
                found.append({**group, "params": some})
    return found


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor; of a whole one, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def complete(tensor: torch.Tensor) -> torch.Tensor | None:
    """A whole tensor as it is; a sharded one put together in the first process's memory, None elsewhere.

    All processes must call it.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if rank() == 0 else None


def like(whole: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """A whole tensor, the same on all processes, in the shards of `place` where that is sharded."""
    if not isinstance(place, DTensor) or whole.shape != place.shape:  # else a count of steps
        return whole
    cut = distribute_tensor(whole.to(place.device), place.device_mesh, place.placements, src_data_rank=None)
    return DTensor.from_local(
        cut.to_local().clone(), place.device_mesh, place.placements, shape=whole.shape, stride=whole.stride()
    )


@contextmanager
def whole(objective: nn.Module) -> Iterator[None]:
    """In the first process what trains is whole while the block runs, to be saved. All processes must enter it."""
    there: dict[int, nn.Parameter] = {}  # by the id of the sharded one; tied ones stay tied
    put_back: list[tuple[nn.Module, str, nn.Parameter]] = []
    if is_sharded(objective):
        for module in objective.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None or not parameter.requires_grad or not isinstance(parameter, DTensor):
                    continue
                if id(parameter) not in there:
                    full = complete(parameter.detach())
                    there[id(parameter)] = parameter if full is None else nn.Parameter(full)
                put_back.append((module, name, parameter))
                module._parameters[name] = there[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in put_back:
            module._parameters[name] = parameter


def _go_backward(module: nn.Module, inputs: Any, named: Any) -> Any:
    """Lets a pass without a picture, through a frozen language model, go backward as one with a picture does."""
    if not torch.is_grad_enabled():
        return None

    def asking(value: Any) -> Any:
        asks = isinstance(value, torch.Tensor) and value.is_floating_point() and not value.requires_grad
        return value.detach().requires_grad_() if asks else value

    if inputs:
        return (asking(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "hidden_states": asking(named["hidden_states"])}
