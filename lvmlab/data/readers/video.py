"""Videos and folders of frames as clips of consecutive frames."""

from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from lvmlab.data.readers.base import Broken, Reader, picture
from lvmlab.utils.listing import list_files
from lvmlab.utils.opening import SUFFIXES

FILMS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def clips(root: str | Path, *, frames: int = 16, stride: int = 1, split: str = "train") -> Reader:
    """Videos and folders of frames under ``root`` as clips, one after another.

    Args:
        root: the folder.
        frames: of a clip.
        stride: frames from one frame of a clip to the next; a video's are at equal times, at any frame rate.
        split: the name of the split.
    """
    root = Path(root).expanduser()
    folders: dict[Path, list[Path]] = {}
    for path in list_files(root, SUFFIXES):
        folders.setdefault(path.parent, []).append(path)
    members = [*folders.items(), *((path, None) for path in list_files(root, FILMS))]

    def read(member: tuple[Path, list[Path] | None], least: int) -> dict:
        where, files = member
        every = files[::stride] if files else decode(where, stride, least)
        if len(every) < frames:
            raise Broken(f"it has {len(every)} frames at stride {stride}, a clip takes {frames}")
        name = where.relative_to(root).as_posix()
        return {
            f"{name}#{i}": (tuple(picture(frame, least) for frame in every[i : i + frames]), "")
            for i in range(0, len(every) - frames + 1, frames)
        }

    return Reader(
        "frames",
        members,
        read,
        "clip",
        split,
        lambda member: member[0].relative_to(root).as_posix(),
        files=lambda member: member[1] or [member[0]],
        root=root,
        origin={"frames": frames, "stride": stride},
    )


def decode(path: Path, stride: int = 1, least: int | None = None) -> list[Image.Image]:
    """The frames of a video at equal times, upright.

    Args:
        path: of the video.
        stride: frames of the average rate from one to the next.
        least: the short side to keep at least; frames are made smaller as they are decoded.
    """
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError("reading videos needs the extra: pip install lvmlab[video]") from error
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        rate = stream.average_rate
        times = ((frame, _time(frame, number, rate)) for number, frame in enumerate(film.decode(stream)))
        return _sampled(times, 1 / rate if rate else 1, stride, lambda frame: _upright(frame, least))


def _time(frame, number: int, rate):
    """Seconds of a frame; of a stream without a rate, its number."""
    if not rate:
        return number
    return number / rate if frame.pts is None else frame.pts * frame.time_base


def _sampled(times: Iterable, interval, stride: int, convert: Callable) -> list[Image.Image]:
    """Of frames with their times, those that are shown at every ``stride``-th interval."""
    pictures: list[Image.Image] = []
    start = shown = converted = None

    def add_until(now) -> None:
        nonlocal converted
        # half an interval is what times are rounded by at most
        while shown is not None and start + len(pictures) * stride * interval < now - interval / 2:
            converted = converted or convert(shown)
            pictures.append(converted)

    for frame, now in times:
        start = now if start is None else start
        add_until(now)
        shown, converted, last = frame, None, now
    if shown is not None:
        add_until(last + interval)
    return pictures


def _upright(frame, least: int | None) -> Image.Image:
    """A frame as a picture, turned by its rotation tag and made smaller."""
    width, height = frame.width, frame.height
    scale = min(1.0, least / min(width, height)) if least else 1.0
    image = frame.to_image(width=max(1, round(width * scale)), height=max(1, round(height * scale)))
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
