"""Poses of the people in mini-world: a handful of angles in degrees, turned into a rotation for each of
anny's bones.

World axes: x to the person's left, y to the back, z up; the person looks along -y. Anny's default
    parameterisation
turns each bone by a rotation given in these axes as they stand in the reference pose.
"""

import numpy as np


def turn(axis: str | np.ndarray, degrees: float) -> np.ndarray:
    """Rotation matrix (3, 3) about 'x', 'y', 'z' or a unit vector."""
    k = np.eye(3)["xyz".index(axis)] if isinstance(axis, str) else axis
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    return c * np.eye(3) + s * cross + (1 - c) * np.outer(k, k)


def leg(rng, flex=0.0, out=0.0, knee=6.0, foot=0.0, rot=8.0, spread=3.0) -> dict:
    """Hip flexed forward, leg moved outwards, knee bent, toes pointed down, toes turned out: degrees."""
    j = rng.normal(0, spread, 4)
    return dict(
        flex=flex + j[0], out=max(out + j[1], -7), knee=max(knee + j[2], 2), foot=foot + j[3], rot=rot
    )


def arm(rng, fwd=0.0, out=14.0, bend=18.0, roll=20.0, spread=5.0) -> dict:
    """Upper arm lifted forward and outwards from hanging, elbow bent, forearm rolled inwards (negative:
    outwards).
    """
    j = rng.normal(0, spread, 4)
    return dict(fwd=fwd + j[0], out=max(out + j[1], 12), bend=max(bend + j[2], 8), roll=roll + 2 * j[3])


def draw_arms(rng) -> tuple[dict, dict]:
    """Arms of somebody who stands or sits: hanging, on the hips, waving, pointing, folded, or a mix."""
    kinds = [
        lambda: arm(rng),
        lambda: arm(rng, fwd=-12, out=42, bend=88, roll=62),  # hand on hip
        lambda: arm(rng, fwd=10, out=80, bend=85, roll=-80),  # waving
        lambda: arm(rng, fwd=80, out=rng.uniform(12, 50), bend=10, roll=0),  # pointing
        lambda: arm(rng, fwd=30, out=14, bend=85, roll=25),  # holding something
        lambda: arm(rng, fwd=40, out=16, bend=125, roll=20),  # hand to the chin
    ]
    first = rng.choice(len(kinds), p=[0.36, 0.16, 0.14, 0.12, 0.14, 0.08])
    second = first if rng.random() < 0.5 else rng.choice(len(kinds), p=[0.5, 0.15, 0.05, 0.1, 0.15, 0.05])
    return kinds[first](), kinds[second]()


def standing(rng) -> dict:
    left, right = draw_arms(rng)
    shift, wide = rng.uniform(0, 14), rng.uniform(-5, 8)
    legs = leg(rng, flex=shift, out=wide, knee=2 * shift), leg(rng, out=wide)
    return dict(legs=legs, arms=(left, right), bend=rng.normal(0, 3), lean=rng.normal(0, 3))


def walking(rng) -> dict:
    f, t = rng.uniform(0.6, 1.2), rng.random()
    legs = leg(rng, 28 * f, -4, 6 + 12 * t, -8), leg(rng, -20 * f, -4, 12 + 38 * t, 14)
    arms = arm(rng, -28 * f, 14, 16, 15), arm(rng, 30 * f, 13, 30, 20)
    return dict(legs=legs, arms=arms, lean=rng.uniform(0, 6), twist=-6 * f)


def running(rng) -> dict:
    f, t = rng.uniform(0.8, 1.2), rng.random()
    legs = leg(rng, 62 * f, -4, 40 + 50 * t, -5), leg(rng, -22 * f, -4, 20 + 75 * t, 25)
    arms = arm(rng, -45 * f, 18, 85, 10), arm(rng, 38 * f, 15, 95, 25)
    return dict(legs=legs, arms=arms, lean=rng.uniform(6, 18), twist=-12 * f)


def sitting(rng) -> dict:
    wide = rng.uniform(2, 14)
    legs = [leg(rng, 86, wide, rng.uniform(60, 105), 0, spread=4) for _ in range(2)]
    if rng.random() < 0.5:
        legs[1] = leg(rng, 86, wide, legs[0]["knee"], 0)
    resting = [arm(rng, rng.uniform(18, 38), 15, rng.uniform(35, 70), 15) for _ in range(2)]
    return dict(legs=legs, arms=resting if rng.random() < 0.5 else draw_arms(rng), lean=rng.uniform(-8, 14))


def reaching(rng) -> dict:
    def far(kind):
        if kind == 0:  # up
            return arm(rng, 160, rng.uniform(14, 30), rng.uniform(10, 40), 0)
        if kind == 1:  # forward
            return arm(rng, rng.uniform(75, 115), rng.uniform(12, 30), 12, 0)
        return arm(rng, 5, rng.uniform(80, 125), 12, rng.uniform(-60, 0))  # to the side

    kind = rng.integers(3)
    other = far(kind) if rng.random() < 0.4 else arm(rng, rng.uniform(-10, 20), 20, 25)
    flex = rng.uniform(0, 30)
    legs = leg(rng, flex, 8, 1.2 * flex), leg(rng, -0.4 * flex, 8, 8, 10)
    return dict(legs=legs, arms=(far(kind), other), bend=rng.uniform(-4, 14), lean=rng.uniform(-3, 16))


def jumping(rng) -> dict:
    up = arm(rng, rng.uniform(-10, 30), rng.uniform(95, 150), rng.uniform(10, 50), -50)
    if rng.random() < 0.4:  # star
        wide = rng.uniform(16, 30)
        return dict(legs=(leg(rng, 5, wide, 8, 20), leg(rng, 5, wide, 8, 20)), arms=(up, dict(up)), lean=0)
    legs = [leg(rng, f, 6, 1.5 * f + 10, 22, spread=8) for f in rng.uniform(5, 65, 2)]
    other = dict(up) if rng.random() < 0.6 else arm(rng, rng.uniform(-40, 60), 30, 40)
    return dict(legs=legs, arms=(up, other), lean=rng.uniform(-6, 12))


POSES = dict(
    standing=standing, walking=walking, running=running, sitting=sitting, reaching=reaching, jumping=jumping
)


def rotations(pose: dict, rest: dict, mirror: bool, rng) -> dict[str, np.ndarray]:
    """Rotation of each moved bone. `rest` has the arms' rest directions (upper, lower) by side, unit vectors
    (3,).
    """
    legs, arms, sign = list(pose["legs"]), list(pose["arms"]), 1
    if mirror:
        legs, arms, sign = legs[::-1], arms[::-1], -1
    lean, bend, twist = pose.get("lean", 0), sign * pose.get("bend", 0), sign * pose.get("twist", 0)
    bones = {"root": turn("x", 0.3 * lean)}
    for name in ("spine05", "spine04", "spine03", "spine02", "spine01"):
        bones[name] = turn("z", twist / 5) @ turn("y", bend / 5) @ turn("x", 0.7 * lean / 5)
    nod, look = rng.normal(0, 7) - 0.5 * lean, rng.normal(0, 16)
    for name in ("neck01", "head"):
        bones[name] = turn("z", look / 2) @ turn("x", nod / 2)
    for side, s, a, b in (("L", 1, legs[0], arms[0]), ("R", -1, legs[1], arms[1])):
        bones[f"upperleg01.{side}"] = (
            turn("x", -a["flex"]) @ turn("y", -s * a["out"]) @ turn("z", s * a["rot"])
        )
        bones[f"lowerleg01.{side}"] = turn("x", a["knee"])
        bones[f"foot.{side}"] = turn("x", a["foot"])
        swing = turn("x", -b["fwd"])
        upper = swing @ np.array([s * np.sin(np.radians(b["out"])), 0, -np.cos(np.radians(b["out"]))])
        front = swing @ np.array([0, -1.0, 0])
        front = turn(upper, s * b["roll"]) @ (front - upper * (front @ upper))
        lower = np.cos(np.radians(b["bend"])) * upper + np.sin(np.radians(b["bend"])) * front
        u0, l0 = rest[side]
        hinge0, hinge = np.cross(u0, l0), np.cross(upper, lower)
        new = [_frame(d, hinge) @ _frame(d0, hinge0).T for d, d0 in ((upper, u0), (lower, l0))]
        raised = np.degrees(np.arccos(np.clip(-upper[2], -1, 1)))
        clavicle = turn("y", -s * 0.22 * max(raised - 50, 0))
        bones[f"clavicle.{side}"] = clavicle
        bones[f"upperarm01.{side}"] = clavicle.T @ new[0]
        bones[f"lowerarm01.{side}"] = new[0].T @ new[1]
        bones[f"wrist.{side}"] = turn("x", rng.normal(0, 8))
    return bones


def _frame(direction: np.ndarray, hinge: np.ndarray) -> np.ndarray:
    """Orthonormal columns (3, 3): direction, hinge, and their cross product."""
    d, h = direction / np.linalg.norm(direction), hinge / np.linalg.norm(hinge)
    return np.stack([d, h, np.cross(d, h)], 1)
