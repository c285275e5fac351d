"""Which clean images released ones are of, whatever their names, rows or labels say.

A perturbation may be strong, but an image that carries one still resembles its own clean image
more than it resembles others of its class, and is no nearer to another one, nor to its own in
other colours or turned. Two measures are taken, since each misses something: likeness, which
ignores brightness and contrast, finds sets that are of no image at all; distance finds single
images that belong elsewhere.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bench.data import ImageDataset, chunks, portion, to_unit
from bench.seeding import stream

RIVALS = 4
"""Other clean images of the class that each released image is compared with."""
LEAST_SHARE = 0.8
"""So many of these comparisons its own clean image must win: by chance it wins half of them, and
under the strongest perturbations here (`cuda`, l∞ 64/255) nineteen of twenty or more."""
COMPARED = 2000
"""Images for which these comparisons are made, spread over a set that has more."""
NEARER, ALIKE = 0.5, 0.5
"""An image belongs elsewhere if it is at less than this share of the distance from there, and has
at least this likeness to it: noise around a grey is near whatever is flat, without being like it.
"""
UNSEEN = 10 / 255
"""Root mean square up to which a change may be any perturbation, whatever it makes alike."""
SUSPECTS = 500
"""Images, those that differ the most from their own, which all others are searched for."""
_GRID = 8
"""Cells along each side of the coarse copies that are searched."""


class Resemblance:
    """Compares released images with clean ones, portion by portion.

    Args:
        train: the clean training images.
        rows: (n,) int64, where these stand in the whole split, for messages.
        places: (m,) int64, which of them the released images shall be of, in their order.
    """

    def __init__(self, train: ImageDataset, rows: Tensor, places: Tensor) -> None:
        self._train, self._rows, self._places = train, rows, places
        self._rivals = _rivals(train.labels)
        self._every = -(-len(places) // COMPARED)
        self._wins: list[Tensor] = []
        self._plain: list[Tensor] = []
        self._distance = torch.zeros(len(places))
        self._seen = 0

    def add(self, images: Tensor) -> None:
        """Look at the next released images, (b, 3, h, w) float32 in [0, 1]."""
        numbers = torch.arange(self._seen, self._seen + len(images))
        self._seen += len(images)
        self._distance[numbers] = _distance(images, self._clean(self._places[numbers]))
        some = numbers % self._every == 0
        here, images = self._places[numbers[some]], images[some]
        own = self._clean(here)
        likeness, distance = _likeness(images, own), _distance(images, own)
        for rivals in self._rivals:
            other = self._clean(rivals[here])
            gain = likeness - _likeness(images, other)
            # Images of one colour have no likeness to anything; there distance decides.
            nearer = distance <= _distance(images, other)
            self._wins.append((gain > 1e-5) | ((gain.abs() <= 1e-5) & nearer))
        self._plain.append(images.flatten(2).std(2).amax(1) < 1 / 255)

    def objection(self, read: Callable[[Tensor], Tensor]) -> str | None:
        """What speaks against the set, in words that follow its name; None if nothing does.

        Args:
            read: gives the released images of some numbers, (b,) int64, counted as they were added.
        """
        suspects = self._distance.argsort(descending=True)[:SUSPECTS]
        suspects = suspects[self._distance[suspects] > UNSEEN]
        found = [one for part in chunks(suspects, 64) for one in self._elsewhere(part, read(part))]
        if found:
            return self._misplaced(found, len(suspects))
        share = float(torch.cat(self._wins).float().mean())
        if share >= LEAST_SHARE:
            return None
        if torch.cat(self._plain).float().mean() > 0.5:
            return "has images of one colour, where the clean ones show something"
        return (
            f"does not resemble the clean images: only {share:.0%} of comparisons find an image "
            "more like its own clean one than like another of its class, where chance gives 50%; "
            "it may be noise without images, or of images from elsewhere"
        )

    def _elsewhere(self, numbers: Tensor, images: Tensor) -> Iterator[tuple[int, str, int]]:
        """Number of an image, and how or as which place it was changed (a place: no words)."""
        own = self._clean(self._places[numbers])
        limit = NEARER * self._distance[numbers]
        least, words = limit.clone(), [""] * len(images)

        def look(other: Tensor, name: str) -> None:
            away = _distance(images, other)
            for one in (away < least).nonzero().flatten().tolist():
                if float(_likeness(images[[one]], other[[one]])) >= ALIKE:
                    least[one], words[one] = away[one], name

        for name, change in _changes(square=own.shape[2] == own.shape[3]):
            look(change(own), name)
        coarse = adaptive_avg_pool2d(images, _GRID).flatten(1)
        apart = torch.cdist(coarse, self._coarse)
        apart[torch.arange(len(images)), self._places[numbers]] = torch.inf
        places = apart.argmin(1)
        look(self._clean(places), "")
        for one in (least < limit).nonzero().flatten().tolist():
            yield int(numbers[one]), words[one], int(places[one])

    def _misplaced(self, found: list[tuple[int, str, int]], searched: int) -> str:
        (how, _), *_ = Counter(words for _, words, _ in found).most_common(1)
        numbers, places = (
            torch.tensor([one[part] for one in found if one[1] == how]) for part in (0, 2)
        )
        count = f"{len(numbers)} image{'s' if len(numbers) > 1 else ''}"
        if searched == SUSPECTS:
            count += f" (of the {SUSPECTS} that differ the most)"
        if how:
            return f"has {count} changed from the clean: {how}"
        own, labels, rows = self._places[numbers], self._train.labels, self._rows
        within = " of the same class" if bool((labels[own] == labels[places]).all()) else ""
        return (
            f"has {count} of other clean images{within}: one for row {int(rows[own[0]])} of the "
            f"training split is of row {int(rows[places[0]])}"
        )

    @cached_property
    def _coarse(self) -> Tensor:
        """Small copies of all clean images, (n, 3 * 8 * 8)."""
        parts = self._train.images.split(portion(self._train.images))
        return torch.cat([adaptive_avg_pool2d(to_unit(part), _GRID).flatten(1) for part in parts])

    def _clean(self, places: Tensor) -> Tensor:
        return to_unit(self._train.images[places])


def _rivals(labels: Tensor) -> list[Tensor]:
    """For every image others of its class, or any others where it is the only one; each (n,)."""
    count = len(labels)
    order = torch.randperm(count, generator=stream(0, "rivals"))
    order = order[labels[order].sort(stable=True).indices]
    sizes = torch.bincount(labels)[labels[order]]
    rank = torch.arange(count)
    first = torch.searchsorted(labels[order].contiguous(), labels[order].contiguous())
    found = []
    for step in range(1, RIVALS + 1):
        inside = first + (rank - first + 1 + (step - 1) % (sizes - 1).clamp_min(1)) % sizes
        other = torch.where(sizes > 1, inside, (rank + step) % count)
        rivals = torch.empty_like(order)
        rivals[order] = order[other]
        found.append(rivals)
    return found


def _likeness(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of images, channels centred one by one; (b,), 0 where one is of one colour."""
    a, b = (part - part.mean(dim=(2, 3), keepdim=True) for part in (a, b))
    a, b = a.flatten(1), b.flatten(1)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-6)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square of the difference of images, (b,)."""
    return (a - b).flatten(1).square().mean(1).sqrt()


def _changes(square: bool) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """What goes wrong on the way to a file: in words, and done to images (b, 3, h, w)."""
    turns: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("", lambda x: x),
        ("left and right exchanged", lambda x: x.flip(3)),
        ("top and bottom exchanged", lambda x: x.flip(2)),
        ("a half turn", lambda x: x.flip(2, 3)),
    ]
    if square:
        turns += [
            ("axes transposed", lambda x: x.transpose(2, 3)),
            ("a quarter turn to the left", lambda x: x.rot90(1, (2, 3))),
            ("a quarter turn to the right", lambda x: x.rot90(3, (2, 3))),
            ("axes transposed and a half turn", lambda x: x.transpose(2, 3).flip(2, 3)),
        ]
    for (turn, act), order in itertools.product(turns, itertools.permutations(range(3))):
        colours = "".join("RGB"[channel] for channel in order)
        exchanged = "" if colours == "RGB" else f"channels exchanged ({colours} for RGB)"
        words = " and ".join(filter(None, (exchanged, turn)))
        if words:
            yield words, lambda x, act=act, order=order: act(x)[:, order]
    yield "light and dark exchanged", lambda x: 1 - x
    yield "their values divided by 255 twice", lambda x: x / 255
