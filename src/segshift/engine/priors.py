"""Where in the image the classes of the source are: the spatial prior of CBST-SP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from segshift.artefacts.arrays import read_arrays, write_arrays
from segshift.data.domains import Domain
from segshift.data.statistics import spatial_frequency


def smoothed(frequency: Float[Tensor, "K h w"], sigma: float) -> Float[Tensor, "K h w"]:
    """A Gaussian blur of maps of shares, whose sum over the classes stays what it was; borders are mirrored.

    Args:
        sigma: in pixels. The paper's kernel is not known here (methods.md section 5).
    """
    from kornia import filters

    # A window of 6 sigma, but no larger than mirroring allows.
    sides = [min(2 * round(3 * sigma) + 1, 2 * (n - 1) + 1) for n in frequency.shape[-2:]]
    return filters.gaussian_blur2d(frequency[None], (sides[0], sides[1]), (sigma, sigma), "reflect")[0]


def write_prior(path: Path, source: Domain, size: tuple[int, int], sigma: float) -> None:
    """Count the source's labels at (w, h) and keep the smoothed shares, float16."""
    frequency = torch.from_numpy(spatial_frequency(source, size)).float()
    write_arrays(path, {"prior": smoothed(frequency, sigma).numpy().astype(np.float16)})


def read_prior(path: Path) -> Float[Tensor, "K h w"]:
    """The spatial prior (K, h, w) that `write_prior` kept.

    Raises:
        UserError: the file is damaged.
    """
    prior = read_arrays(path, ["prior"], "spatial prior", "delete it and run again")["prior"]
    return torch.from_numpy(prior.astype(np.float32))
