"""What detect.py looks at, what it says about the rest, and that no result replaces another."""

import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.sources import Frame
from data.video import VideoWriter, read_video
from detect import ResultWriter, iter_images
from utils.errors import UserError

NOTHING = {
    "boxes": torch.zeros(0, 4),
    "scores": torch.zeros(0),
    "labels": torch.zeros(0, dtype=torch.int64),
}


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 64), "red").save(path, "PNG")
    return path


def video(path: Path, frames: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path if path.suffix == ".avi" else path.with_name("temporary.avi")
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 64))
    for i in range(frames):
        noise = np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        writer.write(noise)
    writer.release()
    return target.rename(path)


def seen(source: object) -> tuple[list[str], list[str]]:
    """Return the images and frames of a source, by name, and the errors."""
    frames = [*iter_images(str(source))]
    images = [
        Path(f.source).name + ("" if f.index is None else f" {f.index}")
        for f in frames
        if f.image is not None
    ]
    return images, [f.error for f in frames if f.image is None]


def test_folder_glob_and_list_are_looked_at_whole(tmp_path):
    folder = tmp_path / "in"
    for name in ("a.png", "c.jfif", "sub/e.gif"):
        image(folder / name)
    video(folder / "b.avi", 2)
    video(folder / "d.flv", 1)
    (folder / "notes.md").write_text("text")
    expected = ["a.png", "b.avi 0", "b.avi 1", "c.jfif", "d.flv 0"]
    assert seen(folder) == ([*expected, "e.gif"], [])
    assert seen(folder / "*.*") == (expected, [])
    (tmp_path / "list.txt").write_text("\ufeffin/d.flv\r\nin/a.png\r\n", encoding="utf-8")
    assert seen(tmp_path / "list.txt") == (["d.flv 0", "a.png"], [])


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path):
    folder = tmp_path / "in"
    image(folder / "a.png")
    (folder / "b.mp4").write_bytes(bytes(1000))
    (folder / "c.jpg").write_bytes(b"")
    (folder / "d.psd").write_bytes(b"8BPS")
    (folder / "e.webm").write_bytes(b"")
    image(folder / "f.png")
    images, errors = seen(folder)
    assert images == ["a.png", "f.png"]
    for name in ("b.mp4: no frame could be read", "c.jpg", "d.psd", "e.webm: no frame could be"):
        assert sum(f"{folder}/{name}" in error for error in errors) == 1
    assert len(errors) == 4
    (tmp_path / "list.txt").write_text("in/a.png\nin/gone.png\nin/gone.mp4\n")
    images, errors = seen(tmp_path / "list.txt")
    assert images == ["a.png"] and len(errors) == 2
    assert "gone.png" in errors[0] and "gone.mp4" in errors[1]


def test_video_that_stops_is_reported_with_its_frames(tmp_path):
    path = video(tmp_path / "in" / "a.avi", 20)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    image(tmp_path / "in" / "b.png")
    for source in (path, tmp_path / "in"):
        images, (error,) = seen(source)
        count = sum(name.startswith("a.avi") for name in images)
        assert 0 < count < 20
        assert error == f"{path}: read {count} of the 20 frames that it says it has"
    assert images[-1] == "b.png"


def test_video_that_is_whole_is_not_reported(tmp_path):
    for suffix in (".avi", ".mp4", ".mkv"):
        path = tmp_path / f"a{suffix}"
        codec = cv2.VideoWriter_fourcc(*("MJPG" if suffix == ".avi" else "mp4v"))
        writer = cv2.VideoWriter(str(path), codec, 10, (80, 64))
        for i in range(12):
            writer.write(np.full((64, 80, 3), 20 * i, np.uint8))
        writer.release()
        assert seen(path) == ([f"a{suffix} {i}" for i in range(12)], [])


def test_folder_whose_name_is_a_number_or_ends_as_a_video(tmp_path, monkeypatch):
    image(tmp_path / "2024" / "a.png")
    image(tmp_path / "day.mp4" / "b.png")
    monkeypatch.chdir(tmp_path)
    assert seen("2024") == (["a.png"], [])
    assert seen("day.mp4") == (["b.png"], [])


def test_what_is_called_a_video_and_is_no_file_is_named(tmp_path):
    folder = tmp_path / "in"
    video(folder / "b.avi", 1)
    (folder / "a.mp4").symlink_to("gone.mp4")
    (tmp_path / "day.mp4").mkdir()
    (folder / "c.mp4").symlink_to(tmp_path / "day.mp4")
    images, errors = seen(folder)
    assert images == ["b.avi 0"] and len(errors) == 2
    for error, name in zip(errors, ("a.mp4", "c.mp4"), strict=True):
        assert error.startswith(f"{folder / name}: no frame could be read")
    (tmp_path / "list.txt").write_text("day.mp4\nin/b.avi\n")
    for source in (tmp_path / "list.txt", tmp_path / "*" / "[b-c].*"):
        images, (error,) = seen(source)
        assert images == ["b.avi 0"] and ".mp4: no frame could be read" in error


def test_a_video_whose_name_begins_like_a_url(tmp_path, monkeypatch):
    writer = VideoWriter(tmp_path / "10:30.mp4")
    for _ in range(2):
        writer.write(torch.zeros(3, 64, 80, dtype=torch.uint8), 10)
    writer.close()
    monkeypatch.chdir(tmp_path)
    assert seen("10:30.mp4") == (["10:30.mp4 0", "10:30.mp4 1"], [])


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode")
def test_a_video_whose_name_is_not_utf8_is_named(tmp_path):
    image(tmp_path / "a.png")
    video(tmp_path / "b.avi").rename(tmp_path / "b\udcff.avi")
    images, (error,) = seen(tmp_path)
    assert images == ["a.png"]
    assert error == f"{tmp_path}/b\udcff.avi: OpenCV needs a path in UTF-8 (rename it)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("9" * 30, f"--source {'9' * 30}: not found"),
        ("nowhere", "--source nowhere: not found (need an image, directory, glob"),
        ("nowhere.mp4", "--source nowhere.mp4: not found"),
        ("notes.md", "--source notes.md: not a format that is read (images: .avif .bmp "),
        ("empty", "--source empty: contains no images and no videos"),
        (
            "other",
            "--source other: contains no images and no videos (first of 1 error",
        ),
        ("text.flv", "--source text.flv: no frame could be read (need a video or camera"),
        ("./text.flv", "--source text.flv: no frame could be read"),
        ("*.xyz", "--source *.xyz: contains no images and no videos"),
    ],
)
def test_source_without_anything_is_an_error(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other"):
        Path(name).mkdir()
    Path("other/a.psd").write_bytes(b"8BPS")
    Path("notes.md").write_text("text")
    Path("text.flv").write_text("text")
    with pytest.raises(UserError) as error:
        next(iter_images(source))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_videos_in_a_folder_without_opencv_are_named(tmp_path, monkeypatch):
    image(tmp_path / "a.png")
    video(tmp_path / "b.avi")
    monkeypatch.setitem(sys.modules, "cv2", None)
    images, (error,) = seen(tmp_path)
    assert images == ["a.png"]
    assert error.startswith(f"{tmp_path}/b.avi: videos and cameras need OpenCV (pip install")


def test_a_video_that_is_listed_twice_is_written_twice(tmp_path):
    video(tmp_path / "a.avi", 2)
    (tmp_path / "list.txt").write_text("a.avi\na.avi\n")
    results = write_results([tmp_path / "list.txt"], tmp_path / "results")
    assert [name for name in results if name.endswith(".mp4")] == ["a.mp4", "a_2.mp4"]


def test_a_long_video_takes_no_memory(tmp_path):
    """Without --save-json: a camera sends frames for days."""
    frame = Frame("0", 0, torch.zeros(3, 16, 16, dtype=torch.uint8), fps=10)
    detections = {
        "boxes": torch.ones(20, 4),
        "scores": torch.ones(20),
        "labels": torch.zeros(20, dtype=torch.int64),
    }
    writer = ResultWriter(tmp_path, ("a",), save_txt=False)
    tracemalloc.start()
    for index in range(200):
        if index == 50:
            before, _ = tracemalloc.get_traced_memory()
        writer.add(frame._replace(index=index), detections)
    writer.close()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000


def test_a_video_whose_frames_change_their_size_has_all_of_them(tmp_path):
    """As a stream that adapts to its network; OpenCV would drop the frames of another size."""
    writer = VideoWriter(tmp_path / "a.mp4")
    for height in (64, 64, 48, 96):
        writer.write(torch.zeros(3, height, 80, dtype=torch.uint8), 10)
    writer.close()
    sizes = {frame.shape for frame, _ in read_video(str(tmp_path / "a.mp4"))}
    assert len([*read_video(str(tmp_path / "a.mp4"))]) == 4 and sizes == {(3, 64, 80)}


@pytest.mark.skipif(sys.platform != "linux", reason="resource limits of Linux")
def test_a_video_on_a_full_disk_is_one_sentence(tmp_path):
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = VideoWriter(tmp_path / "a.mp4")
    noise = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        for _ in range(20):
            writer.write(noise, 10)
        with pytest.raises(UserError, match=r"a\.mp4: 20 frames could not be written"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def write_results(sources: list[Path], results: Path) -> list[str]:
    results.mkdir(exist_ok=True)
    writer = ResultWriter(results, ("a",), save_txt=True)
    for source in sources:
        for frame in iter_images(str(source)):
            writer.add(frame, NOTHING)
    writer.close()
    return sorted(str(p.relative_to(results)) for p in results.rglob("*") if p.is_file())


def test_no_result_replaces_another(tmp_path):
    sources = [image(tmp_path / name) for name in ("a/x.png", "b/x.png", "a/x.webp", "a/v_0.png")]
    sources += [video(tmp_path / name, 1) for name in ("a/v.avi", "a/v.mkv", "b/v.avi", "a/x.mov")]
    frames_read = write_results(sources, tmp_path / "results")
    outputs = [name for name in frames_read if not name.startswith("labels")]
    labels = [name for name in frames_read if name.startswith("labels")]
    assert len(outputs) == len(labels) == len(sources)
    assert {"x.png", "x_2.png", "x_3.webp", "v_0.png", "v.mp4", "v_2.mp4", "v_3.mp4"} < {*outputs}
    for name in outputs:
        if name.endswith(".mp4"):
            capture = cv2.VideoCapture(str(tmp_path / "results" / name))
            assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 1


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a.png", "a.png"),
        ("a.JPG", "a.JPG"),
        ("a.tif", "a.tif"),
        ("a.webp", "a.webp"),
        ("a.gif", "a.jpg"),
        ("a.jfif", "a.jpg"),
        ("a.avif", "a.jpg"),
        ("a.heic", "a.jpg"),
        ("a.mpo", "a.jpg"),
    ],
)
def test_format_of_a_result(name, written, tmp_path):
    frames_read = write_results([image(tmp_path / "in" / name)], tmp_path / "results")
    assert frames_read == sorted(["labels/a.txt", written])
    with Image.open(tmp_path / "results" / written) as result:
        assert result.size == (80, 64)


def test_results_do_not_overwrite_their_source(tmp_path):
    source = image(tmp_path / "results" / "a.png")
    before = source.read_bytes()
    with pytest.raises(UserError) as error:
        write_results([source], tmp_path / "results")
    message = "the result would overwrite it (choose another --project or --name)"
    assert str(error.value) == f"{source}: {message}" and source.read_bytes() == before
    # A copy of that name elsewhere is not a source.
    assert "b.png" in write_results([image(tmp_path / "in" / "b.png")], tmp_path / "results")
