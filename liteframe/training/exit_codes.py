"""How a training program ends: its exit code, and one line for what a user can mend."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

from lightning.fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError

from liteframe.data.video.errors import VideoError
from liteframe.files import OUT_OF_SPACE, OutOfSpaceError, show_any_name
from liteframe.training.checkpoint import CheckpointError
from liteframe.training.failures import BadConversationsError, TooManyBadVideosError
from liteframe.training.guard import TrainingDivergedError
from liteframe.training.signals import STOP

PACKAGE = Path(__file__).parents[1]  # liteframe
WRONG_PATHS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


def say_or_trace(program: str, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python calls with an exception that ends a program: one line for what a user can mend.

    That is what lines of ours refuse, in words of their own, what Lightning says of settings, and paths that are not
    what they should be; anything else is shown with its traceback.
    """
    frames = [frame.f_code.co_filename for frame, _ in walk_tb(trace)]
    ours = isinstance(error, (ValueError, VideoError)) and frames and Path(frames[-1]).is_relative_to(PACKAGE)
    if ours or isinstance(error, (MisconfigurationException, *WRONG_PATHS)):
        rank = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)
        print(f"{program}{f' (process {rank})' if rank else ''}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


@contextmanager
def exit_codes(program: str) -> Iterator[None]:
    """Ends a program with a plain message where its input or the disk are at fault, and with 128 + signal after one."""
    show_any_name()
    sys.excepthook = partial(say_or_trace, program)
    try:
        with STOP.listening():
            yield
    except (BadConversationsError, TooManyBadVideosError, CheckpointError) as error:
        sys.exit(f"{program}: {error}")
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        sys.exit(f"{program}: {error.strerror if isinstance(error, OutOfSpaceError) else error}")
    except SafetensorError as error:
        # Its writer puts what the system said into words.
        if not any(f"(os error {number})" in str(error) for number in OUT_OF_SPACE):
            raise
        sys.exit(f"{program}: the trained weights do not fit on the disk ({error}); make room and add --resume")
    except TrainingDivergedError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:
        # Lightning turns a KeyboardInterrupt into exit code 1.
        if isinstance(error.__context__, KeyboardInterrupt):
            sys.exit(130)
        raise
