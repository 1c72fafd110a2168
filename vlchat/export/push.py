"""A checkpoint -> a repository on the Hub: what is sent, what would keep others from loading it, and the sending."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlchat.errors import CheckpointError, UnsafeCheckpointError, VLChatError
from vlchat.folders import (
    ADAPTER_CONFIG,
    LOCAL,
    MANIFEST,
    PICKLES,
    TRAINING_STATE,
    is_adapter,
    newest,
    read_manifest,
    verify,
    without_places,
)
from vlchat.hub import unreachable

CARD = "README.md"
_FRONT = re.compile(r"---\n(.*?)\n---\n", re.S)
_WORDS = {"tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json"}  # paths there are tokens


@dataclass
class Parcel:
    """What is sent.

    Attributes:
        files: path in the repository -> the file, or its bytes where they differ from the file's.
        left_out: files that stay here.
        shortened: (file, path of this machine) that is sent as its last part alone.
        card: what the model card says of the model, by its front matter and its heading; None without a card.
    """

    folder: Path
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    shortened: list[tuple[str, str]] = field(default_factory=list)
    card: dict[str, Any] | None = None

    def render(self) -> str:
        """The files with their sizes, and whatever a person should know before they are public."""
        sizes = {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }
        lines = [f"{_size(size):>10}  {name}" for name, size in sizes.items()]
        lines.append(f"{_size(sum(sizes.values())):>10}  in {len(sizes)} files of {self.folder}")
        if self.left_out:
            lines.append(f"Stays here: {', '.join(self.left_out)}")
        for name, path in self.shortened:
            lines.append(f"{name}: {path} is sent as {Path(path).name}")
        if self.card is None:
            lines.append(f"There is no {CARD}: nobody will know what the model is and may be used for. Write one.")
        else:
            facts = {name: value for name, value in self.card.items() if value}
            lines.append(f"{CARD}: " + "; ".join(f"{name} {value}" for name, value in facts.items()))
            if not self.card.get("licence"):
                lines.append(f"{CARD} names no licence: begin it with the lines ---, license: ..., ---.")
        return "\n".join(lines)


def pack(folder: str | Path) -> Parcel:
    """Looks at a folder that `vlchat export` or a run wrote, or at a PEFT adapter. The folder stays as it is.

    Raises:
        CheckpointError: it is no checkpoint, or damaged, or stands on a folder that only this machine has.
        UnsafeCheckpointError: it holds a pickle.
    """
    folder = newest(Path(folder).expanduser())
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder {folder} to push.")
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise CheckpointError(f"{folder} holds no model: it has no config.json.")
    manifest = read_manifest(folder)
    if manifest is not None:
        verify(folder, manifest)
    _check_base(folder, manifest)
    parcel = Parcel(folder, card=_card(folder / CARD))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix in PICKLES:
            raise UnsafeCheckpointError(
                f"{path} is a pickle, which can run code when it is read. Nobody should have to: move it away."
            )
        if name.startswith(f"{TRAINING_STATE}/") or any(part.startswith(".") for part in Path(name).parts):
            if (top := name.partition("/")[0]) not in parcel.left_out:
                parcel.left_out.append(top)
        else:
            parcel.files[name] = _without_paths(path, name, parcel.shortened)
    if manifest is not None:
        parcel.files[MANIFEST] = _manifest(manifest, parcel)
    return parcel


def push(parcel: Parcel, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Sends a parcel in one commit, and makes the repository and the branch where they are not there yet.

    Args:
        revision: the branch; None is main.

    Returns:
        The address of the model.

    Raises:
        VLChatError: there is no token, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    check_name(repository)
    if get_token() is None:
        raise VLChatError("Sending to the Hub needs your token: hf auth login, or set HF_TOKEN.")
    api = HfApi()
    operations = [CommitOperationAdd(name, file) for name, file in parcel.files.items()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.create_commit(repository, operations, commit_message="Upload by vlchat push", revision=revision)
    except (ValueError, *unreachable()) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise VLChatError(f"{repository} can't be sent to the Hub: {reason}") from error
    return f"{api.endpoint}/{repository}" + (f"/tree/{revision}" if revision else "")


def check_name(repository: str) -> None:
    """Raises VLChatError for anything but YOU/NAME."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise VLChatError(f'"{repository}" is no name on the Hub: {error}') from error
    if repository.count("/") != 1:
        raise VLChatError(f'"{repository}" is no name on the Hub: write YOU/NAME.')


def _check_base(folder: Path, manifest: dict[str, Any] | None) -> None:
    """What others cannot load is refused."""
    if is_adapter(folder):
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
        if base is None or Path(base).exists() or LOCAL.fullmatch(base):
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} names the base {base}, which nobody else has. Write its Hub id there, as "
                "base_model_name_or_path, or make a whole model: vlchat export."
            )
    for base in ((manifest or {}).get("base") or {}).values():
        if base is not None and (Path(base).exists() or LOCAL.fullmatch(base)):
            raise CheckpointError(
                f"{folder / MANIFEST} names the base {base}, which nobody else has. Write a whole model and push that: "
                f"vlchat export {folder} OUT"
            )


def _without_paths(path: Path, name: str, shortened: list[tuple[str, str]]) -> Path | bytes:
    """The file, or its bytes without the paths of this machine that programs wrote into its settings."""
    if path.suffix != ".json" or path.name in _WORDS or name == MANIFEST:
        return path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    found = sorted({text for text in _texts(content) if LOCAL.fullmatch(text)})
    if not found:
        return path
    shortened += [(name, text) for text in found]
    return (json.dumps(without_places(content), indent=2, ensure_ascii=False) + "\n").encode()


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, (dict, list)):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _texts(value)


def _manifest(manifest: dict[str, Any], parcel: Parcel) -> bytes:
    """The manifest of what is sent: its hashes, and none of what stays here."""
    hashes = {}
    for name, known in manifest.get("files", {}).items():
        file = parcel.files.get(name)
        if file is not None:
            hashes[name] = hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else known
    sent = {key: value for key, value in manifest.items() if key != "base_relative"}
    return (json.dumps({**sent, "files": hashes}, indent=2, ensure_ascii=False) + "\n").encode()


def _card(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    front = _FRONT.match(text)
    try:
        about = yaml.safe_load(front[1]) if front else {}
    except yaml.YAMLError as error:
        raise CheckpointError(f"The lines between --- in {path} are no YAML: {' '.join(str(error).split())}") from error
    about = about if isinstance(about, dict) else {}
    body = text[front.end() :] if front else text
    heading = next((line[2:] for line in body.splitlines() if line.startswith("# ")), "")
    return {"heading": heading, "licence": about.get("license"), "base": about.get("base_model")}


def _size(count: int) -> str:
    for unit, letter in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {letter}"
    return f"{count} B"
