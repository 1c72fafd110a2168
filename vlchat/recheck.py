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
from PIL import Image
from safetensors.torch import load_file, save_file

from vlchat import images
from vlchat.errors import CheckpointError
from vlchat.model import VLChatForConditionalGeneration

PICTURES = sorted((Path(__file__).parent / "assets" / "examples").glob("*.png"))
NEW_TOKENS = 16
TOLERANCE = 1e-4  # of float32 logits that the same weights give in two processes
_QUESTIONS = ("What is in the picture?", "Describe it in one sentence.")


class Recheck:
    """Keeps what a model answers in float32, for comparison with the folder written from it.

    Args:
        model: in float32, its adapter merged; it is still as it was trained.
        tell: gets what was found, in sentences.
    """

    def __init__(self, model: Any, processor: Any, tell: Callable[[str], None]) -> None:
        self.model, self.processor, self.tell = model, processor, tell
        self.asked = list(zip(_QUESTIONS, PICTURES, strict=False))
        self.inputs = [self._prepare(question, picture) for question, picture in self.asked]
        self.trained = [_logits(model, inputs) for inputs in self.inputs]

    def compare(self, folder: Path) -> None:
        """Loads `folder` in a fresh process with plain transformers and compares tokens, logits and greedy text.

        The model has been rounded to the stored type by now; it is set to float32 again, which it then stays.

        Raises:
            CheckpointError: for any difference that rounding does not explain, or a folder that does not load.
        """
        stored = str(self.model.dtype).removeprefix("torch.")
        self.model.float()
        expected = [_logits(self.model, inputs) for inputs in self.inputs]
        texts = [_greedy(self.model, self.processor, inputs) for inputs in self.inputs]
        if stored != "float32":
            moved = max(_difference(a, b) for a, b in zip(self.trained, expected, strict=True))
            self.tell(f"Rounded to {stored}, the logits move by at most {moved:.3g}.")
        with tempfile.TemporaryDirectory() as place:
            found = self._ask(folder, Path(place))
        for index, inputs in enumerate(self.inputs):
            ids = found[f"{index}.input_ids"]
            if not torch.equal(ids, inputs["input_ids"]):
                raise CheckpointError(
                    f"The folder in {folder.name} reads another prompt: {ids.shape[1]} tokens where the model has "
                    f"{inputs['input_ids'].shape[1]}, or other ones. It is not kept."
                )
        largest = max(_difference(found[f"{index}.logits"], logits) for index, logits in enumerate(expected))
        if not largest <= TOLERANCE:
            raise CheckpointError(
                f"Read again by transformers, the folder's logits differ by {largest:.3g} (at most {TOLERANCE:g}). "
                "It is not kept."
            )
        for index, text in enumerate(texts):
            if found["texts"][index] != text:
                raise CheckpointError(
                    f'Read again by transformers, the folder answers "{found["texts"][index]}" where the model answers '
                    f'"{text}". It is not kept.'
                )
        self.tell(
            f"Read again by transformers {transformers.__version__} in a fresh process: the same tokens, logits "
            f"(largest difference {largest:.3g}) and greedy text on {len(self.inputs)} pictures."
        )

    def _prepare(self, question: str, picture: Path) -> dict[str, torch.Tensor]:
        image: Image.Image = images.decode(picture)
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        return dict(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            )
        )

    def _ask(self, folder: Path, place: Path) -> dict[str, Any]:
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
            if tensor.is_floating_point()
        }
        save_file(given, place / "pixels.safetensors")
        script = Path(__file__).parent / "interop" / "reload.py"
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
        run = subprocess.run(
            [sys.executable, "-P", str(script), str(place)], capture_output=True, text=True, env=environment
        )
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise CheckpointError(f"transformers does not load what was written: {reason} It is not kept.")
        answer: dict[str, Any] = dict(load_file(place / "result.safetensors"))
        answer["texts"] = json.loads((place / "result.json").read_text(encoding="utf-8"))
        return answer


def _is_ours(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type") == VLChatForConditionalGeneration.config_class.model_type


@torch.inference_mode()
def _logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits.float()


@torch.inference_mode()
def _greedy(model: Any, processor: Any, inputs: dict[str, torch.Tensor]) -> str:
    written = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
    return processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item() if a.shape == b.shape else float("inf")
