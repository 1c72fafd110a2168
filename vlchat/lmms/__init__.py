"""vlchat's models inside lmms-eval: `python -m lmms_eval --model vlchat --model_args pretrained=PATH --tasks mme,pope`.

lmms-eval finds this by the entry point `vlchat = "vlchat.lmms:manifest"` in the group `lmms_eval.models`. Its tasks are
asked as conversations; those with likelihoods are simple tasks, for `--force_simple`.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """What lmms-eval's registry takes: the name `vlchat`, and where its classes are."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore[import-not-found,import-untyped]

    return ModelManifest(
        "vlchat", simple_class_path="vlchat.lmms.models.VLChatSimple", chat_class_path="vlchat.lmms.models.VLChat"
    )
