"""How large a model is, from what is known of it without its weights, and what training it keeps in memory."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlchat import checkpoint, hub, places
from vlchat.errors import VLChatError
from vlchat.models import BF16, MODELS, NF4, Blocks, Entry, resolve

TRAINED = 16.0  # bytes a parameter that trains: float32, its gradient, and Adam's two moments
_FLOAT32 = 4.0
_LOGITS = 0.8e9  # of as many supervised tokens as are taken at once, three times in float32 (train.likelihood.AT_ONCE)
_CONTEXT = 1.0e9  # CUDA itself
_LOST = 0.06  # share of the memory that lies unused between blocks
_KEPT, _COMPUTED = 4, 60  # bytes a token and feature: a block's input; all of one block
_ALL = 40  # and all of a block where nothing is computed again


@dataclass(frozen=True)
class Size:
    """A model's size.

    Attributes:
        name: as people call it.
        model: for `objective.model`; None is the embedded one.
        parameters: all parts together; None where nothing tells.
        linear: those in linear layers of the language model, which nf4 makes small.
        layers, hidden: of the language model.
        source: where this is known from.
    """

    name: str
    model: str | None
    parameters: float | None
    linear: float
    layers: int
    hidden: int
    source: str

    @property
    def embedded(self) -> bool:
        return self.model is None

    def lora(self, rank: int) -> float:
        """Parameters of LoRA on seven matrices of each layer, taken as squares of their mean size."""
        side = math.sqrt(self.linear / (7 * self.layers))
        return rank * 2 * side * 7 * self.layers

    def weights(self, method: str, rank: int, frozen: float = BF16) -> float:
        """Bytes of weights, with gradients and Adam of what trains.

        Args:
            method: "full", "lora" or "qlora".
            frozen: bytes of a frozen parameter.
        """
        assert self.parameters is not None
        if method == "full":
            return self.parameters * TRAINED
        small = self.linear if method == "qlora" else 0.0
        return small * NF4 + (self.parameters - small) * frozen + self.lora(rank) * TRAINED

    def activations(self, tokens: int, checkpointing: bool) -> float:
        """Bytes of one row of so many tokens."""
        each = tokens * self.hidden
        return each * (self.layers * _KEPT + _COMPUTED) if checkpointing else each * self.layers * _ALL


def usable(memory: float, gpu: bool) -> float:
    """Bytes for weights and activations."""
    return memory * (1 - _LOST) - _LOGITS - (_CONTEXT if gpu else 0.25 * memory)  # other programs need theirs


def size_of(model: str | None) -> Size:
    """The size of the embedded model (None), of a name of `vlchat models`, a folder, or a Hub id.

    A Hub id is not looked up where it is out of reach: its name tells what it can.

    Raises:
        VLChatError: there is no such folder, or no such name.
    """
    wanted = resolve(model)
    entry = next((entry for entry in MODELS if entry.id == wanted or entry.name == model), None)
    if entry is not None:
        return _of_entry(entry)
    assert wanted is not None
    if not Path(wanted).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", wanted) and not Path(wanted).parent.is_dir():
        return _of_hub(wanted)
    folder, _ = places.locate(wanted)  # refuses what is neither
    return _of_folder(wanted, Path(folder))


def _of_entry(entry: Entry) -> Size:
    shape = entry.language
    count = entry.parameters * 1e9
    return Size(entry.name, entry.id, count, float(shape.linear), shape.layers, shape.hidden, "vlchat models")


def _of_hub(name: str) -> Size:
    found = hub.facts(name).get("parameters")
    if found is not None:
        return _guessed(name, float(found), "the Hub")
    named = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([bm])(?![a-z\d])", name.lower())
    if named is None:
        return _guessed(name, None, "nothing: the Hub is out of reach, and its name holds no size")
    return _guessed(name, float(named[1]) * {"b": 1e9, "m": 1e6}[named[2]], "its name")


def _of_folder(model: str, folder: Path) -> Size:
    about = checkpoint.describe(model)
    count = about["parameters"]
    shape = _shape(folder)
    if shape is None:
        return _guessed(model, count and float(count), "its folder")
    known = float(count) if count else shape.linear * 1.2
    return Size(model, model, known, float(shape.linear), shape.layers, shape.hidden, "its folder")


def _shape(folder: Path) -> Blocks | None:
    """The language model's blocks from a config.json, where it tells them in the usual words."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = config.get("text_config", config)
        heads = text["num_attention_heads"]
        head = text.get("head_dim") or text["hidden_size"] // heads
        groups = text.get("num_key_value_heads") or heads
        return Blocks(
            text["num_hidden_layers"], text["hidden_size"], heads * head, groups * head, text["intermediate_size"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _guessed(name: str, parameters: float | None, source: str) -> Size:
    """With the shape that language models of this size usually have: as deep as Llama's, and as wide as that takes."""
    linear = 0.88 * (parameters or 7e9)
    layers = 24 if linear < 1e9 else 32 if linear < 1e10 else 40
    return Size(name, name, parameters, linear, layers, int(math.sqrt(linear / (12 * layers))), source)


def refuse_too_large(size: Size, memory: float, machine: str) -> VLChatError:
    """Why a model cannot be trained there, with the largest that can."""
    fitting = [entry for entry in MODELS if entry.id and _of_entry(entry).weights("qlora", 16) < memory]
    largest = max(fitting, key=lambda entry: entry.parameters, default=MODELS[0])
    assert size.parameters is not None
    return VLChatError(
        f"{size.name} has {size.parameters / 1e9:.1f} billion parameters, which take "
        f"{size.weights('qlora', 16) / 1e9:.1f} GB to train even in nf4, and {machine} leaves "
        f"{max(memory, 0) / 1e9:.1f} GB. Take a larger GPU, or a smaller model such as {largest.name}."
    )
