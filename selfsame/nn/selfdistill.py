"""What DINO, iBOT and DINOv2 share: a student learns the distributions of its own teacher.

Legend: G global views, V views in all with the global ones first, B images, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame import dist, schedule
from selfsame.errors import UsageError
from selfsame.nn.precision import wide
from selfsame.types import Backbone, Features, Progress

RAMP_SHARE = 0.3  # of a run: the largest that the papers have, 30 of 100 epochs in DINOv2
REST_SHARE = 0.1  # of a run, that the last layer rests at most
LENGTHS = 32  # that `few_lengths` leaves: more keep more kernels, fewer compute more for nothing


def multi_crop(network: Callable[[Tensor], Tensor], crops: Sequence[Tensor]) -> Tensor:
    """Outputs for crops of several sizes; neighbours of one size go through together.

    Args:
        network: Maps [n, C, s, s] to [n, ...].
        crops: Each [n_i, C, s_i, s_i].

    Returns:
        [sum of n_i, ...], in the order of the crops.
    """
    groups = [list(group) for _, group in groupby(crops, key=lambda crop: crop.shape[-1])]
    return torch.cat([network(torch.cat(group)) for group in groups])


def see_masked(
    backbone: Backbone, x: Tensor, mask: Tensor, token: Tensor, local: Tensor | None
) -> tuple[Features, Tensor]:
    """What a student sees that learns from masked views: iBOT's and DINOv2's.

    Args:
        backbone: Can replace patches.
        x: [G * B, C, S, S], the global views.
        mask: bool [G * B, N], the patches that are hidden.
        token: [D], what stands in their place.
        local: [L, B, C, s, s], local views, which stay whole; or None.

    Returns:
        The features of the masked global views, and pooled features of all views, [V * B, D], the
        global ones first.
    """
    features: Features = backbone(x, replace=(mask, token))
    if local is None:
        return features, features.pooled
    return features, torch.cat([features.pooled, backbone(local.flatten(0, 1)).pooled])


def teacher_probabilities(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """``softmax((logits - center) / temperature)``, centred and sharpened (DINO, equation 1).

    In float32 whatever the autocast; float64 stays float64.

    Args:
        logits: [..., K], what the teacher's head returns.
        center: [K].
        temperature: The paper's tau_t.
    """
    return ((wide(logits) - center) / temperature).softmax(-1)


def cross_entropies(p: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Mean over images of ``-p log softmax(student / temperature)``, for every pair of views.

    Args:
        p: [G, B, K] probabilities of the teacher.
        student: [V, B, K] logits of the student.
        temperature: The paper's tau_s.

    Returns:
        [G, V] in float32, or float64 where ``student`` is.
    """
    with torch.autocast(student.device.type, enabled=False):
        log_q = log_softmax(student, temperature)
        return -(p.flatten(1) @ log_q.flatten(1).T) / p.shape[1]


def dino_loss(p: Tensor, student: Tensor, temperature: float) -> Tensor:
    """DINO's equation 3: each global view's target is matched by all the *other* views.

    The mean over the pairs, as in the code; the paper writes their sum. With both distributions
    uniform it is ``ln K``.

    Args:
        p: [G, B, K] probabilities of the teacher for the global views.
        student: [V, B, K] logits of the student, the same global views first.
        temperature: The paper's tau_s.

    Raises:
        UsageError: a single view, which has no other.
    """
    if len(student) < 2:
        raise UsageError(
            "self-distillation needs at least two views of an image",
            tip='give the recipe two views named "global"',
        )
    losses = cross_entropies(p, student, temperature)
    same = torch.eye(*losses.shape, dtype=torch.bool, device=losses.device)
    return losses.masked_fill(same, 0.0).sum() / (losses.numel() - len(losses))


def masked_places(mask: Tensor) -> Tensor:
    """Where a mask, bool [B, N], is true: int64 [n], counted image by image.

    A GPU is waited for, since n is a number of its own: call it before the networks have work.
    """
    return mask.flatten().nonzero().squeeze(1)


def few_lengths(places: Tensor, patches: int) -> Tensor:
    """The masked places, followed by zeros: int64 of one of `LENGTHS` lengths, and not one of any.

    What masks hide varies from step to step, and kernels and blocks of memory are kept for each
    length that a network's layers were called with. A row of its own comes out of a head whatever
    stands below it, and what is cut off again has no gradient.

    Args:
        places: int64 [n], as ``masked_places`` gives them.
        patches: masked or not.
    """
    return F.pad(places, (0, -len(places) % math.ceil(patches / LENGTHS)))


def patch_weights(mask: Tensor, places: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """One over the number of masked patches of its image, for each masked patch.

    Args:
        mask: bool [B, N].
        places: int64 [n], as ``masked_places`` gives them.
        dtype: Of the result.

    Returns:
        [n].
    """
    share = 1 / mask.sum(1, keepdim=True).clamp(min=1).to(dtype)
    return share.expand(mask.shape).flatten()[places]


def patch_loss(
    p: Tensor, student: Tensor, mask: Tensor, places: Tensor, temperature: float
) -> Tensor:
    """Masked image modelling, iBOT's equation 2: cross-entropy at the masked patches.

    The mean over an image's masked patches, then over images; one without any counts as zero.

    Args:
        p: [n, K] probabilities of the teacher at the masked patches.
        student: [n, K] logits of the student at the same places.
        mask: bool [B, N].
        places: int64 [n], as ``masked_places`` gives them.
        temperature: The paper's tau_s.
    """
    weight = patch_weights(mask, places, p.dtype)
    return weighted_patch_loss(p, student, weight, len(mask), temperature)


def weighted_patch_loss(
    p: Tensor, student: Tensor, weight: Tensor, count: int, temperature: float
) -> Tensor:
    """`patch_loss` of ``count`` images from the ``weight``, [n], of each masked patch."""
    losses = -(p * log_softmax(student, temperature)).sum(-1)
    return (losses * weight).sum() / count


def entropy(p: Tensor) -> Tensor:
    """Mean entropy of distributions [..., K], in nats."""
    h: Tensor = torch.special.entr(p)
    return h.sum(-1).mean()


def information(p: Tensor) -> Tensor:
    """What a target says about its image: the entropy of the mean less the mean entropy, in nats.

    The mutual information of image and prototype in distributions [..., K]. It vanishes where all
    images have the same target, be that a single prototype or the uniform distribution: the two
    collapses of DINO (section 5.3).
    """
    return entropy(p.flatten(0, -2).mean(0)) - entropy(p)


@torch.no_grad()
def update_center(center: Tensor, means: Sequence[Tensor], momentum: float) -> None:
    """``center <- momentum * center + (1 - momentum) * mean`` (DINO, equation 4), in place.

    Args:
        center: [K].
        means: [K] each: means of the teacher's raw logits, one a micro-batch of this rank. Ranks
            and micro-batches weigh the same.
        momentum: The paper's m.
    """
    center.lerp_(dist.mean(torch.stack(tuple(means)).mean(0)), 1.0 - momentum)


def ramp(step: float, length: float, start: float, end: float) -> float:
    """Linear from ``start`` to ``end``, which the last step of the ramp, ``length - 1``, has."""
    if step >= length:
        return end
    return schedule.linear(step, max(length - 1.0, 1.0), start, end)


def teacher_temperature(
    t: Progress, warmup: float, start: float, end: float, delay: float = 0.0
) -> float:
    """tau_t at a step: a ramp over ``warmup`` epochs, at most `RAMP_SHARE` of the run.

    Args:
        t: Where the run stands.
        warmup: Length of the ramp, epochs.
        start: Temperature at the start.
        end: Temperature after the ramp.
        delay: Epochs before the ramp begins.
    """
    length = min(warmup * t.per_epoch, RAMP_SHARE * t.total)
    return ramp(t.step - delay * t.per_epoch, length, start, end)


def resting(t: Progress, epochs: float) -> bool:
    """Whether the last layer rests: the first ``epochs``, at most `REST_SHARE` of the run."""
    return t.epoch < epochs and t.fraction < REST_SHARE


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """``log softmax(logits / temperature)`` in float32; float64 stays float64."""
    return F.log_softmax(wide(logits) / temperature, dim=-1)
