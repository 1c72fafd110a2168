"""Trackers by name, through Accelerate: figures of runs and scores, kept and drawn by other people's programs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlchat.errors import ConfigError, nearest

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


def check(names: Sequence[str], option: str = "trackers") -> None:
    """Whether each name is a tracker whose package is there.

    Args:
        option: where the names were given, for messages.

    Raises:
        ConfigError: it is not, with the command that installs it.
    """
    for name in names:
        if name not in TRACKERS:
            hint = nearest(str(name), TRACKERS) or "."
            raise ConfigError(f'{option}: there is no "{name}"; known: {", ".join(TRACKERS)}{hint}')
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{option}: {name} is not installed: pip install {name}. Or leave it out of {option}.")


class Trackers:
    """Some trackers, open. One that fails is told once and left; what it is told about goes on.

    What they write on this machine lies in FOLDER/trackers. wandb and mlflow obey their own variables (WANDB_MODE,
    WANDB_API_KEY, MLFLOW_TRACKING_URI); wandb without a key stays offline.

    Args:
        folder: of the run or result; its name is what trackers call it.
        config: what was chosen, flat.
        say: tells people a sentence.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], say: Callable[[str], Any]
    ) -> None:
        from accelerate import PartialState

        PartialState()  # Accelerate's trackers write nothing, not even a line to its log, before there is one
        self.say = say
        self.open: list[Any] = []
        for name in names:
            with self._at_most_told(name):
                tracker = _make(name, folder)
                tracker.start()
                self.open.append(tracker)
                tracker.store_init_configuration(
                    {k: v if isinstance(v, str | float | int | bool) else str(v) for k, v in config.items()}
                )

    def send(self, values: Mapping[str, Any], step: int) -> None:
        """Sends those of the values that are finite numbers."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        for tracker in list(self.open):
            with self._at_most_told(tracker.name):
                tracker.log(numbers, step=step)

    def attach(self, files: Sequence[Path], name: str, step: int) -> None:
        """Hands over files as far as a tracker takes any: mlflow and wandb all, tensorboard the text of Markdown."""
        for tracker in list(self.open):
            with self._at_most_told(tracker.name):
                for file in files:
                    if tracker.name == "mlflow":
                        tracker.log_artifact(str(file), name)
                    elif tracker.name == "wandb":
                        tracker.run.save(str(file), base_path=str(file.parent), policy="now")
                    elif tracker.name == "tensorboard" and file.suffix == ".md":
                        tracker.log({f"{name}/{file.stem}": file.read_text(encoding="utf-8")}, step=step)

    def close(self) -> None:
        for tracker in list(self.open):
            with self._at_most_told(tracker.name):
                tracker.finish()
        self.open = []

    @contextlib.contextmanager
    def _at_most_told(self, name: str) -> Any:
        try:
            yield
        except Exception as error:  # whatever another program's client raises: no run ends for a drawing of it
            self.open = [tracker for tracker in self.open if tracker.name != name]
            self.say(f"The tracker {name} failed and is left out from here: {type(error).__name__}: {error}")


def _make(name: str, where: Path) -> Any:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    folder = where / "trackers" / name
    folder.mkdir(parents=True, exist_ok=True)
    called = where.absolute().name
    if name == "tensorboard":
        return TensorBoardTracker(called, logging_dir=folder)
    if name == "wandb":
        offline = not any(os.environ.get(key) for key in ("WANDB_MODE", "WANDB_API_KEY")) and not _wandb_key()
        return WandBTracker("vlchat", name=called, dir=str(folder), **({"mode": "offline"} if offline else {}))
    if name == "trackio":  # reads it once in a process
        os.environ.setdefault("TRACKIO_DIR", str(folder.absolute()))
        return TrackioTracker("vlchat", name=called)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        importlib.import_module("mlflow").set_tracking_uri(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
    return MLflowTracker("vlchat", logging_dir=(folder / "artifacts").absolute().as_uri(), run_name=called)


def _wandb_key() -> bool:
    """Whether wandb knows who is here: it would ask on the terminal, and a run waits for nobody."""
    with contextlib.suppress(Exception):
        import netrc

        return netrc.netrc().authenticators("api.wandb.ai") is not None
    return False
