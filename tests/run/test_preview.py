"""Pictures have the right pixels; films play."""

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest

from nerf_bridge.run.preview import image_grid, save_png, save_turntable, to_bytes


def test_values_become_bytes():
    values = np.array([0.0, 0.5, 1.0, -3.0, 7.0, np.nan, np.inf], dtype=np.float32)
    assert to_bytes(values).tolist() == [0, 128, 255, 0, 255, 0, 255]


def test_grid_goes_left_to_right_then_down():
    images = np.stack([np.full((2, 3, 3), value) for value in (0.1, 0.2, 0.3)])
    grid = image_grid(images, columns=2)
    assert grid.shape == (4, 6, 3)
    corners = [grid[0, 0, 0], grid[0, 3, 0], grid[2, 0, 0], grid[2, 3, 0]]
    assert corners == pytest.approx([0.1, 0.2, 0.3, 1.0])
    assert image_grid(images, columns=8).shape == (2, 9, 3)


def test_png_has_the_pixels(tmp_path):
    image = np.zeros((4, 6, 3), dtype=np.float32)
    image[0, 5] = (1.0, 0.5, 0.0)
    save_png(tmp_path / "preview.png", image)
    read = iio.imread(tmp_path / "preview.png")
    assert read.shape == (4, 6, 3) and read[0, 5].tolist() == [255, 128, 0] and read[3].sum() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_film_plays_in_browsers(tmp_path):
    path = tmp_path / "turntable.mp4"
    frames = [np.full((33, 47, 3), value, dtype=np.float32) for value in np.linspace(0.2, 0.8, 12)]
    save_turntable(path, iter(frames), fps=12)
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (12, pytest.approx(1.0))
    header = next(imageio_ffmpeg.read_frames(str(path)))
    assert header["codec"] == "h264" and header["pix_fmt"].startswith("yuv420p") and header["size"] == (48, 34)
    assert path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat")  # starts before all of it is there
    first = iio.imread(path, index=0)
    assert abs(first.astype(float).mean() - 0.2 * 255) < 4
    assert [file.name for file in tmp_path.iterdir()] == ["turntable.mp4"]


def test_a_film_that_is_cut_short_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(imageio_ffmpeg, "count_frames_and_secs", lambda path: (2, 0.1))
    with pytest.raises(OSError, match="2 of 3 frames"):
        save_turntable(tmp_path / "turntable.mp4", [np.zeros((16, 16, 3))] * 3)
    assert list(tmp_path.iterdir()) == []
