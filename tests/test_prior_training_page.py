"""The training's table and picture in docs/prior.md are those of the weights that are shipped."""

import json
import shutil
from xml.etree import ElementTree

from benchmarks import prior_training

DOCS = prior_training.ROOT / "docs"


def test_table_and_picture_are_up_to_date(tmp_path):
    shutil.copy(DOCS / "prior.md", tmp_path)
    assert prior_training.main(["--docs", str(tmp_path)]) == 0
    for name in ("prior.md", "prior-training.svg"):
        drawn = (tmp_path / name).read_text(encoding="utf-8")
        assert drawn == (DOCS / name).read_text(encoding="utf-8"), "run python -m benchmarks.prior_training"
    words = [element.text for element in ElementTree.fromstring(drawn).iter() if element.text]
    assert {label for _, label, _ in prior_training.LINES} <= set(words)


def test_images_add_up_over_trainings():
    log = [{"step": step, "seconds": 1.0, "loss": 0.1, "error": 0.1} for step in (99, 199)]
    first, second = ({"batch": 10, "gpus": gpus, "log": log} for gpus in (2, 1))
    index = json.loads(json.dumps({"training": second | {"earlier": [first]}}))
    points = prior_training.training_points(index)
    assert [(point.training, point.images) for point in points] == [(0, 2000), (0, 4000), (1, 5000), (1, 6000)]
