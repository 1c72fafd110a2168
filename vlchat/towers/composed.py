"""Towers made of other towers, as ordinary transformers models: saved and loaded as one folder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlchat.config import sub_config
from vlchat.errors import ConfigError
from vlchat.towers.features import side_of_grid, tower_features

Layer = int | list[int] | None


class ConcatTowerConfig(PreTrainedConfig):
    """Configuration of `ConcatTower`.

    Args:
        first_config, second_config: of the two towers.
        first_layer, second_layer: which hidden state of each is taken; see `tower_features`.
        widths: of the features of the first and of the second.
        image_size: height and width of the pictures, which are prepared for the first tower.
        second_image_size: height and width that the second tower is shown.
        second_scale, second_shift: per channel, `pixels * scale + shift` is the second tower's normalization.
    """

    model_type = "vlchat_concat"
    sub_configs: ClassVar[dict[str, Any]] = {"first_config": AutoConfig, "second_config": AutoConfig}  # type: ignore[misc]

    first_config: dict | PreTrainedConfig | None = None
    second_config: dict | PreTrainedConfig | None = None
    first_layer: int | list[int] | None = -2
    second_layer: int | list[int] | None = -2
    widths: list[int] | tuple[int, ...] = (768, 768)
    image_size: list[int] | tuple[int, ...] = (224, 224)
    second_image_size: list[int] | tuple[int, ...] = (224, 224)
    second_scale: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0)
    second_shift: list[float] | tuple[float, ...] = (0.0, 0.0, 0.0)
    num_channels: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        self.first_config = sub_config(self.first_config, "clip_vision_model")
        self.second_config = sub_config(self.second_config, "clip_vision_model")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        return sum(self.widths)


class MultiscaleTowerConfig(PreTrainedConfig):
    """Configuration of `MultiscaleTower`.

    Args:
        tower_config: of the tower.
        layer: which of its hidden states is taken; see `tower_features`.
        scales: how many times larger than a tile the picture is looked at.
        width: of the tower's features.
        tile_size: height and width that the tower is shown at once.
    """

    model_type = "vlchat_multiscale"
    sub_configs: ClassVar[dict[str, Any]] = {"tower_config": AutoConfig}  # type: ignore[misc]

    tower_config: dict | PreTrainedConfig | None = None
    layer: int | list[int] | None = -2
    scales: list[int] | tuple[int, ...] = (1, 2)
    width: int = 768
    tile_size: list[int] | tuple[int, ...] = (224, 224)
    num_channels: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        self.tower_config = sub_config(self.tower_config, "clip_vision_model")
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        return self.width * len(self.scales)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pictures: those of the largest scale."""
        height, width = self.tile_size
        return height * max(self.scales), width * max(self.scales)


class _ComposedTower(PreTrainedModel):
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class ConcatTower(_ComposedTower):
    """Two towers look at one picture; their patch features stand side by side.

    The second grid is resized bilinearly to the first. Pictures come prepared for the first tower; the second sees the
    same ones, renormalized and resized as it was trained.
    """

    config: ConcatTowerConfig
    config_class = ConcatTowerConfig

    def __init__(self, config: ConcatTowerConfig) -> None:
        super().__init__(config)
        self.first = AutoModel.from_config(config.first_config)
        self.second = AutoModel.from_config(config.second_config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (images, patches, widths[0] + widths[1]) of (images, channels, height, width)."""
        config = self.config
        first = tower_features(self.first, pixel_values, config.first_layer, "patch")[1]
        scale, shift = (
            torch.tensor(values, device=pixel_values.device, dtype=pixel_values.dtype).view(-1, 1, 1)
            for values in (config.second_scale, config.second_shift)
        )
        renewed = _resized(pixel_values * scale + shift, config.second_image_size)
        second = tower_features(self.second, renewed, config.second_layer, "patch")[1]
        if second.shape[1] != first.shape[1]:
            side = side_of_grid(first.shape[1], "concat tower")
            grid = functional.interpolate(_grid(second, "concat tower"), (side, side), mode="bilinear")
            second = grid.flatten(2).transpose(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat([first, second.to(first)], dim=-1))


class MultiscaleTower(_ComposedTower):
    """One tower looks at the picture at several scales, S2 (arXiv:2403.13043).

    At scale s the picture is s times as large as a tile, and cut into s x s tiles. The features of the tiles are put
    together to one map, averaged down to the grid of a single tile, and stand side by side with those of the other
    scales: as many tokens as the tower alone, and len(scales) times as wide. Pictures come at the largest scale.
    """

    config: MultiscaleTowerConfig
    config_class = MultiscaleTowerConfig

    def __init__(self, config: MultiscaleTowerConfig) -> None:
        super().__init__(config)
        self.tower = AutoModel.from_config(config.tower_config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (images, patches, width * scales) of (images, channels, *config.image_size)."""
        height, width = self.config.tile_size
        maps = []
        for scale in self.config.scales:
            picture = _resized(pixel_values, (height * scale, width * scale))
            tiles = picture.unflatten(3, (scale, width)).unflatten(2, (scale, height))
            tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)  # (images * scale * scale, channels, height, width)
            features = tower_features(self.tower, tiles, self.config.layer, "patch")[1]
            grid = _grid(features, "multiscale tower")  # (tiles, dim, side, side)
            whole = grid.unflatten(0, (-1, scale, scale)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
            maps.append(functional.avg_pool2d(whole, scale))
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(maps, dim=1).flatten(2).transpose(1, 2))


def _grid(features: torch.Tensor, who: str) -> torch.Tensor:
    """(images, patches, dim) as maps (images, dim, side, side)."""
    side = side_of_grid(features.shape[1], who)
    return features.transpose(1, 2).unflatten(2, (side, side))


def _resized(pixels: torch.Tensor, size: Any) -> torch.Tensor:
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return functional.interpolate(pixels.float(), tuple(size), mode="bilinear", antialias=True).to(pixels.dtype)


def join(model: PreTrainedModel, **parts: PreTrainedModel) -> PreTrainedModel:
    """Exchanges parts of `model`, a skeleton without memory, for real ones.

    Raises:
        ConfigError: for a part that its own configuration does not rebuild.
    """
    for name, real in parts.items():
        part: nn.Module = getattr(model, name)
        if type(part) is not type(real):
            raise ConfigError(
                f"The {name.replace('_', ' ')} is a {type(real).__name__}, which its configuration does not rebuild "
                f"(that gives a {type(part).__name__}), so the composed model could not be loaded again."
            )
        real.config._name_or_path = ""  # a saved model tells nobody where its parts once lay
        setattr(model, name, real)
    return model


for _config, _model in ((ConcatTowerConfig, ConcatTower), (MultiscaleTowerConfig, MultiscaleTower)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
