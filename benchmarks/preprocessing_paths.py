"""Three implementations of CT preprocessing: `tmi`, MONAI's transforms, and SimpleITK with torch.

Each reads a `ct.nii.gz` and returns float32 [1, D, H, W] in RAS+ order, the window -70 to 130 HU scaled to 0..1.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE_DHW = (64, 512, 512)
WINDOW_HU = (-70.0, 130.0)


def write_body_ct(path: Path, shape_xyz: tuple[int, int, int] = (512, 512, 120), *, seed: int = 0) -> Path:
    """Write an int16 CT of a body in air with a liver and noise, which determines the time of decompression."""
    random = np.random.default_rng(seed)
    axes = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape_xyz)
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    body = (x / 0.85) ** 2 + (y / 0.7) ** 2 < 1
    liver = ((x - 0.35) / 0.42) ** 2 + (y / 0.45) ** 2 + ((z - 0.1) / 0.62) ** 2 < 1
    hu = random.standard_normal(shape_xyz, dtype=np.float32)
    hu *= np.where(body, np.float32(14), np.float32(6))
    hu += np.where(body, np.float32(40), np.float32(-1000))
    hu[liver] += 65
    affine = np.diag([0.75, 0.75, 2.5, 1.0])
    affine[:3, 3] = [-190.0, -190.0, -150.0]
    nib.save(nib.Nifti1Image(np.rint(hu).clip(-1024, 3000).astype(np.int16), affine), path)
    return path


def prepare_with_tmi(path: Path, shape_DHW: tuple[int, int, int] = SHAPE_DHW) -> NDArray[np.float32]:
    """Preprocessing of `tmi predict`, its checks included."""
    from tmi.toolkit.cases.case import Case
    from tmi.toolkit.compute.cpu import worker_pool
    from tmi.toolkit.config.schema import CtConfig
    from tmi.toolkit.imaging.ct_resampling import StreamingResampler, prepare_ct
    from tmi.toolkit.imaging.volume import read_ct
    from tmi.toolkit.qc.image_checks import check_ct

    class Planes:
        def __init__(self, resampling: StreamingResampler) -> None:
            self.on_planes_ready = resampling.on_planes_ready

        def on_grid_ready(self, grid: object) -> None:
            """Do nothing: no mask is read."""

    config = CtConfig(shape_DHW=shape_DHW, window_hu=WINDOW_HU)
    with worker_pool() as pool:
        resampler = StreamingResampler(config, pool)
        ct = read_ct(Case(folder=path.parent, case_id=path.parent.name), pool=pool, callbacks=Planes(resampler))
        list(check_ct(ct))
        return prepare_ct(ct, config, resampler)


def prepare_with_monai(path: Path, shape_DHW: tuple[int, int, int] = SHAPE_DHW) -> NDArray[np.float32]:
    """MONAI's transforms; they keep the axes (x, y, z), so the result is transposed."""
    from monai.transforms import Compose, LoadImage, Orientation, Resize, ScaleIntensityRange

    transforms = Compose(
        [
            LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True),
            Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            ScaleIntensityRange(a_min=WINDOW_HU[0], a_max=WINDOW_HU[1], b_min=0.0, b_max=1.0, clip=True),
            Resize(spatial_size=shape_DHW[::-1], mode="trilinear", align_corners=False),
        ]
    )
    return np.asarray(transforms(path).numpy().transpose(0, 3, 2, 1))


def prepare_with_simpleitk(path: Path, shape_DHW: tuple[int, int, int] = SHAPE_DHW) -> NDArray[np.float32]:
    """SimpleITK's read, window and one trilinear pass of torch; x and y of the file are flipped to RAS+."""
    import SimpleITK
    import torch

    image = SimpleITK.ReadImage(str(path))
    stored_DHW = SimpleITK.GetArrayViewFromImage(image)
    # SimpleITK's world is LPS: a positive direction in x or y is negative in RAS+
    to_left, to_back, up = (image.GetDirection()[i] > 0 for i in (0, 4, 8))
    turned = stored_DHW[:: 1 if up else -1, :: -1 if to_back else 1, :: -1 if to_left else 1]
    hu = torch.from_numpy(np.ascontiguousarray(turned, dtype=np.float32))
    low, high = WINDOW_HU
    scaled = hu.clamp_(low, high).sub_(low).mul_(1 / (high - low))
    resampled = torch.nn.functional.interpolate(
        scaled[None, None], size=shape_DHW, mode="trilinear", align_corners=False
    )
    return np.asarray(resampled[0].numpy())


PIPELINES = {"tmi": prepare_with_tmi, "monai": prepare_with_monai, "simpleitk": prepare_with_simpleitk}
