"""Stage 0, language: a small language model from nothing that reads scenes from its context.

Some rows describe the scene in words; the others lay the scene map over the image tokens (`train.reader`), as a perfect
connector would. The model so learns to answer from what stands in its context before it is ever shown a picture;
trained on questions and answers alone it learns to guess.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from train.config import transformers_config
from train.reader import IMAGE_TOKENS, MapReader
from train.terms import Term
from train.tokenizer import saved_tokenizer, train_tokenizer
from vlchat.errors import ConfigError
from vlchat.folders import writing
from vlchat.scenes.language import KINDS
from vlchat.scenes.maps import READ_FIELDS, prose, scene_map
from vlchat.scenes.rows import Conversation, ask_about, conversation, generator, states

_MASKED = -100
_TURNS = 11  # asked of a conversation; those that do not fit are left out
_LISTED = ("caption", "detail", "sides", "two_one")


class LanguageObjective(nn.Module):
    """Next-token loss on the assistant's words.

    Args:
        model: LlamaConfig fields.
        vocabulary: size of the tokenizer that is trained on the way.
        prose_share: share of the rows that describe the scene in words.
        word_dropout: share of a cell's words left out, since no tower sees everything.
        noise: standard deviation of the noise on map embeddings, in units of their own.
        length: tokens of every row; a conversation has as many turns as fit.
        compile: train through torch.compile, which needs a C++ compiler: a third faster on a CPU, after a first step
            of half a minute.
    """

    name = "language"
    whole_batch = False
    draws = True  # noise on the maps

    def __init__(
        self,
        model: dict[str, Any],
        vocabulary: int = 1500,
        prose_share: float = 0.3,
        word_dropout: float = 0.06,
        noise: float = 0.2,
        length: int = 384,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if compile and not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
            raise ConfigError("objective.compile needs a C++ compiler, and there is none. Set objective.compile=false.")
        self.prose_share, self.seed = prose_share, seed
        self.length = length
        self.tokenizer = train_tokenizer((text for index in range(8000) for text in _texts(index)), vocabulary)
        self.image_token: Any = self.tokenizer.convert_tokens_to_ids("<image>")
        self.reader = MapReader(self.tokenizer, word_dropout, noise)
        fixed = {
            "vocab_size": len(self.tokenizer),
            "pad_token_id": self.tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": self.tokenizer.eos_token_id,
        }
        for key in model.keys() & fixed:
            raise ConfigError(f"objective.model.{key} follows from the tokenizer; leave it out.")
        self.model = LlamaForCausalLM(transformers_config(LlamaConfig, {**model, **fixed}, "objective.model"))
        # Fused attention is slow to train on a CPU at short lengths; compiled, the plain one is also fused.
        self.model.set_attn_implementation("sdpa" if torch.cuda.is_available() else "eager")
        self._body: list[Any] = [torch.compile(self.model.model) if compile else self.model.model]  # not a submodule

    def restore(self, folder: Path) -> None:
        """Take the tokenizer of a checkpoint that is resumed."""
        self.tokenizer = self.reader.tokenizer = saved_tokenizer(folder, len(self.tokenizer))

    def batch(self, positions: Sequence[int]) -> dict[str, Any]:
        """input_ids, labels (rows, tokens), cell_words and cell_sides (`MapReader.tensors`) of these rows."""
        rows = self._padded([self._row(position) for position in positions], self.length)
        return rows | {"ids": [f"scene-{position}" for position in positions]}

    def counts(self, batch: dict[str, Any]) -> dict[str, float]:
        return {"answers": float(torch.ne(batch["labels"][:, 1:], _MASKED).sum())}

    def _row(self, index: int) -> dict[str, Any]:
        rng = generator("lm-row", self.seed, index)
        written = rng.random() < self.prose_share
        shown = conversation(self.seed, index, split="lm", turns=_TURNS)
        # What lists everything comes last, or later answers could be read from it in place of the scene.
        turns = sorted(shown.turns, key=lambda turn: turn.form in _LISTED and rng.random() < 0.8)
        state = rng.getstate()
        while True:
            rng.setstate(state)
            row = self._tokens(Conversation(shown.scenes, tuple(turns)), rng, written=written)
            if len(row["input_ids"]) <= self.length or len(turns) == 1:
                return row
            del turns[next((place for place, turn in enumerate(turns) if turn.form not in _LISTED), 0)]

    def _tokens(self, shown: Conversation, rng: Random, *, written: bool, answer: bool = True) -> dict[str, Any]:
        if written:
            messages = shown.messages([])
            if shown.scenes:
                names = ("Picture",) if len(shown.scenes) == 1 else ("First picture", "Second picture")
                text = "".join(
                    f"{name}: {prose(scene, rng)}\n" for name, scene in zip(names, shown.scenes, strict=True)
                )
                messages[0]["content"].insert(0, {"type": "text", "text": text})
        else:
            messages = shown.messages([None] * len(shown.scenes))
        encoded: Any = self.tokenizer.apply_chat_template(
            messages if answer else messages[:-1],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=answer,
            add_generation_prompt=not answer,
        )
        mask = encoded["assistant_masks"] if answer else [0] * len(encoded["input_ids"])
        input_ids: list[int] = []
        labels: list[int] = []
        for token, assistant in zip(encoded["input_ids"], mask, strict=True):
            repeat = IMAGE_TOKENS if token == self.image_token else 1
            input_ids += [token] * repeat
            labels += [token if assistant else _MASKED] * repeat
        maps = [] if written else [self.reader.cells(scene, rng if answer else None) for scene in shown.scenes]
        return {"input_ids": input_ids, "labels": labels, "maps": maps}

    def _padded(
        self, rows: list[dict[str, Any]], length: int | None = None, *, left: bool = False
    ) -> dict[str, torch.Tensor]:
        if length is None:
            length = max(len(row["input_ids"]) for row in rows)
            length += -length % 32  # few different shapes: each costs the CPU a freshly compiled kernel
        batch = {}
        for key, blank in (("input_ids", self.tokenizer.pad_token_id), ("labels", _MASKED)):
            blanks = [[blank] * (length - len(row[key])) for row in rows]
            batch[key] = torch.tensor(
                [pad + row[key] if left else (row[key] + pad)[:length] for row, pad in zip(rows, blanks, strict=True)]
            )
        if left:
            batch["attention_mask"] = torch.tensor(
                [[0] * (length - len(row["input_ids"])) + [1] * len(row["input_ids"]) for row in rows]
            )
        return batch | self.reader.tensors([cells for row in rows for cells in row["maps"]])

    def embed(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """(rows, tokens, hidden): token embeddings, with the scene maps over the image tokens."""
        table = self.model.get_input_embeddings()
        embeds = table(batch["input_ids"])
        if len(batch["cell_words"]):
            cells = self.reader.embed(table, batch["cell_words"], batch["cell_sides"], noisy=self.training)
            embeds = embeds.masked_scatter(
                torch.eq(batch["input_ids"], self.image_token).unsqueeze(-1), cells.to(embeds.dtype)
            )
        return embeds

    def forward(self, batch: dict[str, Any]) -> dict[str, Term]:
        # Right padding under a causal mask is never seen by a real token, so no mask is needed.
        hidden = self._body[0](inputs_embeds=self.embed(batch), use_cache=False).last_hidden_state
        labels = batch["labels"][:, 1:]
        asked = torch.ne(labels, _MASKED)  # words are only predicted where they count
        logits = self.model.lm_head(hidden[:, :-1][asked]).float()
        total = functional.cross_entropy(logits, labels[asked], reduction="sum")
        return {"answers": Term(total, float(asked.sum()))}

    def sample(self) -> tuple[dict[str, float], list[str]]:
        scores, shown = {}, []
        for written in (False, True):
            share, _, lines = self.ceiling(10 * len(KINDS), written=written)
            scores["from_prose" if written else "from_map"] = share
            shown += lines[:4]
        return scores, shown

    @torch.no_grad()
    def ceiling(self, count: int, *, written: bool, held: bool = False) -> tuple[float, dict[str, float], list[str]]:
        """Share of questions answered rightly from the described scene, which no picture can beat.

        Returns:
            The share, the share by kind of question, and the wrong answers as lines for people.
        """
        right: dict[str, list[bool]] = {}
        lines = []
        model: Any = self.model  # its stubs know no inputs_embeds
        device = model.device
        for first in range(0, count, 65):
            indices = range(first, min(count, first + 65))
            rngs = [generator("lm-test-held" if held else "lm-test", 0, index) for index in indices]
            kinds = [KINDS[index % len(KINDS)] for index in indices]
            asked = [ask_about(kind, rng, held) for kind, rng in zip(kinds, rngs, strict=True)]
            batch = self._padded(
                [
                    self._tokens(shown, rng, written=written, answer=False)
                    for shown, rng in zip(asked, rngs, strict=True)
                ],
                left=True,
            )
            batch = {key: value.to(device) for key, value in batch.items()}
            out = model.generate(
                inputs_embeds=self.embed(batch),
                attention_mask=batch["attention_mask"],
                max_new_tokens=72,
                do_sample=False,
            )
            for kind, shown, tokens in zip(kinds, asked, out, strict=True):
                reply = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
                good = states(shown.turns[-1], reply)
                right.setdefault(kind, []).append(good)
                if not good:
                    lines.append(f"[{kind}] {shown.turns[-1].question} -> {reply} (right: {shown.turns[-1].answer})")
        by_kind = {kind: sum(marks) / len(marks) for kind, marks in right.items()}
        return sum(map(sum, right.values())) / count, by_kind, lines

    def save(self, folder: Path, extra: Callable[[Path], None]) -> None:
        with writing(folder, {"trained_on": "a language model trained from nothing on written scenes"}) as stage:
            self.model.save_pretrained(stage)
            self.tokenizer.save_pretrained(stage)
            extra(stage)


def _texts(index: int) -> list[str]:
    shown = conversation(0, index, split="tokenizer")
    rng = generator("tokenizer-prose", 0, index)
    texts = [text for turn in shown.turns for text in (turn.question, turn.answer)]
    for scene in shown.scenes:
        texts += [prose(scene, rng), *{" " + cell.words(READ_FIELDS) for cell in scene_map(scene)}]
    return texts
