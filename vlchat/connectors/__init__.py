"""Connectors: from a vision tower's features to the language model's input embeddings.

Every connector is `(vision_dim, llm_dim, **kwargs)` and maps `(images, patches, vision_dim)` to
`(images, image_tokens, llm_dim)`. To add one, write the class and put it in `CONNECTORS`.
"""

from __future__ import annotations

import inspect

from vlchat.connectors.base import Connector
from vlchat.connectors.gated import GatedConnector
from vlchat.connectors.projections import DownsampleConnector, LinearConnector, MLPConnector
from vlchat.connectors.queries import PerceiverConnector, QFormerConnector, ResamplerConnector
from vlchat.errors import ConfigError, nearest

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


def build_connector(connector: dict, vision_dim: int, llm_dim: int) -> Connector:
    """Builds `{"type": name, **kwargs}`.

    Raises:
        ConfigError: for an unknown type, an argument that type does not take (with the nearest right name), or a
            missing one.
    """
    kwargs = dict(connector)
    name = kwargs.pop("type", None)
    if name not in CONNECTORS:
        hint = nearest(str(name), CONNECTORS) or "."
        raise ConfigError(f"There is no connector {name!r}; known ones are {', '.join(CONNECTORS)}{hint}")
    parameters = inspect.signature(CONNECTORS[name]).parameters
    accepted = list(parameters)[2:]
    for key in kwargs:
        if key not in accepted:
            hint = nearest(key, accepted) or "."
            raise ConfigError(f"The {name} connector has no option {key!r}; it takes {', '.join(accepted)}{hint}")
    missing = [key for key in accepted if parameters[key].default is inspect.Parameter.empty and key not in kwargs]
    if missing:
        raise ConfigError(f"The {name} connector lacks {', '.join(missing)}.")
    return CONNECTORS[name](vision_dim, llm_dim, **kwargs)
