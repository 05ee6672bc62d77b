"""Python processes that need not import torch: each is forked from one that has imported it.

A script, module or program that is started so has its own `__main__`, arguments, environment,
working directory and streams, and nothing of this repository is imported, as in a new interpreter;
but it begins to run some seconds of computing earlier. What an interpreter does by itself with
its environment (`PYTHONIOENCODING`, `PYTHONHASHSEED`, `OMP_NUM_THREADS`) was done before: a test
of that starts a new interpreter.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from functools import cache
from typing import IO

CAN_FORK = sys.platform == "linux"  # elsewhere, forks of what these libraries start may crash
MESSAGE_BYTES = 1 << 20
LIBRARIES = "numpy", "PIL.Image", "pydantic", "torch.distributed.run", "torchvision", "yaml"

# ---------------------------------------------------------------------------- in the tests


def run_python(
    words: Sequence[object], timeout: float = 300, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end; its exit status and what it printed.

    `options` are `cwd`, `env`, `start_new_session` and the streams of `subprocess.run`.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        process = start_python(words, **{"stdout": stdout, "stderr": stderr} | options)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        for file in (stdout, stderr):
            file.seek(0)
        output = stdout.read(), stderr.read()
    return subprocess.CompletedProcess([*words], process.returncode, *output)


def start_python(
    words: Sequence[object], **options: object
) -> "subprocess.Popen[str] | PreloadedPython":
    """Start `python WORDS`, in text mode, with the options of `run_python`."""
    if CAN_FORK:
        return PreloadedPython(words, **options)
    return subprocess.Popen([sys.executable, *map(str, words)], text=True, **options)


class PreloadedPython:
    """A process with those parts of `subprocess.Popen` that the tests use."""

    def __init__(
        self,
        words: Sequence[object],
        cwd: object = None,
        env: dict[str, str] | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        request = {
            "words": [*map(str, words)],
            "cwd": str(cwd or "."),
            "env": dict(os.environ if env is None else env),
            "start_new_session": start_new_session,
        }
        self.returncode: int | None = None
        self._connection, remote = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as stack:
            stack.enter_context(remote)
            self.stdout, out = open_stream(stdout, 1, stack)
            self.stderr, err = open_stream(stderr, 2, stack)
            socket.send_fds(server(), [json.dumps(request).encode()], [remote.fileno(), out, err])
        self.pid = self._receive()

    def _receive(self) -> int:
        message = self._connection.recv(MESSAGE_BYTES)
        assert message, "the process that forks has ended"
        return int(message)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = self._receive()
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Return the rest of its output, a stream after the other: each has room in a pipe."""
        output = self.stdout and self.stdout.read(), self.stderr and self.stderr.read()
        self.wait(timeout)
        return output

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def open_stream(
    stream: int | IO[str] | None, default: int, stack: contextlib.ExitStack
) -> tuple[IO[str] | None, int]:
    """Return a pipe's end to read from, if it is asked for, and the file descriptor to write to."""
    if stream == subprocess.PIPE:
        reader, writer = os.pipe()
        stack.callback(os.close, writer)
        return open(reader), writer  # noqa: PTH123
    if stream == subprocess.DEVNULL:
        return None, stack.enter_context(open(os.devnull, "w")).fileno()  # noqa: PTH123
    if stream is None:
        return None, default
    return None, stream if isinstance(stream, int) else stream.fileno()


@cache
def server() -> socket.socket:
    """Start the process that forks; it ends when this one has closed the connection."""
    local, remote = socket.socketpair(type=socket.SOCK_SEQPACKET)
    bytecode = tempfile.mkdtemp(prefix="bytecode-")
    atexit.register(shutil.rmtree, bytecode, ignore_errors=True)
    with remote:
        words = [sys.executable, __file__, str(remote.fileno()), bytecode]
        subprocess.Popen(words, pass_fds=[remote.fileno()], stdin=subprocess.DEVNULL)
    return local


# ---------------------------------------------------------------------------- in the process


def serve(connection: socket.socket) -> dict | None:
    """Fork a process for each request; return there the request, and None at the end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the tests end this process
    while True:
        message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
        if not message:
            return None
        if os.fork() == 0:
            connection.close()
            return answer(json.loads(message), *fds)
        for fd in fds:
            os.close(fd)


def answer(request: dict, reply_fd: int, stdout: int, stderr: int) -> dict:
    """Fork once more, return the request there, and wait here to tell its id and exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(reply_fd)
        for fd, stream in ((stdout, 1), (stderr, 2)):
            os.dup2(fd, stream)
            os.close(fd)
        return request
    os.close(stdout)
    os.close(stderr)
    with socket.socket(fileno=reply_fd) as reply:
        reply.send(str(pid).encode())
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            reply.send(str(status).encode())
    os._exit(0)


def run(request: dict) -> None:
    """Become the process that was asked for."""
    if request["start_new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number in (signal.SIGHUP, signal.SIGTERM):  # even if the terminal of the tests ignores them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    extra = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    sys.path[:1] = ["", *(path for path in extra if path not in sys.path)]
    tempfile.tempdir = None
    importlib.invalidate_caches()
    sys.modules["__main__"] = types.ModuleType("__main__")
    first, *rest = request["words"]
    if first == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    elif first == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = [first, *rest]
        sys.path[0] = os.path.dirname(os.path.abspath(first))  # noqa: PTH100, PTH120
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in LIBRARIES:
        importlib.import_module(name)
    # The modules of the repository are compiled once, also with PYTHONDONTWRITEBYTECODE.
    sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[2], False
    gc.freeze()
    request = serve(connection)
    if request:
        run(request)


if __name__ == "__main__":
    main()
