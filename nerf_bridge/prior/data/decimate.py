"""Fewer faces for the same look at 64 pixels: vertex clustering, quadric decimation, cards for leaves."""

from __future__ import annotations

import fast_simplification
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nerf_bridge.prior.data.model import face_areas

CELLS = (0.004, 0.008, 0.012)  # clustering before the quadrics, in world units; a pixel of a 64 x 64 render is 0.034
SMALL_PIECE = 0.02  # area below which a loose piece may become a card
FACES_FOR_PIECE = 12  # with a smaller budget for each loose piece, pieces become cards
_AGGRESSION = 5.0


def weld(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge vertices at equal positions; drop degenerate and repeated faces: -> vertices [u, 3], faces [g, 3]."""
    positions, welded = weld_corners(vertices[faces])
    distinct = (welded[:, 0] != welded[:, 1]) & (welded[:, 1] != welded[:, 2]) & (welded[:, 2] != welded[:, 0])
    welded = welded[distinct]
    kept = np.unique(np.sort(welded, axis=1), axis=0, return_index=True)[1]
    return positions, welded[np.sort(kept)]


def weld_corners(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index equal corner positions of triangles [f, 3, 3]: -> vertices [u, 3], faces [f, 3]."""
    flat = corners.reshape(-1, 3)
    keys = np.round(flat / 1e-5).astype(np.int64)
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return flat[first], inverse.reshape(-1, 3)


def share_budget(counts: np.ndarray, weights: np.ndarray, total: int) -> np.ndarray:
    """Share a total by weight, never above a group's own count; what is left over goes to the others.

    Args:
        counts: [g] what each group has; weights: [g] positive; total: to share.

    Returns:
        [g] float64, at least 8 (or the count, where smaller) for each group.
    """
    budgets = np.zeros_like(counts)
    open_groups = np.ones(len(counts), dtype=bool)
    left = float(total)
    while open_groups.any():
        share = left * weights / weights[open_groups].sum()
        full = open_groups & (counts <= share)
        if not full.any():
            budgets[open_groups] = share[open_groups]
            break
        budgets[full] = counts[full]
        left -= counts[full].sum()
        open_groups &= ~full
    return np.minimum(np.maximum(budgets, 8), counts)


def decimate_pieces(
    vertices: np.ndarray, faces: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Decimate a group; swarms of small loose pieces (leaves) become cards, the rest goes through the quadrics.

    Args:
        vertices: [v, 3] float64; faces: [f, 3] int64; budget: about how many faces to keep; rng: picks the leaves.

    Returns:
        The new vertices and faces.
    """
    if len(faces) <= budget:
        return vertices, faces
    piece = connected_components(_edge_graph(len(vertices), faces), directed=False)[1]
    face_piece = piece[faces[:, 0]]
    areas = np.bincount(face_piece, weights=face_areas(vertices, faces), minlength=piece.max() + 1)
    small = (areas < SMALL_PIECE) & (areas > 0)
    if small.sum() * FACES_FOR_PIECE <= budget:
        return decimate(vertices, faces, budget)
    large_faces = faces[~small[face_piece]]
    small_share = areas[small].sum() / areas.sum()
    card_vertices, card_faces = leaf_cards(vertices, piece, areas, small, int(0.5 * budget * small_share) + 1, rng)
    if not len(large_faces):
        return card_vertices, card_faces
    rest_vertices, rest_faces = decimate(*weld(vertices, large_faces), max(budget - len(card_faces), 8))
    return np.concatenate([rest_vertices, card_vertices]), np.concatenate([rest_faces, card_faces + len(rest_vertices)])


def _edge_graph(n_vertices: int, faces: np.ndarray) -> coo_matrix:
    rows = np.concatenate([faces[:, 0], faces[:, 1]])
    columns = np.concatenate([faces[:, 1], faces[:, 2]])
    return coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n_vertices, n_vertices))


def leaf_cards(
    vertices: np.ndarray,
    piece: np.ndarray,
    areas: np.ndarray,
    chosen: np.ndarray,
    max_cards: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Replace loose pieces by flat cards along their main axes; keep a random part, enlarged to cover the same area.

    After Cook et al., "Stochastic simplification of aggregate detail", 2007.

    Args:
        vertices: [v, 3]; piece: [v] which piece each belongs to; areas: [p]; chosen: [p] bool, the pieces to
            replace; max_cards: how many cards at most; rng: picks them.

    Returns:
        vertices [4·c, 3] and faces [2·c, 3].
    """
    n = len(areas)
    count = np.maximum(np.bincount(piece, minlength=n), 1)[:, None]
    middle = np.stack([np.bincount(piece, weights=vertices[:, k], minlength=n) for k in range(3)], axis=1) / count
    offset = vertices - middle[piece]
    products = offset[:, :, None] * offset[:, None, :]
    spread = np.stack([np.bincount(piece, weights=products[:, i, j], minlength=n) for i in range(3) for j in range(3)])
    ids = np.flatnonzero(chosen)
    picked = ids if len(ids) <= max_cards else np.sort(rng.choice(ids, size=max_cards, replace=False))
    values, axes = np.linalg.eigh((spread.T.reshape(n, 3, 3) / count[:, :, None])[picked])
    lengths = np.sqrt(np.maximum(values, 1e-10))
    # A rhombus with half diagonals p and q has the area 2pq.
    scale = np.sqrt(areas[picked] / (2.0 * lengths[:, 2] * lengths[:, 1]) * areas[ids].sum() / areas[picked].sum())
    scale = np.minimum(scale, 0.12 / lengths[:, 2])
    long, short = ((lengths[:, k] * scale)[:, None] * axes[:, :, k] for k in (2, 1))
    centre = middle[picked]
    corners = np.stack([centre + long, centre + short, centre - long, centre - short], axis=1).reshape(-1, 3)
    first = 4 * np.arange(len(picked))[:, None]
    return corners, np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])])


def decimate(vertices: np.ndarray, faces: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster vertices, then collapse edges by quadrics; of several cell sizes the one that keeps most of the area.

    The quadrics alone tear models whose topology they cannot collapse; clustering first removes what is smaller than
    a pixel and repairs the topology.

    Args:
        vertices: [v, 3] float64; faces: [f, 3] int64, welded; budget: how many faces to aim at.

    Returns:
        The new vertices and faces, at most about 1.5 budgets.
    """
    if len(faces) <= budget:
        return vertices, faces
    area = face_areas(vertices, faces).sum()
    best = cluster(vertices, faces, CELLS[-1])
    best_score = -1.0
    for cell in CELLS:
        smaller = _collapse(*cluster(vertices, faces, cell), budget)
        excess = len(smaller[1]) / budget
        score = min(face_areas(*smaller).sum() / area, 1.0) - max(excess - 1.5, 0.0)
        if score > best_score:
            best, best_score = smaller, score
        if best_score > 0.93:
            break
    return best


def _collapse(vertices: np.ndarray, faces: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    if len(faces) <= budget:
        return vertices, faces
    points, triangles = fast_simplification.simplify(
        vertices.astype(np.float32), faces.astype(np.int32), target_count=budget, agg=_AGGRESSION
    )
    return weld(points.astype(np.float64), triangles.astype(np.int64))


def cluster(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Merge the vertices of each cell of a grid into their mean: -> vertices, faces without degenerate ones."""
    keys = np.round(vertices / cell).astype(np.int64)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    count = np.bincount(inverse)
    merged = np.stack([np.bincount(inverse, weights=vertices[:, k]) / count for k in range(3)], axis=1)
    return weld(merged, inverse[faces])
