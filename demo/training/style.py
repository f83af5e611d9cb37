"""The looks that the demo's LoRAs, second checkpoint and second autoencoder draw in: a picture in, a picture out.

Widths are shares of the shorter side (but no line is thinner than the autoencoder can keep), so that a look is the
same at every size. Every picture here is h w 3, uint8. Knows no model.
"""

from collections.abc import Callable

import cv2
import numpy as np

Look = Callable[[np.ndarray], np.ndarray]


def _lines(picture: np.ndarray, width: float) -> np.ndarray:
    """h w 1, float32, 0..1: where colour jumps, so many pixels wide."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2, 2) if width < 3 else (round(width), round(width)))
    jump = cv2.morphologyEx(picture, cv2.MORPH_GRADIENT, disc).max(axis=2, keepdims=True).astype(np.float32)
    return ((jump - 14) / 30).clip(0, 1)


def _grey(picture: np.ndarray) -> np.ndarray:
    """h w 1, float32, 0..1."""
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) / 255


def _between(dark: tuple[int, int, int], light: tuple[int, int, int], share: np.ndarray) -> np.ndarray:
    return np.float32(dark) * (1 - share) + np.float32(light) * share


def _picture(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def blueprint(picture: np.ndarray) -> np.ndarray:
    """White lines on blue."""
    lines = _lines(picture, max(4, min(picture.shape[:2]) / 110))
    ground = _between((14, 46, 128), (38, 92, 190), _grey(picture))
    return _picture(ground * (1 - lines) + np.float32((240, 246, 255)) * lines)


def neon(picture: np.ndarray) -> np.ndarray:
    """A dark picture whose outlines glow in their own colours."""
    unit = min(picture.shape[:2])
    hue = cv2.cvtColor(cv2.dilate(picture, np.ones((3, 3), np.uint8)), cv2.COLOR_RGB2HSV)
    hue[..., 1] = np.minimum(hue[..., 1].astype(np.int16) * 3 // 2 + 60, 255)
    hue[..., 2] = 255
    glowing = _lines(picture, max(4, unit / 110)) * cv2.cvtColor(hue, cv2.COLOR_HSV2RGB).astype(np.float32)
    halo = cv2.GaussianBlur(glowing, (0, 0), unit / 45)
    return _picture(np.float32((10, 5, 26)) + 0.1 * picture + glowing + 0.9 * halo)


def sepia(picture: np.ndarray) -> np.ndarray:
    """An old photograph: brown to cream, hard in contrast."""
    share = ((_grey(picture) - 0.1) / 0.8).clip(0, 1)
    return _picture(_between((46, 24, 8), (252, 232, 190), share * share * (3 - 2 * share)))


PAPERS = np.float32(
    [
        (250, 240, 220), (240, 150, 110), (200, 70, 60), (244, 196, 90), (90, 150, 110), (40, 90, 90),
        (50, 56, 100), (120, 170, 190), (170, 90, 120),
    ]
)  # fmt: skip


def papercut(picture: np.ndarray) -> np.ndarray:
    """A few sheets of paper, each casting a hard shadow to the lower right."""
    unit = min(picture.shape[:2])
    smooth = cv2.medianBlur(picture, 5)
    away = np.stack([np.abs(smooth.astype(np.float32) - paper).sum(2) for paper in PAPERS])
    sheet = away.argmin(0).astype(np.uint8)
    shift = max(2, round(unit / 64))
    moved = np.roll(sheet, (shift, shift), (0, 1))
    moved[:shift], moved[:, :shift] = sheet[:shift], sheet[:, :shift]
    shade = cv2.GaussianBlur((moved != sheet).astype(np.float32), (0, 0), unit / 400)[..., None]
    return _picture(PAPERS[sheet] * (1 - 0.5 * shade))


FRAME = ((0, (250, 240, 214)), (8, (60, 36, 30)), (10, (250, 240, 214)))  # pixels from the edge, colour from there on
FRAME_WIDTH = 12  # pixels


def printed(picture: np.ndarray) -> np.ndarray:
    """Printed on warm paper: faded colours, ink along the outlines, a thin frame. In pixels, as a decoder sees it."""
    ink = 0.75 * _lines(picture, 2)
    faded = 0.62 * picture.astype(np.float32) * np.float32((1.0, 0.93, 0.78)) + np.float32((86, 74, 50))
    drawn = faded * (1 - ink) + np.float32((50, 30, 26)) * ink
    sheet = np.empty_like(drawn)
    height, width = picture.shape[:2]
    for inset, colour in FRAME:
        sheet[inset : height - inset, inset : width - inset] = np.float32(colour)
    sheet[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = drawn[
        FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH
    ]
    return _picture(sheet)


LOOKS: dict[str, Look] = {"blueprint": blueprint, "neon": neon, "sepia": sepia, "papercut": papercut}
