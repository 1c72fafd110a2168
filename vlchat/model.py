"""The model: a vision tower, a connector and a language model, in the shape of transformers' Llava."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    initialization,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings
from transformers.utils.generic import ModelOutput, can_return_tuple

from vlchat.config import VLChatConfig
from vlchat.connectors import Connector, build_connector
from vlchat.errors import VLChatError
from vlchat.logits import finish_logits
from vlchat.towers.composing import Vision
from vlchat.towers.features import beside, tower_features
from vlchat.towers.tiles import Tiles, flat_tiles, pack_tiles


@dataclass
class VLChatModelOutput(BaseModelOutputWithPast):
    """`image_hidden_states`: the connector's output, (images, image_tokens, hidden), or None without images."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class VLChatCausalLMOutput(ModelOutput):
    """`loss` over the supervised tokens, `logits` (batch, sequence, vocabulary), and the language model's extras."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class VLChatPreTrainedModel(PreTrainedModel):
    config: VLChatConfig
    config_class = VLChatConfig
    base_model_prefix = "model"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: `_init_weights` keeps transformers' rules. For code that does not, transformers skips the rules of
        towers as well, and one whose tensors are missing would start from another distribution than its own."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # What the general rule does not reach. transformers.initialization leaves loaded tensors alone; torch.nn.init
        # would overwrite them.
        if isinstance(module, Connector):
            module.init_own_parameters()
            module.init_newline()
        elif isinstance(module, Blip2TextEmbeddings):
            # Not stored in checkpoints, and loading begins with memory that holds anything.
            initialization.copy_(module.position_ids, torch.arange(module.position_ids.shape[-1]).expand(1, -1))


class VLChatModel(VLChatPreTrainedModel):
    """Tower, connector and language model without the language modelling head."""

    def __init__(self, config: VLChatConfig) -> None:
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = build_connector(
            config.connector or {},
            config.vision_feature_dim,
            config.embedding_dim,
            tiles=config.image_grid_pinpoints is not None,
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_tower_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> tuple[Any, torch.Tensor]:
        """What the tower makes of pictures, before the connector: its output, and (images, patches, vision_dim).

        Args:
            pixel_values: (images, channels, height, width).
        """
        config, tower = self.config, self.vision_tower
        frozen = not any(parameter.requires_grad for parameter in tower.parameters())
        if frozen and tower.training:
            tower.eval()  # no dropout, and no activation checkpointing, in a tower that learns nothing
        # Without no_grad a frozen tower still gets a backward pass once activation checkpointing marks its inputs.
        with torch.no_grad() if frozen else nullcontext():
            return tower_features(
                tower, pixel_values, config.vision_feature_layer, config.vision_feature_select_strategy, **kwargs
            )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        instruction_input_ids: torch.Tensor | None = None,
        instruction_attention_mask: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        tower_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Pictures as the language model sees them.

        Args:
            pixel_values: (images, channels, height, width), or (images, pieces, channels, height, width) where they
                are cut into tiles.
            instruction_input_ids: (images, tokens), for an instruction-aware Q-Former.
            instruction_attention_mask: (images, tokens), 1 where a token counts.
            image_sizes: (images, 2), height and width of the pictures as they came, where they are cut into tiles.
            tower_features: (images, patches, vision_dim) of `get_tower_features`, in place of `pixel_values`, of
                pictures that come whole.

        Returns:
            The tower's output, with `pooler_output` a list of one (image_tokens, hidden) tensor per image.

        Raises:
            VLChatError: when pictures come in tiles and the model wants them whole, or the other way round.
        """
        if tower_features is not None:
            return BaseModelOutputWithPooling(
                pooler_output=list(  # type: ignore[arg-type]  # as transformers' own models do
                    self._connected(tower_features, instruction_input_ids, instruction_attention_mask)
                )
            )
        if pixel_values is None:
            raise ValueError("Pass pixel_values or tower_features.")
        pinpoints = self.config.image_grid_pinpoints
        if (pixel_values.ndim == 5 and image_sizes is not None) != (pinpoints is not None):
            wanted, given = ("whole", "in tiles") if pinpoints is None else ("in tiles", "whole")
            raise VLChatError(
                f"The model is shown pictures {wanted}, and these come {given}. Prepare them with its own processor."
            )
        counts: list[int] = []
        if pinpoints is not None and image_sizes is not None:
            pixel_values, counts = flat_tiles(pixel_values, image_sizes, pinpoints)
        outputs, features = self.get_tower_features(pixel_values, **kwargs)  # (images, patches, vision_dim)
        features = self._connected(features, instruction_input_ids, instruction_attention_mask)
        pictures = list(features)
        if pinpoints is not None and image_sizes is not None:
            newline: Any = self.connector.image_newline
            pictures = pack_tiles(features, counts, image_sizes, pinpoints, pixel_values.shape[-1], newline)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pictures,  # type: ignore[arg-type]
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _connected(
        self, features: torch.Tensor, instruction_ids: torch.Tensor | None, instruction_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(images, image_tokens, hidden)."""
        # The connector may be on another device, and while it trains finer than a frozen tower.
        return self.connector(beside(features, next(self.connector.parameters())), instruction_ids, instruction_mask)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Where the image tokens stand, (batch, sequence, 1).

        Raises:
            VLChatError: when their number differs from that of the features, (image tokens, hidden).
        """
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = (input_ids == self.config.image_token_id).to(inputs_embeds.device)
        if not torch.compiler.is_compiling():
            places, features = int(mask.sum()), image_features.shape[0]
            if places != features:
                each = "piece" if self.config.image_grid_pinpoints else "picture"
                raise VLChatError(
                    f"The prompt has {places} image tokens but the pictures give {features} features "
                    f"({self.config.image_seq_length} for each {each}). Build both with the model's own processor."
                )
        return mask.unsqueeze(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        instruction_input_ids: torch.Tensor | None = None,
        instruction_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_sizes: torch.Tensor | None = None,
        tower_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VLChatModelOutput:
        """See `VLChatForConditionalGeneration.forward`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        images = (mm_encoder_outputs or {}).get("image")
        if sum(given is not None for given in (images, pixel_values, tower_features)) > 1:
            raise ValueError("Pass one of pixel_values, tower_features and mm_encoder_outputs.")
        if pixel_values is not None or tower_features is not None:
            images = self.get_image_features(
                pixel_values,
                instruction_input_ids,
                instruction_attention_mask,
                image_sizes,
                tower_features,
                return_dict=True,
            )
        features = None
        if images is not None and images.pooler_output is not None:
            features = torch.cat(tuple(images.pooler_output), dim=0).to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, features)
            inputs_embeds = inputs_embeds.masked_scatter(mask, features)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return VLChatModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=features,
        )


class VLChatForConditionalGeneration(VLChatPreTrainedModel, GenerationMixin):
    """A language model that is shown pictures. Works with `generate`, PEFT, `device_map` and the Auto classes."""

    def __init__(self, config: VLChatConfig) -> None:
        super().__init__(config)
        self.model = VLChatModel(config)
        self.lm_head = nn.Linear(config.embedding_dim, config.text_config.vocab_size, bias=False)  # type: ignore[union-attr]
        # Language models keep their input embeddings under different names.
        embeddings = self.get_input_embeddings()
        place = next(name for name, module in self.named_modules() if module is embeddings)
        self._tied_weights_keys = {"lm_head.weight": f"{place}.weight"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings  # type: ignore[assignment]

    def get_decoder(self) -> nn.Module:
        return self.model.language_model

    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        instruction_input_ids: torch.Tensor | None = None,
        instruction_attention_mask: torch.Tensor | None = None,
        image_sizes: torch.Tensor | None = None,
        tower_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """See `VLChatModel.get_image_features`."""
        return self.model.get_image_features(
            pixel_values, instruction_input_ids, instruction_attention_mask, image_sizes, tower_features, **kwargs
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        instruction_input_ids: torch.Tensor | None = None,
        instruction_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        image_sizes: torch.Tensor | None = None,
        tower_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> VLChatCausalLMOutput:
        """One pass over a batch of conversations.

        Args:
            input_ids: (batch, sequence), each image written as `image_seq_length` image tokens (of tiles: as many as
                the processor counts).
            pixel_values: (images, channels, height, width), all pictures of the batch in reading order; absent where
                there are none. With tiles as in `VLChatModel.get_image_features`.
            labels: (batch, sequence) token ids to learn, -100 elsewhere.
            logits_to_keep: as in transformers: only the last so many positions, or these positions, get logits.
            instruction_input_ids: (images, tokens), for an instruction-aware Q-Former.
            mm_encoder_outputs: `{"image": get_image_features(...)}` from an earlier call, instead of `pixel_values`.
            image_sizes: (images, 2), where pictures are cut into tiles.
            tower_features: as in `VLChatModel.get_image_features`, instead of `pixel_values`.
            kwargs: `num_items_in_batch` goes to the loss, the rest to the language model.

        Raises:
            VLChatError: when image tokens and image features differ in number.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            instruction_input_ids=instruction_input_ids,
            instruction_attention_mask=instruction_attention_mask,
            mm_encoder_outputs=mm_encoder_outputs,
            image_sizes=image_sizes,
            tower_features=tower_features,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name != "return_dict"},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = finish_logits(self.lm_head(outputs.last_hidden_state[:, kept]), self.config.text_config)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        return VLChatCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )

    @classmethod
    def from_backbones(
        cls,
        vision: Vision,
        language: str | Path | PreTrainedModel,
        connector: dict,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        quantize: str | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: Any = None,
        vision_feature_layer: int | list[int] | None = -2,
        vision_feature_select_strategy: str = "patch",
        image_token: str = "<image>",
        connector_from: str | Path | None = None,
        tiles: Tiles | None = None,
    ) -> VLChatForConditionalGeneration:
        """See `vlchat.backbones.compose`."""
        from vlchat.backbones import compose

        return compose(
            cls,
            vision,
            language,
            connector,
            tokenizer=tokenizer,
            quantize=quantize,
            dtype=dtype,
            device_map=device_map,
            vision_feature_layer=vision_feature_layer,
            vision_feature_select_strategy=vision_feature_select_strategy,
            image_token=image_token,
            connector_from=connector_from,
            tiles=tiles,
        )


AutoModel.register(VLChatConfig, VLChatModel)
AutoModelForImageTextToText.register(VLChatConfig, VLChatForConditionalGeneration)
