"""COCO's person keypoints (Lin et al. 2014, arXiv 1405.0312) as skeletons."""

import json
from pathlib import Path

import numpy as np

from lvmlab.data.augmentation import Skeletons
from lvmlab.data.readers.base import Broken, NoLabel, Reader, picture
from lvmlab.utils.opening import read_bytes
from lvmlab.utils.paths import below

JOINTS = 17


def coco_pose(pictures: str | Path, annotations: str | Path, *, split: str = "train") -> Reader:
    """COCO's person keypoints; the label is every annotated person's skeleton.

    A picture without annotated joints is skipped. Only pictures with a person are members.

    Args:
        pictures: the folder of pictures.
        annotations: person_keypoints_....json.
        split: the name of the split.

    Raises:
        ValueError: the JSON cannot be read, lacks a list, or has an image id twice; it names the file.
    """
    pictures, annotations = Path(pictures).expanduser(), Path(annotations).expanduser()
    infos, people = _index(annotations)

    def read(number: str, least: int) -> dict:
        if number not in infos:
            raise Broken(f"{annotations.name} has people of the image id {number} and no such image")
        info = infos[number]
        joints = [_joints(one) for one in people[number] if not one.get("iscrowd")]
        joints = [person for person in joints if person is not None]
        if not joints:
            raise NoLabel("no joint of it is annotated")
        image = picture(below(pictures, info["file_name"]))
        if image.shape[-2:] != (info["height"], info["width"]):
            raise Broken(
                f"it is {image.shape[-1]}x{image.shape[-2]}, its annotation says "
                f"{info['width']}x{info['height']}"
            )
        skeletons = Skeletons(np.stack(joints), *image.shape[-2:])
        return {info["file_name"]: ((image, skeletons), "")}

    return Reader(
        "pose",
        list(people),
        read,
        split=split,
        name=lambda number: str(infos.get(number, {}).get("file_name", number)),
        files=lambda number: [
            json.dumps([infos.get(number), people[number]]),
            *_file(pictures, infos.get(number, {})),
        ],
        root=pictures,
    )


def _index(path: Path) -> tuple[dict[str, dict], dict[str, list[dict]]]:
    """Images by id, and the people of each image, in the order of their ids."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON that can be read ({error}): download it again") from error
    for field in ("images", "annotations"):
        entries = content.get(field) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(
                f"{path} has no list {field!r} of objects: give COCO's person_keypoints_....json"
            )
    infos: dict[str, dict] = {}
    for entry in content["images"]:
        number = str(_value(entry, "id", path))
        if number in infos:
            raise ValueError(
                f"{path} has the image id {number} twice ({infos[number].get('file_name')}, "
                f"{entry.get('file_name')}): number the images anew"
            )
        for field in ("file_name", "height", "width"):
            _value(entry, field, path)
        infos[number] = entry
    people: dict[str, list[dict]] = {}
    for entry in content["annotations"]:
        people.setdefault(str(_value(entry, "image_id", path)), []).append(entry)
    order = sorted(people, key=lambda number: (not number.isdecimal(), number.zfill(20)))
    return infos, {number: people[number] for number in order}


def _value(entry: dict, field: str, path: Path):
    if field not in entry:
        raise ValueError(f"{path} has an entry without {field!r} ({str(entry)[:80]}): it is damaged")
    return entry[field]


def _joints(entry: dict) -> np.ndarray | None:
    """(17, 3) of one person, or None where no joint is annotated. Raises Broken."""
    values = entry.get("keypoints") or []
    if not any(values[2::3]):
        return None
    joints = np.asarray(values, np.float64)
    if joints.shape != (3 * JOINTS,) or not np.isfinite(joints).all():
        raise Broken(f"a person has {len(values)} numbers of joints, COCO's have {3 * JOINTS}")
    return joints.reshape(JOINTS, 3)


def _file(pictures: Path, info: dict) -> list[Path]:
    try:
        return [below(pictures, info.get("file_name", ""))]
    except ValueError:
        return []
