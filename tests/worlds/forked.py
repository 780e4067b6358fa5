"""Programs of this Python that find torch, transformers and Lightning imported: forks of a process that has them.

Each is a process in a session of its own that gets its words, environment, directory and pipes as a new Python would,
seconds of imports later. What is imported, how a launcher starts Python and what an installed program does must be
tested with a new Python.

As a script, this is the process that forks: `python -P forked.py serve FD FD`, with a listening socket for each of
LEVELS. It imports nothing before somebody asks, and ends when its stdin does. `python -P forked.py be WORDS` is what a
launcher can start in the place of Python with these words: see `python`.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(str(ROOT / root) for root in ("", "kernels", "export"))
PLACE = "LITEFRAME_TESTS_FORKED"
# What a level has imported, beside what those before it have.
LEVELS = {
    "libraries": (
        *("torch", "torch.distributed.launcher.api", "torchvision.transforms.v2", "safetensors.torch", "timm"),
        *("transformers", "transformers.modeling_utils", "transformers.video_processing_utils"),
        *("transformers.generation", "transformers.models.auto", "transformers.models.internvl.modeling_internvl"),
    ),
    "liteframe": ("liteframe.distill.command", "liteframe.align.command", "liteframe.evaluate.asking"),
}


@contextlib.contextmanager
def forking():
    """Within, `Program` works in this process and those that it starts."""
    with tempfile.TemporaryDirectory(prefix="forked-") as place:
        listeners = []
        for level in LEVELS:
            listeners.append(socket.socket(socket.AF_UNIX))
            listeners[-1].bind(f"{place}/{level}")
            listeners[-1].listen(64)
        numbers = [listener.fileno() for listener in listeners]
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, "serve", *map(str, numbers)], stdin=subprocess.PIPE, pass_fds=numbers,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": SOURCES},
            start_new_session=True,
        )  # fmt: skip
        for listener in listeners:
            listener.close()
        os.environ[PLACE] = place
        stand_in = Path(place) / "python"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "{__file__}" be "$@"\n')
        stand_in.chmod(0o755)
        try:
            yield
        finally:
            del os.environ[PLACE]
            server.stdin.close()
            server.wait()


def python():
    """A path to give to launchers as that of Python: what they start so is forked, and gets their signals."""
    return f"{os.environ[PLACE]}/python"


def ask(words, level, cwd, env, out, err):
    """Have the words run with these pipes; returns the lines that tell of it: its process id, then how it ended."""
    job = {"words": words, "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{os.environ[PLACE]}/{level}")
        socket.send_fds(connection, [b"."], [out, err])
        connection.sendall(json.dumps(job).encode() + b"\n")
        return connection.makefile("r")


class Program:
    """As subprocess.Popen with pipes for stdout and stderr, text, and a session of its own."""

    def __init__(self, command, *, level="liteframe", cwd=None, env=None):
        """
        Args:
            command: sys.executable and the words after it.
            level: what is imported already, one of LEVELS.
            cwd: the directory it begins in.
            env: its environment.
        """
        assert command[0] == sys.executable
        self.args, self.returncode = [str(word) for word in command], None
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        self._news = ask(self.args[1:], level, cwd, env, out_end, err_end)
        os.close(out_end)
        os.close(err_end)
        self._said = ["", ""]
        self._readers = [threading.Thread(target=self._read, args=pair, daemon=True) for pair in enumerate((out, err))]
        for reader in self._readers:
            reader.start()
        self.pid = int(self._news.readline())

    def _read(self, number, source):
        with open(source, errors="replace") as pipe:
            self._said[number] = pipe.read()

    def poll(self):
        return self._wait(0)

    def _wait(self, seconds):
        if self.returncode is None and select.select([self._news], [], [], seconds)[0]:
            self.returncode = int(self._news.readline())
            self._news.close()
        return self.returncode

    def communicate(self, timeout=None):
        """What it and its children wrote, when all of them have ended."""
        end = None if timeout is None else time.monotonic() + timeout

        def left():
            return None if end is None else max(0, end - time.monotonic())

        for reader in self._readers:
            reader.join(left())
        if self._wait(left()) is None or any(reader.is_alive() for reader in self._readers):
            raise subprocess.TimeoutExpired(self.args, timeout)
        return tuple(self._said)

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run(command, *, timeout=600, **options):
    """As subprocess.run(capture_output=True, text=True)."""
    program = Program(command, **options)
    try:
        out, errors = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    return subprocess.CompletedProcess(program.args, program.returncode, out, errors)


def serve(listeners):
    """Fork for each connection; returns one in the fork that is to run its program."""
    (level, own), above = next(iter(listeners.items())), dict(list(listeners.items())[1:])
    imported, next_level = False, None
    while True:
        asked = select.select([0, own, *above.values()], [], [])[0]
        if 0 in asked:
            if next_level is not None:
                os.waitpid(next_level, 0)
            reap()
            os._exit(0)
        reap()
        if not imported:
            for name in LEVELS[level]:
                importlib.import_module(name)
            gc.freeze()
            imported = True
        if own in asked:
            connection = own.accept()[0]
            if os.fork() == 0:
                return connection
            connection.close()
        elif above:
            next_level = os.fork()
            if next_level == 0:
                own.close()
                return serve(above)
            for listener in above.values():
                listener.close()
            above = {}


def reap():
    """Let go of children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def receive(connection):
    """Stays behind to tell how the program ends; returns the job in the process that is to run it."""
    _, (out, err), _, _ = socket.recv_fds(connection, 1, 2)
    with connection.makefile("rb") as lines:
        job = json.loads(lines.readline())
    os.setsid()
    if child := os.fork():
        os.close(out)
        os.close(err)
        with contextlib.suppress(BrokenPipeError):
            connection.sendall(b"%d\n" % child)
            ended = os.waitpid(child, 0)[1]
            connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(ended))
        os._exit(0)
    connection.close()
    os.setsid()
    for number, source in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(source, number)
        os.close(source)
    # Those of before may know themselves as files that one can seek in.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    return job


def become(own, words, cwd, env):
    """Run the words as Python does; `own` are the folders that sys.path has not from PYTHONPATH."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *own]
    # What these read of the environment when they are imported.
    dynamic = sys.modules["transformers.dynamic_module_utils"]
    dynamic.HF_MODULES_CACHE = env.get("HF_MODULES_CACHE", dynamic.HF_MODULES_CACHE)
    if rank_zero := sys.modules.get("lightning.fabric.utilities.rank_zero"):
        rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0
    words = words[words[0] == "-u" :]  # its stderr is the same, and its stdout a pipe
    unsafe = words[0] != "-P"
    kind, *rest = words if unsafe else words[1:]
    if kind == "-m":
        sys.path[:0] = [cwd] * unsafe
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[:0] = [""] * unsafe
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.path[:0] = [str(Path(kind).parent)] * unsafe
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def stand_in(words):
    """Do as the forked program does, with the pipes of this process."""
    news = ask(words, "liteframe", None, None, 1, 2)
    child = int(news.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    if (code := int(news.readline())) < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main():
    what, *words = sys.argv[1:]
    if what == "be":
        stand_in(words)
    own = [place for place in sys.path if place not in SOURCES.split(os.pathsep)]
    sockets = [socket.socket(fileno=int(number)) for number in words]
    for listener in sockets:
        listener.set_inheritable(False)
    become(own, **receive(serve(dict(zip(LEVELS, sockets, strict=True)))))


if __name__ == "__main__":
    main()
