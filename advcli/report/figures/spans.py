"""Class activation maps, the attribution span and its coverage (Zhou et al. 2016; AGAIN, equations 1 and 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
LEVEL = 0.5  # AGAIN's lambda


def activation_maps(features: Floats, weights: Floats, cells: int = 1) -> Floats:
    """(N, H, W): features (N, C, H, W) weighed by each image's class weights (N, C * cells**2) and summed over channels.

    Scaled so that the mean over positions plus the class's bias is its logit, whatever grid of cells pooling leaves.
    """
    n, c, h, w = features.shape
    if h % cells or w % cells:
        raise ValueError(f"maps of {h} x {w} do not divide into {cells} x {cells} cells")
    grid = np.asarray(weights, np.float64).reshape(n, c, cells, cells)
    spread = grid.repeat(h // cells, 2).repeat(w // cells, 3)
    return np.asarray((features * spread).sum(1) * cells**2)


def span(maps: Floats) -> Mask:
    """(N, H, W): where a map is over half of its maximum."""
    return np.asarray(maps > LEVEL * maps.max((1, 2), keepdims=True))


def coverage(maps: Floats) -> Floats:
    """(N,) attribution span coverage, the share of positions in the span; 0 for a map without a positive value."""
    return np.asarray(span(maps).mean((1, 2)))


def upsample(maps: Floats, size: tuple[int, ...]) -> Floats:
    """Bilinear to (N, *size), pixels taken as areas (align_corners=False)."""
    rows, columns = (_weights(old, new) for old, new in zip(maps.shape[1:], size, strict=True))
    return np.asarray(np.einsum("ih,nhw,jw->nij", rows, maps, columns))


def _weights(old: int, new: int) -> Floats:
    """(new, old): how much each of the old positions counts at each new one."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.asarray(np.clip(1 - np.abs(at[:, None] - np.arange(old)), 0, None))


def erase(images: Floats, gone: Mask) -> Floats:
    """images (N, C, H, W) with the pixels gone (N, H, W) at zero."""
    return images * ~gone[:, None]
