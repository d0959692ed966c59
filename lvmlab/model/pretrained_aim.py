"""AIM's released backbones and attentive probes (arXiv 2401.08541): one file each, or both in one."""

from pathlib import Path

from lvmlab.utils.checkpoints import CheckpointError, State, read_state

HEAD_WIDTH = 128  # of attention, in every released size
_FIRST, _NORM = "preprocessor.patchifier.proj.weight", "trunk.post_trunk_norm.weight"


def load(path: Path, size: int = 224) -> tuple[dict, State, State]:
    """A released backbone and its probe.

    Args:
        path: A file, or a folder whose files belong together.
        size: Pixels along each side of the pictures; rounded down to whole patches.

    Returns:
        The fields of a `lvmlab.model.aim.PatchConfig`, the backbone's weights, and the probe's without their
        prefix (empty where there is none).

    Raises:
        CheckpointError: No file holds a backbone.
    """
    kinds = (".pth", ".pt", ".bin", ".safetensors")
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in kinds)
    if not files:
        raise CheckpointError(
            f"{path} holds no weights: give a folder with AIM's backbone, or the backbone's file"
        )
    state: State = {}
    for file in files:
        state |= read_state(file, "state_dict", "model")
    missing = [key for key in (_FIRST, _NORM, "trunk.blocks.0.mlp.fc1.weight") if key not in state]
    if missing:
        raise CheckpointError(
            f"{path} holds no AIM backbone (missing: {', '.join(missing)}): give its file, beside the probe's"
        )
    probe = {
        k.removeprefix("head."): v
        for k, v in state.items()
        if k.startswith(("head.", "cls_token", "k.weight", "v.weight", "linear.", "bn."))
    }
    state = {k: v for k, v in state.items() if k.removeprefix("head.") not in probe}
    dim, _, patch, _ = state[_FIRST].shape
    fields = {
        "dim": dim,
        "n_layers": 1 + max(int(k.split(".")[2]) for k in state if k.startswith("trunk.blocks.")),
        "n_heads": max(1, dim // HEAD_WIDTH),
        "patch": patch,
        "size": size // patch * patch,
        "ffn_dim": state["trunk.blocks.0.mlp.fc1.weight"].shape[0],
        "head_blocks": 0,
    }
    return fields, state, probe
