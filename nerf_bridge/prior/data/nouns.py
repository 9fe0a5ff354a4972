"""English nouns for the catalogue's names: cleaned, merged, with articles and synonyms."""

from __future__ import annotations

from nerf_bridge.prior.data.noun_table import NOUN_OF_NAME

# Single models whose catalogue name is wrong or too general.
NOUN_OF_KEY: dict[str, str] = {
    "Blend Swap CC-0#umbrella": "beach umbrella",
    "Blend Swap CC-0#umbrellaFolded": "folded umbrella",
    "Blend Swap CC-0#ammoBox": "crate",
    "Blend Swap CC-0#box": "storage box",
    "Blend Swap CC-0#lamp2": "chandelier",
    "Blend Swap CC-0#islandExtension": "kitchen counter",
    "Blend Swap CC-0#stove": "cooktop",
    "Blend Swap CC-0#babyRockingBed": "crib",
    "Blend Swap CC-0#stool": "bar stool",
    "Blend Swap CC-0#silla2": "bar stool",
    "Blend Swap CC-0#stool2": "stool",
    "Blend Swap CC-0#childHut": "playground",
    "Blend Swap CC-BY#chest": "chest of drawers",
    "Blend Swap CC-BY#classSeat": "school chair",
    "Blend Swap CC-BY#towel": "towel",
    "Kator Legaz#propane-stove": "stove",
    "Kator Legaz#bowl": "bowl",
    "Scopia#ext_chair": "lounge chair",
    "Scopia#ext_table": "coffee table",
    "Scopia#living_room_table": "coffee table",
    "Scopia#pottery": "pot",
    "Scopia#old_jar": "jug",
    "Scopia#creamer": "jug",
    "Scopia#cup": "teacup",
    "Scopia#sushi_tray": "tray",
    "Scopia#kitchen_tool1": "spoon",
    "Scopia#kitchen_tool2": "ladle",
    "Scopia#kitchen_tool3": "spatula",
    "Scopia#kitchen_tool4": "pasta spoon",
    "Scopia#office_furniture1": "sideboard",
    "Scopia#office_box": "office cabinet",
    "Scopia#complements2": "candle holder",
    "Scopia#vase5": "vase of reeds",
    "Scopia#pencil1": "pen",
    "Scopia#contemp_living_room": "TV cabinet",
    "Scopia#living_lamp": "floor lamp",
    "Scopia#com_bath2_soap": "soap dispenser",
    "Scopia#com_bath2_cepillo": "hairbrush",
    "Scopia#puff": "beanbag chair",
    "Scopia#pelle": "shovel",
    "Scopia#shovel": "dustpan",
    "Scopia#round-swimming-pool": "paddling pool",
    "Scopia#rattanTable": "rattan table",
    "Scopia#wood_bank": "bench",
    "Scopia#ficusTree": "tree",
    "Scopia#basin": "basin",
}

PEOPLE = frozenset(
    {
        "woman", "man", "boy", "girl", "sitting woman", "sitting man", "sitting boy", "sitting girl",
        "lying woman", "lying man", "lying boy", "mannequin", "doll",
    }
)  # fmt: skip

# Other words for the same thing, used in further captions. Every noun of a key is true of all models of the key.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "bar stool": ("stool",),
    "bathtub": ("bath",),
    "bedside table": ("nightstand",),
    "bicycle": ("bike",),
    "bookcase": ("bookshelf",),
    "chest": ("trunk",),
    "chest of drawers": ("dresser",),
    "chesterfield armchair": ("armchair",),
    "chesterfield sofa": ("sofa", "couch"),
    "coffee table": ("low table",),
    "corner sofa": ("sofa", "corner couch"),
    "computer": ("desktop computer",),
    "cupboard": ("cabinet",),
    "fridge": ("refrigerator",),
    "corner cabinet": ("cupboard",),
    "floor lamp": ("lamp",),
    "folding chair": ("chair",),
    "glass door cabinet": ("cupboard",),
    "kitchen cabinet": ("cupboard", "kitchen cupboard"),
    "mobile phone": ("smartphone",),
    "motorcycle": ("motorbike",),
    "pair of trousers": ("trousers",),
    "office cabinet": ("cupboard",),
    "potted plant": ("plant",),
    "rattan armchair": ("armchair",),
    "rattan sofa": ("sofa",),
    "round table": ("table",),
    "rug": ("carpet",),
    "sofa": ("couch",),
    "street lamp": ("lamppost",),
    "sun lounger": ("deck chair",),
    "table lamp": ("lamp",),
    "telephone": ("phone",),
    "trash can": ("dustbin",),
    "TV": ("television",),
    "sideboard": ("cupboard",),
    "sofa bed": ("sofa",),
    "SUV": ("car",),
    "small car": ("car",),
    "sports car": ("car",),
    "wardrobe": ("cupboard", "closet"),
    "washbasin": ("sink",),
}

_MASS_NOUNS = frozenset({"butter", "bread", "bamboo", "shelves"})
_CONSONANT_SOUND = ("uni", "use", "utensil", "euro", "one", "urinal")
_AN_ABBREVIATIONS = ("SUV", "MP3", "LED")


def noun_of(key: str, name: str) -> str:
    """Return the noun for a catalogue entry.

    Args:
        key: the entry's key; name: its name, e.g. ``Armchair 2``.

    Returns:
        A lower-case noun (abbreviations keep their capitals), without trailing numbers.
    """
    if key in NOUN_OF_KEY:
        return NOUN_OF_KEY[key]
    lower = name.strip().lower()
    if lower in NOUN_OF_NAME:
        return NOUN_OF_NAME[lower]
    words = lower.split()
    while len(words) > 1 and words[-1].isdigit():
        words.pop()
    stripped = " ".join(words)
    return NOUN_OF_NAME.get(stripped, stripped)


def article_of(noun: str) -> str:
    """Return ``a`` or ``an`` for countable nouns, ``""`` for plurals and mass nouns."""
    return "" if noun in _MASS_NOUNS else _indefinite(noun)


def with_article(phrase: str, countable: bool) -> str:
    """Put a or an before a phrase by the sound that it starts with; nothing where it is not countable."""
    return f"{_indefinite(phrase)} {phrase}" if countable else phrase


def _indefinite(phrase: str) -> str:
    if phrase.startswith(_AN_ABBREVIATIONS):
        return "an"
    if phrase.lower().startswith(_CONSONANT_SOUND):
        return "a"
    return "an" if phrase[:1].lower() in "aeiou" else "a"
