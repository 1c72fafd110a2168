"""Distillation: a student learns how a larger model weighs each next token of the answers, not only which it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from train.likelihood import Answers, answers, summed, supervised
from vlchat import checkpoint, foreign
from vlchat.data import Collator, Example
from vlchat.errors import ConfigError, DataError
from vlchat.folders import title, weights_digest
from vlchat.places import locate

PREFIX = "teacher_"  # of the teacher's tensors in a batch


@dataclass
class DistillConfig:
    """The teacher, and how much it counts.

    Attributes:
        teacher: any folder, run, short name or Hub id that `checkpoint.load` takes.
        weight: of the divergence, beside the likelihood of the answers themselves, whose weight is 1.
        temperature: both models' logits are divided by it; above 1 the unlikely tokens count more.
        quantize: "nf4" or "int8" for the teacher's language model.
    """

    teacher: str
    weight: float = 1.0
    temperature: float = 2.0
    quantize: str | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"objective.distill.{name} must be above 0, not {getattr(self, name):g}.")


class Teacher:
    """A frozen model whose opinion of the answers a student takes over (Hinton et al., arXiv:1503.02531).

    It reads each row in its own chat template and with its own number of image tokens. Only the answers must be the
    same tokens. It is no part of the objective's modules, so that it never trains and is not saved.

    Args:
        tokenizer: the student's.

    Raises:
        ConfigError: it speaks other tokens than the student, or has an encoder.
    """

    def __init__(self, config: DistillConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config = config
        self.model, self.processor = checkpoint.load(config.teacher, quantize=config.quantize)
        self.model.requires_grad_(False)
        foreign.require_template(self.processor)
        if self.model.config.is_encoder_decoder:
            raise ConfigError(f"objective.distill.teacher {config.teacher} has an encoder: take one without.")
        self.tokenizer = tokenizer
        self.shared = shared_tokens(tokenizer, self.processor.tokenizer, config.teacher)
        self._known = set(self.shared.tolist())

    @property
    def name(self) -> str:
        """What to call it to people."""
        place, _ = locate(self.config.teacher)
        return title(place) if isinstance(place, Path) else str(place)

    def describe(self) -> dict[str, Any]:
        """For the manifest of what the student becomes: which weights taught it, and how."""
        place, revision = locate(self.config.teacher)
        return {
            "path": str(place.absolute()) if isinstance(place, Path) else place,
            "revision": revision,
            "weights": weights_digest(place) if isinstance(place, Path) else None,
            "weight": self.config.weight,
            "temperature": self.config.temperature,
            "quantize": self.config.quantize,
        }

    def tensors(self, examples: Sequence[Example], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The teacher's tensors of the rows, their names with `PREFIX`.

        Args:
            labels: (rows, tokens), the student's.

        Raises:
            DataError: a row whose answers are other tokens for the teacher.
        """
        batch = Collator(self.processor, None, self.model)(examples)
        for example, mine, theirs in zip(examples, _told(labels), _told(batch["labels"]), strict=True):
            pairs = zip(mine, theirs, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1] and pair[0] in self._known, pairs))
            if same < max(len(mine), len(theirs)):
                reason = (
                    "its answers are other tokens for the teacher than for the student, first "
                    f"{_shown(self.processor.tokenizer, theirs, same)} for {_shown(self.tokenizer, mine, same)} at "
                    f"place {same + 1}. Take a teacher whose chat template ends answers as the student's does, or "
                    "leave objective.distill out."
                )
                raise DataError(reason, field="answer").within(example.called)
        return {PREFIX + name: tensor for name, tensor in batch.items()}

    def divergence(self, student: Answers, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """temperature^2 * KL(teacher || student), summed over the supervised tokens of a batch, float32.

        Args:
            student: what the student says to the same rows; gradients go to it alone.
            batch: of `tensors`, names without `PREFIX`.
        """
        shared, stored = self.shared.to(student.states.device), self.model.dtype
        with torch.no_grad():
            teacher = answers(
                self.model, {name: one.to(stored) if one.is_floating_point() else one for name, one in batch.items()}
            )
        heat = self.config.temperature

        def part(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                wanted = functional.log_softmax(columns(teacher.logits(theirs), shared) / heat, dim=-1)
            found = functional.log_softmax(columns(student.logits(mine), shared) / heat, dim=-1)
            return heat**2 * functional.kl_div(found, wanted, reduction="sum", log_target=True)

        width = student.vocabulary + teacher.vocabulary
        return summed(part, width, student.states, teacher.states.to(student.states.device))


def shared_tokens(student: Any, teacher: Any, name: str) -> torch.Tensor:
    """The ids that mean the same token to both tokenizers, ascending; they differ in added tokens at most.

    Args:
        name: what messages call the teacher.

    Raises:
        ConfigError: the vocabularies differ; names a token.
    """
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    for vocabulary, other, added in (
        (mine, theirs, student.added_tokens_decoder),
        (theirs, mine, teacher.added_tokens_decoder),
    ):
        odd = [token for token, number in vocabulary.items() if other.get(token) != number and number not in added]
        if odd:
            token = min(odd, key=vocabulary.__getitem__)
            ids = [str(one.get(token, "missing")) for one in (mine, theirs)]
            raise ConfigError(
                f"objective.distill.teacher {name} has another vocabulary than the student: {token!r} is {ids[0]} for "
                f"the student and {ids[1]} for the teacher. A teacher must speak the student's tokens: take a larger "
                "model of the same family."
            )
    return torch.tensor(sorted(number for token, number in mine.items() if theirs.get(token) == number))


def columns(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Those columns of (tokens, vocabulary); without a copy where they are the first ones."""
    plain = len(ids) and int(ids[-1]) == len(ids) - 1
    return logits[:, : len(ids)] if plain else logits.index_select(1, ids)


def _shown(tokenizer: Any, ids: list[int], place: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(ids[place])) if place < len(ids) else "nothing"


def _told(labels: torch.Tensor) -> list[list[int]]:
    """The supervised tokens of each row."""
    wanted = supervised(labels)
    return [row[1:][there[:-1]].tolist() for row, there in zip(labels, wanted, strict=True)]
