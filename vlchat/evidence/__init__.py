"""Which pixels an answer came from: a map over each picture, and a check of whether to believe it."""

from vlchat.evidence.check import Deletion, deletion_check, mass_inside
from vlchat.evidence.heat import METHODS, Evidence, Heat, evidence, evidences

__all__ = ["METHODS", "Deletion", "Evidence", "Heat", "deletion_check", "evidence", "evidences", "mass_inside"]
