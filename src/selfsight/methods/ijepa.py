"""I-JEPA: from the features of one part of an image, predict a teacher's features of other parts, given where they are.

Assran, Duval, Misra, Bojanowski, Vincent, Rabbat, LeCun, Ballas: Self-Supervised Learning from Images with a
Joint-Embedding Predictive Architecture, CVPR 2023.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsight.backbones import Backbone
from selfsight.data.augment import View, uniform, whole
from selfsight.data.images import Batch
from selfsight.masking import MaskedDecoder, encode, grid_of, placed, take, the_vit, where, without
from selfsight.methods.method import Facts, Method
from selfsight.nn import Teacher, exact
from selfsight.optim import Optim


class IJEPA(Method):
    """Joint-embedding prediction: from a part of the image, predict a teacher's features of other blocks."""

    paper = "Assran et al., Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture, 2023"
    # The paper's decay at AdamW's rate of 1e-3 is 0.04 to 0.4: its product with the rate is the same.
    # A predictor that learns faster than the backbone keeps the features apart: docs/faithfulness.md.
    optim = Optim(
        "muon",
        lr=2e-3,
        weight_decay=0.02,
        final_weight_decay=0.2,
        momentum=0.95,
        warmup=0.1,
        steady=("predictor",),
        steady_factor=4.0,
    )
    batch_size = 64
    vit = mean_tokens = True

    @dataclass(frozen=True)
    class Config(Method.Config):
        """I-JEPA's hyperparameters."""

        targets: int = 4
        """Blocks to be predicted."""
        target_area: tuple[float, float] = (0.15, 0.2)
        """Least and largest share of the image that a target covers."""
        target_ratio: tuple[float, float] = (0.75, 1.5)
        """Least and largest height / width of a target."""
        context_area: tuple[float, float] = (0.85, 1.0)
        """Least and largest share that is seen, of which the targets are then taken away."""
        width: int | None = None
        """Width of the predictor; by default the paper's 384, and 96 below 160 pixels."""
        depth: int | None = None
        """Blocks of the predictor; by default the paper's 6, and 3 below 160 pixels."""
        momentum: float = 0.996
        """The teacher's at the start, 1 at the end; less in short trainings."""
        crop_min: float = 0.3
        """Smallest crop as a share of the image."""
        hflip: float = 0.0
        """Probability of a left-right flip; the paper has none."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            small = facts.image_size < 160
            return replace(self, width=self.width or (96 if small else 384), depth=self.depth or (3 if small else 6))

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        self.config, self.grid = config, grid_of(backbone)
        self.view = View(backbone.spec.image_size, (config.crop_min, 1.0), hflip=config.hflip)
        self.predictor = MaskedDecoder(backbone.dim, config.width or 96, config.depth or 3, self.grid, backbone.dim)
        # A quicker one made worse features in short trainings: docs/faithfulness.md.
        self.teacher = Teacher(backbone, slowest=0.2)

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Return the smooth L1 distance of predicted features to the teacher's, layer-normalized (section 3)."""
        x = self.view(batch)
        context, targets = self.draw(len(x))
        kept = where(context).to(x.device)
        prefix = the_vit(self.backbone).num_prefix_tokens
        tokens = encode(self.backbone, x, kept=kept)[:, prefix:]
        with torch.no_grad():
            assert isinstance(self.teacher.model, Backbone)
            full = exact(encode(self.teacher.model, x)[:, prefix:])
            full = F.layer_norm(full, full.shape[-1:])
        usual = full.mean(0).expand_as(full)  # at each place, whatever the image
        losses, chance = [], []
        for target in targets:
            asked = where(target).to(x.device)
            wanted = take(full, asked)
            losses.append(F.smooth_l1_loss(exact(self.predictor(tokens, kept, asked)), wanted))
            chance.append(F.smooth_l1_loss(take(usual, asked), wanted))
        return {"loss": torch.stack(losses).mean(), "chance": torch.stack(chance).mean()}

    def draw(self, count: int) -> tuple[Tensor, list[Tensor]]:
        """Return the patches (B, N) that are seen, the same number of each image, and of each target.

        A target has the same height and width for the whole batch, and another place for each image.
        """
        config, targets = self.config, []
        for _ in range(config.targets):
            targets.append(placed(*self.shape(count, config.target_area, config.target_ratio), self.grid))
        seen = placed(*self.shape(count, config.context_area, (1.0, 1.0)), self.grid)
        free = seen & ~torch.stack(targets).any(0)
        free |= ~free.any(1, keepdim=True) & ~targets[0]  # where nothing is left, what is not in the first target
        fewest = int(free.sum(1).min())  # all images need as many: of the others some are left out
        order = free.float() + uniform(free.numel(), 0, 0.5).view(free.shape)
        chosen = order.topk(fewest, 1).indices
        return torch.zeros_like(free).scatter(1, chosen, True), targets

    def shape(self, count: int, area: tuple[float, float], ratio: tuple[float, float]) -> tuple[Tensor, Tensor]:
        """Draw one height and one width in patches for all of a batch, each as (count,)."""
        share, tall = (uniform(count, *bounds, block=10**9)[0] for bounds in (area, ratio))
        height, width = (self.grid * (share * tall).sqrt()).round(), (self.grid * (share / tall).sqrt()).round()
        return height.clamp(1).expand(count), width.clamp(1).expand(count)

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less."""
        self.teacher.follow(self.backbone, self.config.momentum, progress)

    def encoder(self) -> Backbone:
        """Return the teacher, which the paper evaluates."""
        assert isinstance(self.teacher.model, Backbone)
        return self.teacher.model

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show images, what the ViT sees of them, and the blocks whose features it must predict."""
        x = whole(batch, self.view.size)[:10]
        context, targets = self.draw(len(x))
        asked = torch.stack(targets).any(0)
        rows = [x, without(x, ~context.to(x.device)), without(x, ~asked.to(x.device))]
        return {
            "Top to bottom: the image; what the ViT sees; the blocks whose features it must predict from that": (
                torch.stack(rows)
            )
        }
