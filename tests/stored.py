"""Results written as `vlchat eval --out` writes them, from scores given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlchat.evaluate import save
from vlchat.evaluate.known import TASKS
from vlchat.evaluate.result import Result

PROMPTS = {"words": "aa", "pictures": "bb", "first": "user: What?"}


def result_of(scores: Sequence[float], task: str = "vqa", **changes: Any) -> Result:
    """A result of `task`: row r0, r1, ... with these scores, two rows a picture."""
    rows = [
        {
            "id": f"r{number}", "slices": {"kind": "even" if number % 2 == 0 else "odd"}, "cluster": f"p{number // 2}",
            "question": f"question {number}", "pictures": [], "reference": "x", "reply": [f"reply {number}: {score}"],
            "answer": f"answer {score}", "score": score, "stats": {"score": score, "right": score}, "confidence": None,
        }
        for number, score in enumerate(scores)
    ]  # fmt: skip
    settings = {"seed": 0, "batch_size": 2, "decoding": "greedy", "controls": [], "control_rows": 0, "options": {}}
    given: dict[str, Any] = {
        "task": task, "protocol": "a protocol", "measures": getattr(TASKS[task], "measures", []),
        "model": {"name": "m", "weights": "w" * 64}, "data": {"path": "test.json", "sha256": "dd"},
        "settings": settings, "rows": rows, "counts": {"questions": len(rows), "unanswered": 0, "asked": 0, "known": 0},
        "notes": [], "seconds": 1.0, "versions": {"vlchat": "1"}, "prompts": PROMPTS,
    }  # fmt: skip
    return Result(**given | changes)


def stored(folder: Path, scores: Sequence[float], task: str = "vqa", **changes: Any) -> Path:
    return save(result_of(scores, task, **changes), folder)
