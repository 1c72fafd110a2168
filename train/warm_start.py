"""A connector's first weights in closed form: its last linear layer by ridge regression, without a gradient.

Its inputs, averaged over a picture, are regressed on the mean embedding of the tokens of the picture's caption, as the
frozen language model embeds them. A mean varies far less than single embeddings do, and image tokens that vary so
little are hardly read; so the result is spread until image tokens vary as the captions' tokens do. docs/LOG.md compares
targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed, nn

from train.batches import on_device
from train.capture import inputs_of
from train.ranks import world_size
from vlchat.data.collate import IGNORED
from vlchat.errors import ConfigError

_AT_ONCE = 32  # rows
_MEASURED = 256  # rows whose image tokens are measured


@dataclass
class WarmStartConfig:
    """`objective.warm_start`, where it is not left to itself.

    Attributes:
        rows: the first so many rows of the run are looked at, once.
        ridge: the penalty, as a share of the inputs' mean variance; more for few rows and wide connectors.
    """

    rows: int = 2000
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise ConfigError(f"objective.warm_start.rows is {self.rows}; a regression needs 2 or more.")
        if not self.ridge > 0:
            raise ConfigError(f"objective.warm_start.ridge is {self.ridge:g}; it must be above 0.")

    def within(self, rows: int) -> WarmStartConfig:
        """The same for a run that sees no more than so many rows."""
        return replace(self, rows=max(2, min(self.rows, rows)))


class Moments:
    """Sums of products of two kinds of vectors, from which a regression follows; in float64, a batch at a time."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self.x, self.y = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)
        self.xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy = torch.zeros(inputs, outputs, dtype=torch.float64)
        self.yy = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """`x` (rows, inputs) and `y` (rows, outputs)."""
        x, y = x.detach().cpu().double(), y.detach().cpu().double()
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float(y.square().sum())

    def ridge(self, penalty: float, intercept: bool) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Ridge regression (Hoerl and Kennard 1970).

        Args:
            penalty: in units of the mean diagonal of the inputs' scatter matrix.
            intercept: whether there is one; it is not penalized.

        Returns:
            The weight (outputs, inputs), the intercept (outputs,), and the share of the outputs' variance explained.
        """
        x, y = (self.x / self.count, self.y / self.count) if intercept else (self.x * 0, self.y * 0)
        scatter, cross = self.xx - self.count * x.outer(x), self.xy - self.count * x.outer(y)
        damped = scatter + penalty * scatter.diagonal().mean() * torch.eye(len(x), dtype=torch.float64)
        weight = torch.cholesky_solve(cross, torch.linalg.cholesky(damped)).T
        left = self.yy - self.count * float(y @ y)
        error = left - 2 * float((weight.T * cross).sum()) + float(((weight @ scatter) * weight).sum())
        return weight, y - weight @ x, 1 - error / left


def warm_start(objective: Any, config: WarmStartConfig) -> str:
    """Gives the connector of a stage-1 objective its first weights, the same on all processes.

    Every process looks at all the rows: it is one pass, and no process waits for a row that another one can't read.

    Returns:
        What was done, for people.

    Raises:
        ConfigError: the connector does not end in a linear layer, or that is not to train; or pictures come in tiles.
    """
    training = objective.training
    objective.eval()
    try:
        with torch.no_grad():
            return _begin(objective, config)
    finally:
        objective.train(training)


def _begin(objective: Any, config: WarmStartConfig) -> str:
    model = objective.model
    last = _last_linear(objective)
    table: Any = model.get_input_embeddings()
    moments: Moments | None = None
    spread = Moments(1, table.weight.shape[1])  # of the captions' tokens
    rows = min(config.rows, len(objective.mixture))
    for batch in _batches(objective, rows):
        with inputs_of(last) as seen:
            _pictures(objective, batch)
        if len(seen[0]) != len(batch["labels"]):
            raise ConfigError(
                "objective.warm_start takes a picture in one piece, and with objective.tiles it comes in several: "
                "set objective.warm_start=false."
            )
        captions = [row[row != IGNORED].to(table.weight.device) for row in batch["labels"]]
        words = [table(caption).float() for caption in captions]  # (tokens, hidden)
        for one in words:
            spread.add(torch.ones(len(one), 1), one)
        inputs = seen[0].float().mean(1)  # (rows, inputs)
        moments = moments or Moments(inputs.shape[1], table.weight.shape[1])
        moments.add(inputs, torch.stack([one.mean(0) for one in words]))
    if moments is None or moments.count < 2:
        raise ConfigError(f"Of {rows} rows that objective.warm_start looks at, too few can be used: raise its rows.")
    weight, bias, explained = moments.ridge(config.ridge, last.bias is not None)
    _set(last, weight, bias)

    tokens = torch.cat(
        [torch.cat(_pictures(objective, batch)).float().cpu() for batch in _batches(objective, min(rows, _MEASURED))]
    ).double()  # (image tokens, hidden)
    wanted = spread.yy / spread.count - float((spread.y / spread.count).square().sum())
    factor = (wanted / float(tokens.var(0, correction=0).sum().clamp(min=1e-12))) ** 0.5
    centre = tokens.mean(0) if last.bias is not None else tokens.mean(0) * 0
    _set(last, weight * factor, centre + factor * (bias - centre))
    for parameter in last.parameters():
        if world_size() > 1:  # machines may round differently
            distributed.broadcast(parameter.data, 0)
    return (
        f"Warm start: a ridge regression on {moments.count:,} rows explains {explained:.0%} of their captions' mean "
        f"embeddings; its image tokens were spread {factor:.2g} times."
    )


def _batches(objective: Any, rows: int) -> Iterator[dict[str, Any]]:
    """The first rows, without those that can't be used, of which the training tells."""
    for first in range(0, rows, _AT_ONCE):
        batch = objective.batch(range(first, min(rows, first + _AT_ONCE)))
        if batch["ids"]:
            yield batch


def _pictures(objective: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """The image tokens of each picture, (tokens, hidden)."""
    batch = objective.shown(on_device(batch, next(objective.connector.parameters()).device))
    there = {key: batch[key] for key in objective.pictured if key in batch}
    return list(objective.model.get_image_features(**there, return_dict=True).pooler_output)


def _last_linear(objective: Any) -> nn.Linear:
    """The linear layer whose output is the connector's."""
    made: list[tuple[nn.Module, Any]] = []
    whole: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda layer, _, output: made.append((layer, output)))
        for module in objective.connector.modules()
        if isinstance(module, nn.Linear)
    ]
    hooks.append(objective.connector.register_forward_hook(lambda _, __, output: whole.append(output)))
    try:
        for batch in _batches(objective, len(objective.mixture)):
            _pictures(objective, batch)
            break
    finally:
        for hook in hooks:
            hook.remove()
    layer = next((layer for layer, output in made if output is whole[-1]), None)
    kind = type(objective.connector).__name__
    if not isinstance(layer, nn.Linear):
        raise ConfigError(
            f"objective.warm_start solves for a connector's last linear layer, and {kind} does not end in one: set "
            "objective.warm_start=false."
        )
    if not layer.weight.requires_grad:
        raise ConfigError(
            f"objective.warm_start sets the last layer of the {kind}, and no rule of trainable trains it, so that it "
            'would not be saved. Write, for example, trainable: {"connector|heads": 1e-3}.'
        )
    return layer


def _set(layer: nn.Linear, weight: torch.Tensor, bias: torch.Tensor) -> None:
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)
