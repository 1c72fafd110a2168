"""What trains, at which rate: regexes -> parameter groups, and the schedule."""

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from train.config import OptimConfig
from vlchat.errors import ConfigError

_OUTER = re.compile("embed|lm_head")  # matrices at the ends of a model, which Muon is not made for


def parameter_groups(model: nn.Module, rules: dict[str, float], optim: OptimConfig) -> tuple[list[dict], str]:
    """Freeze what no rule matches, and group the rest: by rate, matrices with weight decay, hidden ones apart.

    What trains is lifted to float32: an update of a thousandth is rounded away in a bfloat16 weight.

    Returns:
        The groups, and a table for people: rule, parameters, rate, and what is frozen.

    Raises:
        ConfigError: a rule that is no regular expression or matches no parameter, or nothing left to train.
    """
    compiled = {}
    for rule_text, rate in rules.items():
        try:
            compiled[re.compile(rule_text)] = rate
        except re.error as error:
            raise ConfigError(f'trainable: "{rule_text}" is not a regular expression: {error}.') from None
    counts = {pattern.pattern: [0, 0] for pattern in compiled}
    frozen = [0, 0]
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rule = next((pattern for pattern in compiled if pattern.search(name)), None)
        # A quantized weight is an integer tensor and cannot take a gradient.
        trains = rule is not None and compiled[rule] > 0 and parameter.is_floating_point()
        parameter.requires_grad_(trains)
        tally = counts[rule.pattern] if trains and rule is not None else frozen
        tally[0] += 1
        tally[1] += parameter.numel()
        if trains and rule is not None:
            parameter.data = parameter.data.float()
            hidden = parameter.ndim == 2 and not _OUTER.search(name)
            groups.setdefault((compiled[rule], parameter.ndim >= 2, hidden), []).append(parameter)
    for rule_text, (tensors, _) in counts.items():
        if not tensors and rules[rule_text] > 0:
            parts = {re.sub(r"\.\d+\..*", "", name): name for name, _ in model.named_parameters()}  # one of each stack
            raise ConfigError(
                f'trainable: "{rule_text}" matches no parameter. Some names: ' + ", ".join(list(parts.values())[:12])
            )
    if not groups:
        raise ConfigError("Nothing trains: every rule in trainable has rate 0 or matches nothing.")
    lines = [f"{'trains':44} {'tensors':>8} {'parameters':>13} {'rate':>9}"]
    lines += [
        f"{rule:44} {tensors:8,} {count:13,} {rules[rule]:9.1e}" for rule, (tensors, count) in counts.items() if tensors
    ]
    lines.append(f"{'(frozen)':44} {frozen[0]:8,} {frozen[1]:13,} {'-':>9}")
    return [
        {"params": members, "lr": rate, "weight_decay": optim.weight_decay if matrix else 0.0, "hidden": hidden}
        for (rate, matrix, hidden), members in groups.items()
    ], "\n".join(lines)


def schedule(optim: OptimConfig) -> Callable[[float], float]:
    """Share of the peak rate at `progress` in 0..1: linear warm-up, then cosine down to the floor."""

    def share(progress: float) -> float:
        if progress < optim.warmup:
            return max(progress, 1e-4) / optim.warmup
        rest = min(1.0, (progress - optim.warmup) / max(1e-9, 1 - optim.warmup))
        return optim.floor + (1 - optim.floor) * 0.5 * (1 + math.cos(math.pi * rest))

    return share


def optimizer(groups: list[dict], optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW for all groups, or with `name: muon` Muon for hidden matrices and AdamW for the rest."""
    adamw: dict[str, Any] = {"betas": (optim.betas[0], optim.betas[1]), "eps": 1e-8, "fused": True}
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    if optim.name == "muon":
        return MuonWithAdamW(groups, adamw)
    raise ConfigError(f'optim.name is "{optim.name}"; use "adamw" or "muon".')


class MuonWithAdamW(torch.optim.Optimizer):
    """torch's Muon (Jordan et al. 2024) and AdamW as one optimizer with one state dict.

    Muon's updates are scaled to the size of AdamW's (Moonlight, arXiv 2502.16982), so both share learning rates.

    Args:
        groups: parameter groups; Muon takes those whose `hidden` is true.
        adamw: keyword arguments of AdamW.
    """

    def __init__(self, groups: list[dict], adamw: dict[str, Any]) -> None:
        super().__init__([{**group, "params": list(group["params"])} for group in groups], {})
        hidden = [{k: v for k, v in group.items() if k != "hidden"} for group in groups if group["hidden"]]
        rest = [{k: v for k, v in group.items() if k != "hidden"} for group in groups if not group["hidden"]]
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            self.parts.append(torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self.parts.append(torch.optim.AdamW(rest, **adamw))
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            part.state = self.state
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            first += len(part.param_groups)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()
