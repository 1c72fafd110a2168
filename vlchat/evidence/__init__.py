"""Which pixels an answer came from: a map over each picture, and a check of whether to believe it."""

from vlchat.evidence.check import Deletion, deletion_check, mass_inside
from vlchat.evidence.heat import METHODS, Evidence, Heat, evidence, evidences
from vlchat.evidence.likelihood import NoMap
from vlchat.evidence.saw import Saw, saw

__all__ = [
    "METHODS", "Deletion", "Evidence", "Heat", "NoMap", "Saw", "deletion_check", "evidence", "evidences",
    "mass_inside", "saw",
]  # fmt: skip
