"""The choices of the command line's options. Written out, so that `--help` needs no torch;
a test holds them to the package.
"""

from typing import Literal

ModelPreset = Literal["tiny", "mini-student", "mini-teacher", "80m", "300m", "1b"]
AIMPreset = Literal["aim-600m", "aim-1b", "aim-3b", "aim-7b", "aim-mini", "aim-mini-llama", "llama-80m-patch"]
TokenizerPreset = Literal["f16-8192", "mini", "mini-v2", "tiny", "tiny-v2"]
Divergence = Literal["forward", "reverse", "js", "skew"]
Precision = Literal["auto", "fp32", "bf16"]
GPU = Literal["here", "A100", "H100", "H200", "L4", "RTX 4090"]
Reader = Literal["pairs", "coco-pose", "sa1b", "rain13k", "gopro", "clips", "images", "pascal5i", "datasets"]
Labels = Literal["masks", "pictures"]
PerceptionTask = Literal["segmentation", "semantic", "selection", "pose", "derain", "motion"]
