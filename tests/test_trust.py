"""The calibration beside a model: what is written is read, rises, and says nothing of other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from talkative import save_talkative

from vlchat import cli
from vlchat.checkpoint import EMBEDDED
from vlchat.errors import VLChatError
from vlchat.evaluate import trust
from vlchat.folders import weights_digest


def test_steps_rise_and_keep_the_mean() -> None:
    generator = np.random.default_rng(0)
    sure = generator.random(1000)
    right = (generator.random(1000) < sure**2).astype(float)
    steps = trust.isotonic(list(sure), list(right))
    starts, shares = zip(*steps, strict=True)
    assert list(starts) == sorted(starts) and list(shares) == sorted(shares) and starts[0] == sure.min()
    known = trust.Trust("any", 1000, None, 0.1, 0.95, 0.5, steps)
    told = [known.confidence(one) for one in sure]
    assert np.mean(told) == pytest.approx(right.mean()), "on its own rows it is right on average"
    assert np.mean((np.array(told) - sure**2) ** 2) < 0.01 < np.mean((sure - sure**2) ** 2)
    assert known.confidence(0.0) == shares[0] and known.unsure(0.49) and not known.unsure(0.5)
    assert trust.isotonic([0.5] * 100, [1.0] * 60 + [0.0] * 40) == ((0.5, 0.6),)
    assert trust.Trust("any", 1000, None, 0.1, 0.95, None, steps).unsure(1.0), "no likelihood is high enough"


def test_what_is_written_is_read_until_the_weights_change(tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any) -> None:
    folder = save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer)
    assert trust.read(folder) is None
    known = trust.Trust("vqa", 200, weights_digest(folder), 0.1, 0.95, None, ((0.0, 0.25), (0.5, 1.0)))
    file = trust.write(known, folder)
    assert trust.read(folder) == known
    for damage in ("{", "[]", '{"format": 1}', file.read_text().replace("0.25", "NaN")):
        file.write_text(damage)
        with pytest.raises(VLChatError, match=r"calibration.json beside the model is damaged.*--calibrate"):
            trust.read(folder)
    trust.write(known, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert trust.read(folder) is None, "it was measured with other weights"


def test_eval_calibrates_a_model_in_a_folder(
    tmp_path: Path, tiny_clip: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_talkative(tmp_path / "model", tiny_clip, tiny_tokenizer)
    asked = ["eval", str(folder), "--task", "scenes", "--no-controls", "--max-new-tokens", "2", "--no-cache"]
    assert cli.main([*asked, "--questions", "104", "--calibrate"]) == 0
    found = trust.read(folder)
    assert found is not None and (found.task, found.rows, found.risk) == ("scenes", 104, 0.1)
    assert found.threshold is None, "words without meaning are never right"
    assert f"Calibrated: {folder / trust.FILE}" in capsys.readouterr().out
    for more, told in (
        (["--questions", "4", "--calibrate"], "Only 4 rows"),
        (["--calibrate", "10"], "--calibrate is 10"),
        (["--calibrate", "--url", "http://127.0.0.1:9"], "a model in a folder"),
    ):
        assert cli.main([*asked, *more]) != 0
        assert told in capsys.readouterr().err


@pytest.mark.skipif(not list(EMBEDDED.glob("*.safetensors")), reason="this checkout has no embedded model")
def test_the_embedded_models_calibration_is_of_its_weights() -> None:
    known = trust.read(EMBEDDED)
    assert known is not None and known.rows >= 2000 and known.threshold is not None
    written = json.loads((EMBEDDED / trust.FILE).read_text())
    assert written["task"] == "scenes" and 0 < written["risk"] < 0.2
