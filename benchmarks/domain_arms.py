"""The arms of the domain study: what is tuned, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MUON: dict[str, Any] = {"name": "muon", "warmup": 0.05}
WHOLE = {"language_model|connector": 1e-3}  # configs/finetune-mini.yaml
OPEN_TOWER = {"vision_tower": 3e-4, **WHOLE}
LORA = {"r": 64, "alpha": 128, "dropout": 0.0}
WITH_LORA = {"lora_|embed_tokens|lm_head|connector": 1e-3}  # the words as well: the embedded model never met them
MLP = {"type": "mlp", "depth": 2, "hidden_size": 1024, "norm": True}
QFORMER = {
    "type": "qformer", "num_query_tokens": 64, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One way of tuning.

    Training more than the last parts of a model is faster with `attention: eager` on a CPU (docs/LOG.md).

    Attributes:
        says: what it is, for the table.
        rows: percent of the training pictures (SLAKE) or sentences (NLVR).
        form: "boxes": NLVR's boxes as three pictures; empty: the picture as it is.
        before: what it begins with, a name of BEFORE; None is the embedded model.
        objective: keys of the `tune` objective besides the model.
        steps, batch: optimizer steps, and rows of each.
    """

    says: str
    rows: int = 100
    form: str = ""
    before: str | None = None
    objective: dict[str, Any] = field(default_factory=dict)
    trainable: dict[str, float] = field(default_factory=lambda: dict(WHOLE))
    optim: dict[str, Any] = field(default_factory=lambda: dict(MUON))
    steps: int = 307  # two epochs of SLAKE
    batch: int = 32


@dataclass(frozen=True)
class Before:
    """What arms begin with: a stage 1, or tuning on drawn rows."""

    objective: dict[str, Any]
    data: list[dict[str, Any]]
    steps: int
    batch: int
    trainable: dict[str, float]
    optim: dict[str, Any] = field(default_factory=lambda: dict(MUON))


def _align(connector: dict[str, Any], **terms: Any) -> Before:
    objective = {
        "type": "align", "vision": "tower-read", "language": "lm", "connector": connector, "vision_feature_layer": -1,
        "attention": "eager", **terms,
    }  # fmt: skip
    return Before(
        objective,
        [{"type": "scenes", "ask": "captions", "texts": 0.4}],
        steps=400,
        batch=64,
        trainable={r"\.connector\.|^heads\.": 2e-3},
        optim={"name": "muon", "warmup": 0.05, "floor": 0.05},
    )


BEFORE: dict[str, Before] = {
    "projector, ITG": _align(MLP, itc=0.0, itg=1.0),
    "projector, ITC+ITG": _align(MLP, itc=0.2, itg=1.0),
    "Q-Former, ITG": _align(QFORMER, itc=0.0, itg=1.0),
    "Q-Former, ITC+ITG": _align(QFORMER, itc={"weight": 0.2, "smoothing": 0.1}, itg=1.0),
    "drawn boxes": Before(
        {"type": "tune", "model": None, "lora": None, "attention": "eager"},
        [{"path": "nlvr/drawn-boxes.jsonl"}],
        steps=2000,
        batch=8,
        trainable=OPEN_TOWER,
    ),
}

_SHARED: dict[str, dict[str, Any]] = {
    "recipe": {"says": "`configs/finetune-mini.yaml`: language model and connector, tower frozen"},
    "tower unfrozen": {"says": "the tower as well", "trainable": OPEN_TOWER, "objective": {"attention": "eager"}},
    "LoRA": {
        "says": "LoRA (and words) on the full language model", "objective": {"lora": LORA}, "trainable": WITH_LORA,
    },
    "LoRA, nf4": {
        "says": "LoRA (and words) on the language model in nf4", "objective": {"lora": LORA, "quantize": "nf4"},
        "trainable": WITH_LORA,
    },
    "10 %": {"says": "a tenth of the pictures or sentences", "rows": 10},
    "30 %": {"says": "three tenths", "rows": 30},
    **{f"short stage 1: {name}": {"says": f"after 400 steps of {name}", "before": name} for name in BEFORE
       if name != "drawn boxes"},
}  # fmt: skip

ARMS: dict[str, dict[str, Arm]] = {
    "slake": {
        **{name: Arm(**options) for name, options in _SHARED.items()},
        "in company": Arm(
            "each row with seven others about its picture: four times the questions in less time",
            objective={"company": 7, "attention": "eager"}, steps=614, batch=8,
        ),
        "made": Arm(
            "the better recipe: in company, tower unfrozen, pictures varied, twice as long",
            objective={"company": 7, "attention": "eager", "augment": {"crop": [0.8, 1.0], "color": 0.2, "rotate": 8}},
            trainable=OPEN_TOWER,
            steps=1200,
            batch=8,
        ),
    },
    "nlvr": {
        **{name: Arm(**{"form": "boxes", **options}) for name, options in _SHARED.items()},
        "in one picture": Arm("the recipe, the picture as it is: 400 x 100 squeezed to 96 x 96"),
        "drawn boxes": Arm(
            "the better recipe: first 16,000 drawn pictures with statements", form="boxes", before="drawn boxes",
            trainable=OPEN_TOWER, objective={"attention": "eager"},
        ),
    },
}  # fmt: skip
