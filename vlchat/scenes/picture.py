"""Scenes as uploads have them: any size and shape, other light, some blur and noise."""

from random import Random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vlchat.scenes.draw import draw
from vlchat.scenes.world import Scene


def augment(picture: Image.Image, rng: Random) -> Image.Image:
    """Brightness, contrast, blur and noise. Nothing is mirrored, turned or cropped: left stays left."""
    if rng.random() < 0.5:
        picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.12))
        picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.85, 1.15))
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < 0.15:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 8), (*picture.size[::-1], 3))
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def picture_of(scene: Scene, rng: Random, side: int) -> Image.Image:
    """The scene drawn at a size and shape of its own, as uploads have, then augmented; at least `side` pixels."""
    width, height = (rng.randint(side, int(side * 2.2)) for _ in range(2))
    if rng.random() < 0.6:
        height = width
    return augment(draw(scene, width, height), rng)
