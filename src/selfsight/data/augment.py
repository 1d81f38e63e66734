"""Views: random crops, flips, colours and blur for a whole batch at once, on its device.

Each image has its own parameters. They are drawn on the CPU from torch's global generator for the batch of *all*
processes, of which each takes its slice: so two processes see what one would, and a seed fixes everything. Crop, flip
and blur are products with small banded matrices, one for the rows and one for the columns (resampling is separable),
which is exact antialiasing and fast on CPUs and GPUs alike. Semantics follow torchvision's v2 transforms.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from selfsight.data.images import Batch
from selfsight.errors import SelfsightError
from selfsight.nn import fast_bf16, process

Range = tuple[float, float]

BLOCK = 32
"""So many images in a row are changed together on a CPU: their pixels stay in its cache from step to step."""
AT_ONCE = 2**26
"""Values of the images that a GPU makes views of at once: it takes some 20 bytes for each."""


def uniform(n: int, low: float, high: float, block: int = 1) -> Tensor:
    """Return (n,) numbers for this process's images, drawn for all processes' images together.

    `block` images in a row get the same number.
    """
    rank, world = process()
    numbers = torch.empty(n * world).uniform_(low, high)
    if block > 1:
        numbers = numbers[torch.arange(n * world) // block]
    return numbers[rank * n : (rank + 1) * n]


# --------------------------------------------------------------------------------------------------- geometry
# A crop box is (left, top, width, height) in units of the image: 0 to 1 from left to right and from top to bottom.


def random_boxes(aspect: Tensor, scale: Range, ratio: Range) -> Tensor:
    """Draw a box an image, (B, 4): its area's share uniform in `scale`, its true width/height log-uniform in `ratio`.

    `aspect` (B,) is each original's width / height: the images at hand are squeezed to squares, and a box of true
    ratio r and area share s has width sqrt(s·r / aspect) and height sqrt(s·aspect / r) of the square. As in
    torchvision's RandomResizedCrop ten draws are made and the first that fits is taken; if none does, the largest
    centred box of a ratio within range.
    """
    n, tries = len(aspect), 10
    aspect = aspect.cpu().float()[:, None]
    area = uniform(n * tries, *scale).view(n, tries)
    shape = uniform(n * tries, math.log(ratio[0]), math.log(ratio[1])).exp().view(n, tries)
    within = aspect.clamp(*ratio)  # of the largest box, which always fits and stands behind the ten
    width = torch.cat([(area * shape / aspect).sqrt(), (within / aspect).clamp(max=1)], 1)  # (B, 11)
    height = torch.cat([(area * aspect / shape).sqrt(), (aspect / within).clamp(max=1)], 1)
    first = ((width <= 1) & (height <= 1)).int().argmax(1, keepdim=True)
    width, height = width.gather(1, first)[:, 0], height.gather(1, first)[:, 0]
    x, y = uniform(n, 0, 1), uniform(n, 0, 1)
    centred = first[:, 0] == tries
    left = torch.where(centred, 0.5, x) * (1 - width)
    top = torch.where(centred, 0.5, y) * (1 - height)
    return torch.stack([left, top, width, height], 1)


def centre_boxes(aspect: Tensor) -> Tensor:
    """Return the largest centred box an image that is square in the original, (B, 4)."""
    aspect = aspect.cpu().float()
    width, height = (1 / aspect).clamp(max=1), aspect.clamp(max=1)
    return torch.stack([(1 - width) / 2, (1 - height) / 2, width, height], 1)


def resampling(start: Tensor, length: Tensor, source: int, target: int, flip: Tensor | None = None) -> Tensor:
    """Return (B, target, source) weights that resize `source` pixels' part [start, start + length) to `target`.

    A triangle filter as wide as one target pixel, at least one source pixel: torchvision's bilinear resize with
    antialias. Pixels outside the box have no weight. `flip` (B,) bool reverses the order of the target's pixels.
    """
    start, length = start[:, None] * source, length[:, None] * source
    step = length / target
    wide = step.clamp(min=1)  # half the triangle's base; (B, 1)
    place = torch.arange(target, device=start.device) + 0.5
    places = place if flip is None else torch.where(flip[:, None], target - place, place)
    centre = (start + places * step) / wide  # (B, target), in units of the triangle, as what follows
    pixel = torch.arange(source, device=start.device) + 0.5
    # A box smaller than a pixel still sees the pixel that it lies in. Others are far away: they get no weight.
    inside = (pixel > start.floor()) & (pixel < (start + length).ceil())  # (B, source)
    at = torch.where(inside, pixel / wide, 1e9)
    # As few passes over the large (B, target, source) as can be: they cost more than the resizing itself.
    weights = (at[:, None] - centre[:, :, None]).abs_()
    torch.sub(weights.new_ones(()), weights, out=weights).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))


def crop(images: Tensor, boxes: Tensor, size: int, hflip: Tensor | None = None, vflip: Tensor | None = None) -> Tensor:
    """Return (B, C, size, size) in [0, 1]: the boxes (B, 4) of uint8 `images` (B, C, S, S), antialiased, flipped."""
    device, side = images.device, images.shape[2]
    # 0..255 is exact in bfloat16; the rounding of weights and products is about one grey level.
    dtype = torch.bfloat16 if fast_bf16(device) else torch.float32
    # Images of one shape have one centre box: then one matrix serves all, and the products are single large ones.
    one = hflip is None and vflip is None and bool((boxes == boxes[:1]).all())
    if one:
        boxes = boxes[:1]
    else:  # a GPU gets the few numbers and makes the large matrices itself
        boxes = put(boxes, device)
        hflip, vflip = (None if flip is None else put(flip, device) for flip in (hflip, vflip))
    left, top, width, height = boxes.T
    rows, columns = resampling(top, height, side, size, vflip), resampling(left, width, side, size, hflip)
    if one:
        rows, columns = rows[0], columns[0]
        top_bottom, left_right = _used(rows), _used(columns)
        images, rows, columns = images[..., top_bottom, left_right], rows[:, top_bottom], columns[:, left_right]
    else:
        rows, columns = rows[:, None], columns[:, None]
    rows, columns = (weights.to(device, dtype, non_blocking=True) for weights in (rows, columns))
    # uint8 to bfloat16 by way of int16 takes a quarter of the time on the CPU.
    return (rows @ images.to(torch.int16).to(dtype) @ columns.mT).clamp_(0, 255).float().div_(255)


def _used(weights: Tensor) -> slice:
    """Return which source pixels any weight (target, source) is of: what a crop leaves out is not multiplied by 0."""
    places = weights.any(0).nonzero()
    return slice(int(places[0]), int(places[-1]) + 1)


def put(x: Tensor, device: torch.device) -> Tensor:
    """Return a few numbers, drawn on the CPU, on the device, without waiting for what it still has to do."""
    return x.to(device, non_blocking=True)


def rotate90(x: Tensor, quarter_turns: Tensor) -> Tensor:
    """Rotate each square image of (B, C, S, S) counter-clockwise by its number (B,) of quarter turns; lossless."""
    out = torch.empty_like(x)
    for k in range(4):
        chosen = put((quarter_turns == k).nonzero()[:, 0], x.device)
        if len(chosen):
            out[chosen] = torch.rot90(x[chosen], k, (2, 3))
    return out


def warp(x: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Sample T views of each image through linear maps about its centre: (B, C, M, M) → (B, T, C, size, size).

    `matrices` (B, T, 2, 2) take a place (x, y) in the view to its place in the image, both in pixels. Each pixel is the
    mean of four bilinear samples, so that its sharpness hardly shows where between the image's pixels it fell.
    """
    fine = 2 * size
    place = (torch.arange(fine, device=x.device) + 0.5) * (size / fine) - size / 2  # in pixels from the centre
    maps = put(matrices, x.device).unsqueeze(-1) * (2 / x.shape[-1])  # to -1..1 over the image
    # No matrix product, which autocast would round to bfloat16.
    columns, rows = maps[:, :, :, 0] * place, maps[:, :, :, 1] * place  # (B, T, 2, fine) each
    grid = columns[:, :, :, None, :] + rows[:, :, :, :, None]  # (B, T, 2, fine, fine)
    flat = grid.permute(0, 1, 3, 4, 2).flatten(1, 2)  # (B, T · fine, fine, 2): the views one below the other
    # Outside of the image its border goes on: only half of its outermost pixels lies there.
    sampled = F.grid_sample(x, flat, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(sampled, 2).view(*x.shape[:2], -1, size, size).transpose(1, 2)


# ----------------------------------------------------------------------------------------------------- colour
# Each changes images (B, C, S, S) in [0, 1] in place, with one factor (B, 1, 1, 1) an image.


def brightness(x: Tensor, factor: Tensor) -> None:
    """Multiply by `factor` (1 changes nothing)."""
    x.mul_(factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> None:
    """Blend with the image's mean grey: 0 is all grey, 1 changes nothing."""
    mean = x.mean((2, 3), keepdim=True)
    x.mul_(factor).add_(to_grey(mean) * (1 - factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> None:
    """Blend with the grey image: 0 is grey, 1 changes nothing."""
    grey = to_grey(x).mul_(1 - factor)
    x.mul_(factor).add_(grey).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> None:
    """Turn the hue of (B, 3, S, S) by `shift` of the colour circle, -0.5 to 0.5, keeping HSV's value and chroma.

    With the hue h in sixths of the circle, 0 to 6, a colour of chroma c above its smallest channel m is
    red m + c·t(|h - 3| - 1), green m + c·t(2 - |h - 2|), blue m + c·t(2 - |h - 4|), where t clamps to [0, 1]. All of
    it is computed times c, which needs no division.
    """
    r, g, b = x[:, 0], x[:, 1], x[:, 2]
    value = torch.maximum(torch.maximum(r, g), b)
    low = torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    # Which channel is largest, by signs: on the CPU torch.where takes many times as long as lerp.
    h = torch.lerp((b - r).add_(chroma, alpha=2), (r - g).add_(chroma, alpha=4), (value - g).sign_())
    h = torch.lerp(g - b, h, (value - r).sign_())  # -1 to 5, times chroma
    h.addcmul_(chroma, (shift[:, 0] * 6 - 1).remainder(6) + 1)  # 0 to 12
    circle = chroma * 6
    h.sub_(circle.mul_((h - circle).sign_().clamp_(min=0)))
    up, down = low - chroma, value + chroma
    torch.clamp((h.sub(chroma, alpha=3)).abs_().add_(up), low, value, out=r)
    torch.clamp(down - h.sub(chroma, alpha=2).abs_(), low, value, out=g)
    torch.clamp(down - h.sub_(chroma, alpha=4).abs_(), low, value, out=b)


def to_grey(x: Tensor) -> Tensor:
    """Return (B, 1, S, S): the luma of colour images (ITU-R 601-2, as Pillow's), the mean of the bands of others."""
    if x.shape[1] == 3:
        return (x[:, 0:1] * 0.299).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:3], alpha=0.114)
    return x.mean(1, keepdim=True)


def solarize(x: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert all values of at least `threshold`."""
    return torch.where(x >= threshold, 1 - x, x)


def equalize(x: Tensor) -> Tensor:
    """Spread the values of each channel evenly over [0, 1], in 256 levels, as Pillow's ImageOps.equalize does."""
    levels: Tensor = v2.functional.equalize(x.mul(255).round_().to(torch.uint8))
    return levels.float().div_(255)


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Blur each image of (B, C, S, S) by its own sigma (B,) in pixels; odd `kernel` size, reflected borders."""
    side, half = x.shape[2], kernel // 2
    offset = torch.arange(-half, half + 1, device=x.device)
    weights = torch.exp(-0.5 * (offset / put(sigma, x.device)[:, None]).square())
    weights = weights / weights.sum(1, keepdim=True)
    source = torch.arange(side, device=x.device)[:, None] + offset
    source = (side - 1) - ((side - 1) - source.abs()).abs()  # reflect without repeating the border
    matrix = torch.zeros(len(x), side, side, device=x.device)
    matrix.scatter_add_(2, source.expand(len(x), -1, -1), weights[:, None].expand(-1, side, -1).contiguous())
    matrix = matrix[:, None]
    if fast_bf16(x.device):
        return (matrix.bfloat16() @ x.bfloat16() @ matrix.bfloat16().transpose(2, 3)).float()
    return matrix @ x @ matrix.transpose(2, 3)


JITTER = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
"""What ColorJitter does, by the name of View's field, in an order that is drawn as well."""
ORDERS = list(itertools.permutations(JITTER))
TURNS = torch.tensor(list(itertools.permutations(range(len(JITTER)))))
"""(24, 4): the same by the numbers of the changes in JITTER."""


# ------------------------------------------------------------------------------------------------------ views


@dataclass(frozen=True)
class View:
    """How one view of an image is drawn: torchvision's RandomResizedCrop, flips, ColorJitter and so on, for a batch."""

    size: int
    """Height and width of the view in pixels."""
    scale: Range = (0.08, 1.0)
    """Share of the image's area that a crop covers."""
    ratio: Range = (3 / 4, 4 / 3)
    """Width / height of a crop, as seen in the original."""
    hflip: float = 0.5
    """Probability of a left-right flip."""
    vflip: float = 0.0
    """Probability of a top-bottom flip."""
    rotate90: float = 0.0
    """Probability of a lossless rotation by 90, 180 or 270 degrees."""
    brightness: float = 0.0
    """Brightness is multiplied by 1 ± this."""
    contrast: float = 0.0
    """Contrast is multiplied by 1 ± this."""
    saturation: float = 0.0
    """Saturation is multiplied by 1 ± this."""
    hue: float = 0.0
    """Hue is turned by ± this share of the circle, at most 0.5."""
    jitter: float = 0.8
    """Probability that colours are jittered at all."""
    grey: float = 0.0
    """Probability of a grey view."""
    blur: float = 0.0
    """Probability of Gaussian blur, its kernel a tenth of the view."""
    sigma: Range = (0.1, 2.0)
    """The blur's standard deviation in pixels."""
    solarize: float = 0.0
    """Probability of inverting all values above one half."""
    equalize: float = 0.0
    """Probability of spreading the values of each channel evenly."""

    def __post_init__(self) -> None:
        if not 0 <= self.hue <= 0.5:
            raise SelfsightError(f"hue {self.hue:g}: must lie between 0 and 0.5; take a lower --strength")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            low, high = self.scale
            raise SelfsightError(
                f"crops of {low:g} to {high:g} of the image: --crop-min and --local-min must be above 0 and at most 1, "
                "--local-min at most --crop-min"
            )

    def __call__(self, batch: Batch) -> Tensor:
        """Return a view of each image: (B, C, size, size) float32 in [0, 1]."""
        return self.apply(batch, self.draw(batch))

    def draw(self, batch: Batch) -> dict[str, Tensor]:
        """Draw the parameters of one view of each image, by name, on the CPU: 'boxes' (B, 4), all others (B,).

        'order' is which of ORDERS, for BLOCK images at once. Where 'jitter' is false the four factors change nothing.
        """
        n, channels = batch.images.shape[:2]
        if channels not in (1, 3) and (self.hue or self.saturation or self.grey):
            raise SelfsightError(
                f"hue, saturation and grey need colour images; these have {channels} bands: set them to 0"
            )
        jitter = uniform(n, 0, 1) < self.jitter

        def factor(strength: float) -> Tensor:
            return torch.where(jitter, uniform(n, max(0.0, 1 - strength), 1 + strength), 1.0)

        drawn = {
            "boxes": random_boxes(batch.aspect, self.scale, self.ratio),
            "hflip": uniform(n, 0, 1) < self.hflip,
            "vflip": uniform(n, 0, 1) < self.vflip,
            "quarter_turns": (uniform(n, 0, 1) < self.rotate90) * uniform(n, 1, 4).long().clamp(1, 3),
            "jitter": jitter,
            "order": uniform(n, 0, len(ORDERS), BLOCK).long().clamp(max=len(ORDERS) - 1),
            "brightness": factor(self.brightness),
            "contrast": factor(self.contrast),
            "saturation": factor(self.saturation),
            "hue": torch.where(jitter, uniform(n, -self.hue, self.hue), 0.0),
            "grey": uniform(n, 0, 1) < self.grey,
            "blur": uniform(n, 0, 1) < self.blur,
            "sigma": uniform(n, *self.sigma),
            "solarize": uniform(n, 0, 1) < self.solarize,
        }
        if self.equalize:  # else nothing is drawn: views are as they were before there was this
            drawn["equalize"] = uniform(n, 0, 1) < self.equalize
        return drawn

    def apply(self, batch: Batch, drawn: dict[str, Tensor], at_once: bool | None = None) -> Tensor:
        """Return the view of each image that these parameters describe: (B, C, size, size) float32 in [0, 1].

        `at_once` changes all images together, as is done by default on a GPU, which takes as long to begin a small
        piece of work as a large one; else those in a row with the same order of colour transforms.
        """
        out = batch.images.new_empty((*batch.images.shape[:2], self.size, self.size), dtype=torch.float32)
        if batch.images.device.type != "cpu" if at_once is None else at_once:
            stops = range(0, len(out), max(1, AT_ONCE // batch.images[0].numel()))[1:]
            ends = [*stops, len(out)]
        else:
            ends = torch.unique_consecutive(drawn["order"], return_counts=True)[1].cumsum(0).tolist()
        for start, stop in itertools.pairwise([0, *ends]):
            part = {name: values[start:stop] for name, values in drawn.items()}
            out[start:stop] = self._apply(batch.images[start:stop], part)
        return out

    def _apply(self, images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """Return the views of images together."""
        x = crop(images, drawn["boxes"], self.size, drawn["hflip"], drawn["vflip"])
        if self.rotate90:
            x = rotate90(x, drawn["quarter_turns"])
        self._jitter(x, drawn)
        changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "grey": lambda some, rows: to_grey(some),
            "blur": lambda some, rows: blur(some, drawn["sigma"][rows], kernel=max(3, self.size // 10 // 2 * 2 + 1)),
            "solarize": lambda some, rows: solarize(some),
            "equalize": lambda some, rows: equalize(some),
        }
        for name, change in changes.items():
            if getattr(self, name) and (name != "grey" or x.shape[1] == 3):
                rows = drawn[name].nonzero()[:, 0]
                at = put(rows, x.device)
                x[at] = change(x[at], rows)
        return x

    def _jitter(self, x: Tensor, drawn: dict[str, Tensor]) -> None:
        """Change the colours of views (B, C, S, S), of each in its own order."""
        possible = JITTER if x.shape[1] == 3 else ("brightness", "contrast")
        if not any(getattr(self, name) for name in possible):
            return
        for turn in TURNS[drawn["order"]].T:  # what each image's first change is, its second, and so on
            for number in turn.unique().tolist():
                name = list(JITTER)[number]
                if name not in possible or not getattr(self, name):
                    continue
                rows = (turn == number).nonzero()[:, 0]
                factor = put(drawn[name][rows], x.device).view(-1, 1, 1, 1)
                if len(rows) == len(x):
                    JITTER[name](x, factor)
                else:
                    at = put(rows, x.device)
                    some = x[at]
                    JITTER[name](some, factor)
                    x[at] = some


def jittered(size: int, channels: int, smallest: float, strength: float = 1.0, grey: float = 0.2) -> View:
    """Return a view with BYOL's colour jitter, weaker than SimCLR's ("Bootstrap Your Own Latent", 2020, table 6).

    `smallest`: least share of the image. `strength` multiplies the jitter, 0 to 5. `grey`: probability of a grey view.
    Images without colour have no change of it.
    """
    s = strength
    view = View(size, (smallest, 1.0), brightness=0.4 * s, contrast=0.4 * s)
    return replace(view, saturation=0.2 * s, hue=0.1 * s, grey=grey) if channels == 3 else view


def whole(batch: Batch, size: int) -> Tensor:
    """Return the centre view that embedding and evaluation use: (B, C, size, size) float32 in [0, 1].

    The largest square of the original, resized with antialias.
    """
    return crop(batch.images, centre_boxes(batch.aspect), size)
