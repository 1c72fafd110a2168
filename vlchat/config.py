"""The configuration of a vision-language model: a vision tower, a connector, a language model."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from vlchat.errors import ConfigError

SELECT_STRATEGIES = ("patch", "cls", "full")


class VLChatConfig(PreTrainedConfig):
    """Configuration of `VLChatForConditionalGeneration`.

    Args:
        vision_config: configuration (or its dict) of the vision tower; a CLIP tower when absent.
        text_config: configuration (or its dict) of the language model; a Llama when absent.
        connector: `{"type": name, **kwargs}`, one of `vlchat.connectors.CONNECTORS`.
        image_token_id: the token that marks the places an image takes in a prompt.
        image_seq_length: how many of those places one image takes.
        vision_feature_layer: index of the tower's hidden state to use, or a list whose states are concatenated; None is
            the tower's own output, after its final norm (BLIP-2, towers without hidden states to choose from).
        vision_feature_select_strategy: `patch` keeps the patch tokens (what LLaVA calls `default`), `cls` the first
            token alone, `full` everything the tower returns.

    Raises:
        ConfigError: for a select strategy or a connector that does not exist.
    """

    model_type = "vlchat"
    # Built here and not by transformers' SubConfigSpec, which 5.17 does not have.
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}  # type: ignore[misc]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    connector: dict | None = None
    image_token_id: int = 32000
    image_seq_length: int = 576
    vision_feature_layer: int | list[int] | None = -2
    vision_feature_select_strategy: str = "patch"
    vision_feature_size: int | None = None
    image_grid_pinpoints: list[list[int]] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = sub_config(self.vision_config, "clip_vision_model")
        self.text_config = sub_config(self.text_config, "llama")
        self.connector = dict(self.connector or {"type": "mlp", "depth": 2})
        if isinstance(self.vision_feature_layer, tuple):
            self.vision_feature_layer = list(self.vision_feature_layer)
        if self.vision_feature_select_strategy not in SELECT_STRATEGIES:
            raise ConfigError(
                f"vision_feature_select_strategy is {self.vision_feature_select_strategy!r}; "
                f"it must be one of {', '.join(SELECT_STRATEGIES)}."
            )
        # Language models say in their own config whether input and output embeddings are one tensor.
        self.tie_word_embeddings = self.tie_word_embeddings or bool(
            getattr(self.text_config, "tie_word_embeddings", False)
        )
        super().__post_init__(**kwargs)

    @property
    def vision_feature_dim(self) -> int:
        """Width of the features that the connector receives."""
        if self.vision_feature_size is not None:
            return self.vision_feature_size
        layers = self.vision_feature_layer
        return self.vision_config.hidden_size * (len(layers) if isinstance(layers, list) else 1)  # type: ignore[union-attr]

    @property
    def embedding_dim(self) -> int:
        """Width of the language model's input embeddings; in a few OPT models it is not that of their layers."""
        text: Any = self.text_config
        return getattr(text, "word_embed_proj_dim", text.hidden_size)


def sub_config(config: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config or {})
    model_type = values.pop("model_type", default_type)
    return CONFIG_MAPPING[model_type](**values)


AutoConfig.register("vlchat", VLChatConfig)
