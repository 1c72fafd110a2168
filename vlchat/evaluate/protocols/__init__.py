"""Published benchmarks, each read from its official files and scored by its own rules; docs/evaluation-protocols.md."""

from __future__ import annotations

from collections.abc import Callable

from vlchat.evaluate.protocols.chartqa import ChartQa
from vlchat.evaluate.protocols.docvqa import DocVqa
from vlchat.evaluate.protocols.gqa import Gqa
from vlchat.evaluate.protocols.mme import Mme
from vlchat.evaluate.protocols.pope import Pope
from vlchat.evaluate.protocols.scienceqa import ScienceQa
from vlchat.evaluate.protocols.textvqa import TextVqa
from vlchat.evaluate.protocols.vqa_v2 import VqaV2
from vlchat.evaluate.tasks.base import Task

PROTOCOLS: dict[str, Callable[..., Task]] = {
    "vqa-v2": VqaV2,
    "textvqa": TextVqa,
    "gqa": Gqa,
    "pope": Pope,
    "scienceqa": ScienceQa,
    "mme": Mme,
    "chartqa": ChartQa,
    "docvqa": DocVqa,
}

__all__ = ["PROTOCOLS", "ChartQa", "DocVqa", "Gqa", "Mme", "Pope", "ScienceQa", "TextVqa", "VqaV2"]
