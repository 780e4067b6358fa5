"""The decoding child of process.py: `python -m liteframe.data.video.child <parent's process id>`.

It reads requests from stdin and writes answers to stdout, in the messages that process.py describes.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import IO, Any

import numpy as np

from liteframe.data.video.errors import VideoError
from liteframe.data.video.process import LENGTH, serve_parent
from liteframe.data.video.reader import probe, read_frames


def main() -> None:
    """Entry; the only argument is the parent's process id."""
    serve_parent()
    if os.getppid() != int(sys.argv[1]):
        return  # the parent died before the call
    # Libraries that print to stdout must not write into the protocol: they get stderr instead.
    answers = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(os.dup(0), "rb") as source, os.fdopen(answers, "wb", buffering=0) as sink:
        _serve(source, sink)


def _serve(source: IO[bytes], sink: IO[bytes]) -> None:
    gc.freeze()  # what was imported stays, and need not be looked through below
    expected, ready = None, None
    while size := source.read(LENGTH.size):
        request = json.loads(source.read(LENGTH.unpack(size)[0]))
        header, frames = ready if ready and request == expected else _answer(request)
        expected, ready = _after(request), None
        body = json.dumps(header).encode()
        _write(sink, LENGTH.pack(len(body)) + body)
        if frames is not None:
            _write(sink, np.ascontiguousarray(frames).data.cast("B"))
        del frames
        if expected is not None and "shape" in header:
            ready = _answer(expected)
        # A decoded frame and its side data hold each other, and Python, which sees a few small objects, would keep
        # hundreds of pictures.
        gc.collect()


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray | None]:
    try:
        if request["op"] == "probe":
            return {"info": probe(request["path"]).to_dict()}, None
        how = {"reader": request["reader"], "size": request["size"], "keep_open": bool(request["then"])}
        frames = read_frames(request["path"], request["indices"], **how)
        return {"shape": frames.shape}, frames
    except VideoError as error:
        return {"error": error.to_dict()}, None
    except ValueError as error:
        return {"value_error": str(error)}, None


def _after(request: dict[str, Any]) -> dict[str, Any] | None:
    """The next request of one that says what follows."""
    if not request.get("then"):
        return None
    count, then = len(request["indices"]), request["then"]
    return {**request, "indices": then[:count], "then": then[count:]}


def _write(sink: IO[bytes], data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[sink.write(rest) :]


if __name__ == "__main__":
    main()
