"""Whether an exported folder answers like the model it was written from, in a process that knows only transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from vlchat import foreign, images
from vlchat.errors import CheckpointError
from vlchat.fit import is_finite
from vlchat.folders import EMBEDDED
from vlchat.interop import reload
from vlchat.lora import is_lora, load_lora
from vlchat.model import VLChatForConditionalGeneration

PICTURES = sorted((EMBEDDED.parent / "examples").glob("*.png"))
NEW_TOKENS = 16
MERGED = 1e-3  # of the largest logit: the same sum in another order
TOLERANCE = 1e-4  # of float32 logits that the same weights give in two processes
_QUESTIONS = ("What is in the picture?", "Describe it in one sentence.")


class Recheck:
    """Keeps what a model answers in float32, for comparison with the folder written from it.

    Args:
        model: in float32, as it was trained, its adapter around it.
        tell: gets what was found, in sentences.
    """

    def __init__(self, model: Any, processor: Any, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.asked = list(zip(_QUESTIONS, PICTURES, strict=False))
        self.inputs = [
            foreign.accepted(dict(reload.prepare(processor, question, images.decode(picture))), model)
            for question, picture in self.asked
        ]
        self.trained = [logits for logits, _ in self._answers(model)]
        self.adapted = is_lora(model)

    def check_merged(self, model: Any) -> None:
        """Raises CheckpointError when the model with its adapter merged is another one than with its adapter around."""
        if not self.adapted:
            return
        merged = [logits for logits, _ in self._answers(model)]
        moved = max(_difference(a, b) for a, b in zip(self.trained, merged, strict=True))
        if not moved <= MERGED * max(1.0, *(logits.abs().max().item() for logits in self.trained)):
            raise CheckpointError(f"Merging the adapter moves the logits by {moved:.3g}; nothing is written.")
        self.tell(f"With the adapter merged, the logits move by at most {moved:.3g}.")

    def compare(self, folder: Path, model: Any, processor: Any) -> None:
        """Loads `folder` in a fresh process with plain transformers and compares tokens, logits and greedy text.

        Args:
            folder: with an adapter in `adapter/` where it was kept apart.
            model: what was written, rounded to the stored type; it is set to float32 again, which it then stays.

        Raises:
            CheckpointError: for any difference that rounding does not explain, or a folder that does not load.
        """
        stored = str(model.dtype).removeprefix("torch.")
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        if (folder / "adapter").is_dir():
            model = load_lora(model, folder / "adapter")
        expected = self._answers(model)
        if stored != "float32":
            moved = max(_difference(a, b) for a, (b, _) in zip(self.trained, expected, strict=True))
            self.tell(f"Rounded to {stored}, the logits move by at most {moved:.3g}.")
        with tempfile.TemporaryDirectory() as place:
            found = self._ask(folder, Path(place))
        largest = 0.0
        for index, (logits, written) in enumerate(expected):
            ids, known = found.get(f"{index}.input_ids"), self.inputs[index]["input_ids"]
            if ids is not None and not torch.equal(ids, known):
                raise CheckpointError(
                    f"Read again by transformers, the folder reads another prompt: {ids.shape[1]} tokens where the "
                    f"model has {known.shape[1]}, or other ones. What was written is thrown away."
                )
            largest = max(largest, _difference(found[f"{index}.logits"], logits))
            if not largest <= TOLERANCE:
                raise CheckpointError(
                    f"Read again by transformers, the folder's logits differ by {largest:.3g} (at most {TOLERANCE:g}). "
                    "What was written is thrown away."
                )
            if not torch.equal(found[f"{index}.written"], written):
                texts = [processor.tokenizer.decode(one[0]) for one in (found[f"{index}.written"], written)]
                raise CheckpointError(
                    f'Read again by transformers, the folder answers "{texts[0]}" where the model answers '
                    f'"{texts[1]}". What was written is thrown away.'
                )
        tokens = "the same tokens, logits" if "0.input_ids" in found else "the same logits"
        self.tell(
            f"Read again by transformers {transformers.__version__} in a fresh process: {tokens} "
            f"(largest difference {largest:.3g}) and greedy text on {len(self.inputs)} pictures."
        )
        if "0.input_ids" not in found:
            self.tell("Its processor was not read again: this family's wants torchvision, which is not installed.")

    def _answers(self, model: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [reload.answer(model, inputs, NEW_TOKENS) for inputs in self.inputs]

    def _ask(self, folder: Path, place: Path) -> dict[str, torch.Tensor]:
        request = {
            "folder": str(folder.absolute()),
            # Our own class registers itself with the Auto classes when it is imported.
            "imports": "vlchat.checkpoint" if _is_ours(folder) else None,
            "asked": [[question, str(picture)] for question, picture in self.asked],
            "new_tokens": NEW_TOKENS,
        }
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        given = {
            f"{index}.{name}": tensor.contiguous()
            for index, inputs in enumerate(self.inputs)
            for name, tensor in inputs.items()
        }
        save_file(given, place / "inputs.safetensors")
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
        run = subprocess.run(
            [sys.executable, "-P", str(reload.__file__), str(place)], capture_output=True, text=True, env=environment
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise CheckpointError(f"transformers does not load what was written: {reason} It is thrown away.")
        return load_file(place / "result.safetensors")


def _is_ours(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == VLChatForConditionalGeneration.config_class.model_type


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of what is no number, and of unlike shapes, infinite."""
    if a.shape != b.shape or not (is_finite(a) and is_finite(b)):
        return float("inf")
    return (a - b).abs().max().item()
