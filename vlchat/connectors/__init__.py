"""Connectors: from a vision tower's features to the language model's input embeddings.

Every connector is `(vision_dim, llm_dim, **kwargs)` and maps `(images, patches, vision_dim)` to
`(images, image_tokens, llm_dim)`. To add one, write the class and put it in `CONNECTORS`.
"""

from __future__ import annotations

from vlchat.connectors.base import Connector
from vlchat.connectors.gated import GatedConnector
from vlchat.connectors.projections import DownsampleConnector, LinearConnector, MLPConnector
from vlchat.connectors.queries import PerceiverConnector, QFormerConnector, ResamplerConnector
from vlchat.named import named

__all__ = [
    "CONNECTORS",
    "Connector",
    "DownsampleConnector",
    "GatedConnector",
    "LinearConnector",
    "MLPConnector",
    "PerceiverConnector",
    "QFormerConnector",
    "ResamplerConnector",
    "build_connector",
]

CONNECTORS: dict[str, type[Connector]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "downsample": DownsampleConnector,
    "qformer": QFormerConnector,
    "resampler": ResamplerConnector,
    "perceiver": PerceiverConnector,
    "gated": GatedConnector,
}


def build_connector(connector: dict, vision_dim: int, llm_dim: int, tiles: bool = False) -> Connector:
    """Builds `{"type": name, **kwargs}`; with `tiles` for pictures that are cut into tiles.

    Raises:
        ConfigError: for an unknown type, an argument that type does not take (with the nearest right name), or a
            missing one.
    """
    kind, kwargs = named(CONNECTORS, connector, "connector", given=2)
    built = kind(vision_dim, llm_dim, **kwargs)  # type: ignore[call-arg]  # every connector takes these
    if tiles:
        built.add_newline(llm_dim)
    return built
