"""Training views rendered from CUDA graphs: at 64 x 64 pixels the GPU is done sooner than the host can launch it.

A graph holds tensors of fixed size, so it needs to know how many samples to make room for (`render`'s capacity). Steps
whose number nobody knows are rendered plainly, launch by launch, and tell it: one after each change of the occupancy.
The steps that follow are replayed, with some room to spare. Whether it was enough is in the rendering's `overflow`,
which has to be looked at before its gradients are used: if not, the step is rendered again, plainly. So no step lacks
samples, and up to rounding each depends on the state and its number alone, however a run was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from nerf_bridge.cuda_graphs import DifferentiableRecording, make_room, record_differentiable
from nerf_bridge.errors import one_line
from nerf_bridge.render import Rendering, render
from nerf_bridge.scene.background import backgrounds
from nerf_bridge.scene.cameras import unpacked
from nerf_bridge.scene.scene import Scene
from nerf_bridge.scene.shading import Shading

logger = logging.getLogger(__name__)

SPARE = 1.25  # room over the samples that were counted: the views of the next steps differ
LEAST_ROOM = 1 << 14
MOST_ROOM = 1 << 22  # beyond, launching takes little beside the work
MOST_GRAPHS = 6  # kept at a time, each with memory of its own
MOST_TOGETHER = 2 * MOST_ROOM  # samples that they have room for, all of them together


@dataclass(frozen=True)
class Look:
    """What of a rendering is fixed in a graph: views, pixels a side, shading, whether the background is learned."""

    views: int
    size: int
    shading: Shading
    learned: bool


def room_for(n_samples: int) -> int | None:
    """The samples to make room for where `n_samples` were counted; None: too many for a graph to pay.

    The least of 2^k and 1.5 x 2^k that is SPARE times as many: few different numbers, so few graphs.
    """
    wanted = max(SPARE * n_samples, LEAST_ROOM)
    power = 1 << max(int(wanted).bit_length() - 1, 0)
    room = next(room for room in (power, power + power // 2, 2 * power, 3 * power) if room >= wanted)
    return room if room <= MOST_ROOM else None


def room_to_replay(wanted: int | None, before: int | None, there: Iterable[int]) -> int | None:
    """The room of the graph to replay; None: render plainly.

    A graph with up to twice the room that is wanted will do. A new one is captured, which takes as long as some tens of
    plain renderings, only when two counts in a row want about the same.

    Args:
        wanted: `room_for` the last count.
        before: the same for the count before; None: there was none.
        there: rooms of the graphs that are there.
    """
    if wanted is None:
        return None
    fitting = [room for room in there if wanted <= room <= 2 * wanted]
    if fitting:
        return min(fitting)
    if before is None or not 0.6 < wanted / before < 1.7:
        return None
    return max(wanted, before)


def make_room_for(graphs: dict[tuple[Look, int], DifferentiableRecording], room: int) -> None:
    """Drop the oldest of `graphs` until there may be one more with `room`."""
    make_room(graphs, MOST_GRAPHS)
    while graphs and sum(there for _, there in graphs) + room > MOST_TOGETHER:
        del graphs[next(iter(graphs))]


class GraphedRender:
    """Renders the training views of a scene, replaying graphs where that pays and works."""

    def __init__(self, scene: Scene, enabled: bool) -> None:
        """`enabled` False: every view is rendered plainly."""
        self._scene = scene
        self._enabled = enabled
        self._counted: dict[Look, int] = {}
        self._before: dict[Look, int | None] = {}  # what the counts before the last change of the occupancy wanted
        self._graphs: dict[tuple[Look, int], DifferentiableRecording] = {}

    def forget_counts(self) -> None:
        """The occupancy has changed: the next rendering of each look is a plain one, which counts its samples."""
        self._before |= {look: room_for(count) for look, count in self._counted.items()}
        self._counted.clear()

    def give_up(self, reason: str) -> bool:
        """Render everything plainly from now on; logs why, once. Whether that freed the memory of any graphs."""
        if not self._enabled:
            return False
        freed = bool(self._graphs)
        self._enabled = False
        self._graphs.clear()
        logger.warning("rendering without CUDA graphs, slower: %s", reason)
        return freed

    def __call__(
        self,
        cameras: Tensor,
        size: int,
        background: Tensor | None,
        shading: Shading,
        light_dir: Tensor | None,
        jitter: Tensor,
        samples_at_once: int | None = None,
    ) -> tuple[Rendering, Tensor]:
        """Views of the scene; the tensors of a replayed rendering are overwritten by the next.

        Args:
            cameras: b of them, `packed`, [b, 20].
            size: pixels along a side.
            background: [b, 3]; None: the scene's environment is behind the views.
            shading, light_dir, jitter: as `render` has them.
            samples_at_once: as `render` has it; only for plain rendering, where memory is short.

        Returns:
            The rendering; unless its `overflow` is None it has to be looked at before anything else is used. And the
            mean colour behind each view, [b, 3], without gradient.
        """
        look = Look(len(cameras), size, shading, background is None)
        room = self._room(look)
        inputs = (cameras, jitter, *(given for given in (background, light_dir) if given is not None))
        if room is not None and ((look, room) in self._graphs or self._capture(look, room, inputs)):
            color, opacity, depth, thickness, overflow, told = self._graphs[look, room](*inputs)
            return Rendering(color, opacity, depth, None, thickness, room, overflow), told
        scene, seen_from = self._scene, unpacked(cameras)
        behind, told = backgrounds(scene.environment, seen_from, size, scene.backend, background)
        views = (scene.field, scene.occupancy.occupied, seen_from, size, behind, scene.step_size, scene.backend)
        rendering = render(*views, shading=shading, light_dir=light_dir, jitter=jitter, samples_at_once=samples_at_once)
        self._counted[look] = rendering.n_samples
        return rendering, told

    def _room(self, look: Look) -> int | None:
        """The room of the graph to replay; None: render plainly."""
        if not self._enabled or look not in self._counted:
            return None
        there = [room for of, room in self._graphs if of == look]
        return room_to_replay(room_for(self._counted[look]), self._before.get(look), there)

    def _capture(self, look: Look, room: int, inputs: tuple[Tensor, ...]) -> bool:
        """Capture forward and backward pass; False (logged, and not tried again) when that fails."""
        make_room_for(self._graphs, room)
        views, scene = _Views(self._scene, look, room), self._scene
        parameters = [*scene.field.parameters(), *(scene.environment.parameters() if look.learned else ())]
        try:
            self._graphs[look, room] = record_differentiable(views, inputs, parameters)
        except RuntimeError as error:
            self.give_up(f"the capture failed ({one_line(error)})")
            return False
        logger.debug("captured a graph for %s with room for %d samples", look, room)
        return True


@dataclass(frozen=True)
class _Views:
    """The pictures as one function of tensors, with room for a given number of samples: what a CUDA graph can hold."""

    scene: Scene
    look: Look
    room: int

    def __call__(self, cameras: Tensor, jitter: Tensor, *more: Tensor) -> tuple[Tensor, ...]:
        """Colour, opacity, depth, thickness, whether the room was too small, and the mean colour behind the views.

        Args:
            more: the background, unless it is learned, and the light's directions, if there is a light.
        """
        scene, look, given, seen_from = self.scene, self.look, list(more), unpacked(cameras)
        solid = None if look.learned else given.pop(0)
        behind, told = backgrounds(scene.environment, seen_from, look.size, scene.backend, solid)
        made = render(
            scene.field,
            scene.occupancy.occupied,
            seen_from,
            look.size,
            behind,
            scene.step_size,
            scene.backend,
            shading=look.shading,
            light_dir=given.pop() if given else None,
            jitter=jitter,
            capacity=self.room,
        )
        assert made.overflow is not None
        return made.color, made.opacity, made.depth, made.thickness, made.overflow, told
