"""DeepConfuse: a generator of noise that leads training astray.

Feng, Ji, Qi-Zhi Cai and Zhi-Hua Zhou. "Learning to Confuse: Generating Training Time Adversarial
Data with Auto-Encoder", NeurIPS 2019. A U-Net g with weights xi alters images, and a classifier f
with weights theta learns from them:

    max over xi  E CE(f_theta*(x), y)
    where  theta* = arg min over theta  E CE(f_theta(x + epsilon tanh g_xi(x)), y)

A trial begins with a fresh f. For each mini-batch, x' being clipped to [0, 1],

    theta' = theta - a grad CE(f_theta(x'), y),    x' = x + epsilon tanh g_xi(x)
    xi    <- a step of Adam up CE(f_theta'(x), y), differentiated through theta'
    theta <- theta - a grad CE(f_theta(x''), y),   x'' likewise by g as it stood before the trial

and the noise is that of the last trial's generator. f and the learning g are in train mode, the
frozen g in eval mode. Images are neither normalised nor augmented.

The defaults are the paper's; a trial's 20 epochs are the released code's, which has 1000 trials of
batches of 256 against VGG-11 (`trials=1000,batch=256,classifier=vgg11`). It keeps the generator
under which a classifier of its own does worst on the *test set*; here no test image is seen, and
the last generator is taken. The paper's radius is 0.032, which is 8.16 grey levels: what is
released in 8 bits keeps to 8 of them either way, and tables have 8/255, so that is the default.
The layout of the five convolutions on CIFAR is that of the code's ImageNet variant.

That costs days on a GPU; later benchmarks reuse the released generator instead, scaled to 8/255.
`quick` has ten passes over its images where the paper has ten thousand over ten times as many. It
runs the same algorithm on narrow networks with larger rates, and its noise does next to nothing:
it says that the method works on a machine, not how well it protects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench.bfloat16 import casting
from bench.component import setting
from bench.crafting import Crafting
from bench.data import ImageDataset, chunks
from bench.errors import UsageError
from bench.method import BoundedMethod
from bench.network import Network, Precision
from bench.recipe import batches
from bench.registry import METHODS

M = TypeVar("M", bound=nn.Module)

STAGES = (64, 128, 256, 512)
"""Channels of the U-Net from the whole image down to an eighth of its size."""
CLASSIFIERS = {
    "cnn5": ((32,), (64,), (128,), (128,), (128,)),
    "vgg11": ((64,), (128,), (256, 256), (512, 512), (512, 512)),
}
"""Channels of the 3x3 convolutions before each max-pool."""
BOTTLENECKS = {"vgg11": 2}
"""Channels of a 1x1 convolution before the linear layer."""
PER_BATCH = 4
"""Gradients counted for an image of a batch: three for a double backward, one for a real step."""


@METHODS.register("deepconfuse", also=("DC",))
@dataclass(frozen=True)
class DeepConfuse(BoundedMethod):
    """Noise from a U-Net that learns through one training step of a classifier."""

    paper: ClassVar[str] = "Feng et al., Learning to Confuse, NeurIPS 2019"
    presets: ClassVar = {
        "quick": {
            "trials": 5,
            "epochs": 2,
            "classifier_lr": 0.1,
            "generator_lr": 0.003,
            "generator_width": 0.125,
            "classifier_width": 0.25,
        },
        "standard": {"trials": 40, "epochs": 5, "classifier_lr": 0.1, "generator_lr": 0.001},
    }

    trials: int = setting(
        500, "classifiers trained from scratch, one after the other; a handful do next to nothing"
    )
    epochs: int = setting(20, "passes over the images a trial")
    batch: int = setting(64, "images a step")
    classifier: Literal["cnn5", "vgg11"] = setting(
        "cnn5", "five convolutions, or the released code's VGG-11 with two features"
    )
    classifier_lr: float = setting(0.01, "a, of plain SGD without momentum")
    generator_lr: float = setting(1e-4, "of Adam")
    generator_width: float = setting(1.0, "factor on the U-Net's channels, 1 being the paper's")
    classifier_width: float = setting(1.0, "factor on the classifier's channels, likewise")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch < 2 or min(self.trials, self.epochs) < 0:
            raise ValueError("batch must be 2 or more, and trials and epochs 0 or more")
        if min(self.classifier_lr, self.generator_lr) < 0:
            raise ValueError("classifier_lr and generator_lr must not be negative")
        if not (0 < self.generator_width <= 16 and 0 < self.classifier_width <= 16):
            raise ValueError("generator_width and classifier_width must be above 0 and at most 16")

    def check(self, train: ImageDataset, rows: Tensor, total: int) -> None:
        """The U-Net halves images three times."""
        del rows, total
        height, width = train.image_size
        if min(height, width) < 8:
            raise UsageError(
                f"deepconfuse needs images of 8 x 8 pixels or more, these are {height} x {width}"
            )

    @property
    def own_batch(self) -> int | None:
        """Of the generator and of the classifiers."""
        return self.batch

    def gradient_images(self, images: int) -> int:
        """A double backward counts three, a training step of the classifier one."""
        return PER_BATCH * images * self.trials * self.epochs

    def craft(self, job: Crafting) -> Tensor:
        """All trials, then the noise of every image."""
        state = Trials(job, self)
        # Batch norm finds no spread in a single image where that has become a single pixel.
        while state.epoch < self.trials * self.epochs and len(state.rows) > 1:
            state.run_epoch()
            job.save("trials", state.pack)
        delta = job.blank()
        for rows in chunks(state.rows, self.batch):
            images, _ = job.batch(rows)
            delta[rows] = state.noise(images.float() / 255).cpu()
        return delta


class Trials:
    """The generator and the classifier, between two epochs.

    Attributes:
        rows: the protected rows, in file order.
        generator: the U-Net that learns.
        frozen: as it stood before the present trial.
        classifier: of the present trial.
        epoch: epochs done in all trials.
    """

    def __init__(self, job: Crafting, method: DeepConfuse) -> None:
        self._job, self._method = job, method
        self.rows = job.mask.nonzero().flatten()
        self.generator = self._new_generator()
        self._adam = torch.optim.Adam(self.generator.parameters(), lr=method.generator_lr)
        self.frozen = self._new_generator()
        self.classifier = self._new_classifier(0)
        self.epoch = 0
        saved = job.load("trials")
        if saved is not None:
            self._unpack(saved)

    def run_epoch(self) -> None:
        """One pass over the images; the first of a trial has a fresh classifier."""
        trial, within = divmod(self.epoch, self._method.epochs)
        if within == 0:
            self.frozen.load_state_dict(self.generator.state_dict())
            self.classifier = self._new_classifier(trial)
        draws = self._job.stream("pass", self.epoch)
        order = self.rows[torch.randperm(len(self.rows), generator=draws)]
        for part in batches(len(order), self._method.batch):
            rows = order[part]
            images, labels = self._job.batch(rows)
            x = images.float() / 255
            self.confuse(x, labels)
            self.train(x, labels)
            self._job.spend(PER_BATCH * len(rows))
        self.epoch += 1

    def confuse(self, images: Tensor, labels: Tensor) -> None:
        """One step of the generator through a pseudo-step of the classifier."""
        altered = self.altered(self.generator.train(), images)
        classifier = self.classifier.train()
        rate = self._method.classifier_lr
        loss = -loss_after_step(classifier, altered, images, labels, rate)
        weights = list(self.generator.parameters())
        for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = slope
        self._adam.step()

    def train(self, images: Tensor, labels: Tensor) -> None:
        """One real step of the classifier, on images altered by the frozen generator."""
        with torch.no_grad():
            altered = self.altered(self.frozen.eval(), images)
        weights = list(self.classifier.train().parameters())
        loss = F.cross_entropy(self.classifier(altered), labels)
        slopes = torch.autograd.grad(loss, weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight -= self._method.classifier_lr * slope

    def altered(self, generator: UNet, images: Tensor) -> Tensor:
        """X', (b, 3, h, w) in [0, 1]."""
        return (images + self._method.epsilon * generator(images).tanh()).clamp(0, 1)

    def noise(self, images: Tensor) -> Tensor:
        """Delta of images (b, 3, h, w) in [0, 1], by the generator as it stands."""
        with torch.no_grad():
            return self._method.epsilon * self.generator.eval()(images).tanh()

    def _new_generator(self) -> UNet:
        width, precision = self._method.generator_width, self._job.precision
        made = seeded(lambda: UNet(width, precision), self._job.stream("generator"))
        return made.to(self._job.device).to(memory_format=torch.channels_last)

    def _new_classifier(self, trial: int) -> Network:
        job, method = self._job, self._method
        kind, width = method.classifier, method.classifier_width
        draws = job.stream("classifier", trial)
        made = seeded(lambda: new_classifier(kind, job.classes, width), draws)
        return made.to(job.device).to(memory_format=torch.channels_last)

    def pack(self) -> dict[str, Any]:
        """Everything that the next epoch needs."""
        return {
            "generator": self.generator.state_dict(),
            "frozen": self.frozen.state_dict(),
            "adam": self._adam.state_dict(),
            "classifier": self.classifier.state_dict(),
            "epoch": self.epoch,
            "spent": self._job.gradient_images,
        }

    def _unpack(self, saved: dict[str, Any]) -> None:
        self.generator.load_state_dict(saved["generator"])
        self.frozen.load_state_dict(saved["frozen"])
        self._adam.load_state_dict(saved["adam"])
        self.classifier.load_state_dict(saved["classifier"])
        self.epoch = saved["epoch"]
        self._job.spend(saved["spent"])


def loss_after_step(
    classifier: nn.Module, altered: Tensor, images: Tensor, labels: Tensor, rate: float
) -> Tensor:
    """The loss on clean images after one step of SGD on altered ones.

    Args:
        classifier: its weights stay; the step is only thought of.
        altered: (b, 3, h, w) to learn from; the result is differentiable in them.
        images: (b, 3, h, w) to be judged on.
        labels: (b,) of both.
        rate: of the step.
    """
    weights = dict(classifier.named_parameters())
    loss = F.cross_entropy(classifier(altered), labels)
    slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    stepped = {
        name: weight.detach() - rate * slope
        for (name, weight), slope in zip(weights.items(), slopes, strict=True)
    }
    return F.cross_entropy(functional_call(classifier, stepped, (images,)), labels)


class UNet(nn.Module):
    """Images to images: four scales down, three up, each with a look back.

    layer    output       built from
    down 1   h x w, 64    two 3x3
    down 2   h/2, 128     average pool, two 3x3
    down 3   h/4, 256     average pool, two 3x3
    down 4   h/8, 512     average pool, two 3x3
    up 3     h/4, 256     bilinear, beside down 3, two 3x3
    up 2     h/2, 128     bilinear, beside down 2, two 3x3
    up 1     h x w, 64    bilinear, beside down 1, two 3x3
    out      h x w, 3     1x1

    Every convolution is followed by batch norm, the 3x3 ones by ReLU, too. Sides of any length
    from 8 on will do: where one is odd, half of it is rounded down and grows back to it.

    Args:
        width: factor on the channels.
        precision: of its arithmetic. Its output is float32.
    """

    def __init__(self, width: float, precision: Precision) -> None:
        super().__init__()
        channels = [max(1, round(count * width)) for count in STAGES]
        pairs = list(zip([3, *channels], channels, strict=False))
        self.down = nn.ModuleList(_twice(inputs, outputs) for inputs, outputs in pairs)
        self.up = nn.ModuleList(_twice(low + high, high) for high, low in reversed(pairs[1:]))
        self.out = nn.Sequential(nn.Conv2d(channels[0], 3, 1), nn.BatchNorm2d(3))
        self._precision = precision

    def forward(self, images: Tensor) -> Tensor:
        """(b, 3, h, w) to (b, 3, h, w) float32, of any sign and size."""
        with casting(images.device, self._precision == "bf16"):
            x, seen = images, []
            for level, block in enumerate(self.down):
                x = block(F.avg_pool2d(x, 2) if level else x)
                seen.append(x)
            seen.pop()
            for block in self.up:
                beside = seen.pop()
                size = beside.shape[2:]
                x = F.interpolate(x, size, mode="bilinear", align_corners=True)
                x = block(torch.cat([beside, x], dim=1))
            return self.out(x).float()


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (inputs, outputs):
        layers += [nn.Conv2d(count, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def new_classifier(kind: str, classes: int, width: float = 1.0) -> Network:
    """A classifier of the table above, which takes [0, 1] as it is.

    It computes in float32 whatever the job's precision: what the generator learns from are
    differences that one small step makes.
    """
    layers: list[nn.Module] = []
    channels = 3
    for stage in CLASSIFIERS[kind]:
        for full in stage:
            count = max(1, round(full * width))
            layers += [nn.Conv2d(channels, count, 3, padding=1), nn.BatchNorm2d(count), nn.ReLU()]
            channels = count
        # Rounding up leaves a pixel to images below 32x32; even sizes halve all the same.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers.append(nn.AdaptiveAvgPool2d(1))
    if kind in BOTTLENECKS:
        layers.append(nn.Conv2d(channels, BOTTLENECKS[kind], 1))
        channels = BOTTLENECKS[kind]
    return Network(nn.Sequential(*layers, nn.Flatten()), channels, classes, (0, 0, 0), (1, 1, 1))


def seeded(make: Callable[[], M], draws: torch.Generator) -> M:
    """A module whose initial weights depend on the generator alone."""
    # PyTorch's initialisers draw from the global generator, so it is borrowed and given back.
    with torch.random.fork_rng(devices=[]):
        seed = int(torch.randint(2**62, (1,), generator=draws))
        torch.default_generator.manual_seed(seed)
        return make()
