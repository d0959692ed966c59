"""Public data sets as their users have them: each reader is a list of members and a way to read one.

    reader = coco_pose("val2017", "person_keypoints_val2017.json")
    for copy, row in reader.rows(size=256): ...        # reader.report counts and names what is broken

`datasets`, `pycocotools`, `av` and `lmdb` decode what they can; here is what makes pairs of it.
"""

from lvmlab.data.readers.base import Broken, NoLabel, Reader, Report
from lvmlab.data.readers.coco import coco_pose
from lvmlab.data.readers.folders import gopro, image_folder, paired_folder
from lvmlab.data.readers.hub import huggingface, load_data, saved_by_datasets
from lvmlab.data.readers.pascal import pascal5i
from lvmlab.data.readers.rain13k import rain13k
from lvmlab.data.readers.sa1b import sa1b
from lvmlab.data.readers.video import clips

__all__ = [
    "Broken",
    "NoLabel",
    "Reader",
    "Report",
    "clips",
    "coco_pose",
    "gopro",
    "huggingface",
    "image_folder",
    "load_data",
    "paired_folder",
    "pascal5i",
    "rain13k",
    "sa1b",
    "saved_by_datasets",
]
