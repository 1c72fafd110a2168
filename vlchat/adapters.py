"""Several adapters on one base, connector included: the base is in memory once, and each request says who answers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vlchat import checkpoint
from vlchat.chat import Chat
from vlchat.errors import CheckpointError
from vlchat.folders import EMBEDDED, adapter_base, is_adapter, newest, read_manifest, title, weights_digest
from vlchat.foreign.pictures_only import load_processor
from vlchat.lora import is_lora, load_lora
from vlchat.places import locate, resolve_base
from vlchat.processor import VLChatProcessor

Place = str | Path | None  # as of `checkpoint.load`
Values = list[tuple[nn.Parameter, torch.Tensor]]


class NotShared(CheckpointError):
    """Adapters that cannot be switched on one base."""


class Shared:
    """A model in which adapters and trained tensors are exchanged. At most one of its turns is held at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.lock = threading.Lock()
        self._own: dict[nn.Parameter, torch.Tensor] = {}  # the base's own values of what any adapter changes
        self._values: dict[str, dict[nn.Parameter, torch.Tensor]] = {}
        self._lora: dict[str, str | None] = {}  # our names -> peft's, which may hold no dots
        self._worn: str | None = None
        self._active: str | None = None  # of peft
        self._disabled = False

    def add(self, name: str, values: Values, lora: Path | None) -> None:
        """Makes an adapter ready to be worn.

        Args:
            values: the model's parameters with the tensors that take their place, of the same shapes.
            lora: the folder of a PEFT adapter.

        Raises:
            CheckpointError: the PEFT adapter does not fit the model.
            NotShared: it changes the base itself.
        """
        self._own |= {parameter: parameter.data for parameter, _ in values}
        self._values[name] = {
            parameter: tensor.to(parameter.device, parameter.dtype).contiguous() for parameter, tensor in values
        }
        self._lora[name] = None
        if lora is not None:
            before = [(parameter, _state(parameter)) for parameter in self.model.parameters()]
            self._lora[name] = f"adapter{len(self._lora)}"
            self.model = load_lora(self.model, lora, name=str(self._lora[name]))
            if any(_state(parameter) != state for parameter, state in before):
                raise NotShared(
                    f"The adapter in {lora} changes its base itself, such as embeddings of new words, so it shares it "
                    "with no other: load it alone."
                )

    def wear(self, name: str) -> None:
        """Puts one adapter on and all others off; whoever calls holds the lock."""
        if self._worn == name:
            return
        self._worn = None
        for parameter, own in self._own.items():
            parameter.data = self._values[name].get(parameter, own)
        lora = self._lora[name]
        if lora is not None:
            if self._disabled:  # peft walks through all of the model, so only where it must
                self.model.base_model.enable_adapter_layers()
                self._disabled = False
            if self._active != lora:
                self.model.set_adapter(lora, inference_mode=True)
                self._active = lora
        elif is_lora(self.model) and not self._disabled:
            self.model.base_model.disable_adapter_layers()
            self._disabled = True
        self._worn = name


def _state(parameter: nn.Parameter) -> tuple[int, int]:
    return parameter._version, parameter.data_ptr()


class Turn:
    """The lock of a shared model for one adapter: whoever holds it has that adapter on."""

    def __init__(self, shared: Shared, name: str) -> None:
        self.shared, self.name = shared, name

    def acquire(self, timeout: float = -1) -> bool:
        """As of `threading.Lock`."""
        if not self.shared.lock.acquire(timeout=timeout):
            return False
        try:
            self.shared.wear(self.name)
        except BaseException:
            self.shared.lock.release()
            raise
        return True

    def release(self) -> None:
        """As of `threading.Lock`. The adapter stays on: often the next request has it, too."""
        self.shared.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def load(base: Place, adapters: Mapping[str, Place], **options: Any) -> Chat:
    """One model that answers as its base and with each adapter; see `Chat.adapters`.

    Every answer is that of the adapter's folder loaded alone.

    Args:
        base: what the adapters stand on; or a run that stands on the same base as they do.
        adapters: NAME -> a run or the folder of a PEFT adapter.
        options: as of `checkpoint.load`; a revision is the base's.

    Raises:
        NotShared: an adapter is none, or does not stand on this base, or changes it.
        CheckpointError: something cannot be loaded.
    """
    siblings = _siblings(base, adapters, options.get("revision"))
    about = checkpoint.describe(base, options.get("revision"))
    if siblings:
        model, processor = checkpoint.load(base, **options, bare=True)
    elif about["adapter"]:  # what stands on a run stands on it with its adapter merged
        model, processor = checkpoint.load(base, **options, merge=True)
    else:
        model, processor = checkpoint.load(base, **options)
    shared = Shared(model)
    folders = {name: locate(place)[0] for name, place in adapters.items()}
    if siblings:
        folders = {"": locate(base, options.get("revision"))[0], **folders}
    else:
        shared.add("", [], None)
    trained = {name: _trained(Path(folder), model) for name, folder in folders.items()}
    for name, folder in folders.items():
        shared.add(name, trained[name], _lora(Path(folder)))
    processors = {name: _processor(Path(folder), processor) for name, folder in folders.items()}
    parameters = about["parameters"] or model.num_parameters()

    def answerer(name: str, place: Place) -> Chat:
        spoken = processors.get(name, processor)
        described = about if name == "" else checkpoint.describe(place)
        described = {**described, "parameters": described["parameters"] or parameters}
        config = _generation_config(model, spoken)
        return Chat(shared.model, spoken, described, turn=Turn(shared, name), generation_config=config)

    chat = answerer("", base)
    chat.adapters = {name: answerer(name, place) for name, place in adapters.items()}
    return chat


def shared_base(places: Sequence[Place]) -> tuple[Place, dict[int, Place]] | None:
    """How to hold several models on one base: what `load` takes as its base, and the others by their position.

    None where they do not stand on the same base.
    """
    for position, place in enumerate(places):
        others = {other: found for other, found in enumerate(places) if other != position}
        about = checkpoint.describe(place)
        try:
            siblings = _siblings(place, {str(other): found for other, found in others.items()})
        except NotShared:
            continue
        if siblings or not about["adapter"]:  # merged below others, a run's own answers would be rounded differently
            return place, others
    return None


def _siblings(base: Place, adapters: Mapping[str, Place], revision: str | None = None) -> bool:
    """Whether the adapters stand on what `base` stands on (True) or on `base` itself (False)."""
    source, found = locate(base, revision)
    here = {"model": _key(f"{source}@{found}" if found else source)}
    below = _standing(base, revision)
    standing = {name: _standing(place) for name, place in adapters.items()}
    for name, keys in standing.items():
        if keys is None:
            raise NotShared(f"{adapters[name] or 'The embedded model'} is a whole model, not an adapter on another.")
    if all(keys == here for keys in standing.values()):
        return False
    if below is not None and all(keys == below for keys in standing.values()):
        return True
    odd = next(name for name, keys in standing.items() if keys not in (here, below))
    raise NotShared(
        f"The adapter {adapters[odd]} was trained on top of {_names(adapters[odd])}, and not of "
        f"{base or 'the embedded model'}. Adapters are switched on one base only: load it alone."
    )


def _base(place: Place, revision: str | None = None) -> dict[str, Place] | None:
    """Where the parts below a run or an adapter are; None for a whole model."""
    folder, _ = locate(place, revision)
    if not isinstance(folder, Path):
        return None
    if is_adapter(folder):
        source, found = adapter_base(folder)
        return {"model": f"{source}@{found}" if found else source}
    manifest = read_manifest(folder)
    return None if not manifest or manifest.get("base") is None else resolve_base(folder, manifest)


def _standing(place: Place, revision: str | None = None) -> dict[str, str] | None:
    base = _base(place, revision)
    return None if base is None else {key: _key(value) for key, value in base.items()}


def _names(place: Place) -> str:
    return " and ".join(str(value or "the embedded model") for value in (_base(place) or {}).values())


def _key(place: Place) -> str:
    """The same for the same weights: their hash, or else the folder or the id."""
    path = EMBEDDED if place is None else Path(place).expanduser()
    if path.is_dir():
        return weights_digest(newest(path)) or str(newest(path).resolve())
    return str(place)


def _trained(folder: Path, model: Any) -> Values:
    manifest = read_manifest(folder)
    return checkpoint.read_trained(folder, manifest, model) if manifest and manifest.get("trained") else []


def _lora(folder: Path) -> Path | None:
    if is_adapter(folder):
        return folder
    manifest = read_manifest(folder) or {}
    return folder / manifest["adapter"] if manifest.get("adapter") else None


def _processor(folder: Path, base: Any) -> Any:
    return load_processor(folder) if (folder / "processor_config.json").is_file() else base


def _generation_config(model: Any, processor: Any) -> Any:
    holder = SimpleNamespace(generation_config=copy.deepcopy(model.generation_config))
    if isinstance(processor, VLChatProcessor):
        checkpoint.align_generation(holder, processor)
    return holder.generation_config


def names(places: Sequence[Place]) -> list[str]:
    """What to call several models beside each other: short, and no two alike."""
    short = ["embedded" if place is None else _title(place) for place in places]
    return [name if short.count(name) == 1 else str(place) for name, place in zip(short, places, strict=True)]


def _title(place: str | Path) -> str:
    return title(Path(place)) if Path(place).is_dir() else str(place)
