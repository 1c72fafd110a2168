"""A run -> one whole model folder in a layout that other programs load; and published checkpoints -> vlchat folders."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlchat import checkpoint, interop, lora, runs
from vlchat.chat_templates import template_source
from vlchat.errors import CheckpointError
from vlchat.export.card import write_card
from vlchat.export.recheck import Recheck
from vlchat.fit import check_numbers
from vlchat.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    EMBEDDED,
    newest,
    read_manifest,
    replaceable,
    sha256,
    without_places,
    writable,
    writing,
)
from vlchat.interop import original_llava
from vlchat.lora import is_lora
from vlchat.model import VLChatForConditionalGeneration
from vlchat.places import locate
from vlchat.quantize import is_quantized

_DTYPES = ("bfloat16", "float16", "float32")


def export(
    model: str,
    out: str | Path,
    *,
    layout: str | None = None,
    dtype: str = "bfloat16",
    name: str | None = None,
    merge: bool = True,
    overwrite: bool = False,
    scores: str | Path | None = None,
    check: bool = False,
    tell: Callable[[str], None] = print,
) -> Path:
    """Writes `model` (a run's save, with or without an adapter) as a whole folder that loads by its path alone.

    The adapter is merged in float32 into the unquantized base, and the result is stored as `dtype`. Configuration,
    processor, chat template, generation configuration and a card lie beside the weights.

    Args:
        model: a folder that training wrote, or any other checkpoint.
        out: the folder to write.
        layout: `vlchat`, `llava`, `llava_next` or `blip2`; None is vlchat for vlchat's own models, and for any other
            what it is.
        dtype: of the stored weights: bfloat16, float16 or float32.
        name: what the model calls itself to people.
        merge: without it the adapter stays apart, in `adapter/`, for servers that put several on one base. What else
            was trained, the connector, is in the model's own weights: vLLM takes no such tensors in an adapter.
        overwrite: replace a whole model that is there already; its card stays if people edited it.
        scores: a folder that `vlchat eval --out` wrote, for the card.
        check: read the folder again in a fresh process before it gets its name, see `vlchat.export.recheck`.
        tell: gets what the check found, in sentences.

    Raises:
        CheckpointError: when the model cannot be loaded, the layout cannot hold it, `out` cannot be written, or the
            folder that was written does not answer like the model; then nothing is left of it.
    """
    _known_dtype(dtype)
    if layout not in (None, "vlchat"):
        interop.layout(layout)  # a wrong name is told before the model loads
    writable(out)
    source, _ = locate(model)
    replaceable(out, [source, *_bases(source)], overwrite)
    kept = _edited_card(Path(out), scores)
    trained, processor = checkpoint.load(model, dtype=torch.float32, device="cpu")
    _refuse_quantized(model, trained)
    verifier = Recheck(trained, processor, tell) if check else None
    if not merge and not is_lora(trained):
        raise CheckpointError(f"{model} has no adapter to keep apart: leave --no-merge out.")
    if not merge and layout == "blip2":
        raise CheckpointError("The layout blip2 names the language model's layers otherwise: merge the adapter.")
    adapter = None if merge else _adapter_files(trained)
    loaded = lora.merge(trained) if merge else trained.unload()
    if verifier is not None and merge:
        verifier.check_merged(loaded)
    known = loaded.config.model_type in interop.FAMILIES
    if layout is not None and (known or layout != "vlchat") and not isinstance(loaded, VLChatForConditionalGeneration):
        if not known:
            raise CheckpointError(
                f"{model} is a {type(loaded).__name__}, which no other layout holds: leave --layout out, and it is "
                "written as what it is."
            )
        loaded, processor = interop.convert(loaded, processor)
    if layout is None and loaded.config.model_type in interop.LAYOUTS:
        with contextlib.suppress(CheckpointError):  # what ours cannot hold is written as transformers does
            loaded, processor = interop.convert(loaded, processor)
            layout = "llava" if loaded.config.image_grid_pinpoints is None else "llava_next"  # by the published names
    if layout not in (None, "vlchat"):
        interop.must_hold(layout, loaded, processor)
    about = checkpoint.describe(model)
    _round(loaded, dtype)
    check_numbers(f"{model}, stored as {dtype}", loaded)
    out, place = Path(out), Path(source)

    def extra(stage: Path) -> None:
        if (place / runs.METRICS).is_file():
            shutil.copyfile(place / runs.METRICS, stage / runs.METRICS)
        if (place / runs.CONFIG).is_file():
            run = without_places(json.loads((place / runs.CONFIG).read_text(encoding="utf-8")))
            (stage / runs.CONFIG).write_text(json.dumps(run, indent=1, ensure_ascii=False), encoding="utf-8")
        for file, content in (adapter or {}).items():
            (stage / "adapter").mkdir(exist_ok=True)
            (stage / "adapter" / file).write_bytes(content)
        if kept is not None:
            (stage / "README.md").write_bytes(kept)
        else:
            write_card(stage, name or out.absolute().name, loaded, place, scores)
        if verifier is not None:
            verifier.compare(stage, loaded, processor)

    trained_on = about["trained_on"] or ""
    if layout in (None, "vlchat"):
        checkpoint.save_full(
            out, loaded, processor, trained_on=trained_on, dtype=dtype, extra=extra, name=name, adapter=not merge,
            edited=kept is not None,
        )  # fmt: skip
    else:
        manifest = checkpoint.manifest_of_whole(loaded, trained_on, name, adapter=not merge, edited=kept is not None)
        with writing(out, manifest) as stage:
            interop.write(layout, loaded, processor, stage)
            extra(stage)
    return out


def import_model(
    source: str,
    out: str | Path,
    *,
    template: str | None = None,
    dtype: str = "bfloat16",
    name: str | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a published LLaVA, BLIP-2 or InstructBLIP as a vlchat folder.

    Args:
        source: a folder, Hub id or short name, in transformers' layout or LLaVA's own.
        template: chat template by name, where the checkpoint stores none.
        overwrite: replace a whole model that is there already.

    Raises:
        CheckpointError: when it cannot be read, is of another family, or has no chat template.
    """
    _known_dtype(dtype)
    place, revision = locate(source, revision)
    replaceable(out, [place], overwrite)
    if original_llava.is_one(place, revision):
        cpu = torch.device("cpu")
        model, processor = original_llava.load(place, None, torch.float32, cpu, revision, template)
    else:
        model, processor = checkpoint.load(place, dtype=torch.float32, device="cpu", revision=revision, merge=True)
        _refuse_quantized(source, model)
        if not isinstance(model, VLChatForConditionalGeneration):
            model, processor = interop.convert(model, processor, template)
        elif template is not None:
            processor.chat_template = template_source(template, processor.tokenizer)
    processor.apply_chat_template([{"role": "user", "content": "?"}], add_generation_prompt=True)  # it must render
    _round(model, dtype)
    check_numbers(f"{source}, stored as {dtype}", model)
    checkpoint.save_full(out, model, processor, trained_on=f"as published: {Path(place).name}", dtype=dtype, name=name)
    return Path(out)


def _known_dtype(dtype: str) -> None:
    if dtype not in _DTYPES:
        raise CheckpointError(f'dtype is "{dtype}"; use {", ".join(_DTYPES)}.')


def _round(model: torch.nn.Module, dtype: str) -> None:
    """Sets the parameters to a type; tables that are computed and not stored, such as rotary angles, keep theirs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))


def _adapter_files(model: Any) -> dict[str, bytes]:
    """The adapter as peft writes it, without the place on this machine that its base was loaded from."""
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place, save_embedding_layers=False)
        settings = json.loads((Path(place) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = None
        return {
            ADAPTER_CONFIG: json.dumps(settings, indent=2, sort_keys=True).encode(),
            ADAPTER_WEIGHTS: (Path(place) / ADAPTER_WEIGHTS).read_bytes(),
        }


def _edited_card(out: Path, scores: str | Path | None) -> bytes | None:
    """The card of an earlier export, if it is not the one that was written then."""
    card = out / "README.md"
    known: dict[str, Any] = read_manifest(out) or {}
    if not card.is_file() or known.get("card") == sha256(card):
        return None
    if scores is not None:
        raise CheckpointError(f"{card} was edited, so it stays: put the scores into it, or move it away.")
    return card.read_bytes()


def _bases(source: Path | str) -> list[str | Path | None]:
    """What a run stands on, down to what stands on nothing; what is not there any more is told when it is loaded."""
    manifest = read_manifest(source) if isinstance(source, Path) else None
    found: list[str | Path | None] = []
    for base in ((manifest or {}).get("base") or {}).values():
        place = EMBEDDED if base is None else newest(Path(base))
        found += [place, *(_bases(place) if place.is_dir() else [])]
    return found


def _refuse_quantized(source: str, model: Any) -> None:
    if is_quantized(model):
        raise CheckpointError(f"{source} is stored quantized, and rounding it again would spoil it: use its original.")
