"""The plot of a run, and what it draws of its metrics."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from train import plot
from train.records import append
from vlchat import runs

ROOT = Path(__file__).resolve().parent.parent


def test_the_plot_is_drawn_and_replaced_at_once(tmp_path: Path) -> None:
    assert plot.draw(tmp_path) is None and not (tmp_path / runs.PLOT).exists()
    for step in range(1, 30):
        append(tmp_path / runs.METRICS, {"step": step, "loss": 3 / step, "lr": 1e-3, "seconds": step})
    append(tmp_path / runs.METRICS, {"step": 10, "heldout_loss": 2.0, "heldout_exact": 0.4})
    (tmp_path / runs.PLOT).write_text("the old one")
    assert plot.draw(tmp_path) is None
    with Image.open(tmp_path / runs.PLOT) as drawn:
        drawn.load()
        assert drawn.format == "PNG" and drawn.width > 900
    (tmp_path / runs.BEST).write_text('{"step": 10}')
    before = (tmp_path / runs.PLOT).read_bytes()
    assert plot.draw(tmp_path) is None and (tmp_path / runs.PLOT).read_bytes() != before, "the best step is marked"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([runs.BEST, runs.METRICS, runs.PLOT])


def test_without_matplotlib_a_run_says_so(tmp_path: Path) -> None:
    for step in (1, 2):
        append(tmp_path / runs.METRICS, {"step": step, "loss": 1.0})
    code = "import sys; sys.modules['matplotlib'] = None\nfrom pathlib import Path\nfrom train import plot\n"
    code += f"print(plot.draw(Path({str(tmp_path)!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "loss.png is not drawn: pip install matplotlib" in done.stdout


def test_a_share_is_no_loss_of_the_same_name() -> None:
    lines = [{"step": 1, "loss": 2.0, "cell_name": 0.9, "image_to_text": 0.3}, {"step": 2, "cell_name": 0.1}]
    lines += [{"step": 2, "heldout_loss": 0.5, "heldout_itc": 0.4, "heldout_exact": 0.25}]
    assert plot.scores(lines) == {
        "heldout_exact": ([2], [0.25]), "image_to_text": ([1], [0.3]), "cell_name": ([2], [0.1]),
    }  # fmt: skip


def test_smoothing_keeps_a_line_straight_and_follows_a_fall_at_once() -> None:
    assert plot.smoothed([2.0] * 50) == pytest.approx([2.0] * 50)
    falling = [100.0 - i for i in range(100)]
    assert plot.smoothed(falling)[:90] == pytest.approx(falling[:90])
