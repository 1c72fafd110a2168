"""The objectives by name, as `objective: {type: name}` in a run's YAML."""

from typing import Any

from train.align import AlignObjective
from train.language import LanguageObjective
from train.tower import TowerObjective
from train.tune import TuneObjective

OBJECTIVES: dict[str, Any] = {
    "clip": TowerObjective,
    "language": LanguageObjective,
    "align": AlignObjective,
    "tune": TuneObjective,
}
