"""How to train: method, batch, lengths, epochs, held-out rows, by rules of thumb; each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vlchat.starting.machines import Machine
from vlchat.starting.sizes import Size, refuse_too_large, usable
from vlchat.starting.survey import Survey

FEWEST_STEPS = 150  # what a model needs to learn a form of answer (README)
MOST_PASSES = 50
_LENGTHS = (256, 512, 768, 1024, 1280, 1536, 2048)
_ROWS_AT_ONCE = 16
_FULL_FROM = 20_000  # rows that teach more than a few words


@dataclass(frozen=True)
class Choice:
    """A value and why it was taken."""

    value: Any
    why: str


@dataclass(frozen=True)
class Settings:
    """What a run is to be set to; `None` as a value leaves the key out."""

    method: str
    rank: int
    method_why: str
    dtype: Choice
    checkpointing: Choice
    max_length: Choice
    too_long: Choice
    batch: Choice
    micro_batch: Choice
    epochs: Choice
    steps: Choice
    precision: Choice
    heldout: Choice
    max_bad: Choice
    every: int
    workers: int


def choose(size: Size, machine: Machine, seen: Survey) -> Settings:
    """Settings for a model, a machine and data.

    Raises:
        VLChatError: the model is too large for the machine.
    """
    rank = 128 if seen.usable >= 100_000 else 32
    length = _length(seen)
    method, rank, why = _method(size, machine, seen, rank, length.value)
    checkpointing, at_once = _at_once(size, machine, method, rank, length.value)
    batch = _batch(seen)
    held = _heldout(seen)
    trained = seen.usable - int(held.value.get("rows", held.value.get("share", 0) * seen.usable) if held.value else 0)
    epochs, steps = _duration(trained, batch.value)
    total = steps.value or math.ceil(trained * epochs.value / batch.value)
    longer = sum(tokens > length.value for tokens in seen.tokens)
    return Settings(
        method=method,
        rank=rank,
        method_why=why,
        dtype=_dtype(size, machine),
        checkpointing=checkpointing,
        max_length=length,
        too_long=Choice("shorten", "longer rows lose their last exchanges") if longer else Choice(None, ""),
        batch=batch,
        micro_batch=Choice(min(at_once.value, batch.value), at_once.why) if at_once.value else at_once,
        epochs=epochs,
        steps=steps,
        precision=Choice("bf16", "half the memory of float32, and faster") if machine.bf16
        else Choice("fp16", f"{machine.name} has no bfloat16"),
        heldout=held,
        max_bad=Choice(seen.bad or None, f"{seen.bad:,} rows can't be used now; vlchat check lists them"),
        every=max(10, total // 10),
        workers=4 if machine.gpu else 1,
    )  # fmt: skip


def _length(seen: Survey) -> Choice:
    """Room for the longest row that was looked at, and a quarter more."""
    wanted = seen.longest * 1.25
    found = next((length for length in _LENGTHS if length >= wanted), _LENGTHS[-1])
    if seen.longest > found:
        return Choice(found, f"tokens of a row; the longest of {len(seen.tokens)} looked at takes {seen.longest:,}")
    return Choice(
        found, f"tokens of a row; the longest of {len(seen.tokens)} looked at takes {seen.longest:,}, and some room"
    )


def _method(size: Size, machine: Machine, seen: Survey, rank: int, tokens: int) -> tuple[str, int, str]:
    if size.embedded:
        return "full", rank, "it never met your words, and LoRA leaves the words as they are"
    if size.parameters is None:
        return "qlora", rank, "its size is not known here: nf4 takes the least memory"
    room = usable(machine.memory, machine.gpu)
    row = size.activations(tokens, checkpointing=True)
    memory, frozen = f"{machine.memory / 2**30:.0f} GiB", _frozen(size, machine)
    if size.parameters < 1e9 and seen.usable >= _FULL_FROM and size.weights("full", rank) + row <= room:
        return "full", rank, f"small enough for {memory}, and {seen.usable:,} rows teach it more than LoRA could hold"
    for smaller in dict.fromkeys((rank, 32)):
        needed = size.weights("lora", smaller, frozen) + row
        if needed <= room:
            return "lora", smaller, f"its weights and what LoRA adds take about {needed / 1e9:.1f} GB of {memory}"
    for smaller in dict.fromkeys((rank, 32, 16)):
        needed = size.weights("qlora", smaller) + row
        if needed <= room:
            return "qlora", smaller, f"about {needed / 1e9:.1f} GB of {memory}; in 16 bits it would not fit"
    raise refuse_too_large(size, room - row, str(machine))


def _frozen(size: Size, machine: Machine) -> float:
    """Bytes of a frozen parameter: a small model on a CPU is kept in float32."""
    return 4.0 if not machine.gpu and (size.parameters or 0) < 1e9 else 2.0


def _at_once(size: Size, machine: Machine, method: str, rank: int, tokens: int) -> tuple[Choice, Choice]:
    if size.embedded:
        return Choice(None, ""), Choice(None, "")
    if size.parameters is None:
        return Choice(True, "less memory, a third more time"), Choice(1, "the least memory")
    left = usable(machine.memory, machine.gpu) - size.weights(method, rank, _frozen(size, machine))
    kept, again = (int(left // size.activations(tokens, checkpointing)) for checkpointing in (False, True))
    if kept >= 2:
        return Choice(None, ""), Choice(
            _power(kept), "rows at once; what fits beside the weights without checkpointing"
        )
    return (
        Choice(True, "activations are computed again instead of kept: a third more time"),
        Choice(_power(max(1, again)), "rows at once; what fits beside the weights"),
    )


def _power(count: int) -> int:
    return min(_ROWS_AT_ONCE, 2 ** int(math.log2(count)))


def _batch(seen: Survey) -> Choice:
    for most, batch in ((1_000, 16), (100_000, 32)):
        if seen.usable < most:
            return Choice(batch, f"rows of a step, for {seen.usable:,} rows")
    return Choice(128, f"rows of a step, for {seen.usable:,} rows; as LLaVA-1.5")


def _duration(rows: int, batch: int) -> tuple[Choice, Choice]:
    epochs = 3 if rows < 20_000 else 2 if rows < 100_000 else 1
    if math.ceil(rows * epochs / batch) >= FEWEST_STEPS:
        return Choice(epochs, f"passes over {rows:,} rows"), Choice(None, "")
    steps = max(1, min(FEWEST_STEPS, math.ceil(rows * MOST_PASSES / batch)))
    return Choice(None, ""), Choice(
        steps, f"{steps * batch / rows:.0f} passes over {rows:,} rows; fewer steps teach little"
    )


def _heldout(seen: Survey) -> Choice:
    if seen.usable < 40:
        return Choice(None, f"{seen.usable} rows are too few to keep any aside")
    if seen.usable < 2_000:
        return Choice({"share": 0.1}, "never trained on: they tell whether it learns, and which checkpoint is the best")
    return Choice({"rows": 200}, "never trained on: they tell whether it learns, and which checkpoint is the best")


def _dtype(size: Size, machine: Machine) -> Choice:
    if size.embedded or not machine.gpu:
        return Choice(None, "")
    if not machine.bf16:
        return Choice("float16", "of what stays frozen")
    return Choice("bfloat16", "of what stays frozen, however it is stored")
