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
        form: "boxes": NLVR's boxes as three pictures; "square": as one picture, two by two; empty: the picture as it
            is.
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
    steps: int = 156  # an epoch of NLVR
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
        "type": "align", "connector": connector, "vision_feature_layer": -1,
        "attention": "eager", **terms,
    }  # fmt: skip
    return Before(
        objective,
        [{"type": "scenes", "ask": "captions", "texts": 0.4}],
        steps=120,
        batch=32,
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

# SLAKE's variants see seven more questions about each row's picture, which costs a quarter of asking them one by one
# and gives the same gradients: two epochs of its questions, by sixteens (by sixty-fours it learns less, docs/LOG.md).
_IN_COMPANY: dict[str, Any] = {"objective": {"company": 7, "attention": "eager"}, "steps": 616, "batch": 2}
# NLVR's show the three boxes as one picture: a third of the image tokens of three pictures.
_IN_A_SQUARE: dict[str, Any] = {"form": "square"}


def _variants(name: str, base: dict[str, Any]) -> dict[str, Arm]:
    """The way of tuning that variants are compared with, and the variants."""

    def arm(says: str, objective: dict[str, Any] | None = None, **more: Any) -> Arm:
        return Arm(says, **{**base, **more, "objective": {**base.get("objective", {}), **(objective or {})}})

    return {
        name: arm("language model and connector train, the tower is frozen"),
        "tower unfrozen": arm("the tower trains as well", {"attention": "eager"}, trainable=OPEN_TOWER),
        "LoRA": arm("LoRA (and words) on the full language model", {"lora": LORA}, trainable=WITH_LORA),
        "LoRA, nf4": arm(
            "LoRA (and words) on the language model in nf4", {"lora": LORA, "quantize": "nf4"}, trainable=WITH_LORA
        ),
        "10 %": arm("a tenth of the pictures or sentences", rows=10),
        "30 %": arm("three tenths", rows=30),
        **{
            f"short stage 1: {before}": arm(f"after 120 steps of {before}", before=before)
            for before in BEFORE
            if before != "drawn boxes"
        },
    }


# The variants of each set are compared with this arm.
BASE = {"slake": "in company", "nlvr": "in a square"}

ARMS: dict[str, dict[str, Arm]] = {
    "slake": {
        **_variants(BASE["slake"], _IN_COMPANY),
        "recipe": Arm("`configs/finetune-mini.yaml`: the same, one by one", steps=307),
        "made": Arm(
            "the better recipe: in company, tower unfrozen, pictures varied, four times as long",
            objective={"company": 7, "attention": "eager", "augment": {"crop": [0.8, 1.0], "color": 0.2, "rotate": 8}},
            trainable=OPEN_TOWER,
            steps=2464,
            batch=2,
        ),
    },
    "nlvr": {
        **_variants(BASE["nlvr"], _IN_A_SQUARE),
        "recipe": Arm("`configs/finetune-mini.yaml`, the picture as it is: 400 x 100 squeezed to 96 x 96"),
        "made": Arm(
            "the better recipe: first 16,000 drawn pictures with statements", form="boxes", before="drawn boxes",
            trainable=OPEN_TOWER, objective={"attention": "eager"}, steps=307,
        ),
    },
}  # fmt: skip
