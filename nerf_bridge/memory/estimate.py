"""What a run needs of memory, before anything is loaded: a formula for each part, with its reason.

Every formula counts tensors. "Counted" constants are what a run of the real architecture made, tensor by tensor, on
PyTorch's meta device or on the CPU (tests/memory does it again). "Estimated" ones nobody has measured one by one. Whole
runs of SD 2.1 were, on an H200 (`benchmarks/memory.py`), as 8gb_64 / 8gb_256 / 24gb_512: allocated 2.4 / 2.6 / 7.3 GiB
and reserved 3.4 / 4.0 / 10.6 GiB against estimates of 3.3 / 4.1 / 11.4 GiB; docs/guidance-speed.md has every rung.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nerf_bridge.config import FieldConfig, GenerateConfig, GuidanceConfig
from nerf_bridge.graphed_render import MOST_GRAPHS, MOST_TOGETHER, room_for
from nerf_bridge.guidance import prompts_needed
from nerf_bridge.memory.ladder import Rung
from nerf_bridge.ops.hash_encoding import HashGridSpec
from nerf_bridge.prior.models.vae_layers import MOST_SCORES

GIB = 2**30
BLOCK_WORK_CUDA = 4  # counted: of a residual block's backward pass: skip, gradient, the convolution's and the norm's
BLOCK_WORK_CPU = 10  # counted: the same where the norm is made of torch operations
ATTENTION_WORK = 14  # counted: the encoder's attention, backward: q, k, v, gradients, some of them twice (13 to 16)
SCORES_AT_ONCE = 3  # counted: slices of scores there: shares, their gradient and that of the scores
UNET_WORK = 16  # counted: tensors of a level's size alive at once in a U-Net, at the last up block (15.8 in SDXL)
UNET_ATTENTION_WORK = 26  # counted: where the level has attention, at the gated MLP (26.0 in SD 2.1)
TRANSFORMER_WORK = 18  # counted: rows of tokens alive at once (12.5 in SD3, 17.3 in FLUX)
SAMPLES_SHARE = 0.5  # counted: of the steps across the box, in published-3d's first views: mean 0.32, most 0.50
SAMPLE_BYTES = 76  # counted: points twice, ray, start and end, four raw outputs and their gradient, weight
LIT_NUMBERS = 3  # estimated: further rows of features that normals keep for lit views
GRAPHS_OF_A_LOOK = 3.1  # rooms of six graphs of one look over the largest: 1 + 3/4 + 1/2 + 3/8 + ...
LOOKS_OF_MIXED = 3  # kinds of light that take turns, each with graphs of its own
RAY_BYTES = 256  # counted: origin, direction, background, masks, pixels and their gradients
PARAMETER_BYTES = 18  # value, gradient and Adam's two moments in float32, and the half-precision copy that is read
CELL_BYTES = 64  # estimated: of an occupancy cell at a refresh: place, draws, density, order
SLACK = 1.08  # estimated: what the allocator loses between its blocks
REST_CUDA = int(0.4 * GIB)  # estimated: workspaces of cuDNN and cuBLAS, kernels that are loaded when first used
REST_CPU = int(0.2 * GIB)  # estimated: Python and its libraries
STREAMED_LAYERS = 2  # of streamed weights: the layer that computes and the next one, on its way


@dataclass(frozen=True)
class NetworkWork:
    """What the noise network makes for one image, without gradient.

    Attributes:
        numbers: alive at once, for images of the prior's full size.
        itemsize: bytes of a number.
    """

    numbers: int
    itemsize: int


@dataclass(frozen=True)
class EncoderShape:
    """An autoencoder's encoder; no channels: there is none.

    Attributes:
        channels: of its levels, each half the size of the one before.
        blocks: residual blocks of a level.
        size: pixels along a side of its images.
        itemsize: bytes of a number.
    """

    channels: tuple[int, ...]
    blocks: int
    size: int
    itemsize: int


@dataclass(frozen=True)
class ModelSizes:
    """What of a prior takes memory, in bytes but for the shapes.

    Attributes:
        network, codec: their weights.
        words: weights of the largest text encoder; they are loaded one at a time.
        largest_layer: weights of the network's largest layer.
        work: of the network.
        encoder: of the codec.
        view_group: views that it judges together.
    """

    network: int
    codec: int
    words: int
    largest_layer: int
    work: NetworkWork
    encoder: EncoderShape
    view_group: int


NO_MODEL = ModelSizes(0, 0, 0, 0, NetworkWork(0, 4), EncoderShape((), 0, 0, 4), 1)


@dataclass(frozen=True)
class Needs:
    """Bytes of the parts of a run on one rung. The text encoders are gone before the rest comes."""

    words: int
    network: int
    encoder: int
    render: int
    field: int
    rest: int

    @property
    def step(self) -> int:
        """Of a step of the optimisation."""
        return self.network + self.encoder + self.render + self.field + self.rest

    @property
    def total(self) -> int:
        """The most at any time."""
        return max(self.step, self.words + self.rest)


def needs_on(rung: Rung, config: GenerateConfig, sizes: ModelSizes, cuda: bool) -> Needs:
    """What `config` needs on `rung`. The text encoders count as if they ran on the same device."""
    return Needs(
        words=sizes.words,
        network=network_bytes(rung, config, sizes, cuda),
        encoder=sizes.codec + int(SLACK * encoder_bytes(rung, config, sizes, cuda)),
        render=int(SLACK * (render_bytes(rung, config, sizes.view_group, cuda) + graph_bytes(rung, config, cuda))),
        field=field_bytes(config.field) + CELL_BYTES * config.occupancy.resolution**3,
        rest=REST_CUDA if cuda else REST_CPU,
    )


def network_bytes(rung: Rung, config: GenerateConfig, sizes: ModelSizes, cuda: bool) -> int:
    """Weights, or the streamed layers, and the work for all prompts of all views that go through at once.

    On a GPU a network that is not streamed is recorded, and works in the memory of its recordings: one of each kind of
    call, and while the compiled network is tried and recorded for the largest, the plain one's stays beside it.
    """
    views = views_at_once(rung, config, sizes.view_group)
    kinds = {sizes.view_group} if rung.one_prompt else {n * views for n in prompts_at_once(config.guidance)}
    weights = STREAMED_LAYERS * sizes.largest_layer if rung.stream_network else sizes.network
    work = sizes.work.numbers * sizes.work.itemsize // rung.image_divisor**2
    recorded = cuda and config.model.compile != "off" and not rung.stream_network
    images = max(kinds) + (sum(kinds) if recorded else 0)
    return weights + int(SLACK * images * work)


def prompts_at_once(guidance: GuidanceConfig) -> set[int]:
    """How many prompts of a view go through the network together, for each kind of call that a run makes.

    With several solver steps (guidance/distil.py) one goes alone in the unguided calls of a path, and along the
    source's path of the dual bridge.
    """
    one, two = (len(prompts_needed(guidance.method, stage, guidance.perp_neg)) for stage in (1, 2))
    bridges = guidance.method == "bridge" and guidance.bridge_from < 1
    if guidance.solver_steps == 1 or guidance.method in ("csd", "nfsd"):
        return {one, two} if bridges else {one}
    return {one, 1} if bridges or guidance.n_guided < guidance.solver_steps else {one}


def encoder_bytes(rung: Rung, config: GenerateConfig, sizes: ModelSizes, cuda: bool) -> int:
    """What the encoder of the autoencoder takes, forward and backward, for all views at once."""
    shape = sizes.encoder
    size = shape.size // rung.image_divisor
    numbers = encoder_numbers(shape.channels, shape.blocks, size, rung.recompute_encoder, cuda)
    return views_at_once(rung, config, sizes.view_group) * numbers * shape.itemsize


def encoder_numbers(channels: Sequence[int], blocks: int, size: int, recompute: bool, cuda: bool) -> int:
    """Numbers alive at once while our encoder (`prior/models/vae_encoder.py`) runs forward and backward on one image.

    Each residual block keeps its input and what is between its convolutions; with `recompute` its input alone, and the
    other is made again. The most is alive either in the backward pass of a block or in that of the attention in the
    middle, when all is still kept.
    """
    if not channels:
        return 0
    kept, most, c_in = 0, 0, channels[0]
    work = BLOCK_WORK_CUDA if cuda else BLOCK_WORK_CPU
    for level, c_out in enumerate(channels):
        for _ in range(blocks):
            again = c_out * size**2
            kept += c_in * size**2 + (0 if recompute else again)
            most = max(most, kept + (again if recompute else 0) + work * again)
            c_in = c_out
        if level + 1 < len(channels):
            size //= 2
    tokens, block = size**2, 1 if recompute else 2
    attention = (block + 1 + ATTENTION_WORK) * c_in * tokens + SCORES_AT_ONCE * min(tokens**2, MOST_SCORES)
    return max(most, kept + attention)


def unet_numbers(channels: Sequence[int], attention: Sequence[bool], size: int) -> int:
    """Numbers alive at once in a U-Net for one image: the most of any level."""
    work = (UNET_ATTENTION_WORK if attends else UNET_WORK for attends in attention)
    return max(each * c * (size >> level) ** 2 for level, (each, c) in enumerate(zip(work, channels, strict=True)))


def transformer_numbers(tokens: int, width: int) -> int:
    """Numbers alive at once in a transformer for one image with its words."""
    return TRANSFORMER_WORK * tokens * width


def render_bytes(rung: Rung, config: GenerateConfig, view_group: int, cuda: bool) -> int:
    """Rays, and the samples that are in memory at once, forward and backward, at the largest size of the schedule."""
    render = config.render
    rays = views_at_once(rung, config, view_group) * render.size**2
    samples = int(rays * render.samples_across * SAMPLES_SHARE)
    samples = min(samples, rung.samples_at_once or samples)
    return rays * RAY_BYTES + samples * sample_bytes(config, cuda)


def graph_bytes(rung: Rung, config: GenerateConfig, cuda: bool) -> int:
    """What the CUDA graphs of the views hold beside the plain rendering: as much for a sample that they have room for;
    what a learned background keeps for a pixel is small beside its samples.

    Only the first rung has graphs, and only where views of some size of the schedule have few enough samples. Larger
    ones get them when the scene has cleared, and what the plain rendering needed at first is then free for them.
    """
    if not cuda or rung.one_group:
        return 0
    render = config.render
    across = config.camera.views * render.samples_across * SAMPLES_SHARE
    rooms = [room_for(int(across * size**2)) for size in (render.first_size, render.size)]
    largest = max((room for room in rooms if room is not None), default=0)
    graphs = min(GRAPHS_OF_A_LOOK * (LOOKS_OF_MIXED if render.shading == "mixed" else 1), MOST_GRAPHS)
    return int(min(graphs * largest, MOST_TOGETHER)) * sample_bytes(config, cuda)


def sample_bytes(config: GenerateConfig, cuda: bool) -> int:
    """Of a sample: it keeps its features for the backward pass, where their gradients come beside them."""
    render, field = config.render, config.field
    features = field.n_levels * field.n_features
    number = 2 if cuda and field.precision == "auto" else 4
    lit = 0 if render.shading == "albedo" else LIT_NUMBERS * 4 * features + 8 * field.hidden_width
    return SAMPLE_BYTES + 2 * number * features + lit


def field_bytes(field: FieldConfig) -> int:
    """The hash grid's entries with all that the optimiser keeps; the decoder is small beside them."""
    spec = HashGridSpec(
        field.n_levels, field.n_features, field.log2_table_size, field.base_resolution, field.finest_resolution
    )
    return PARAMETER_BYTES * spec.n_entries * field.n_features


def views_at_once(rung: Rung, config: GenerateConfig, view_group: int) -> int:
    """Views that are rendered together."""
    return min(view_group, config.camera.views) if rung.one_group else config.camera.views
