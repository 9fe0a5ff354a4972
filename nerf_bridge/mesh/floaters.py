"""Translucent floaters: closed bodies of the surface through which the field lets most of the light."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from nerf_bridge.mesh.data import Mesh
from nerf_bridge.mesh.geometry import face_areas, face_bodies, face_crosses, face_volumes, keep_faces
from nerf_bridge.mesh.silhouettes import OPAQUE
from nerf_bridge.mesh.surface import Field, density_at

logger = logging.getLogger(__name__)

CHORDS = 256
"""Most lines of sight through one body."""
STEPS = 16
"""Samples along each."""


def drop_translucent(mesh: Mesh, field: Field, occupied: Tensor) -> Mesh:
    """Drop bodies that are less opaque than the silhouettes ask for; the most opaque one always stays.

    Args:
        mesh: closed bodies that face outward.
        field: the field.
        occupied: [r, r, r] bool, on the field's device.
    """
    if len(mesh.faces) == 0:
        return mesh
    body = face_bodies(mesh)
    if body.max() == 0:
        return mesh
    opacity = body_opacity(mesh, body, field, occupied)
    kept = opacity >= OPAQUE
    kept[opacity.argmax()] = True
    if not kept.all():
        logger.info("dropped %d translucent bodies of the surface", (~kept).sum())
    return keep_faces(mesh, kept[body])


def body_opacity(mesh: Mesh, body: np.ndarray, field: Field, occupied: Tensor) -> np.ndarray:
    """Mean opacity of the field behind the faces of each body, 1 - exp(-integral of sigma along the mean chord).

    A convex body of volume V and area A has chords of the mean length 4 V / A (Cauchy); lines of that length start at
    its faces and go straight in.

    Args:
        mesh: closed bodies.
        body: [f] number of the body of each face.
        field: the field.
        occupied: [r, r, r] bool, on the field's device.

    Returns:
        [bodies] in 0..1; 1 for bodies that face inward (cavities), which are no floaters.
    """
    areas, volumes = np.bincount(body, face_areas(mesh)), np.bincount(body, face_volumes(mesh))
    chord = 4.0 * np.maximum(volumes, 0.0) / np.maximum(areas, 1e-300)
    order = np.argsort(body, kind="stable")
    counts = np.bincount(body)
    rank = np.arange(len(body)) - np.repeat(np.cumsum(counts) - counts, counts)
    faces = order[rank % -(-counts // CHORDS)[body[order]] == 0]
    of_face = body[faces]
    crosses = face_crosses(mesh)[faces]
    inward = -crosses / np.maximum(np.linalg.norm(crosses, axis=1, keepdims=True), 1e-300)
    along = (np.arange(STEPS) + 0.5) / STEPS * chord[of_face, None]
    points = mesh.vertices[mesh.faces[faces]].mean(axis=1)[:, None] + along[..., None] * inward[:, None]
    flat = torch.as_tensor(points.reshape(-1, 3), dtype=torch.float32, device=occupied.device)
    sigma = density_at(field, occupied, flat).reshape(-1, STEPS).cpu().numpy()
    opacity = 1.0 - np.exp(-sigma.mean(axis=1) * chord[of_face])
    weight = face_areas(mesh)[faces] + 1e-300
    mean = np.bincount(of_face, opacity * weight, len(areas)) / np.bincount(of_face, weight, len(areas))
    return np.where(volumes > 0, mean, 1.0)
