"""How similar two images are: PSNR and SSIM.

    PSNR = -10 log10 mean (x - y)²                                     for values in [0, 1], in dB

    SSIM = mean of (2 μ_x μ_y + C_1)(2 σ_xy + C_2) / ((μ_x² + μ_y² + C_1)(σ_x² + σ_y² + C_2))

(Wang et al. 2004, eq. 13.) The moments are those of an 11x11 window with Gaussian weights, σ = 1.5;
C_1 = 0.01², C_2 = 0.03². The mean is over the windows inside the image, and over the channels.
"""

import numpy as np

from ddpm_jax.errors import UserError

SIDE = 11
SIGMA = 1.5
C_1, C_2 = 0.01**2, 0.03**2


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair, in dB: [n]; infinite if they are equal.

    Args:
      x, y: [n, H, W, C] uint8.
    """
    error = np.square(_unit(x) - _unit(y)).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(error)


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair: [n], at most 1.

    Args:
      x, y: [n, H, W, C] uint8, H and W at least 11.

    Raises:
      UserError: the images are smaller than the window.
    """
    if min(x.shape[1:3]) < SIDE:
        raise UserError(
            f"SSIM has windows of {SIDE}x{SIDE} pixels, but the images are "
            f"{x.shape[1]}x{x.shape[2]}; compare larger images"
        )
    x, y = _unit(x), _unit(y)
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x, var_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + C_1) / (mean_x**2 + mean_y**2 + C_1)
    found = means * (2 * covariance + C_2) / (var_x + var_y + C_2)
    return found.mean(axis=(1, 2, 3))


def _unit(x: np.ndarray) -> np.ndarray:
    """Return uint8 values as float64 in [0, 1]."""
    return np.asarray(x, np.float64) / 255.0


def _windowed(x: np.ndarray) -> np.ndarray:
    """Return the weighted means of all windows inside the images: [n, H - 10, W - 10, C]."""
    offsets = np.arange(SIDE) - SIDE // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(x, SIDE, axis=axis)
        x = windows @ weights
    return x
