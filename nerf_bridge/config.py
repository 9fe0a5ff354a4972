"""Every setting of a run, with its meaning, its default and its range.

The defaults suit the embedded prior on a laptop. Files in ``configs/`` hold what differs for other uses. How settings
are read from files and how errors are worded is in ``settings.py``.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
import unicodedata
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from nerf_bridge.errors import UserError
from nerf_bridge.settings import error_lines, load_yaml, nested

__all__ = ["GenerateConfig", "build_config", "check_prompt", "load_yaml"]

MAX_PROMPT_CHARACTERS = 500


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is meant; read "none" as None where None is allowed."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("true and false are no numbers")
        optional = type(None) in get_args(annotation)
        return None if optional and isinstance(value, str) and value.strip().lower() == "none" else value


class ModelConfig(Section):
    """The prior's network: which design the embedded one draws; of others precision, size, LoRAs, and the hub."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="what the network computes in; auto: half precision on a GPU, float32 on a CPU"
    )
    image_size: int | None = Field(
        None, ge=16, le=2048, description="pixels along a side that the prior sees; none: what it was trained at"
    )
    loras: str | None = Field(None, description="LoRA files, FILE or FILE:SCALE, separated by commas (safetensors)")
    non_commercial: bool = Field(False, description="use a model whose licence forbids commercial use")
    offline: bool = Field(False, description="never ask the hub: use only what is on the disk")
    design: int | None = Field(
        None,
        ge=0,
        le=32,
        description="which of a noun's designs the embedded prior draws, 1 to 32; 0: any, another in every view; "
        "none: by the seed",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="torch.compile and CUDA graphs on a GPU; auto: compiled beside the steps, on: before them",
    )


class FieldConfig(Section):
    """The multiresolution hash-grid field (Mueller et al. 2022) in the box [-1, 1]^3."""

    n_levels: int = Field(6, ge=1, le=24, description="resolution levels of the hash grid")
    n_features: int = Field(4, ge=1, le=8, description="features per level")
    log2_table_size: int = Field(17, ge=8, le=24, description="log2 of the most entries a level may have")
    base_resolution: int = Field(8, ge=2, le=512, description="cells along a side at the coarsest level")
    finest_resolution: int = Field(128, ge=2, le=8192, description="cells along a side at the finest level")
    hidden_width: int = Field(32, ge=8, le=256, description="width of the decoder's hidden layer")
    density_activation: Literal["trunc_exp", "softplus"] = Field(
        "trunc_exp", description="maps the raw output to density"
    )
    precision: Literal["auto", "float32"] = Field(
        "auto",
        description="auto: half-precision storage, float32 sums on GPUs with tensor cores, where n_features is 2, 4 "
        "or 8 and hidden_width 16, 32, 64 or 128; else as float32",
    )
    blob_scale: float = Field(4.0, ge=0, le=100, description="height of the density blob that a run starts from")
    blob_radius: float = Field(0.5, gt=0, le=2, description="radius at which the starting blob reaches zero")

    @model_validator(mode="after")
    def _ordered(self) -> FieldConfig:
        if self.base_resolution > self.finest_resolution:
            raise ValueError(
                f"base_resolution ({self.base_resolution}) is above finest_resolution ({self.finest_resolution})"
            )
        return self


class OccupancyConfig(Section):
    """The grid that tells the ray marcher which cells hold something."""

    resolution: int = Field(48, ge=8, le=256, description="cells along a side")
    every: int = Field(4, ge=1, le=1000, description="steps between two updates")
    late_every: int | None = Field(
        None, ge=1, le=1000, description="steps between two updates in the late part of the run; none: every all along"
    )
    late_from: float = Field(0.5, ge=0, le=1, description="fraction of the steps from which late_every counts")
    decay: float = Field(0.9, gt=0, lt=1, description="what a cell keeps of its old density at an update")
    threshold: float = Field(
        0.001, gt=0, lt=1, description="opacity over one marching step below which a cell is empty"
    )


class CameraConfig(Section):
    """Where the training cameras stand. Angles in degrees, distances in units of the box [-1, 1]^3."""

    views: int = Field(4, ge=1, le=64, description="views rendered at every step, stratified in azimuth")
    elevation_min_deg: float = Field(-10.0, ge=-89, le=89, description="lowest elevation above the horizon")
    elevation_max_deg: float = Field(45.0, ge=-89, le=89, description="highest elevation above the horizon")
    distance_min: float = Field(2.8, ge=1, le=10, description="nearest distance from the centre")
    distance_max: float = Field(3.2, ge=1, le=10, description="farthest distance from the centre")
    fovy_min_deg: float = Field(40.0, gt=1, lt=170, description="narrowest vertical field of view")
    fovy_max_deg: float = Field(40.0, gt=1, lt=170, description="widest vertical field of view")

    @model_validator(mode="after")
    def _ordered(self) -> CameraConfig:
        pairs = [
            (name.format("min"), name.format("max")) for name in ("elevation_{}_deg", "distance_{}", "fovy_{}_deg")
        ]
        wrong = [(low, high) for low, high in pairs if getattr(self, low) > getattr(self, high)]
        if wrong:
            lines = [f"{low} ({getattr(self, low)}) is above {high} ({getattr(self, high)})" for low, high in wrong]
            raise ValueError("\n".join(lines))
        return self


class RenderConfig(Section):
    """How a view is rendered while the field is optimised."""

    size: int = Field(128, ge=16, le=1024, description="pixels along a side of a training view, from early_until on")
    samples_across: int = Field(128, ge=16, le=1024, description="marching steps across the box's side")
    early_size: int | None = Field(
        64,
        ge=16,
        le=1024,
        description="pixels along a side in the early part of the run, at most size; none: size all along",
    )
    early_until: float = Field(
        0.8, ge=0, le=1, description="fraction of the steps at which early_size gives way to size"
    )
    grow_until: float | None = Field(
        None,
        ge=0,
        le=1,
        description="fraction of the steps by which the views, doubled again and again, have come from early_size to "
        "size; none: they jump at early_until",
    )
    background: Literal["random", "white", "grey", "learned"] = Field("random", description="what is behind the object")
    shading: Literal["albedo", "lambertian", "textureless", "mixed"] = Field(
        "albedo", description="light on the object; mixed draws one of the three at each step"
    )

    @property
    def first_size(self) -> int:
        """Pixels along a side of the first views: early_size, if it is less than size."""
        return min(self.early_size or self.size, self.size)

    @model_validator(mode="after")
    def _ordered(self) -> RenderConfig:
        if self.grow_until is None:
            return self
        if self.early_size is None or self.early_size > self.size:
            raise ValueError(f"grow_until needs an early_size up to size ({self.size}), got {self.early_size}")
        if self.grow_until < self.early_until:
            raise ValueError(f"early_until ({self.early_until}) is above grow_until ({self.grow_until})")
        return self


class GuidanceConfig(Section):
    """Score distillation (McAllister et al., NeurIPS 2024): the gradient's method, scale and schedule."""

    method: Literal["sds", "csd", "nfsd", "bridge"] = Field("bridge", description="which score-distillation gradient")
    scale: float = Field(3.0, ge=0, le=1000, description="guidance scale s in uncond + s * (text - uncond)")
    bridge_scale: float = Field(0.5, ge=0, le=1000, description="factor k of stage two of the bridge")
    bridge_from: float = Field(0.8, ge=0, le=1, description="fraction of the steps after which stage two starts")
    weighting: Literal["sigma2", "one"] = Field("sigma2", description="w(t): sigma^2 / (alpha^2 + sigma^2), or 1")
    bridge_weighting: Literal["same", "sigma2", "one"] = Field("same", description="w(t) in stage two of the bridge")
    solver_steps: int = Field(
        5,
        ge=1,
        le=50,
        description="calls of the prior from the noised view to a clean one; more bring thin parts out; from 2 on "
        "stage two of the bridge makes as many more from the view to noise, and is guided by scale",
    )
    guided_steps: int | None = Field(
        2,
        ge=1,
        le=50,
        description="of the calls on a path of sds or the bridge, the first so many, at most noise, are guided by "
        "scale; the others ask for the prompt alone, at half the cost; none: all are guided",
    )
    t_min: float = Field(0.8, ge=0, lt=1, description="least noise time, at the first step")
    t_min_end: float | None = Field(
        0.1, ge=0, lt=1, description="least noise time at the last step, falling as the most does; none: t_min"
    )
    t_max_start: float = Field(0.98, gt=0, le=1, description="most noise time at the first step")
    t_max_end: float = Field(0.45, gt=0, le=1, description="most noise time at the last step")
    t_max_from: float = Field(
        0.0, ge=0, le=1, description="fraction of the steps at which the most noise time starts to fall"
    )
    t_max_until: float = Field(
        1.0, ge=0, le=1, description="fraction at which it is t_max_end; at t_max_from: it jumps"
    )
    target_words: str = Field(
        "detailed high resolution, high quality, sharp", description="added to the prompt: what to reach"
    )
    source_words: str = Field(
        "oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed",
        description="added to the prompt: what stage one makes",
    )
    negative_prompt: str = Field(
        "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy",
        description="the negative prompt of nfsd",
    )
    view_words: Literal["auto", "on", "off"] = Field(
        "auto",
        description="say the view in words (front, side, back, overhead); auto: only for priors that know no camera",
    )
    perp_neg: bool = Field(
        False,
        description="push away from the wrong views' words, at right angles to the right one's (Perp-Neg); on a "
        "path in the guided calls",
    )
    debias: str | None = Field(
        None, description="language model that leaves out words which speak against a view: bert, or a folder"
    )
    debias_words: str | None = Field(
        None, description="words that debias may leave out, separated by commas; none: all of the prompt"
    )

    @property
    def n_guided(self) -> int:
        """How many of the calls on a path are guided."""
        return min(self.guided_steps or self.solver_steps, self.solver_steps)

    @property
    def t_min_last(self) -> float:
        """The least noise time at the last step, whether it falls or not."""
        return self.t_min if self.t_min_end is None else self.t_min_end

    @model_validator(mode="after")
    def _ordered(self) -> GuidanceConfig:
        if self.t_min_end is None and self.t_min >= min(self.t_max_start, self.t_max_end):
            raise ValueError("t_min must be below t_max_start and t_max_end")
        if self.t_min_end is not None and (self.t_min >= self.t_max_start or self.t_min_end >= self.t_max_end):
            raise ValueError("t_min must be below t_max_start, and t_min_end below t_max_end")
        if self.perp_neg and self.solver_steps > 1 and self.method in ("csd", "nfsd"):
            raise ValueError(
                f"solver_steps above 1 goes with perp_neg for sds and bridge only: set it to 1 for {self.method}"
            )
        if self.t_max_from > self.t_max_until:
            raise ValueError(f"t_max_from ({self.t_max_from}) is above t_max_until ({self.t_max_until})")
        return self


class OptimConfig(Section):
    """The optimiser (Adam) and the regularisers."""

    lr_grid: float = Field(0.02, gt=0, le=1, description="learning rate of the hash grid")
    lr_decoder: float = Field(0.005, gt=0, le=1, description="learning rate of the decoder and the background")
    lr_final: float = Field(0.2, gt=0, le=1, description="fraction of the learning rate left at the last step")
    inner_steps: int = Field(
        3, ge=1, le=20, description="optimiser steps towards each answer of the prior, all by the same views"
    )
    eps: float = Field(1e-6, gt=0, le=1, description="what Adam adds to the root of the second moment")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay (AdamW)")
    ramp_from: float = Field(0.5, ge=0, le=1, description="fraction of the steps at which ramped weights start to rise")
    ramp_until: float = Field(1.0, ge=0, le=1, description="fraction at which they are whole; at ramp_from: they jump")
    weight_opacity: float = Field(0.001, ge=0, le=1e4, description="weight of the opacity (sparsity)")
    weight_entropy: float = Field(0.01, ge=0, le=1e4, description="weight of the opacity entropy, ramped up")
    weight_thickness: float = Field(
        3.0, ge=0, le=1e4, description="weight of the depth's variance along each ray, ramped up: sharp surfaces"
    )
    weight_smooth: float = Field(0.0, ge=0, le=1e4, description="weight of the density's smoothness between neighbours")

    @model_validator(mode="after")
    def _ordered(self) -> OptimConfig:
        if self.ramp_from > self.ramp_until:
            raise ValueError(f"ramp_from ({self.ramp_from}) is above ramp_until ({self.ramp_until})")
        return self


class MeshConfig(Section):
    """The mesh taken out of the field."""

    resolution: int = Field(
        128,
        ge=16,
        le=512,
        description="density samples along a side of the box; up to 256, and without a threshold, twice as many where "
        "parts are too thin for them",
    )
    threshold: float | None = Field(None, gt=0, description="density of the surface; none: matched to the silhouettes")
    faces: int = Field(20000, ge=100, le=2_000_000, description="face target of the decimation")
    texture: int = Field(1024, ge=64, le=8192, description="texture pixels along a side")
    close_holes: int = Field(1, ge=0, le=8, description="gaps up to so many cells of the resolution wide are closed")
    fill: bool = Field(True, description="fill insides that no light reaches")
    keep_fraction: float = Field(
        0.005, ge=0, le=1, description="bodies of less than this part of the largest one's volume are floaters and go"
    )
    watertight: bool = Field(True, description="cut pinches apart and close what is open, so that the mesh is a solid")
    smooth: int = Field(0, ge=0, le=100, description="passes of smoothing that keeps the volume, before the decimation")
    unwrap_seconds: float = Field(
        60.0, gt=0, le=3600, description="time after which xatlas is stopped and a simple atlas used"
    )
    unwrap_memory_gb: float = Field(
        4.0, gt=0, le=1024, description="memory in GiB above which xatlas is stopped and a simple atlas used"
    )
    texture_format: Literal["png", "jpeg", "webp"] = Field("png", description="how textures are stored")
    normal_map: bool = Field(True, description="bake a normal map from the surface before the decimation")
    roughness: float = Field(0.9, ge=0, le=1, description="roughness of the material; 0 is a mirror")
    metallic: float = Field(0.0, ge=0, le=1, description="metalness of the material")
    refine_steps: int = Field(
        0, ge=0, le=100_000, description="steps of texture refinement by the same guidance, the mesh being fixed"
    )
    height_m: float | None = Field(None, gt=0, le=1000, description="height in metres; none: the longest side is 1 m")
    pivot: Literal["bottom", "center", "origin"] = Field(
        "bottom", description="what lies at the file's origin: the bottom's centre, the middle, or the box's middle"
    )
    up: Literal["auto", "y", "z"] = Field(
        "auto", description="axis that points up; auto: y in glTF, OBJ and USDZ, z in STL and PLY; glTF allows only y"
    )
    millimetres: bool = Field(False, description="write STL in millimetres, as slicers read it, and not in metres")


class GenerateConfig(Section):
    """Everything that decides what `generate` makes."""

    prompt: str = Field(description="what to make")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of every random draw")
    prior: str = Field(
        "embedded", description="the diffusion prior: embedded, an alias of `nerf-bridge priors list`, or a folder"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to run")
    backend: Literal["auto", "cuda", "cpu", "torch", "nerfacc", "tcnn"] = Field(
        "auto", description="whose kernels to use; nerfacc and tcnn must be installed"
    )
    memory: Literal["auto", "80gb", "24gb", "12gb", "8gb"] = Field(
        "auto",
        description="how sparing of memory; auto: as it must be for what is free now; a size: as for a GPU of that "
        "size, with views of at most 512 (24gb), 384 (12gb) or 256 pixels (8gb)",
    )
    steps: int = Field(
        120, ge=1, le=1_000_000, description="optimisation steps, each with new views and a new answer of the prior"
    )
    checkpoint_every: int = Field(20, ge=1, le=1_000_000, description="steps between two checkpoints")
    preview_every: int = Field(20, ge=1, le=1_000_000, description="steps between two preview pictures")
    model: ModelConfig = ModelConfig()
    field: FieldConfig = FieldConfig()
    occupancy: OccupancyConfig = OccupancyConfig()
    camera: CameraConfig = CameraConfig()
    render: RenderConfig = RenderConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompt(cls, value: object) -> object:
        check_prompt(value)
        return value

    def hash(self) -> str:
        """SHA-256 of the settings, hexadecimal; two runs with the same hash do the same work."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def check_prompt(prompt: object) -> None:
    """Raise ValueError unless `prompt` is one non-blank line of at most MAX_PROMPT_CHARACTERS characters."""
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError('the prompt is empty: say what to make, for example "a green armchair"')
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {reprlib.repr(prompt)}")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are read")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in prompt):
        raise ValueError("the prompt holds line breaks or other control characters; write it as one line of plain text")


def build_config(settings: dict) -> GenerateConfig:
    """Check `settings`, nested or with dotted names, and return the config.

    Raises:
        UserError: one line for every wrong setting, each with its dotted path, what came and what is allowed.
    """
    try:
        return GenerateConfig.model_validate({"prompt": None} | nested(settings))
    except ValidationError as error:
        raise UserError("\n".join(error_lines(GenerateConfig, error.errors()))) from None
