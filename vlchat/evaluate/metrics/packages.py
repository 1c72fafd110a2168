"""Scorers that come from other packages, imported when they are first asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

from vlchat.errors import ConfigError


def scorer(module: str, package: str, purpose: str) -> ModuleType:
    """A module of an optional package.

    Args:
        module: what to import.
        package: what to install, should it be missing.
        purpose: what the reader wanted, to begin the sentence with: "word error rates".

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{purpose} need the package `{package}`: pip install 'vlchat[eval]', or pip install {package}"
        ) from error
