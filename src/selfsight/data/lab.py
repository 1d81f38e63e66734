"""CIE Lab: a colour as lightness L, 0 to 100, and the axes a, green to red, and b, blue to yellow; and bins of ab.

sRGB as in IEC 61966-2-1, Lab as in CIE 15 (1976), both under the white D65. Nothing here is a matrix product, which
autocast would round to bfloat16.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Linear sRGB to XYZ. Each row is divided by its sum, the white's XYZ: so white is 1, 1, 1, and greys have a = b = 0.
TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)
TO_XYZ = TO_XYZ / TO_XYZ.sum(1, keepdim=True)
TO_RGB = torch.linalg.inv(TO_XYZ)
EPSILON, KAPPA = 216 / 24389, 24389 / 27
"""Below EPSILON the cube root of Lab is replaced by a line, of a slope that KAPPA tells."""

STEP = 10
"""Width of an ab bin."""
EDGE = 130
"""The ab plane is looked at from -EDGE to EDGE; sRGB reaches from -108 to 99."""
NEIGHBOURS, CANDIDATES = 5, 9
"""A colour's five nearest bins are the one that it lies in and some of the eight around that."""


def rgb_to_lab(x: Tensor) -> Tensor:
    """Return L in [0, 100], a in [-87, 99], b in [-108, 95] (..., 3, H, W) of sRGB (..., 3, H, W) in [0, 1]."""
    xyz = _mixed(linear(x), TO_XYZ)
    # The clamp keeps the power, which where() then drops, from infinite slopes at black.
    f = torch.where(xyz > EPSILON, xyz.clamp(min=EPSILON).pow(1 / 3), (KAPPA * xyz + 16) / 116)
    fx, fy, fz = f.unbind(-3)
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -3)


def shrunk_ab(x: Tensor, side: int) -> Tensor:
    """Return the (a, b) of sRGB (B, 3, H, W) in [0, 1], shrunk to `side` pixels: (B, side, side, 2)."""
    return rgb_to_lab(F.adaptive_avg_pool2d(x, side))[:, 1:].permute(0, 2, 3, 1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB (..., 3, H, W) in [0, 1] of L, a, b (..., 3, H, W); what no screen can show is clipped."""
    lightness, a, b = lab.unbind(-3)
    fy = (lightness + 16) / 116
    f = torch.stack([fy + a / 500, fy, fy - b / 200], -3)
    xyz = torch.where(f > EPSILON ** (1 / 3), f.pow(3), (116 * f - 16) / KAPPA)
    return companded(_mixed(xyz, TO_RGB).clamp(0, 1))


def to_lightness(x: Tensor) -> Tensor:
    """Return the grey image (..., 1, H, W) in [0, 1] of the same lightness L as sRGB (..., 3, H, W); greys stay."""
    red, green, blue = TO_XYZ[1].tolist()
    r, g, b = linear(x).unbind(-3)
    return companded((red * r + green * g + blue * b).clamp(0, 1)).unsqueeze(-3)


def linear(x: Tensor) -> Tensor:
    """Return intensities in [0, 1] of sRGB values in [0, 1]."""
    return torch.where(x > 0.04045, ((x + 0.055) / 1.055).pow(2.4), x / 12.92)


def companded(x: Tensor) -> Tensor:
    """Return sRGB values in [0, 1] of intensities in [0, 1]: the inverse of `linear`."""
    return torch.where(x > 0.0031308, 1.055 * x.clamp(min=0.0031308).pow(1 / 2.4) - 0.055, 12.92 * x)


def ab_bins() -> Tensor:
    """Return the centres (313, 2) of the bins of the ab plane that sRGB needs: a from -90 to 100, b from -110 to 100.

    A point of the grid of step 10 is a bin if the gamut comes closer to it than one step in a and in b, where the gamut
    is the convex hull of all sRGB colours' (a, b). This gives exactly the 313 that Zhang, Isola and Efros publish with
    "Colorful Image Colorization" (2016; a list, which the paper describes as "in gamut" only), and none is near the
    limit: the farthest bin is 9.73 off, the nearest other point 10.07.
    """
    levels = torch.linspace(0, 1, 18, dtype=torch.float64)
    colours = rgb_to_lab(torch.cartesian_prod(levels, levels, levels)[:, :, None, None])[:, 1:, 0, 0]  # (5832, 2)
    angle = torch.arange(1440, dtype=torch.float64) * (2 * math.pi / 1440)
    direction = torch.stack([angle.cos(), angle.sin()])  # (2, 1440)
    # A convex set is where no direction leads out of it; the hull and a square of ±STEP around each of its points
    # reach as far as the hull and the square together.
    reach = (colours @ direction).amax(0) + STEP * direction.abs().sum(0)
    axis = torch.arange(-EDGE, EDGE + 1, STEP, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return grid[(grid @ direction < reach).all(1)].float()


class AbBins(nn.Module):
    """The bins of `ab_bins`, and a quick way to those nearest to a colour: comparing with all takes 6 times as long."""

    centres: Tensor
    """(313, 2) a and b."""
    home: Tensor
    around: Tensor

    def __init__(self) -> None:
        super().__init__()
        centres = ab_bins()
        axis = torch.arange(-EDGE, EDGE + 1.0, STEP)
        self.register_buffer("centres", centres, persistent=False)
        # For each point of the grid, row by row, the nearest bin: mostly the point itself.
        home = (torch.cartesian_prod(axis, axis)[:, None] - centres).square().sum(2).argmin(1)
        self.register_buffer("home", home, persistent=False)
        around = (centres[:, None] - centres).square().sum(2).topk(CANDIDATES, largest=False).indices
        self.register_buffer("around", around, persistent=False)  # (313, CANDIDATES)

    def spread(self, ab: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Return the five bins nearest to each colour (N, 2), nearest first, and its share of each: (N, 5) both.

        In proportion to a Gaussian of the distance (section 2.2): the five entries of the paper's Z that are not zero.
        """
        near, squared = self.nearest(ab, NEIGHBOURS)
        return near, torch.softmax(-squared / (2 * sigma**2), 1)

    def nearest(self, ab: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the k <= 5 bins nearest to each colour of `ab` (N, 2), and their squared distances: (N, k) each.

        The nearest comes first. Exact for colours that sRGB has.
        """
        row, column = ((ab + EDGE) / STEP).round().long().clamp(0, 2 * EDGE // STEP).unbind(1)
        candidates = self.around[self.home[row * (2 * EDGE // STEP + 1) + column]]  # (N, CANDIDATES)
        squared, order = (self.centres[candidates] - ab[:, None]).square().sum(2).topk(k, largest=False)
        return candidates.gather(1, order), squared

    def decode(self, logp: Tensor, temperature: float) -> Tensor:
        """Return the annealed mean (..., 2) in ab of log probabilities (..., 313) of the bins (equation 5)."""
        p = F.softmax(logp / max(temperature, 1e-3), -1)  # of 0 the likeliest bin's colour
        with torch.autocast(p.device.type, enabled=False):
            return p @ self.centres


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """Return the channels of (..., 3, H, W), mixed by the rows of a (3, 3) matrix."""
    r, g, b = x.unbind(-3)
    return torch.stack([u * r + v * g + w * b for u, v, w in matrix.tolist()], -3)
