"""detect.py reads images and videos at URLs, here of a server in this process."""

import io
import json
import os
import re
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from preloaded import start_python

import detect
from data import urls
from data.urls import url_name, without_password
from detect import iter_images
from utils.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg() -> bytes:
    return cv2.imencode(".jpg", PIXELS)[1].tobytes()


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, bytes]:
    """Videos of 12 frames by suffix."""
    folder = tmp_path_factory.mktemp("videos")
    for suffix, codec in (("avi", "MJPG"), ("mp4", "mp4v")):
        writer = cv2.VideoWriter(
            str(folder / f"v.{suffix}"), cv2.VideoWriter_fourcc(*codec), 10, (80, 64)
        )
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 256, (64, 80, 3), dtype=np.uint8)
            writer.write(noise)
        writer.release()
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


class Handler(BaseHTTPRequestHandler):
    """What there is at `/NAME.suffix` is sent by `send_NAME`."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        not_found = lambda _: self.send_error(404)  # noqa: E731
        getattr(self, f"send_{Path(path).stem}", not_found)(Path(path).suffix)

    def send(self, content: bytes, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def send_image(self, suffix: str) -> None:
        self.send(png(), "image/png")

    def send_page(self, suffix: str) -> None:
        self.send(b"<html>no image</html>", "text/html")

    def send_half(self, suffix: str) -> None:
        content = png() if suffix == ".png" else self.server.videos[suffix]
        kind = "image/png" if suffix == ".png" else "video/avi"
        self.send(content[: len(content) // 2], kind, len(content))

    def send_large(self, suffix: str) -> None:
        self.send(b"", "image/png", 10**12)

    def send_endless(self, suffix: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.repeat(bytes(1 << 20))

    def send_video(self, suffix: str) -> None:
        self.send(self.server.videos[suffix], "video/mp4")

    def send_locked(self, suffix: str) -> None:
        if self.headers.get("Authorization") == "Basic bWU6c2VjcmV0":  # me:secret
            self.send_image(suffix)
        else:
            self.send_error(401)

    def send_host(self, suffix: str) -> None:
        """Send the reader to the host of the query, with a password for this one."""
        self.send_response(302)
        self.send_header("Location", f"http://{self.path.partition('?')[2]}/locked.png")
        self.end_headers()

    def send_moved(self, suffix: str) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/hostname")
        self.end_headers()

    def send_live(self, suffix: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg())}\r\n\r\n"
        self.repeat(head.encode() + jpeg() + b"\r\n", 0.05, 40 if suffix == ".short" else 10**6)

    def repeat(self, content: bytes, seconds: float = 0, times: int = 10**6) -> None:
        try:
            for _ in range(times):
                self.wfile.write(content)
                time.sleep(seconds)
        except OSError:  # the reader has gone
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(videos):
    """The address of a server, HOST:PORT."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.videos = True, videos
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def seen(source: object) -> tuple[list[tuple[str, int | None]], list[str]]:
    """Return source and index of what can be read of a source, and the errors."""
    frames = [*iter_images(str(source))]
    read = [(frame.source, frame.index) for frame in frames if frame.image is not None]
    return read, [frame.error for frame in frames if frame.image is None]


@pytest.mark.parametrize("name", ["image.png", "image", "image.php?id=a/b.mp4", "image.jpg#top"])
def test_image_at_a_url(name, server):
    (frame,) = iter_images(f"http://{server}/{name}")
    assert (frame.source, frame.index) == (f"http://{server}/{name}", None)
    np.testing.assert_array_equal(frame.image.permute(1, 2, 0).numpy(), PIXELS)


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_video_at_a_url(suffix, server):
    url = f"http://{server}/video{suffix}"
    assert seen(url) == ([(url, i) for i in range(12)], [])


def test_a_password_is_sent_and_not_shown(server):
    read, errors = seen(f"http://me:secret@{server}/locked.png")
    assert (read, errors) == ([(f"http://{server}/locked.png", None)], [])
    with pytest.raises(UserError) as error:
        next(iter_images(f"http://me:wrong@{server}/locked.png"))
    assert str(error.value) == (
        f"--source http://{server}/locked.png: cannot be read: the server answers 401 Unauthorized"
    )


def test_a_password_is_not_sent_to_another_host(server):
    url = f"{server}/host.png?{server}"
    assert seen(f"http://me:secret@{url}") == ([(f"http://{url}", None)], [])
    other = server.replace("127.0.0.1", "localhost")
    with pytest.raises(UserError, match="the server answers 401 Unauthorized"):
        next(iter_images(f"http://me:secret@{server}/host.png?{other}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("moved.png", "cannot be read: the server answers 302 Found - Redirection to url 'file:"),
        ("half.png", r"broke off after \d+ of \d+ bytes: the server closed it"),
        ("large.png", "larger than the 100 MB that are read of an image"),
        ("endless.png", "larger than the 1 MB that are read of an image"),
        ("none.mp4", r"no frame could be read \(the server answers 404 Not Found\)"),
        ("none.png", "cannot be read: the server answers 404 Not Found"),
        ("page", r"no frame could be read \(need a stream that OpenCV supports, and an answer"),
    ],
)
def test_what_a_server_has_not_is_one_sentence(name, message, server, monkeypatch):
    if name == "endless.png":
        monkeypatch.setattr(urls, "MAX_BYTES", 1_000_000)
    with pytest.raises(UserError) as error:
        next(iter_images(f"http://{server}/{name}"))
    text = str(error.value)
    assert re.match(re.escape(f"--source http://{server}/{name}: ") + message, text), text
    assert "\n" not in text


def test_a_list_of_urls_goes_on_after_one_that_is_wrong(server, tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "local.png")
    names = ["image.png", "half.png", "page.png", "video.avi"]
    lines = [*(f"http://{server}/{name}" for name in names), "local.png"]
    for suffix in ("txt", "streams"):
        (tmp_path / f"list.{suffix}").write_text("\n".join(lines))
        read, errors = seen(tmp_path / f"list.{suffix}")
        expected = [(lines[0], None), *((lines[3], i) for i in range(12))]
        assert read == [*expected, (str(tmp_path / "local.png"), None)]
        assert errors[0].startswith(f"{lines[1]}: broke off after ")
        assert errors[1] == f"{lines[2]}: cannot be read: found an HTML page; skipped"
        assert len(errors) == 2


def test_a_video_that_breaks_off_is_reported_with_its_frames(server):
    url = f"http://{server}/half.avi"
    read, (error,) = seen(url)
    assert 0 < len(read) < 12
    assert error == f"{url}: read {len(read)} of the 12 frames that it says it has"


def test_a_stream_that_ends_is_reported_with_its_frames(server):
    url = f"http://{server}/live.short"
    read, (error,) = seen(url)
    assert len(read) > 30
    assert error == f"{url}: the stream ended after {len(read)} frames"


def test_a_server_that_does_not_answer_is_one_sentence(capsys):
    with pytest.raises(UserError) as error:
        next(iter_images("http://127.0.0.1:1/a.png"))
    assert str(error.value) == (
        "--source http://127.0.0.1:1/a.png: cannot be read: Connection refused"
    )
    with pytest.raises(UserError, match=r"--source rtsp://127\.0\.0\.1:1/a: no frame"):
        next(iter_images("rtsp://me:secret@127.0.0.1:1/a"))


def test_ctrl_c_ends_a_stream_with_its_frames_written(server, trained_run, tmp_path):
    best = trained_run / "exp" / "weights" / "best.pt"
    url = f"http://me:secret@{server}/live"
    command = ["detect.py", "--weights", best, "--source", url, "--save-json"]
    command += ["--project", tmp_path, "--device", "cpu", "--imgsz", "64", "--save-txt"]
    process = start_python(command, cwd=ROOT, stdout=subprocess.PIPE)
    lines = [process.stdout.readline() for _ in range(5)]
    process.send_signal(signal.SIGINT)
    lines += process.stdout.readlines()
    assert process.wait() == 0
    assert lines[4].startswith(f"http://{server}/live, frame 4: ")
    assert lines[-2] == "stopped by SIGINT\n"
    assert (count := int(re.match(r"processed (\d+) images in ", lines[-1])[1])) >= 5
    capture = cv2.VideoCapture(str(tmp_path / "exp" / "live.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == count
    assert len(os.listdir(tmp_path / "exp" / "labels")) == count  # noqa: PTH208
    files = {row["file"] for row in json.loads((tmp_path / "exp/predictions.json").read_text())}
    assert files <= {f"http://{server}/live"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://me:pw@camera:554/ch1/main?x=a/b", "main"),
        ("rtsp://me:pw@camera:554", "camera_554"),
        ("https://host/a.b/photo.jpg?size=1#f/g", "photo.jpg"),
        ("https://host/..%2f..%2fx.png", "..%2f..%2fx.png"),
    ],
)
def test_name_of_a_result(url, name):
    assert url_name(url) == name
    assert "pw" not in without_password(url)


def test_a_local_file_that_looks_like_nothing_names_urls(capsys):
    arguments = ["--weights", "no.pt", "--source", "ftp://host/a.png"]
    assert detect.main(arguments) == 2
    capsys.readouterr()
    with pytest.raises(UserError, match="or a URL that begins with http, https, rtsp or rtmp"):
        next(iter_images("ftp://host/a.png"))
