"""A file of prompts becomes jobs, or every bad line is told at once."""

from pathlib import Path

import pytest

from nerf_bridge.batch.jobs import read_jobs
from nerf_bridge.errors import UserError

OUT = Path("runs")


def jobs_of(folder: Path, name: str, text: str, **more):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return read_jobs(path, OUT, **more)


def problems_of(folder: Path, name: str, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        jobs_of(folder, name, text)
    return str(caught.value).split("\n")


def test_text_has_a_prompt_a_line(tmp_path):
    jobs = jobs_of(tmp_path, "jobs.txt", "\ufeff# furniture\na green armchair\r\n\n  a red sofa, old  \n#end")
    assert [(job.prompt, job.line) for job in jobs] == [("a green armchair", 2), ("a red sofa, old", 4)]
    assert [job.out for job in jobs] == [OUT / "a-green-armchair-s0", OUT / "a-red-sofa-old-s0"]
    assert jobs[0].config().prompt == "a green armchair" and jobs[0].settings == {}


def test_text_lines_may_be_objects(tmp_path):
    jobs = jobs_of(tmp_path, "jobs.txt", 'a chair\n{"prompt": "a sofa", "steps": 5}\n')
    assert [job.prompt for job in jobs] == ["a chair", "a sofa"]
    assert jobs[1].config().steps == 5


def test_objects_take_nested_and_dotted_settings(tmp_path):
    text = '{"prompt": "a sofa", "seed": 7, "mesh": {"faces": 500}, "mesh.texture": 128}\n'
    job = jobs_of(tmp_path, "jobs.jsonl", text)[0]
    config = job.config()
    assert (config.seed, config.mesh.faces, config.mesh.texture) == (7, 500, 128)
    assert job.settings == {"seed": 7, "mesh": {"faces": 500, "texture": 128}}
    assert job.out.name.startswith("a-sofa-s7-")


def test_csv_columns_are_settings(tmp_path):
    text = 'prompt, seed, mesh.faces\n"a sofa, red", 3, 500\n\n# no chair\na table,,\n'
    jobs = jobs_of(tmp_path, "jobs.csv", text)
    assert [(job.prompt, job.line) for job in jobs] == [("a sofa, red", 2), ("a table", 5)]
    assert jobs[0].config().mesh.faces == 500 and jobs[0].config().seed == 3
    assert jobs[1].settings == {}


def test_settings_of_the_batch_hold_for_all_and_give_way(tmp_path):
    base = {"steps": 9, "mesh.faces": 700, "seed": 2}
    first, second = jobs_of(tmp_path, "jobs.jsonl", '{"prompt": "a"}\n{"prompt": "b", "steps": 5}', base=base)
    assert (first.config().steps, first.config().mesh.faces) == (9, 700)
    assert (second.config().steps, second.config().mesh.faces) == (5, 700)
    assert first.out == OUT / "a-s2"


def test_duplicates_get_directories_of_their_own(tmp_path):
    jobs = jobs_of(tmp_path, "jobs.txt", "a chair\na chair\nA chair!\na chair\n")
    assert [job.out.name for job in jobs] == ["a-chair-s0", "a-chair-s0-2", "a-chair-s0-3", "a-chair-s0-4"]


def test_directories_do_not_depend_on_the_order(tmp_path):
    lines = ['{"prompt": "a", "steps": 5}', '{"prompt": "a", "steps": 6}', '{"prompt": "a"}']
    there = {job.config().steps: job.out for job in jobs_of(tmp_path, "a.jsonl", "\n".join(lines))}
    back = {job.config().steps: job.out for job in jobs_of(tmp_path, "b.jsonl", "\n".join(reversed(lines)))}
    assert there == back and len(set(there.values())) == 3


def test_a_directory_may_be_named(tmp_path):
    job = jobs_of(tmp_path, "jobs.jsonl", '{"prompt": "a", "out": "mine", "steps": 5}')[0]
    assert job.out == OUT / "mine" and "out" not in job.settings


def test_every_bad_line_is_told_at_once(tmp_path):
    text = (
        '{"prompt": "good"}\n{"prompt": " "}\n{"prompt": "a", "stepz": 3, "mesh": {"faces": 1}}\n{"prompt\n[1]\nplain\n'
    )
    problems = problems_of(tmp_path, "jobs.jsonl", text)
    path = tmp_path / "jobs.jsonl"
    assert [line.split(": ")[1] for line in problems] == ["line 2", "line 3", "line 3", "line 4", "line 5", "line 6"]
    assert all(line.startswith(f"{path}: ") for line in problems)
    assert "empty" in problems[0] and "stepz" in "".join(problems) and "mesh.faces" in "".join(problems)
    assert "no JSON" in problems[3] and "list" in problems[4]


def test_long_prompts_and_bad_places_are_told(tmp_path):
    problems = problems_of(tmp_path, "jobs.txt", f'{"x" * 600}\n{{"prompt": "a", "out": 3}}')
    assert "600 characters" in problems[0] and "out" in problems[1]


def test_bad_csv(tmp_path):
    assert "prompt" in problems_of(tmp_path, "a.csv", "name,seed\na,1\n")[0]
    assert "distinct" in problems_of(tmp_path, "b.csv", "prompt,seed,seed\na,1,2\n")[0]
    assert "3 cells for 2 columns" in problems_of(tmp_path, "c.csv", "prompt,seed\na,1\nb, c,1\n")[0]
    assert "no CSV" in problems_of(tmp_path, "d.csv", 'prompt\n"a\n')[0]
    assert "line 3" in problems_of(tmp_path, "e.csv", "prompt,seed\na,1\nb,-4\n")[0]


@pytest.mark.parametrize("name", ["jobs.txt", "jobs.jsonl", "jobs.csv"])
def test_no_prompts(tmp_path, name):
    assert "has no prompts" in problems_of(tmp_path, name, "# nothing\n\n")[0]


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_jobs(tmp_path / "none.txt", OUT)
    with pytest.raises(UserError, match="directory"):
        read_jobs(tmp_path, OUT)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_jobs(tmp_path / "binary.txt", OUT)
