"""What methods share that compare two views of each image: how the views are drawn, and a picture of them."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from selfsight.backbones import Backbone, check
from selfsight.data.augment import jittered, whole
from selfsight.data.images import Batch
from selfsight.methods.method import Facts, Method
from selfsight.nn import Teacher


class TwoViews(Method):
    """Two views of each image, of which one is blurred more often and the other solarized at times.

    All methods after BYOL that compare two views draw them so ("Bootstrap Your Own Latent", 2020, table 6).
    """

    seen = "two views"
    """What the second and the third row of the picture are."""
    head: nn.Module
    """From features to what is compared."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        """How the views are drawn."""

        crop_min: float | None = None
        """Smallest crop as a share of the image; by default 0.08, and 0.2 for images below 64 pixels."""
        hflip: float = 0.5
        """Probability of a left-right flip; 0 where left and right mean something, as in text."""
        vflip: float = 0.0
        """Probability of a top-bottom flip; 0.5 for images without an up, as satellite or microscope images."""
        strength: float | None = None
        """Strength of the colour jitter, 0 to 5; by default 1."""
        grey: float = 0.2
        """Probability that a colour view becomes grey; 0 where colour is what tells, as in stained tissue."""
        blur: float | None = None
        """Probability that the first view is blurred; the second a tenth as often, small ones half as often. By default
        1, and 0 for images below 64 pixels."""
        solarize: float = 0.2
        """Probability that the second view's bright values are inverted."""
        equalize: float = 0.0
        """Probability that a view's values are spread evenly over their range, as with solo-learn's equalization."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            small = facts.image_size < 64
            return replace(
                self,
                crop_min=self.crop_min or (0.2 if small else 0.08),
                strength=1.0 if self.strength is None else self.strength,
                blur=float(not small) if self.blur is None else self.blur,
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        super().__init__(backbone, config)
        spec = backbone.spec
        config = config.fit_to(Facts(0, spec.image_size, spec.channels))
        assert config.crop_min
        assert config.strength is not None
        assert config.blur is not None
        first = jittered(spec.image_size, spec.channels, config.crop_min, config.strength, config.grey)
        first = replace(first, hflip=config.hflip, vflip=config.vflip, blur=config.blur, equalize=config.equalize)
        self.views = first, replace(first, blur=0.1 * config.blur, solarize=config.solarize)

    def draw(self, batch: Batch) -> Tensor:
        """Return the views of a batch (2B, C, S, S): the first of all images, then the second."""
        return torch.cat([view(batch) for view in self.views])

    def projections(self, features: Tensor) -> Tensor | None:
        """Return the head's output."""
        projected: Tensor = self.head(features)
        return projected

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show the images and the two views of each."""
        rows = torch.stack([whole(batch, self.views[0].size), *(view(batch) for view in self.views)])
        return {f"Top to bottom: the image, and {self.seen}": rows[:, :10]}


class Taught(TwoViews):
    """Two views, and a teacher: a moving average of the student's backbone and head."""

    teacher: Teacher

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """How the views are drawn, and how slow the teacher is."""

        imagenet: ClassVar[float] = 0.996
        """The paper's momentum for ImageNet."""
        momentum: float | None = None
        """Share of its weights that the teacher keeps at each step, rising to 1, the rest being the student's; less in
        trainings of under 2,000 steps. By default 0.99 up to 100,000 images, the paper's for ImageNet."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the number and the size of the images."""
            momentum = 0.99 + (self.imagenet - 0.99) * facts.grown if self.momentum is None else self.momentum
            return replace(super().fit_to(facts), momentum=momentum)

    def __init__(self, backbone: Backbone, config: Config, head: nn.Module) -> None:
        super().__init__(backbone, config)
        self.momentum, self.head = 0.99 if config.momentum is None else config.momentum, head
        self.teacher = Teacher(nn.Sequential(backbone, head))

    def after_step(self, progress: float) -> None:
        """Move the teacher, less and less."""
        self.teacher.follow(nn.Sequential(self.backbone, self.head), self.momentum, progress)


class MultiCrop(TwoViews):
    """Two large views of each image, and small ones, which show a part of what these show (SwAV, section 3.2)."""

    @dataclass(frozen=True)
    class Config(TwoViews.Config):
        """How many small views are drawn, and of how much of the image."""

        crop_min: float | None = None
        """Smallest large crop, and largest small one, as a share of the image; by default 0.4."""
        local_views: int | None = None
        """Small crops an image; by default 6, and 4 up to 64 pixels."""
        local_min: float | None = None
        """Smallest small crop as a share of the image; by default 0.05, and 0.2 up to 64 pixels."""

        def fit_to(self, facts: Facts) -> Self:
            """Fill in what depends on the size of the images."""
            small = facts.image_size <= 64
            return replace(
                super().fit_to(facts),
                crop_min=self.crop_min or 0.4,
                local_views=(4 if small else 6) if self.local_views is None else self.local_views,
                local_min=self.local_min or (0.2 if small else 0.05),
            )

    def __init__(self, backbone: Backbone, config: Config) -> None:
        spec = backbone.spec
        config = config.fit_to(Facts(0, spec.image_size, spec.channels))
        super().__init__(backbone, config)
        assert config.local_min
        assert config.crop_min
        self.local_views = config.local_views or 0
        side = backbone.side_from(spec.image_size * 3 / 7)  # as the paper's 96 pixels to its 224
        if self.local_views:
            check(backbone, small=side)
        scale, blur = (config.local_min, config.crop_min), 0.5 * self.views[0].blur
        self.local = replace(self.views[0], size=side, scale=scale, blur=blur)

    def features(self, batch: Batch, large: Tensor | None = None) -> Tensor:
        """Return the backbone's features (2 + L, B, dim) of all views, of the two `large` (2B, C, S, S) ones first."""
        return self.with_small(batch, self.backbone(self.draw(batch) if large is None else large))

    def with_small(self, batch: Batch, features: Tensor) -> Tensor:
        """Return features (2B, dim) of the large views, and those of small ones drawn now: (2 + L, B, dim)."""
        if self.local_views:
            small = torch.cat([self.local(batch) for _ in range(self.local_views)])
            features = torch.cat([features, self.backbone(small)])
        return features.view(-1, len(batch.images), self.backbone.dim)

    def picture(self, batch: Batch) -> dict[str, Tensor]:
        """Show the images, the two large views of each, and a small one."""
        size = self.views[0].size
        small = torch.nn.functional.interpolate(self.local(batch), (size, size))
        rows = torch.stack([whole(batch, size), *(view(batch) for view in self.views), small])
        return {f"Top to bottom: the image, {self.seen} (enlarged here)": rows[:, :10]}
