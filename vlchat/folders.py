"""Checkpoint folders on disk: written whole or not at all, with hashes, and without pickles."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlchat.errors import CheckpointError, UnsafeCheckpointError

EMBEDDED = Path(__file__).parent / "assets" / "mini"
MANIFEST = "vlchat.json"
ADAPTER_CONFIG = "adapter_config.json"  # of peft
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FORMAT = 1
TRAINING_STATE = "training_state"  # of a save: optimizer and random generators, for resuming it
LOCAL = re.compile(r"(/|~/|[A-Za-z]:[\\/])[^\s/\\]+[\\/]\S.*")  # an absolute path of at least two parts
_STEP = re.compile(r"step-\d+")
_WEIGHTS = re.compile(r"(adapter/)?[^/]+\.safetensors")
_NOTES = "README.md"  # a card for people, who may edit it: not hashed
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def replaceable(folder: str | Path, sources: Iterable[str | Path | None], overwrite: bool) -> None:
    """Whether a whole model may be written to `folder`: where nothing is, or over one that nobody stands on.

    Args:
        sources: what the new model is made from, and what that stands on.
        overwrite: a whole model may be replaced.

    Raises:
        CheckpointError: as `writable`; for a save of a run, a place among them, one of `sources`, or any model without
            `overwrite`.
    """
    target = writable(folder)
    for source in sources:
        if source is not None and target == Path(source).expanduser().absolute():
            raise CheckpointError(f"{folder} is what the new model is made from: choose another name.")
    if _STEP.fullmatch(target.name) and steps(target.parent):
        raise CheckpointError(f"{folder} would be taken for a save of the run around it: choose another place.")
    known = read_manifest(target)
    if known is None:
        return
    if known.get("base") is not None or (target / TRAINING_STATE).exists():
        raise CheckpointError(f"{folder} is a save of a run, which nothing replaces: choose another name.")
    if not overwrite:
        raise CheckpointError(f"{folder} holds a model already: choose another name, or say --overwrite to replace it.")


def writable(folder: str | Path) -> Path:
    """The absolute path of a folder that a checkpoint can be written to; makes the folder around it.

    Raises:
        CheckpointError: it holds something that is not a checkpoint of vlchat, or the folder around it cannot be made.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
        raise CheckpointError(f"{folder} exists and is not a vlchat checkpoint; it is left alone. Choose another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}. Choose another place.") from error
    if not os.access(folder.parent, os.W_OK) or not folder.parent.is_dir():
        raise CheckpointError(f"{folder} cannot be written: {folder.parent} is closed to you. Choose another place.")
    return folder


@contextlib.contextmanager
def writing(folder: str | Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Gives a staging folder to fill; at the end hashes, flushes and renames it to `folder`.

    A crash at any moment leaves the old folder, or nothing, and never half of the new one. A checkpoint that is there
    already is replaced.

    Raises:
        CheckpointError: as `writable`.
    """
    folder = writable(folder)
    stage = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        hashes = {path.relative_to(stage).as_posix(): sha256(path) for path in files if path != stage / _NOTES}
        card = sha256(stage / _NOTES) if (stage / _NOTES).is_file() else None  # tells later whether people edited it
        text = json.dumps({"format": FORMAT, "card": card, **manifest, "files": hashes}, indent=2, ensure_ascii=False)
        (stage / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for path in files:  # safetensors are written for the owner's eyes alone, unlike all else
            path.chmod((stage / MANIFEST).stat().st_mode)
        for path in [*files, stage / MANIFEST, *(p for p in stage.rglob("*") if p.is_dir()), stage]:
            _flush(path)
        old = folder.parent / f".{folder.name}.old-{os.getpid()}"
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
        _flush(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def replacing(file: Path, flush: bool = True) -> Iterator[Path]:
    """Gives a file to write beside `file`, which takes its place at the end: whole, or not at all.

    Args:
        flush: to the disk, so that a power cut leaves it whole too; it may take a while.
    """
    stage = file.with_name(f".{file.name}.partial")
    try:
        yield stage
        if flush:
            _flush(stage)
        stage.replace(file)
    finally:
        stage.unlink(missing_ok=True)


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: its folders `step-N`. A copy by another name is not one of them."""
    found = [path for path in run.glob("step-*") if _STEP.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def is_step(folder: Path) -> bool:
    """Whether a folder has the name of a checkpoint of a run, `step-N`."""
    return bool(_STEP.fullmatch(folder.name)) and folder.is_dir()


def step_of(folder: Path) -> int:
    """N of a checkpoint `step-N`."""
    return int(folder.name.removeprefix("step-"))


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / f"step-{step}"


def newest(folder: Path) -> Path:
    """The folder of a run stands for its newest checkpoint, any other folder for itself."""
    saves = steps(folder)
    return folder if not saves or (folder / "config.json").is_file() else saves[-1]


def title(folder: Path) -> str:
    """What people call a checkpoint: the name of its run, or of the folder itself."""
    folder = folder.absolute()
    return folder.parent.name if _STEP.fullmatch(folder.name) else folder.name


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where it has none.

    Raises:
        CheckpointError: when it can't be read, or is of a later format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT}; it needs another version of vlchat.")
    if not isinstance(manifest.get("files", {}), dict):
        raise CheckpointError(f"{path} is damaged: it names no files.")
    return manifest


def verify(folder: Path, manifest: dict[str, Any]) -> None:
    """Compares every file with the hash it had when it was written.

    Raises:
        CheckpointError: naming the files that are missing or changed.
    """
    bad = []
    for name, expected in manifest.get("files", {}).items():
        path = folder / name  # may be a link: in the Hub's cache every file is one
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / MANIFEST} names a file outside its folder: {name}.")
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif sha256(path) != expected:
            bad.append(f"{name} has changed")
    if bad:
        raise CheckpointError(f"The checkpoint {folder} is damaged: {'; '.join(bad)}.")


def weights_digest(folder: Path) -> str | None:
    """One hash for all weights of a checkpoint: of vlchat's own by their hashes, of any other by samples of its files.

    None for a folder without weights.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        found = sorted(folder.glob("*.safetensors"))
        return hashlib.sha256("\n".join(map(sampled, found)).encode()).hexdigest() if found else None
    files = sorted(manifest.get("files", {}).items())
    weights = [f"{name} {found}" for name, found in files if _WEIGHTS.fullmatch(name)]
    return hashlib.sha256("\n".join(weights).encode()).hexdigest()


def refuse_pickles(folder: Path) -> None:
    """Refuses weights that run code when they are read.

    A vlchat checkpoint may hold no such file at all. Folders from elsewhere often have one beside the safetensors; it
    is not read there, and refused only when there are no safetensors.

    Raises:
        UnsafeCheckpointError: for a pickle, whatever its name.
        CheckpointError: for a safetensors file that is none.
    """
    _check_index(folder)
    places = [folder, folder / "adapter"]
    files = [path for place in places if place.is_dir() for path in place.iterdir() if path.is_file()]
    tensors = [path for path in files if path.suffix == ".safetensors"]
    pickles = sorted(path.name for path in files if path.suffix in PICKLES)
    if pickles and (not tensors or (folder / MANIFEST).is_file()):
        raise UnsafeCheckpointError(
            f"{folder} holds {pickles[0]}, a pickle, which can run code when it is read. Only safetensors are loaded: "
            "convert it, or take a version of the checkpoint that has them."
        )
    for path in tensors:
        with path.open("rb") as file:
            head = file.read(9)
        if head[8:9] == b"{":
            continue
        if head[:1] == b"\x80" or head[:2] == b"PK":
            raise UnsafeCheckpointError(f"{path} is a pickle that calls itself safetensors; it is not read.")
        raise CheckpointError(f"{path} is not a safetensors file; it may have been cut short.")


def _check_index(folder: Path) -> None:
    """An index may name files beside it only, and no pickles."""
    for path in folder.glob("*.safetensors.index.json"):
        try:
            named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            wrong = sorted(name for name in named if Path(name).name != name or not name.endswith(".safetensors"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: it is no index of weight files.") from error
        if wrong:
            raise UnsafeCheckpointError(f"{path} names {wrong[0]}; weights are read from safetensors beside it only.")
        absent = sorted(name for name in named if not (folder / name).is_file())
        if absent:
            raise CheckpointError(f"{path} names {absent[0]}, which is not there: the download may be incomplete.")


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter of another making, and no whole model."""
    others = (folder / MANIFEST).is_file() or any(folder.glob("model*.safetensors"))
    return (folder / ADAPTER_CONFIG).is_file() and not others


def adapter_base(folder: Path) -> tuple[str, str | None]:
    """The base that a PEFT adapter names, as a path or Hub id, and its revision.

    Raises:
        CheckpointError: the folder is half of a vlchat checkpoint, or holds no weights, or names no base that is there.
    """
    around = read_manifest(folder.absolute().parent)
    if around is not None and around.get("adapter") == folder.absolute().name:
        raise CheckpointError(f"{folder} is a part of the checkpoint {folder.absolute().parent}: name that instead.")
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise CheckpointError(f"{folder} is an adapter without {ADAPTER_WEIGHTS}. Only safetensors are loaded.")
    mend = f"Write the base's path or Hub id as base_model_name_or_path into {path}."
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{folder} is an adapter that does not say of which model. {mend}")
    places = [Path(base).expanduser(), folder / base]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None and found.resolve() == folder.resolve():
        raise CheckpointError(f"{folder} is an adapter that names itself as its base. {mend}")
    if found is not None:
        return str(found), None
    if os.path.isabs(base) or base.startswith((".", "~")) or base.count("/") != 1:
        raise CheckpointError(f"{folder} is an adapter of {base}, which is not there. {mend}")
    return base, revision


def tensor_count(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold, read from their headers.

    Raises:
        CheckpointError: for a file that has none.
    """
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            total += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{path} is not a safetensors file; it may have been cut short.") from error
    return total


def without_places(content: Any) -> Any:
    """JSON in which each path of this machine is its last part alone, for what others get to see."""
    if isinstance(content, dict):
        return {key: without_places(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_places(value) for value in content]
    is_path = isinstance(content, str) and LOCAL.fullmatch(content)
    return re.split(r"[\\/]", content.rstrip("\\/"))[-1] if is_path else content


def sampled(path: Path) -> str:
    """A hash of a file's name, size and 64 pieces: weights that were trained on differ in every one of them."""
    size, piece = path.stat().st_size, 4096
    digest = hashlib.sha256(f"{path.name} {size}".encode())
    with path.open("rb") as file:
        for number in range(64):
            file.seek(number * max(0, size - piece) // 63)
            digest.update(file.read(piece))
    return digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
