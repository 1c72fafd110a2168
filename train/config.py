"""YAML -> typed configuration, with `key=value` overrides. Unknown keys are refused with the nearest right name."""

import inspect
import math
import types
import typing
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import StrictDataclassError

from vlchat.errors import ConfigError, nearest

_FROM_ONE = ("steps", "batch", "micro_batch", "micro_tokens", "log_every", "sample_every", "save_every", "keep")
_LEAST = {"workers": 0} | dict.fromkeys(_FROM_ONE, 1)


@dataclass
class OptimConfig:
    """AdamW or Muon with warm-up and cosine decay."""

    name: str = "adamw"  # "adamw" | "muon": Muon for hidden matrices, AdamW for the rest
    weight_decay: float = 0.0
    warmup: float = 0.03  # share of the steps
    floor: float = 0.0  # learning rate at the end, as a share of the peak
    clip: float = 1.0  # gradient norm
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])

    def __post_init__(self) -> None:
        for name, good, words in (
            ("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("warmup", 0 <= self.warmup <= 1, "from 0 to 1"),
            ("floor", 0 <= self.floor <= 1, "from 0 to 1"),
            ("clip", self.clip > 0, "above 0"),  # infinity leaves gradients as they are
        ):
            if not good:
                raise ConfigError(f"optim.{name} must be {words}, not {getattr(self, name):g}.")
        if len(self.betas) != 2 or not all(type(beta) in (int, float) and 0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas must be two numbers from 0 to below 1, not {self.betas}.")


@dataclass
class LoopConfig:
    """How long, how large, how often."""

    steps: int | None = None  # optimizer steps; None: from epochs
    epochs: float = 1.0
    batch: int = 32  # rows of an optimizer step, over all processes
    micro_batch: int | None = None  # rows at once on one process; None: all of its rows
    micro_tokens: int | None = None  # tokens at once on one process, padding included
    by_length: bool = True  # rows of similar length are taken at once, within the rows of a step
    minutes: float | None = None  # stop early, with the schedule fitted to this wall time
    precision: str = "no"  # "no" | "bf16" | "fp16"
    workers: int = 1
    log_every: int = 10
    sample_every: int = 200
    save_every: int = 500
    keep: int = 2  # checkpoints kept

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"loop.{name} must be at least {least}, not {value}.")
        for name in ("epochs", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"loop.{name} must be above 0, not {value:g}.")


@dataclass
class HeldoutConfig:
    """Rows that are never trained on: how well they are answered, when to stop, which checkpoint was the best.

    At most one of `rows`, `share` and `data` says which; without any of them nothing is held out.
    """

    rows: int | None = None  # taken from the training data; rows that share a picture stay together
    share: float | None = None  # the same, as a share of the training data
    data: list[dict[str, Any]] = field(default_factory=list)  # sources of their own, as in `data`
    every: int | None = None  # steps between two looks; None: loop.sample_every
    generate: int = 64  # rows whose answers are written and scored, besides the loss over all of them
    batch: int = 16  # rows at once
    tokens: int = 60  # longest answer
    metric: str = "loss"  # what tells the best checkpoint: loss, exact, score, or a term
    patience: int | None = None  # stop after so many looks without a better one
    least: float = 0.0  # what counts as better: by more than this

    def __post_init__(self) -> None:
        given = [name for name in ("rows", "share", "data") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"heldout.{given[0]} and heldout.{given[1]} both say what is held out; keep one of them.")
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"heldout.share must lie between 0 and 1, not {self.share:g}.")
        for name, least in {"rows": 1, "every": 1, "generate": 0, "batch": 1, "tokens": 1, "patience": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"heldout.{name} must be at least {least}, not {value}.")
        if not self.least >= 0:
            raise ConfigError(f"heldout.least must be at least 0, not {self.least:g}.")
        if not given and self.patience is not None:
            raise ConfigError("heldout.patience needs rows to look at: add heldout.rows, .share or .data.")

    @property
    def on(self) -> bool:
        return bool(self.rows or self.share or self.data)


@dataclass
class RunConfig:
    """One run. `trainable` maps regexes to learning rates: the first match wins, what nothing matches is frozen.

    None leaves it to the objective (`default_trainable`), else everything trains.
    """

    run: str
    objective: dict[str, Any]
    data: list[dict[str, Any]] = field(default_factory=list)
    trainable: dict[str, float] | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    trackers: list[str] = field(default_factory=list)  # names of `train.trackers.TRACKERS`
    max_bad: int = 0  # rows that may be unusable before the run refuses to begin, or stops
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.run.strip():
            raise ConfigError("run is empty; name the folder that everything goes to.")
        if self.max_bad < 0:
            raise ConfigError(f"max_bad must be at least 0, not {self.max_bad}.")
        if not 0 <= self.seed < 2**32:  # as numpy takes it
            raise ConfigError(f"seed must be from 0 to {2**32 - 1}, not {self.seed}.")
        for rule, rate in (self.trainable or {}).items():
            if not 0 <= rate < math.inf:
                raise ConfigError(f'trainable: the learning rate of "{rule}" must be at least 0, not {rate:g}.')

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_runs(path: str | Path, overrides: list[str] | None = None) -> list[RunConfig]:
    """The runs of a YAML file, which are trained in turn: one, or several with `---` between them.

    Args:
        overrides: `a.b.0.c=value` (values are YAML), for every run of the file.

    Raises:
        ConfigError: no such file, bad YAML, unknown or missing keys, values of the wrong kind, two runs in one folder.
    """
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{path} is a folder; name a YAML file in it.")
    if not file.is_file():
        raise ConfigError(f"There is no configuration file {path}.")
    try:
        trees = [tree or {} for tree in yaml.safe_load_all(file.read_text(encoding="utf-8"))] or [{}]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} can't be read as text: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    runs: list[RunConfig] = []
    for tree in trees:
        if not isinstance(tree, dict):
            raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}.")
        for change in overrides or []:
            override(tree, change)
        runs.append(typed(RunConfig, tree, str(path)))
    if len({run.run for run in runs}) < len(runs):
        raise ConfigError(f"{path} has {len(runs)} runs, and two of them write to one folder. Give each its own run.")
    return runs


def override(tree: dict[str, Any], text: str) -> None:
    """Sets `a.b.0.c=value` in a tree of keys and values; the value is YAML.

    Raises:
        ConfigError: no such place, or bad YAML.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f'"{text}" is not an override. Write key=value, such as loop.steps=100.')
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = node[_index(part, node, text)]
        else:
            node = node.setdefault(part, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f'The override "{text}" reaches into "{part}", which is a plain value.')
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f'The value of the override "{text}" is not valid YAML: {error}') from None
    if isinstance(node, list):
        node[_index(last, node, text)] = parsed
    else:
        node[last] = parsed


def _index(part: str, node: list[Any], text: str) -> int:
    if not part.isdigit() or int(part) > len(node):
        raise ConfigError(f'The override "{text}" needs a list position from 0 to {len(node)} in place of "{part}".')
    if int(part) == len(node):
        node.append({})
    return int(part)


def flat(tree: Any, name: str = "") -> dict[str, Any]:
    """`{"loop": {"batch": 32}, "data": [{"path": "a"}]}` -> `{"loop.batch": 32, "data.0.path": "a"}`: as overrides say
    it. Empty dictionaries and lists stay as they are."""
    if not isinstance(tree, dict | list) or not tree:
        return {name: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {k: v for key, value in items for k, v in flat(value, f"{name}.{key}" if name else str(key)).items()}


def typed(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, a dataclass or one of the plain types its fields use.

    Raises:
        ConfigError: unknown or missing keys, a value of the wrong kind.
    """
    if kind is Any:
        return value
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must hold keys and values, not {value!r}.")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                hint = nearest(str(key), hints) or f"; known: {', '.join(hints)}."
                raise ConfigError(f'Unknown key "{key}" in {where}{hint}')
        missing = [
            f.name
            for f in fields(kind)
            if f.name not in value and f.default is MISSING and f.default_factory is MISSING
        ]
        if missing:
            raise ConfigError(f"{where} lacks {', '.join(missing)}.")
        return kind(**{key: typed(hints[key], item, f"{where}: {key}") for key, item in value.items()})  # type: ignore[operator]
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is str and value is False:
            return "no"  # which YAML reads as false
        if plain is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if plain is float and isinstance(value, str):  # YAML reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                continue
        if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
            if plain is dict and typing.get_args(option)[1:] == (float,):
                return {str(key): typed(float, item, f"{where}: {key}") for key, item in value.items()}
            if plain is list and typing.get_args(option):
                kinds = typing.get_args(option)[0]
                return [typed(kinds, item, f"{where}.{number}") for number, item in enumerate(value)]
            return value
    names = " or ".join(getattr(option, "__name__", str(option)).replace("NoneType", "null") for option in options)
    raise ConfigError(f"{where} must be {names}, not {value!r}.")


def construct(table: dict[str, Any], spec: dict[str, Any], where: str, **given: Any) -> Any:
    """`{type: name, **kwargs}` -> `table[name](**kwargs, **given)`, refusing unknown names and keys by the nearest."""
    if "type" not in spec:
        raise ConfigError(f"{where} lacks type: one of {', '.join(table)}.")
    if spec["type"] not in table:
        raise ConfigError(
            f'{where} has the unknown type "{spec["type"]}"{nearest(str(spec["type"]), table)} '
            f"Known: {', '.join(table)}."
        )
    kind = table[spec["type"]]
    parameters = inspect.signature(kind).parameters
    for name in given:
        if name not in parameters:
            raise ConfigError(f"{where} ({spec['type']}) takes no {name}: leave it out of the configuration.")
    known = [name for name in parameters if name not in given]
    for key in spec:
        if key != "type" and key not in known:
            raise ConfigError(f'Unknown key "{key}" in {where} ({spec["type"]}){nearest(key, known)}')
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and name not in spec and name not in given
    ]
    if missing:
        raise ConfigError(f"{where} ({spec['type']}) lacks {', '.join(missing)}.")
    hints = typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    chosen = {key: typed(hints.get(key, Any), spec[key], f"{where}.{key}") for key in spec if key != "type"}
    return kind(**chosen, **given)


def transformers_config(kind: type, values: dict[str, Any], where: str) -> Any:
    """A transformers configuration from YAML. transformers keeps keys that it does not know, and ignores them.

    Raises:
        ConfigError: an unknown key, or a value of the wrong kind.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f'Unknown key "{key}" in {where} ({kind.__name__}){nearest(str(key), known)}')
    try:
        return kind(**values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConfigError(f"{where} ({kind.__name__}): {' '.join(str(error).split())}") from None
