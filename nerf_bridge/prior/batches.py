"""Batches for training the embedded prior, drawn and composed on the GPU without a word to the host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nerf_bridge.prior.data.captions import CaptionTable
from nerf_bridge.prior.data.colours import tint_distribution
from nerf_bridge.prior.data.design_masks import design_masks
from nerf_bridge.prior.data.model import LibraryModel
from nerf_bridge.prior.data.primitives import CATEGORY as PRIMITIVES
from nerf_bridge.prior.degrade import FLAWS, degrade, distilled, draw_flaws
from nerf_bridge.prior.designs import DESIGNS, add_designs, design_vectors
from nerf_bridge.prior.text import TextEncoder
from nerf_bridge.prior.unet import TOGETHER, Condition, camera_features, ray_map
from nerf_bridge.prior.views import RenderedViews, camera_numbers, compose

TINT_PROBABILITY = 0.55
DEGRADED_SHARE = 8  # one image in this many is degraded
PAIR_REPEATS = 2
TEXT_DROPOUT, CAMERA_DROPOUT = 0.1, 0.08
DESIGN_TOLD = 0.8  # of the images with words
OTHER_WORD, BRIGHTNESS = 0.5, (0.35, 1.1)  # of a colour gone astray: share in another word's, and how bright it is


@dataclass(frozen=True)
class TrainingData:
    """All that a batch is drawn from, on the GPU.

    Attributes:
        views: rendered layers.
        features: of each view without its background, for camera_features: azimuth, elevation, distance, fovy, [n, 4].
        text, text_mask: vectors [m, length, width] half and mask [m, length] of every caption.
        captions: rows of text, [models, tints + 1, states, k] int64; tint 0 is the model's own colours.
        usable: [models, tints + 1] bool, which tints may be drawn.
        draw: model rows to draw from uniformly, [d] int64; nouns with many models are drawn less than in proportion.
        tint_mean, tint_spread: [tints, 3]; index 0 is tint 1 of the captions.
        designs: of captions, as bits, [models, tints + 1, states, k] int64 (data/design_masks.py).
        design_words: their vectors [DESIGNS, width] half.
    """

    views: RenderedViews
    features: Tensor
    text: Tensor
    text_mask: Tensor
    captions: Tensor
    usable: Tensor
    draw: Tensor
    tint_mean: Tensor
    tint_spread: Tensor
    designs: Tensor
    design_words: Tensor


@dataclass(frozen=True)
class Batch:
    """Images [b, 3, s, s] in -1..1 and what the network is told of them.

    Attributes:
        astray: the images, or what a run might have made of them, [b, 3, s, s]: this is what is noised from
            train.ASTRAY_FROM on, and the image is the answer, so that words win where they disagree with what is seen.
    """

    images: Tensor
    astray: Tensor
    condition: Condition


def prepare(
    models: list[LibraryModel],
    captions: CaptionTable,
    views: RenderedViews,
    encoder: TextEncoder,
    device: torch.device,
) -> TrainingData:
    """Move everything to `device` and encode every caption once; the encoder is there already."""
    assert captions.states == ("clean", *FLAWS), "captions and flaws must come in the same order"
    parts = [encoder(captions.texts[i : i + 2048]) for i in range(0, len(captions.texts), 2048)]
    repeats = draw_repeats(models)
    tint_mean, tint_spread = tint_distribution()
    return TrainingData(
        views=views.to(device),
        features=camera_numbers(views.cameras).to(device),
        text=torch.cat([hidden.half() for hidden, _ in parts]),
        text_mask=torch.cat([mask for _, mask in parts]),
        captions=torch.as_tensor(captions.caption_index, device=device).long(),
        usable=torch.as_tensor(captions.usable, device=device),
        draw=torch.repeat_interleave(torch.arange(len(models)), torch.tensor(repeats)).to(device),
        tint_mean=torch.as_tensor(tint_mean, device=device),
        tint_spread=torch.as_tensor(tint_spread, device=device),
        designs=torch.as_tensor(design_masks(captions, models), device=device),
        design_words=design_vectors(parts[0][0].shape[-1]).half().to(device),
    )


def draw_repeats(models: Sequence[LibraryModel]) -> list[int]:
    """How often each model stands in the list that is drawn from.

    A noun with n models gets about 8 n^0.75 places in all. A pair of solids ("blue ball on a red cube") is the only
    model of its name, but there are hundreds of them and their solids are drawn alone too: it gets PAIR_REPEATS.
    """
    counts = Counter(model.noun for model in models)
    pair = [model.category == PRIMITIVES and not model.face_tintable.any() for model in models]
    return [
        PAIR_REPEATS if is_pair else max(1, round(8 / counts[model.noun] ** 0.25))
        for model, is_pair in zip(models, pair, strict=True)
    ]


def draw_batch(data: TrainingData, b: int, in_sets: int = 0, astray_every: int = 0) -> Batch:
    """Draw models, views, tints, backgrounds and captions; one in DEGRADED_SHARE images is degraded.

    Args:
        in_sets: so many of the images, the first ones, come in sets of TOGETHER: views of one model in one tint and
            state, told in the same words. A multiple of TOGETHER.
        astray_every: one set in this many goes astray if it is not degraded and has words; 0: none.
    """
    device = data.draw.device
    leader = torch.arange(b, device=device)  # whose draws an image has
    leader = torch.where(leader < in_sets, leader // TOGETHER * TOGETHER, leader)
    models = data.draw[torch.randint(len(data.draw), (b,), device=device)][leader]
    rows = models * data.views.per_model + torch.randint(data.views.per_model, (b,), device=device)
    n_tints, _, n_variants = data.captions.shape[1:]
    state = torch.zeros(b, dtype=torch.long, device=device)
    flawed = degraded_rows(b, in_sets, device)
    state[flawed] = 1 + draw_flaws(len(flawed), device)
    state = state[leader]
    tint = torch.randint(1, n_tints, (b,), device=device) * (torch.rand(b, device=device) < TINT_PROBABILITY)
    variant = torch.randint(n_variants, (b,), device=device)[leader]
    tint = tint[leader] * data.usable[models, tint[leader]]
    caption, designs = data.captions[models, tint, state, variant], data.designs[models, tint, state, variant]
    spread = data.tint_spread[tint - 1] * torch.randn(b, 3, device=device)[leader]
    strayed = astray_rows(b, in_sets, astray_every, device)
    spread = spread.index_fill(0, strayed, 0)  # what was astray comes back to the colour that the word means
    background = random_backgrounds(b, device)
    colour = (data.tint_mean[tint - 1] + spread).clamp(0, 1)
    images = compose(data.views.layers[rows], colour, tint > 0, background)
    strength = torch.rand(b, device=device)[leader]
    images[flawed] = degrade(images[flawed], state[flawed] - 1, strength[flawed])
    condition = draw_condition(data, rows, caption, designs, background, leader)
    astray = images
    if astray_every:
        recolour = (astray_colours(data, models, tint, leader) - colour) * (tint > 0)[:, None]
        weight = patches(leader, strayed, images.shape[-1])
        layers = data.views.layers[rows[strayed]]
        shown = go_astray(images[strayed], layers, recolour[strayed], weight, strength[strayed])
        told = condition.text_mask[strayed].any(1)[:, None, None, None]
        astray = images.index_copy(0, strayed, torch.where(told, shown, images[strayed]))
    return Batch(2 * images - 1, 2 * astray - 1, replace(condition, in_sets=in_sets))


def degraded_rows(b: int, in_sets: int, device: torch.device) -> Tensor:
    """Which of b images are degraded: the first sets, and the first of the images that are in none."""
    return torch.cat([degraded for degraded, _ in _by_state(b, in_sets, device)])


def _by_state(b: int, in_sets: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Rows that are degraded, and the others: of the images in sets, and of those that are in none."""
    rows = torch.arange(b, device=device)
    of_sets = in_sets // (DEGRADED_SHARE * TOGETHER) * TOGETHER
    single = in_sets + (b - in_sets) // DEGRADED_SHARE
    return [(rows[:of_sets], rows[of_sets:in_sets]), (rows[in_sets:single], rows[single:])]


def astray_rows(b: int, in_sets: int, astray_every: int, device: torch.device) -> Tensor:
    """Which of b images go astray: of every `astray_every` whole sets that are not degraded the last; 0: none.

    Where `astray_every` is even these are other sets than those of high noise (train.draw_times), every fourth from the
    first on, so that at mid noise, where the words have to win, more than one in `astray_every` is astray.
    """
    if not astray_every:
        return torch.arange(0, device=device)
    period = astray_every * TOGETHER
    clean = [rows for _, rows in _by_state(b, in_sets, device)]
    whole = [rows[: len(rows) // period * period].unflatten(0, (-1, period)) for rows in clean]
    return torch.cat([rows[:, -TOGETHER:].flatten() for rows in whole])


def go_astray(images: Tensor, layers: Tensor, recolour: Tensor, weight: Tensor, strength: Tensor) -> Tensor:
    """What a run might have made of `images` [b, 3, h, w] in 0..1: wrong colours, thin parts faint, edges soft.

    Args:
        layers: what the images were composed from, [b, 8, h, w] uint8; their backgrounds stay as they are.
        recolour: what is added to the colour of the tintable part, [b, 3], by `weight` [b, 1, h, w] in 0..1.
        strength: of the flaw of distilled renders, [b] in 0..1.
    """
    tintable, coverage = layers[:, 6:7].float() / 255, layers[:, 7:8].float() / 255
    recoloured = images + recolour[:, :, None, None] * weight * tintable
    object_and_rim = functional.max_pool2d(coverage, 3, stride=1, padding=1)
    return recoloured.lerp(distilled(recoloured, strength[:, None, None, None]), object_and_rim)


def astray_colours(data: TrainingData, models: Tensor, tint: Tensor, leader: Tensor) -> Tensor:
    """Wrong colours [b, 3] for images of `models` [b] in `tint` [b], those of an image's `leader` [b].

    The word's own or another word's, from much darker to a little brighter. Another word is one that the model may be
    drawn in: no pair that is held out is drawn, though a darker or mixed colour may come near its word's, never as the
    answer.
    """
    b, device = len(tint), tint.device
    other = torch.randint(1, 1 + len(data.tint_mean), (b,), device=device)[leader]
    chance, brightness = torch.rand(2, b, 1, device=device)[:, leader]
    takes = data.usable[models, other][:, None] & (chance < OTHER_WORD)
    colour = torch.where(takes, data.tint_mean[other - 1], data.tint_mean[tint - 1])
    low, high = BRIGHTNESS
    return (colour * (low + (high - low) * brightness)).clamp(max=1)


def patches(leader: Tensor, rows: Tensor, size: int) -> Tensor:
    """How far each pixel of `rows` [n] has gone astray, [n, 1, size, size] in 0..1, smooth.

    It is the sum, cut off at 1, of a number of the image's `leader` [b] and one of each ninth of the image.
    """
    b, device = len(leader), leader.device
    grid = torch.rand(b, 1, 3, 3, device=device) + torch.rand(b, 1, 1, 1, device=device)[leader]
    return functional.interpolate(grid[rows].clamp(max=1), size=(size, size), mode="bilinear", align_corners=True)


def draw_condition(
    data: TrainingData, rows: Tensor, caption: Tensor, designs: Tensor, background: Tensor, leader: Tensor
) -> Condition:
    """What the network is told, with design, text and camera dropped at random so that it learns to do without.

    The words, and whether they are told, are those of the image's `leader` [b].
    """
    chance = torch.rand(4, len(rows), device=rows.device)
    chance[2:] = chance[2:, leader]
    known = chance[0] >= CAMERA_DROPOUT
    azimuth_rad, elevation_rad, distance, fovy_rad = data.features[rows].unbind(-1)
    camera = camera_features(azimuth_rad, elevation_rad, distance, fovy_rad, background, known)
    camera = camera * (known | (chance[1] < 0.5))[:, None]  # half of the hidden cameras hide the background too
    cameras = data.views.cameras
    rays = ray_map(cameras.c2w[rows], cameras.fovy_rad[rows], data.views.layers.shape[-1] // 2)
    design = draw_designs(designs)[leader] * (chance[3] < DESIGN_TOLD)
    text, mask = add_designs(data.text[caption], data.text_mask[caption], design, data.design_words)
    mask = mask & (chance[2] >= TEXT_DROPOUT)[:, None]
    bf16 = torch.bfloat16
    return Condition(text.to(bf16), mask, camera.to(bf16), (rays * known[:, None, None, None]).to(bf16))


def draw_designs(masks: Tensor) -> Tensor:
    """One of the designs of each mask [b], by lot: [b] int64, 0 where it has none."""
    bits = (masks[:, None] >> torch.arange(DESIGNS, device=masks.device)) & 1
    lot = (torch.rand(bits.shape, device=masks.device) + 1) * bits
    return (lot.argmax(1) + 1) * (masks != 0)


def random_backgrounds(b: int, device: torch.device) -> Tensor:
    """[b, 3]: a quarter white, a quarter grey levels, half any colour."""
    kind = torch.rand(b, 1, device=device)
    colour = torch.rand(b, 3, device=device)
    return torch.where(kind < 0.25, torch.ones_like(colour), torch.where(kind < 0.5, colour[:, :1], colour))
