"""Score distillation: schedules, gradients, and the step that joins them to a prior."""

from nerf_bridge.guidance.distil import Answer, distillation_loss, guidance_gradient, prompts_needed, pull
from nerf_bridge.guidance.gradients import bridge, classifier_free, csd, nfsd, perp_neg, sds
from nerf_bridge.guidance.schedule import (
    draw_noise,
    draw_times,
    is_refreshed_at,
    noise_weight,
    ramp_at,
    rate_at,
    size_at,
    stage_at,
    step_generator,
    t_max_at,
    t_min_at,
)
from nerf_bridge.guidance.words import EncodedWords, ViewWords, encode_words

__all__ = [
    "Answer",
    "EncodedWords",
    "ViewWords",
    "bridge",
    "classifier_free",
    "csd",
    "distillation_loss",
    "draw_noise",
    "draw_times",
    "encode_words",
    "guidance_gradient",
    "is_refreshed_at",
    "nfsd",
    "noise_weight",
    "perp_neg",
    "prompts_needed",
    "pull",
    "ramp_at",
    "rate_at",
    "sds",
    "size_at",
    "stage_at",
    "step_generator",
    "t_max_at",
    "t_min_at",
]
