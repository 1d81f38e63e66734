"""Each method's loss once more, slowly, one image and one pair at a time, as its paper's equations say.

A reference draws the same views by the same seed, and uses the method's networks; what is made of their outputs is its
own. All of it in float64.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from selfsight.data.images import Batch
from selfsight.masking import scattered
from tests.methods import vits

Reference = Callable[[Any, Batch], Tensor]


def length_one(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (length_one(a) * length_one(b)).sum()


def softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum()


def mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


def pick(query: Tensor, keys: list[Tensor], right: int, temperature: float) -> Tensor:
    """InfoNCE of one query: minus the log of the share that keys[right] has among all keys."""
    weights = torch.stack([(cosine(query, key) / temperature).exp() for key in keys])
    return -(weights[right] / weights.sum()).log()


def partner(i: int, n: int) -> int:
    return (i + n) % (2 * n)


def simclr(m: Any, batch: Batch) -> Tensor:
    x = torch.cat([m.view(batch), m.view(batch)])
    z, n = m.head(m.backbone(x)), len(batch.images)
    terms = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        terms.append(pick(z[i], [z[j] for j in others], others.index(partner(i, n)), m.temperature))
    return mean(terms)


def supcon(m: Any, batch: Batch) -> Tensor:
    assert batch.labels is not None
    z, n = m.head(m.backbone(m.draw(batch))), len(batch.images)
    terms = []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        same = [j for j in others if j == partner(i, n) or (batch.labels[j % n] == batch.labels[i % n] >= 0)]
        terms.append(mean([pick(z[i], [z[j] for j in others], others.index(p), m.temperature) for p in same]))
    return mean(terms)


def moco_v2(m: Any, batch: Batch) -> Tensor:
    x, n, rows = m.draw(batch), len(batch.images), m.queue.rows.clone()
    q, k = m.head(m.backbone(x)), m.teacher(x)
    return mean([pick(q[i], [k[partner(i, n)], *rows], 0, m.temperature) for i in range(2 * n)])


def moco_v3(m: Any, batch: Batch) -> Tensor:
    x, n = m.draw(batch), len(batch.images)
    q, k = m.predictor(m.head(m.backbone(x))), m.teacher(x)
    keys = [k[n:], k[:n]]  # of each view's other view
    return mean([pick(q[i], list(keys[i // n]), i % n, m.temperature) for i in range(2 * n)])


def nearest_row(z: Tensor, rows: Tensor) -> Tensor:
    best: Tensor = rows[int(torch.stack([cosine(z, row) for row in rows]).argmax())]
    return best


def nnclr(m: Any, batch: Batch) -> Tensor:
    z, n = m.head(m.backbone(m.draw(batch))), len(batch.images)
    p, rows = m.predictor(z), m.queue.rows.clone()
    near = [nearest_row(row.detach(), rows) for row in z]
    halves = [list(p[n:]), list(p[:n])]
    return mean([pick(near[i], halves[i // n], i % n, m.temperature) for i in range(2 * n)])


def byol(m: Any, batch: Batch) -> Tensor:
    x, n = m.draw(batch), len(batch.images)
    q, t = m.predictor(m.head(m.backbone(x))), m.teacher(x)
    return mean([(length_one(q[i]) - length_one(t[partner(i, n)])).square().sum() for i in range(2 * n)])


def simsiam(m: Any, batch: Batch) -> Tensor:
    z, n = m.head(m.backbone(m.draw(batch))), len(batch.images)
    p = m.predictor(z)
    return 2 + 2 * mean([-cosine(p[i], z[partner(i, n)].detach()) for i in range(2 * n)])


def nnbyol(m: Any, batch: Batch) -> Tensor:
    x, n = m.draw(batch), len(batch.images)
    q, t = m.predictor(m.head(m.backbone(x))), m.teacher(x)
    rows = m.queue.rows.clone()
    return mean([2 - 2 * cosine(q[i], nearest_row(t[partner(i, n)], rows)) for i in range(2 * n)])


def nnsiam(m: Any, batch: Batch) -> Tensor:
    z, n = m.head(m.backbone(m.draw(batch))), len(batch.images)
    p, rows = m.predictor(z), m.queue.rows.clone()
    return mean([2 - 2 * cosine(p[i], nearest_row(z[partner(i, n)].detach(), rows)) for i in range(2 * n)])


def all4one(m: Any, batch: Batch) -> Tensor:
    x, n, rows = m.draw(batch), len(batch.images), m.queue.rows.clone()
    z, t = m.head(m.backbone(x)), m.teacher(x)
    p, first = m.predictor(z), m.first(z)
    neighbourhoods, shifted = [], []
    for i in range(2 * n):
        near = [rows[j] for j in torch.stack([cosine(t[i], row) for row in rows]).argsort(descending=True)[:5]]
        neighbourhoods.append(torch.stack(near))
        shifted.append(torch.stack([first[i], *near[:4]]))
    theirs = [m.attention((seq + m.place)[None])[0, 0] for seq in neighbourhoods]
    own = [m.attention((seq + m.place)[None])[0, 0] for seq in shifted]
    one, whole = [], []
    for i in range(2 * n):
        others = range(n, 2 * n) if i < n else range(n)
        one.append(pick(neighbourhoods[i][0], [p[j] for j in others], i % n, m.temperature))
        whole.append(pick(theirs[i], [own[j] for j in others], i % n, m.temperature))
    same: list[Tensor] = []
    different: list[Tensor] = []
    for a, b in ((t[:n], z[n:]), (t[n:], z[:n])):
        a = torch.stack([length_one(row) for row in a])
        for i in range(a.shape[1]):
            for j in range(a.shape[1]):
                c = cosine(a[:, i], b[:, j])
                (same if i == j else different).append((c - 1).square() if i == j else c.square())
    features = (mean(same).sqrt() + mean(different).sqrt()) / 2
    return 0.5 * mean(one) + 0.5 * mean(whole) + 5 * features


def relations(x: Tensor, rows: Tensor, temperature: float) -> Tensor:
    return softmax(torch.stack([cosine(x, row) / temperature for row in rows]))


def ressl(m: Any, batch: Batch) -> Tensor:
    z = m.head(m.backbone(m.views[0](batch)))
    t, rows = m.teacher(m.gentle(batch)), m.queue.rows.clone()
    return mean([-(relations(t[i], rows, 0.04) * relations(z[i], rows, 0.1).log()).sum() for i in range(len(z))])


def distill(m: Any, batch: Batch) -> Tensor:
    x, n = m.draw(batch), len(batch.images)
    t, z = m.teacher(x).double(), m.head(m.backbone(x))
    t = t - t.mean(0)  # of the first batch
    # The queue after the first n unit vectors took the places of its first, and oldest, ones.
    rows = torch.cat([torch.stack([length_one(row) for row in t[:n]]), m.queue.rows[n:]])
    return mean([-(relations(t[i], rows, 0.04) * relations(z[i], rows, 0.2).log()).sum() for i in range(2 * n)])


def halves(m: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    a, b = m.head(m.backbone(m.draw(batch))).chunk(2)
    return a, b


def barlow_twins(m: Any, batch: Batch) -> Tensor:
    a, b = halves(m, batch)
    # As in the authors' code: a BatchNorm, whose epsilon stands beside the variance, before the correlation.
    a, b = ((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt() for z in (a, b))
    total = torch.zeros((), dtype=a.dtype)
    for i in range(a.shape[1]):
        for j in range(a.shape[1]):
            c = (a[:, i] * b[:, j]).mean()
            total = total + ((1 - c).square() if i == j else m.weight * c.square())
    return total


def hinge(z: Tensor) -> Tensor:
    return mean([(1 - (z[:, j].var() + 1e-4).sqrt()).clamp(min=0) for j in range(z.shape[1])])


def vicreg(m: Any, batch: Batch) -> Tensor:
    a, b = halves(m, batch)
    n, d = a.shape
    covariance = torch.zeros((), dtype=a.dtype)
    for z in (a, b):
        centred = z - z.mean(0)
        for i in range(d):
            for j in range(d):
                if i != j:
                    covariance = covariance + ((centred[:, i] * centred[:, j]).sum() / (n - 1)).square() / d
    invariance = mean([(a[i] - b[i]).square().sum() for i in range(n)]) / d
    return 25 * invariance + 25 * (hinge(a) + hinge(b)) / 2 + covariance


def vibcreg(m: Any, batch: Batch) -> Tensor:
    a, b = halves(m, batch)
    total = torch.zeros((), dtype=a.dtype)
    white = []
    for z in (a, b):
        white.append(torch.cat([newton_whitened(z[:, k : k + 32]) for k in range(0, z.shape[1], 32)], 1))
    d = a.shape[1]
    for z in white:
        pairs = [(i, j) for i in range(d) for j in range(d) if i != j]
        centred = z - z.mean(0)
        total = total + 200 * mean([cosine(centred[:, i], centred[:, j]).square() for i, j in pairs])
    return total + 25 * (white[0] - white[1]).square().mean() + 25 * (hinge(white[0]) + hinge(white[1])) / 2


def newton_whitened(z: Tensor) -> Tensor:
    z = z - z.mean(0)
    covariance = z.T @ z / len(z) + 1e-5 * torch.eye(z.shape[1])
    trace = torch.diagonal(covariance).sum()
    root = torch.eye(z.shape[1], dtype=z.dtype)
    for _ in range(5):
        root = 1.5 * root - 0.5 * root @ root @ root @ (covariance / trace)
    return z @ (root / trace.sqrt())


def wmse(m: Any, batch: Batch) -> Tensor:
    a, b = halves(m, batch)
    losses = []
    for _ in range(m.rounds):
        rows = torch.randperm(len(a))
        white = []
        for z in (a, b):
            centred = z[rows] - z[rows].mean(0)
            covariance = centred.T @ centred / (len(rows) - 1)
            factor = torch.linalg.cholesky(0.999 * covariance + 0.001 * torch.eye(z.shape[1], dtype=z.dtype))
            white.append([torch.linalg.inv(factor) @ row for row in centred])
        losses.append(mean([2 - 2 * cosine(x, y) for x, y in zip(*white, strict=True)]))
    return mean(losses)


def mmcr(m: Any, batch: Batch) -> Tensor:
    a, b = halves(m, batch)
    centres = torch.stack([(length_one(x) + length_one(y)) / 2 for x, y in zip(a, b, strict=True)])
    nuclear: Tensor = torch.linalg.eigvalsh(centres @ centres.T).clamp(min=1e-12).sqrt().sum()
    return -nuclear / math.sqrt(len(centres) * min(centres.shape))


def all_views(m: Any, batch: Batch) -> list[Tensor]:
    """What a multi-crop method's head makes of each view (B, D), the two large ones first."""
    large, small = m.draw(batch), torch.cat([m.local(batch) for _ in range(m.local_views)])
    found = [m.backbone(large), m.backbone(small)]
    return list(m.head(torch.cat(found)).unflatten(0, (2 + m.local_views, -1)))


def lejepa(m: Any, batch: Batch) -> Tensor:
    views = all_views(m, batch)
    directions = torch.randn(views[0].shape[1], m.slices)
    directions = directions / directions.norm(dim=0)
    centre = (views[0] + views[1]) / 2
    agreement = mean([(view - centre).square().mean() for view in views])
    t = [-3 + 6 * k / 32 for k in range(33)]  # 16 steps from 0 to 3, and as many before
    statistics = []
    for view in views:
        for u in directions.double().T:
            x = view @ u
            heights = []
            for frequency in t:
                real, imaginary = (frequency * x).cos().mean(), (frequency * x).sin().mean()
                gauss = math.exp(-(frequency**2) / 2)
                heights.append(((real - gauss).square() + imaginary.square()) * gauss)
            area = sum((p + q) / 2 * (6 / 32) for p, q in itertools.pairwise(heights))
            statistics.append(len(x) * torch.as_tensor(area))
    return 0.95 * agreement + 0.05 * mean(statistics)


def dealt(scores: Tensor) -> Tensor:
    """Sinkhorn's three rounds (SwAV, appendix A.1) over scores / 0.05, (N, K) with a sum of 1 a row."""
    q = (scores / 0.05).exp()
    for _ in range(3):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def swav(m: Any, batch: Batch) -> Tensor:
    prototypes = torch.stack([length_one(p) for p in m.prototypes])
    views = [torch.stack([length_one(row) for row in view]) @ prototypes.T for view in all_views(m, batch)]
    rows = m.queue.rows.clone()
    terms = []
    for large in (0, 1):
        codes = dealt(torch.cat([views[large].detach(), (rows @ prototypes.T).detach()]))[: len(views[0])]
        for v, view in enumerate(views):
            if v != large:
                terms += [-(codes[i] * softmax(view[i] / 0.1).log()).sum() for i in range(len(view))]
    return mean(terms)


def deepcluster_v2(m: Any, batch: Batch) -> Tensor:
    views = all_views(m, batch)
    terms = []
    for centres, clusters in zip(m.centres, m.clusters, strict=True):
        for view in views:
            for i, row in enumerate(view):
                cluster = int(clusters[batch.index[i]])
                assert cluster >= 0
                terms.append(pick(row, list(centres), cluster, 0.1))
    return mean(terms)


def answered(student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
    """DINO's equation 3 of cosines (B, K) a view, the teacher's spread by Sinkhorn over both of its views."""
    both = (torch.cat(teacher) / temperature).exp()
    for _ in range(3):
        both = both / both.sum(0, keepdim=True)
        both = both / both.sum(1, keepdim=True)
    terms = []
    for t, target in enumerate(both.chunk(2)):
        for s, view in enumerate(student):
            if s != t:
                terms += [-(target[i] * softmax(view[i] / 0.1).log()).sum() for i in range(len(view))]
    return mean(terms)


def crowding(features: Tensor) -> Tensor:
    unit = [length_one(f) for f in features]
    return -mean([min((a - b).norm() for j, b in enumerate(unit) if j != i).log() for i, a in enumerate(unit)])


def dino(m: Any, batch: Batch) -> Tensor:
    large, small = m.draw(batch), torch.cat([m.local(batch) for _ in range(m.local_views)])
    features = torch.cat([m.backbone(large), m.backbone(small)]).unflatten(0, (2 + m.local_views, -1))
    teacher = list(m.teacher(large).unflatten(0, (2, -1)))
    koleo = (crowding(features[0]) + crowding(features[1])) / 2
    return answered([m.head(f) for f in features], teacher, 0.02) + 0.1 * koleo


def ibot(m: Any, batch: Batch) -> Tensor:
    large = m.draw(batch)
    hidden = m.hide(len(large), large.device)
    small = torch.cat([m.local(batch) for _ in range(m.local_views)])
    tokens, seen = vits.slow_tokens(m.backbone, large, hidden, m.token), vits.slow_tokens(m.teacher.model[0], large)
    features = [*tokens[:, 0].chunk(2), *m.backbone(small).chunk(m.local_views)]
    teacher = list(m.teacher.model[1](seen[:, 0]).chunk(2))
    koleo = (crowding(features[0]) + crowding(features[1])) / 2
    loss = answered([m.head(f) for f in features], teacher, 0.02) + 0.1 * koleo
    theirs = (m.teacher.model[2](seen[:, 1:][hidden]) / 0.02).exp()
    for _ in range(3):
        theirs = theirs / theirs.sum(0, keepdim=True)
        theirs = theirs / theirs.sum(1, keepdim=True)
    row, patches = 0, []
    for i in range(len(large)):
        own = []
        for j in hidden[i].nonzero()[:, 0]:
            own.append(-(theirs[row] * softmax(m.patch_head(tokens[i, 1 + j]) / 0.1).log()).sum())
            row += 1
        if own:
            patches.append(mean(own))
    return loss + 0.1 * mean(patches)  # as up to 100,000 images


def mae(m: Any, batch: Batch) -> Tensor:
    x = m.view(batch)
    hidden = scattered(len(x), m.grid**2, 0.75, x.device)
    terms = []
    for i in range(len(x)):
        kept, asked = (~hidden[i]).nonzero()[:, 0], hidden[i].nonzero()[:, 0]
        tokens = vits.slow_tokens(m.backbone, x[i : i + 1], kept=kept)[:, 1:]
        answers = m.decoder(tokens, kept[None], asked[None])[0]
        for answer, place in zip(answers, asked, strict=True):
            patch = vits.patch(x[i], int(place), m.grid).flatten()
            target = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            terms.append((answer - target).square().mean())
    return mean(terms)


def simmim(m: Any, batch: Batch) -> Tensor:
    x = m.view(batch)
    hidden = m.hide(len(x), x.device)
    tokens = vits.slow_tokens(m.backbone, x, hidden, m.token)
    terms = []
    for i in range(len(x)):
        for place in hidden[i].nonzero()[:, 0]:
            pixels = (vits.patch(x[i], int(place), m.grid) - m.backbone.mean[0]) / m.backbone.std[0]
            terms.append((m.head(tokens[i, 1 + place]) - pixels.flatten()).abs().mean())
    return mean(terms)


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def ijepa(m: Any, batch: Batch) -> Tensor:
    x = m.view(batch)
    context, targets = m.draw(len(x))
    full = layer_norm(vits.slow_tokens(m.teacher.model, x).detach()[:, 1:])
    terms = []
    for i in range(len(x)):
        kept = context[i].nonzero()[:, 0]
        tokens = vits.slow_tokens(m.backbone, x[i : i + 1], kept=kept)[:, 1:]
        for target in targets:
            asked = target[i].nonzero()[:, 0]
            off = (m.predictor(tokens, kept[None], asked[None])[0] - full[i, asked]).abs()
            terms.append(torch.where(off < 1, off.square() / 2, off - 0.5).mean())
    return mean(terms)


def data2vec(m: Any, batch: Batch) -> Tensor:
    x = m.view(batch)
    layers = vits.slow_layers(m.teacher.model, x)
    upper = []
    for layer in layers[-max(1, len(layers) * 5 // 6) :]:
        patches = layer.detach()[:, 1:]
        deviation = (patches.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        upper.append((patches - patches.mean(1, keepdim=True)) / deviation)
    target = layer_norm(torch.stack(upper).mean(0))
    terms, summaries = [], []
    for _ in range(2):
        hidden = m.hide(len(x), x.device)
        for i in range(len(x)):
            kept, asked = (~hidden[i]).nonzero()[:, 0], hidden[i].nonzero()[:, 0]
            tokens = vits.slow_tokens(m.backbone, x[i : i + 1], kept=kept)
            answers = m.decoder(tokens[:, 1:], kept[None], asked[None])[0]
            terms.append((answers - target[i, asked]).square().mean())
            summaries.append((m.summary(tokens[0, 0]) - target[i].mean(0)).square().mean())
    return mean(terms) + 0.01 * mean(summaries)


REFERENCES: dict[str, Reference] = {
    reference.__name__: reference
    for reference in (
        all4one,
        barlow_twins,
        byol,
        data2vec,
        deepcluster_v2,
        dino,
        distill,
        ibot,
        ijepa,
        lejepa,
        mae,
        mmcr,
        moco_v2,
        moco_v3,
        nnbyol,
        nnclr,
        nnsiam,
        ressl,
        simclr,
        simmim,
        simsiam,
        supcon,
        swav,
        vibcreg,
        vicreg,
        wmse,
    )
} | {"dinov2": ibot}
