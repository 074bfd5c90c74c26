"""Rigid transforms in NumPy: rotation matrices, 4x4 matrices and quaternions [w, x, y, z]."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Booleans: TypeAlias = npt.NDArray[np.bool_]


def rotation_from_euler(yaw: float, pitch: float = 0.0, roll: float = 0.0) -> Floats:
    """Returns the rotation matrix [3, 3] of a roll about x, then a pitch about y, then a yaw about z (radians)."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    return np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )


def rotation_from_quaternion(wxyz: tuple[float, float, float, float]) -> Floats:
    """Returns the rotation matrix [3, 3] of a quaternion, which is normalised first."""
    w, x, y, z = np.asarray(wxyz) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_rotation(rotation: Floats) -> list[float]:
    """Returns the unit quaternion of a rotation matrix whose largest component is positive."""
    r = rotation
    # Four times the outer product of the quaternion with itself. Each row is a multiple of the quaternion; the row
    # with the largest diagonal element is the most accurate.
    products = np.array(
        [
            [1 + r[0, 0] + r[1, 1] + r[2, 2], r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], 1 + r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0]],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], 1 - r[0, 0] + r[1, 1] - r[2, 2], r[1, 2] + r[2, 1]],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], 1 - r[0, 0] - r[1, 1] + r[2, 2]],
        ]
    )
    best = products[int(np.argmax(np.diag(products)))]
    return [float(value) for value in best / np.linalg.norm(best)]


def quaternion_from_yaw(yaw: float) -> list[float]:
    """Returns the unit quaternion of a rotation about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def rigid(rotation: Floats, translation: Floats) -> Floats:
    """Returns the 4x4 matrix `dst_T_src` of a rotation [3, 3] and a translation [3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def inverse(matrix: Floats) -> Floats:
    """Returns the inverse of a rigid 4x4 matrix."""
    return rigid(matrix[:3, :3].T, -matrix[:3, :3].T @ matrix[:3, 3])


def transform(matrix: Floats, points: Floats) -> Floats:
    """Applies a rigid 4x4 matrix to points [..., 3]."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]
