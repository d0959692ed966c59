"""Looks and picture of the people in mini-world: painted body parts, light, and a z-buffer in numpy (build
time only).

World axes as in `body_poses`; the camera looks along +y. Colours are linear light until the picture is done.
"""

import colorsys

import numpy as np
from PIL import Image
from scipy import sparse

# isort: split
from body_poses import turn

SIDE, SUPERSAMPLE = 192, 2  # larger side of a sprite in pixels; rendered larger by this factor
COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow "
    "left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
).split()
# How far (metres, for a body of 1.7 m) the joint may lie below the surface the camera sees and still count as
# visible.
DEPTH = dict(
    nose=0.05, eye=0.05, ear=0.09, shoulder=0.13, elbow=0.09, wrist=0.07, hip=0.19, knee=0.11, ankle=0.10
)
SKIN = ("f1c8a8", "e8b896", "d9a27c", "c68b62", "a66f49", "85532f", "63401f", "4a2d1b")
HAIR = ("17120f", "2a1b12", "4a2e1a", "6e4a2a", "a97f4a", "c9a66b", "8a3f1f", "8f8f8f", "d6d3cd")
CLOTH = ("f2f0ea", "20242c", "5a6270", "27406f", "7c1f2b", "2f5d3a", "c9b48a", "5b4030", "8fa7c4", "3d4a3a")


def linear(colour: str | np.ndarray) -> np.ndarray:
    """Hex string or sRGB in [0, 1] to linear light (3,)."""
    if isinstance(colour, str):
        colour = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    return np.asarray(colour) ** 2.2


def cloth(rng, skin: np.ndarray) -> np.ndarray:
    """A garment's colour, linear (3,): everyday tones or any hue, never one that could pass for the skin's."""
    for _ in range(50):
        if rng.random() < 0.5:
            colour = linear(CLOTH[rng.integers(len(CLOTH))]) * rng.uniform(0.8, 1.15)
        else:
            hsv = rng.random(), rng.uniform(0.35, 0.9), rng.uniform(0.35, 0.95)
            colour = linear(np.array(colorsys.hsv_to_rgb(*hsv)))
        if np.linalg.norm(colour ** (1 / 2.2) - skin ** (1 / 2.2)) > 0.25:
            break
    return colour


def paint(rest: np.ndarray, kp: dict, bones: np.ndarray, man: bool, old: bool, rng) -> tuple[np.ndarray, ...]:
    """Colour (V, 3, linear), thickness over the skin (V,), cloth mask (V,), long hair's colour or None.

    `rest` (V, 3) and `kp` (name to (3,)) are the reference pose, `bones` (V,) the name of each vertex' main
    bone.
    """

    def on(*names):
        return np.array([b.startswith(names) for b in bones])

    def along(side, a, b, c):  # 0 at a, 1 at b, 2 at c
        p, out = rest, []
        for start, end in ((kp[f"{side}_{a}"], kp[f"{side}_{b}"]), (kp[f"{side}_{b}"], kp[f"{side}_{c}"])):
            d = end - start
            out.append(((p - start) @ d) / (d @ d))
        return np.where(out[1] > 0, 1 + out[1], np.minimum(out[0], 1))

    left = rest[:, 0] > 0
    arm_t = np.where(
        left, along("left", "shoulder", "elbow", "wrist"), along("right", "shoulder", "elbow", "wrist")
    )
    leg_t = np.where(left, along("left", "hip", "knee", "ankle"), along("right", "hip", "knee", "ankle"))
    height = np.ptp(rest[:, 2])
    skin = linear(SKIN[rng.integers(len(SKIN))]) * rng.uniform(0.9, 1.1, 3) ** 0.5
    colour, thick = np.tile(skin, (len(rest), 1)), np.zeros(len(rest))
    is_cloth = np.zeros(len(rest), bool)

    arms, legs, feet = on("upperarm", "lowerarm"), on("upperleg", "lowerleg"), on("foot", "toe")
    torso = on("root", "pelvis", "spine", "clavicle", "shoulder")
    waist = kp["left_hip"][2] + rng.uniform(0.03, 0.07) * height
    sleeve = rng.choice([0.15, 0.6, 1.93], p=[0.12, 0.46, 0.42]) + rng.normal(0, 0.03)
    kind = rng.choice(["trousers", "shorts", "skirt"], p=[0.7, 0.25, 0.05] if man else [0.55, 0.2, 0.25])
    hem = {"trousers": 1.95, "shorts": rng.uniform(0.6, 0.98), "skirt": rng.uniform(0.6, 1.2)}[kind]
    top, bottom = cloth(rng, skin), cloth(rng, skin)
    if kind == "skirt" and rng.random() < 0.5:
        bottom = top  # a dress
    upper = (torso & (rest[:, 2] > waist)) | (arms & (arm_t < sleeve))
    lower = ((torso | legs) & (rest[:, 2] <= waist) & (leg_t < hem)) & ~arms
    band = rng.uniform(0.05, 0.11) * height
    second = cloth(rng, skin) if rng.random() < 0.3 else top
    stripes = (np.floor(rest[:, 2] / band) % 2 == 0) if rng.random() < 0.6 else arms
    colour[upper] = top
    colour[upper & stripes] = second
    colour[lower] = bottom
    if rng.random() < 0.5 and kind != "skirt":
        colour[torso & (np.abs(rest[:, 2] - waist) < 0.012 * height)] = linear("1d1713")
    thick[upper], thick[lower] = rng.uniform(0.004, 0.016), rng.uniform(0.004, 0.016)
    is_cloth[upper | lower] = True
    shoe = cloth(rng, skin) if rng.random() < 0.5 else linear("1b1918")
    colour[feet], thick[feet], is_cloth[feet] = shoe, 0.01, True
    if kind != "trousers" and rng.random() < 0.5:
        colour[legs & (leg_t > rng.uniform(1.5, 1.85))] = linear("e6e4df") * rng.uniform(0.1, 1)  # socks

    ears = (kp["left_ear"] + kp["right_ear"]) / 2
    size = np.linalg.norm(kp["left_ear"] - kp["right_ear"])
    p = (rest - ears) / size
    head, front = on("head", "neck", "eye"), -p[:, 1]
    shade = linear(HAIR[-1 - rng.integers(2)] if old and rng.random() < 0.7 else HAIR[rng.integers(7)])
    shade = shade * rng.uniform(0.8, 1.2)
    line = np.interp(front, [-0.1, 0.1, 0.5, 0.9], [-0.6, 0.1, 0.5, 0.72]) + rng.uniform(-0.08, 0.1)
    ear = (np.abs(p[:, 0]) > 0.46) & (np.abs(p[:, 2]) < 0.32) & (front > -0.35)
    hair = head & (p[:, 2] > line) & ~ear & (p[:, 2] > -0.7)
    if not (man and rng.random() < 0.12):
        colour[hair], thick[hair] = shade, size * rng.uniform(0.04, 0.22)
    if man and rng.random() < 0.3:
        beard = on("head") & (p[:, 2] < -0.3) & (front > 0.1) & ~ear
        colour[beard], thick[beard] = 0.75 * shade + 0.25 * skin, 0.05 * size
    for side in ("left", "right"):
        q = (rest - kp[f"{side}_eye"]) / size
        brow = on("head") & (np.abs(q[:, 0]) < 0.2) & (q[:, 2] > 0.1) & (q[:, 2] < 0.2) & (front > 0.4)
        colour[brow] = 0.6 * shade + 0.4 * skin
    lips = on("head") & (np.abs(rest[:, 0]) < 0.16 * size) & (np.abs(p[:, 2] + 0.42) < 0.07) & (front > 0.5)
    colour[lips] = skin * (0.8, 0.45, 0.45)
    colour[on("eye")] = linear("2a2320")
    return colour, thick, is_cloth, None if man or rng.random() < 0.4 else shade


def ball(n: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere: vertices (V, 3) and triangles (F, 3) seen anticlockwise from outside."""
    t, f = np.meshgrid(np.linspace(0, np.pi, n), np.arange(2 * n) * np.pi / n, indexing="ij")
    vertices = np.stack([np.sin(t) * np.cos(f), np.sin(t) * np.sin(f), np.cos(t)], -1).reshape(-1, 3)
    i, j = (a.ravel() for a in np.meshgrid(np.arange(n - 1), np.arange(2 * n), indexing="ij"))
    a, b, k = i * 2 * n + j, i * 2 * n + (j + 1) % (2 * n), 2 * n
    return vertices, np.concatenate([np.stack([a, a + k, b], 1), np.stack([b, a + k, b + k], 1)])


def normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Unit normals (V, 3), the faces' weighted by their area."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    face = np.cross(b - a, c - a)
    out = np.stack([np.bincount(faces.ravel(), np.repeat(face[:, i], 3), len(vertices)) for i in range(3)], 1)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def smoother(faces: np.ndarray, loose: np.ndarray) -> sparse.csr_array:
    """Matrix (V, V) that moves the vertices under cloth to the mean of their neighbours: garments hide small
    forms.
    """
    count = len(loose)
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    links = sparse.csr_array((loose[pairs[:, 0]].astype(float), pairs.T), shape=(count, count))
    return sparse.diags_array(1 / np.maximum(links.sum(1), 1)) @ links + sparse.diags_array(
        (~loose).astype(float)
    )


def rasterise(
    xy: np.ndarray, depth: np.ndarray, faces: np.ndarray, colour: np.ndarray, width: int, height: int
):
    """Z-buffer of small triangles: picture (H, W, 3), coverage (H, W), depth (H, W, inf where nothing is
    seen).
    """
    a, b, c = (xy[faces[:, i]] for i in range(3))
    area = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    corners = xy[faces]  # F 3 2
    low = np.ceil(corners.min(1) - 0.5).astype(int).clip(0)
    high = np.floor(corners.max(1) - 0.5).astype(int).clip(max=(width - 1, height - 1))
    wide, tall = (high - low + 1).clip(0).T
    count = np.where(area < 0, wide * tall, 0)  # y points down: faces towards the camera have a negative area
    face = np.repeat(np.arange(len(faces)), count)
    step = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    x, y = low[face, 0] + step % wide[face], low[face, 1] + step // wide[face]
    px, py = x + 0.5, y + 0.5
    a, b, c, area = a[face], b[face], c[face], area[face]
    w0 = ((b[:, 0] - px) * (c[:, 1] - py) - (b[:, 1] - py) * (c[:, 0] - px)) / area
    w1 = ((c[:, 0] - px) * (a[:, 1] - py) - (c[:, 1] - py) * (a[:, 0] - px)) / area
    w = np.stack([w0, w1, 1 - w0 - w1], 1)
    inside = w.min(1) >= -1e-9
    w, face, pixel = w[inside], face[inside], (y * width + x)[inside]
    z = (w * depth[faces[face]]).sum(1)
    near = np.full(width * height, np.inf)
    np.minimum.at(near, pixel, z)
    seen = z <= near[pixel]
    picture = np.zeros((width * height, 3))
    picture[pixel[seen]] = (w[seen, :, None] * colour[faces[face[seen]]]).sum(1)
    return (
        picture.reshape(height, width, 3),
        np.isfinite(near).reshape(height, width),
        near.reshape(height, width),
    )


def draw_light(shifted: bool, rng) -> dict:
    """One directional light and ambient. Shifted: a strong coloured light from the side, or low key."""
    side = rng.choice([-1, 1])
    if not shifted:
        azimuth, elevation = rng.uniform(-80, 80), rng.uniform(10, 70)
        tint = 1 + rng.uniform(-0.12, 0.12) * np.array([1, 0.1, -1])
        return dict(
            azimuth=azimuth,
            elevation=elevation,
            ambient=rng.uniform(0.32, 0.6) * np.ones(3),
            sun=rng.uniform(0.6, 0.95) * tint,
        )
    hue = np.array(colorsys.hsv_to_rgb(rng.random(), 0.8, 1.0))
    if rng.random() < 0.6:
        return dict(
            azimuth=side * rng.uniform(70, 105),
            elevation=rng.uniform(-10, 35),
            ambient=0.16 + 0.08 * hue[::-1],
            sun=1.9 * hue + 0.1,
        )
    return dict(
        azimuth=side * rng.uniform(40, 110),
        elevation=rng.uniform(20, 75),
        ambient=np.full(3, 0.08),
        sun=np.full(3, rng.uniform(0.4, 0.7)),
    )


def render(body: dict, yaw: float, light: dict, rng) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """One sprite: RGBA picture, keypoints (17, 2) in its pixels, visibility (17,).

    `body`: vertices (V, 3), faces, keypoints (17, 3), colour, thick, cloth, hair (colour or None), head (4,
    4), ears.
    """
    vertices, faces, colour = body["vertices"], body["faces"], body["colour"]
    smooth = smoother(faces, body["cloth"])
    for _ in range(8):
        vertices = smooth @ vertices
    normal = normals(vertices, faces)
    vertices = vertices + normal * body["thick"][:, None]
    ripple = np.sin(body["rest"] @ rng.normal(0, 45, (3, 3)) + rng.uniform(0, 6, 3)) * body["cloth"][:, None]
    normal = normal + 0.16 * ripple
    if body["hair"] is not None:
        unit, more = ball()
        s, shape = body["size"], np.array([0.54, 0.36, rng.uniform(0.8, 1.25)])
        lock = unit * shape * s + body["ears"] + s * np.array([0, 0.34, 0.4 - shape[2]])
        head = body["head"]
        faces = np.concatenate([faces, more + len(vertices)])
        vertices = np.concatenate([vertices, lock @ head[:3, :3].T + head[:3, 3]])
        normal = np.concatenate([normal, (unit / shape) @ head[:3, :3].T])
        colour = np.concatenate([colour, np.tile(body["hair"], (len(unit), 1))])
    tall = body["tall"]
    view = (
        turn("y", rng.normal(0, 3)) @ turn("x", rng.uniform(-6, 22)) @ turn("z", yaw)
    )  # then the camera looks at +y
    centre = (vertices.max(0) + vertices.min(0)) / 2
    far = tall * rng.uniform(3.0, 6.0)

    def project(points):
        p = (points - centre) @ view.T
        return np.stack([p[:, 0], -p[:, 2]], 1) / (p[:, 1:2] + far), p[:, 1] + far

    az, el = np.radians(light["azimuth"]), np.radians(light["elevation"])
    towards = np.array([np.sin(az) * np.cos(el), -np.cos(az) * np.cos(el), np.sin(el)])
    n = normal @ view.T
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    sun = ((n @ towards + 0.15) / 1.15).clip(0)[:, None]
    shade = colour * (light["ambient"] * (0.75 + 0.25 * n[:, 2:]) + light["sun"] * sun)
    shade = shade + 0.05 * light["sun"] * ((n @ (towards + (0, -1, 0)) / 2).clip(0) ** 12)[:, None]

    xy, depth = project(vertices)
    low, high = xy.min(0), xy.max(0)
    scale = SIDE * SUPERSAMPLE / (high - low).max()
    width, height = np.ceil((high - low) * scale).astype(int) + 2
    move = -low * scale + 1
    picture, covered, near = rasterise(xy * scale + move, depth, faces, shade, width, height)
    ys, xs = np.nonzero(covered)
    x0, y0, x1, y1 = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    zoom = SIDE / max(x1 - x0, y1 - y0)
    size = max(round((x1 - x0) * zoom), 1), max(round((y1 - y0) * zoom), 1)
    layers = [*np.moveaxis(picture.clip(0, 1) * covered[..., None], -1, 0), covered]
    shrink = [
        Image.fromarray(a.astype(np.float32)).resize(size, Image.BOX, box=(x0, y0, x1, y1)) for a in layers
    ]
    *rgb, alpha = (np.asarray(a) for a in shrink)
    rgb = (np.stack(rgb, -1) / np.maximum(alpha, 1e-6)[..., None]).clip(0, 1) ** (1 / 2.2)
    image = Image.fromarray((np.concatenate([rgb, alpha[..., None]], -1) * 255).round().astype(np.uint8))

    points, point_depth = project(body["keypoints"])
    points = points * scale + move
    column, row = points.astype(int).T
    gap = point_depth - near[row.clip(0, height - 1), column.clip(0, width - 1)]  # -inf beside the body
    limit = np.array([DEPTH[name.split("_")[-1]] for name in COCO]) * tall / 1.7
    pixels = (points - (x0, y0)) * np.array(size) / (x1 - x0, y1 - y0)
    return image, pixels.astype(np.float32), gap < limit
