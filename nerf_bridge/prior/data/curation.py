"""What a look at every model of the catalogues told: what to leave out, turn, stand up, and rename."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from nerf_bridge.prior.data.model import LibraryModel, face_areas, normalise_vertices
from nerf_bridge.prior.data.nouns import PEOPLE, article_of, noun_of

# Names of what is left out: marks on the road, flat plates on a wall, loose fittings in the air.
_DROPPED_NAME = re.compile(
    r"plug$|switch$|^(Wall|Wall double) socket$|^Parking slot|^Arrow |^Bill |^Pedestrian crossing|^Concrete sidewalk"
    r"|^Induction cooker|^Shower head|^Rails$|^Ruler$|^Card game|^Comb$|^Entry |^Electronic scale|^Wall hanger"
    r"|^Window shutter|^Smoke detector"
)
DROPPED_KEYS = frozenset({"Scopia#box_room", "Scopia#coffee_table", "Scopia#bamboo"})

# Models whose glass would hide what makes them recognisable.
GLASS_HIDES = frozenset(
    {"Blend Swap CC-BY#clock", "Scopia#aquarium", "Scopia#com_bath", "Kator Legaz#plate-and-ustensils"}
)

# Their own colour is not what their largest material is called.
NO_COLOUR_WORD = frozenset({"Scopia#steak", "Scopia#parque", "Blend Swap CC-0#childHut"})

# Models whose own licence file asks for more than their catalogue does.
LICENCE_OF_KEY: dict[str, str] = {
    "Blend Swap CC-0#winchesterArmchair": "CC-BY 3.0",
    "Blend Swap CC-0#winchesterSofa": "CC-BY 3.0",
}

# Windows whose largest material is the reveal, which hardly shows: a tint would colour nothing but its edge.
UNTINTED_PREFIXES = ("Scopia#window_", "Scopia#turn-window")

# Turns about the vertical axis, in degrees counter-clockwise seen from above, that bring the front towards −y.
YAW_DEG: dict[str, float] = {
    "Blend Swap CC-0#caballito": -90.0,
    "Blend Swap CC-0#forkLift": 90.0,
    "Blend Swap CC-0#wheelbarrow": -90.0,
    "Blend Swap CC-0#motorbike": -90.0,
    "Blend Swap CC-BY#toyTrain": -90.0,
}

# Flat things that lie in the catalogue; standing, their shape shows from the front.
_STANDING_NAME = re.compile(
    r"^(Dress|Short|Trousers|Jacket|Skirt|Socket|Tool|Fork|Knife|Spoon|Kitchen knife|Tennis racket|Table tennis bat"
    r"|Apple iPhone|Mobile phone|Tablet|TV remote control|Keys|Glove|Scissors|Puzzle|Pencil|Number lock)$"
)
_ALREADY_STANDING = frozenset({"Blend Swap CC-0#numberLock"})
_STANDING_KEYS = frozenset({"Scopia#montre", "Scopia#pelle"})


def is_dropped(key: str, name: str) -> bool:
    """Say whether a catalogue entry stays out of the library."""
    return key in DROPPED_KEYS or _DROPPED_NAME.search(name) is not None


def turn_model(model: LibraryModel, catalogue_name: str) -> LibraryModel:
    """Turn a model so that its front faces −y, and stand flat things up."""
    vertices = model.vertices.astype(np.float64)
    stands = catalogue_name != "" and _STANDING_NAME.match(catalogue_name) is not None
    if (stands and model.name not in _ALREADY_STANDING) or model.name in _STANDING_KEYS:
        # Top to front, back to top: (x, y, z) -> (x, −z, y).
        vertices = np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], axis=1)
    yaw_rad = np.deg2rad(YAW_DEG.get(model.name, 0.0))
    cosine, sine = np.cos(yaw_rad), np.sin(yaw_rad)
    x, y = vertices[:, 0].copy(), vertices[:, 1].copy()
    vertices[:, 0], vertices[:, 1] = cosine * x - sine * y, sine * x + cosine * y
    return replace(model, vertices=normalise_vertices(vertices))


def name_model(model: LibraryModel) -> LibraryModel:
    """Replace the catalogue's name by a noun with its article, correct the licence; people are never coloured."""
    noun = noun_of(model.name, model.noun)
    word = None if model.name in NO_COLOUR_WORD else model.base_colour_word
    licence = LICENCE_OF_KEY.get(model.name, model.licence)
    model = replace(model, noun=noun, article=article_of(noun), base_colour_word=word, licence=licence)
    if noun in PEOPLE:
        return replace(model, base_colour_word=None, face_tintable=np.zeros_like(model.face_tintable))
    if model.name.startswith(UNTINTED_PREFIXES):
        return replace(model, face_tintable=np.zeros_like(model.face_tintable))
    return model


def silhouette_share(model: LibraryModel) -> float:
    """Estimate the part of a training image that a model covers, averaged over views.

    Cauchy: the mean projected area of a convex surface is a quarter of its area; the box's surface bounds what
    clutter and hidden faces would add. The image is 2·3·tan 20° wide at distance 3.
    """
    size = np.ptp(model.vertices, axis=0)
    box_area = 2.0 * float(size[0] * size[1] + size[1] * size[2] + size[2] * size[0])
    area = min(float(face_areas(model.vertices, model.faces).sum()), box_area)
    return 0.25 * area / (6.0 * np.tan(np.deg2rad(20.0))) ** 2


def curate(models: list[LibraryModel], min_share: float = 0.02) -> list[LibraryModel]:
    """Drop, turn and name the models of a freshly read library.

    Args:
        models: with the catalogue's names as nouns; min_share: smallest part of the image that a model must cover.

    Returns:
        The library's models.
    """
    kept = [model for model in models if not is_dropped(model.name, model.noun)]
    turned = [name_model(turn_model(model, model.noun)) for model in kept]
    return [model for model in turned if silhouette_share(model) >= min_share]
