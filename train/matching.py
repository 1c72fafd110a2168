"""Image-text matching with hard negatives (ALBEF, arXiv 2107.07651, section 3.2; BLIP-2, 2301.12597)."""

from __future__ import annotations

from random import Random

import torch
from torch import nn
from torch.nn import functional

from train.contrastive import similarity
from train.gather import gather, gather_texts, own_places, sizes_of
from vlchat.heads.qformer_text import QFormerText


class Matching(nn.Module):
    """Does a picture belong to a text? Asked of each pair, of each text with a wrong picture, of each picture with a
    wrong text: three questions a row. The wrong ones come from all processes' rows, the more similar the likelier.

    Args:
        width: of the queries' states.
        seed: of the draws, which are functions of it and of a row's position in the run.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)
        self.seed = seed

    def forward(
        self,
        text: QFormerText,
        features: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        sides: tuple[torch.Tensor, torch.Tensor],
        scale: torch.Tensor,
        positions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The sum of the cross-entropies of this process's questions, how many are answered rightly, and of how many.

        Args:
            features: (rows, patches, vision_dim), of the tower.
            input_ids, attention_mask: (rows, tokens), of `QFormerText.tokens`.
            sides: the contrast's unit-length pictures (rows, queries, dim) and texts (rows, dim).
            scale: the contrast's inverse temperature.
            positions: (rows,), of the rows in the run.
        """
        with torch.no_grad():
            sizes = sizes_of(positions)
            places = gather(positions, sizes)
            own = own_places(positions, sizes)
            ids, mask = gather_texts(input_ids, sizes), gather_texts(attention_mask, sizes)
            same = (ids[own][:, None] == ids).all(-1)  # (rows, all rows): the same caption is no wrong one
            images, texts = (gather(side.float(), sizes) for side in sides)
            by_image = scale * similarity(images[own], texts)  # (rows, all rows)
            by_text = scale * similarity(images, texts[own]).T
            wrong_text = draw(by_image, own, same, self._shares("text", positions), places)
            wrong_image = draw(by_text, own, same, self._shares("image", positions), places)
            wrong_features = gather(features, sizes)[wrong_image]
        states = text.match(
            torch.cat([features, wrong_features, features]),
            torch.cat([ids[own], ids[own], ids[wrong_text]]),
            torch.cat([mask[own], mask[own], mask[wrong_text]]),
        )  # (3 rows, queries, hidden)
        logits = self.head(states).float().mean(1)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        labels[: len(own)] = 1
        total = functional.cross_entropy(logits, labels, reduction="sum")
        return total, logits.argmax(1).eq(labels).sum().float(), len(labels)

    def _shares(self, side: str, positions: torch.Tensor) -> torch.Tensor:
        drawn = [Random(f"vlchat-matching/{side}/{self.seed}/{place}").random() for place in positions.tolist()]
        return torch.tensor(drawn, dtype=torch.float64, device=positions.device)


def draw(
    logits: torch.Tensor, own: torch.Tensor, same: torch.Tensor, shares: torch.Tensor, places: torch.Tensor
) -> torch.Tensor:
    """One column for each row, drawn from the softmax of its logits without its own pair.

    Args:
        logits: (rows, columns).
        own: (rows,), each row's own column.
        same: (rows, columns), columns that are as right as the own one; they are drawn only where all are.
        shares: (rows,) float64 in 0..1, the random numbers: column c is drawn where the columns before it have less
            probability and those up to it more.
        places: (columns,), the columns' order in that sum: it does not matter how processes split them.
    """
    logits = logits.double().scatter(1, own[:, None], -torch.inf)
    kept = logits.masked_fill(same, -torch.inf)
    logits = torch.where(kept.isfinite().any(1, keepdim=True), kept, logits)
    order = places.argsort()
    reached = logits.softmax(1)[:, order].cumsum(1)
    wanted = shares * reached[:, -1]  # rounding may end the sum a little beside 1
    last = (reached < reached[:, -1:]).sum(1)  # the last column with any probability
    column = torch.searchsorted(reached, wanted[:, None], right=True)[:, 0].minimum(last)
    return order[column]
