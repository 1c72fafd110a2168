"""The objectives by name, as `objective: {type: name}` in a run's YAML."""

from typing import Any

from train.instruct import AlignObjective, TuneObjective
from train.language import LanguageObjective
from train.tower import TowerObjective

OBJECTIVES: dict[str, Any] = {
    "clip": TowerObjective,
    "language": LanguageObjective,
    "align": AlignObjective,
    "tune": TuneObjective,
}
