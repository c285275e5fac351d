"""Street View House Numbers, cropped digits: found in the data folder, or downloaded.

Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011.

Torchvision knows where the two files are and their MD5 sums; both are compared before a byte is
interpreted. The files call the digit 0 class 10; here its label is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bench.data import Progress, Splits
from bench.datasets.pictures import halves
from bench.datasets.sources import OfficialFiles, Remote, md5_of
from bench.registry import DATASETS


@DATASETS.register("svhn")
@dataclass(frozen=True)
class Svhn(OfficialFiles):
    """99,289 photographed digits of 32 x 32 pixels in 10 classes, 26,032 of them for testing.

    The 531,131 easier "extra" digits are not used; no paper of ours does. Mean and standard
    deviation are measured on the training images.
    """

    measured_statistics: ClassVar[bool] = True

    torchvision_class = "SVHN"
    names = ("train_32x32.mat", "test_32x32.mat")
    folders = ("svhn", "SVHN", "")

    def remote(self) -> Mapping[str, Remote]:
        """As torchvision has it."""
        known = self._torchvision().split_list
        return {
            name: Remote(md5, (url,)) for url, name, md5 in (known[half] for half in Splits._fields)
        }

    def read(self, folder: Path, progress: Progress) -> Splits:
        """Both files, each only if it is the original."""
        parts = []
        for done, (name, remote) in enumerate(self.remote().items()):
            progress(f"reading {self.name}", done, len(self.names))
            if not (folder / name).is_file():
                raise FileNotFoundError(f"there is no {name}")
            if md5_of(folder / name) != remote.md5:
                raise ValueError(f"{name} is not the original one")
            parts.append(_digits(folder / name))
        progress(f"reading {self.name}", len(self.names), len(self.names))
        images, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        digits = [str(digit) for digit in range(10)]
        return halves(images, labels.tolist(), len(parts[0][0]), digits, self.name)


def _digits(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """One half: (n, 3, 32, 32) uint8, and (n,) int64 in 0..9.

    Raises:
        ValueError: if the file holds anything else.
    """
    from scipy.io import loadmat, matlab  # here, because it takes long and is seldom needed

    try:
        content = loadmat(file, variable_names=("X", "y"))
        pixels, labels = np.asarray(content["X"]), np.asarray(content["y"]).ravel()
    except (matlab.MatReadError, NotImplementedError, KeyError, IndexError) as error:
        raise ValueError(f"{file.name} is damaged ({error})") from None
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, len(labels)):
        raise ValueError(f"{file.name} has {pixels.dtype} images of shape {pixels.shape}")
    if not np.isin(labels, range(1, 11)).all():
        raise ValueError(f"{file.name} has labels other than 1 to 10")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64) % 10)
