"""People with COCO-17 keypoints: anny bodies, posed (`body_poses`), painted and rendered (`body_render`) to
sprites.

Needs `anny` (Apache-2.0 code, CC0 assets) at build time only.

    python assets/builders/bodies.py OUT DOWNLOADS
"""

import io
import json
import pathlib
import sys
from importlib import metadata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # works as a script and imported from elsewhere

# isort: split
from body_poses import POSES, rotations  # noqa: E402
from body_render import COCO, draw_light, paint, render  # noqa: E402

SEED = 20260
IDENTITIES, SPRITES, SHIFTED, SHIFTED_SPRITES = 280, 4, 40, 3
SHARES = {"train": 0.74, "val": 0.10, "test": 0.16}


def load_model(downloads: pathlib.Path):
    """Anny's model and its keypoints, in the order of `COCO`. Raises ImportError when anny is missing."""
    try:
        import anny
        from anny.keypoints import KeypointsRegressor
    except ImportError as error:
        raise ImportError(
            "the bodies are rendered from anny: `pip install anny` (build time only)"
        ) from error
    anny.paths.set_anny_cache_path(downloads / "anny")
    model = anny.Anny(local_changes="none", facial_actions="none", skinning_method="lbs").to(torch.float32)
    return model, KeypointsRegressor.coco(model, labels=COCO)


def draw_yaw(rng) -> float:
    """Degrees the body is turned from the camera: mostly within 60, some in profile, some from behind."""
    u = rng.random()
    if u < 0.76:
        return rng.uniform(-60, 60)
    return rng.choice([-1, 1]) * (rng.uniform(60, 110) if u < 0.86 else rng.uniform(130, 180))


@torch.no_grad()
def sprites_of(model, regressor, count: int, shifted: bool, rng):
    """Yield (pose, image, keypoints, visible) for one random person."""
    gender, old = rng.random(), rng.random()
    age = (
        rng.uniform(0.27, 0.5)
        if old < 0.15
        else rng.uniform(0.5, 0.8)
        if old < 0.8
        else rng.uniform(0.8, 1.0)
    )
    shape = dict(
        gender=gender, age=age, **{k: rng.beta(2, 2) for k in ("muscle", "weight", "height", "proportions")}
    )
    man, names = gender < 0.5, model.bone_labels
    still = torch.eye(4).repeat(1, len(names), 1, 1)
    phenotype = {k: torch.tensor([v], dtype=torch.float32) for k, v in shape.items()}
    rest = model(pose_parameters=still, phenotype_kwargs=phenotype)
    vertices = rest["vertices"][0].numpy().astype(np.float64)
    kp = dict(zip(COCO, regressor(rest)[0].numpy().astype(np.float64), strict=True))
    main = model.vertex_bone_indices.gather(1, model.vertex_bone_weights.argmax(1, keepdim=True))[:, 0]
    colour, thick, is_cloth, hair = paint(vertices, kp, np.array(names)[main.numpy()], man, age > 0.85, rng)
    arms = {}
    for side, word in (("L", "left"), ("R", "right")):
        s, e, w = (kp[f"{word}_{joint}"] for joint in ("shoulder", "elbow", "wrist"))
        arms[side] = (e - s) / np.linalg.norm(e - s), (w - e) / np.linalg.norm(w - e)
    shares = np.array([0.22, 0.2, 0.16, 0.14, 0.14, 0.14])
    poses = rng.choice(list(POSES), count, replace=False, p=shares)
    batch = still.repeat(count, 1, 1, 1)
    for i, pose in enumerate(poses):
        for bone, r in rotations(POSES[pose](rng), arms, rng.random() < 0.5, rng).items():
            batch[i, names.index(bone), :3, :3] = torch.from_numpy(r)
    out = model(pose_parameters=batch, phenotype_kwargs={k: v.repeat(count) for k, v in phenotype.items()})
    points, head = regressor(out).numpy().astype(np.float64), names.index("head")
    heads = (
        (out["bone_poses"][:, head] @ torch.linalg.inv(rest["bone_poses"][:, head]))
        .numpy()
        .astype(np.float64)
    )
    for i, pose in enumerate(poses):
        body = dict(
            vertices=out["vertices"][i].numpy().astype(np.float64),
            faces=np.asarray(model.faces),
            keypoints=points[i],
            colour=colour,
            thick=thick,
            cloth=is_cloth,
            hair=hair,
            head=heads[i],
            rest=vertices,
            ears=(kp["left_ear"] + kp["right_ear"]) / 2,
            size=np.linalg.norm(kp["left_ear"] - kp["right_ear"]),
            tall=np.ptp(vertices[:, 2]),
        )
        yield (str(pose), *render(body, draw_yaw(rng), draw_light(shifted, rng), rng))


def build(out: pathlib.Path, downloads: pathlib.Path, identities=IDENTITIES, shifted=SHIFTED) -> list[dict]:
    """Write `out/bodies.parquet` and return its credit rows.

    Columns: name, body, pose, split (train, val, test, shifted: by body), image (WebP with alpha, larger side
        192),
    keypoints (34 floats: x, y in the sprite's pixels, COCO-17), visible (17: not hidden by the body itself).
    """
    out, downloads = pathlib.Path(out), pathlib.Path(downloads)
    out.mkdir(parents=True, exist_ok=True)
    model, regressor = load_model(downloads)
    edges = np.cumsum([round(SHARES[s] * identities) for s in ("train", "val")])
    order = np.random.default_rng(SEED).permutation(identities)
    rows = []
    for i in tqdm(range(identities + shifted), desc="bodies"):
        other = i >= identities
        split = (
            "shifted" if other else ("train", "val", "test")[np.searchsorted(edges, order[i], side="right")]
        )
        name = f"shifted-{i - identities:03d}" if other else f"body-{i:03d}"
        rng = np.random.default_rng([SEED, other, i])
        sprites = sprites_of(model, regressor, SHIFTED_SPRITES if other else SPRITES, other, rng)
        for k, (pose, image, points, visible) in enumerate(sprites):
            data = io.BytesIO()
            image.save(data, "WEBP", quality=82, alpha_quality=100, method=4)
            rows.append(
                dict(
                    name=f"{name}-{k}",
                    body=name,
                    pose=pose,
                    split=split,
                    image=data.getvalue(),
                    keypoints=points.ravel().tolist(),
                    visible=visible.tolist(),
                )
            )
    text = {k: pa.string() for k in ("name", "body", "pose", "split")}
    lists = dict(image=pa.binary(), keypoints=pa.list_(pa.float32()), visible=pa.list_(pa.bool_()))
    pq.write_table(
        pa.Table.from_pylist(rows, pa.schema(text | lists)), out / "bodies.parquet", compression="zstd"
    )
    return [
        dict(
            file="bodies.parquet",
            part="bodies",
            licence="CC0-1.0 (assets), Apache-2.0 (model code)",
            author="MakeHuman community (body assets, by way of MPFB2); NAVER Corp. (anny)",
            origin=f"anny {metadata.version('anny')} (PyPI), rendered by assets/builders/bodies.py",
        )
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python assets/builders/bodies.py OUT DOWNLOADS")
    print(json.dumps(build(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])), indent=1))
