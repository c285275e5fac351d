"""Batch norm folded into the convolution before it: the same outputs from fewer operations."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """An equivalent module for evaluation in which convolutions have absorbed their batch norms.

    In eval mode a batch norm is one factor and one offset per channel. Where it is the only
    reader of a convolution's output, the factor scales that convolution's weights and the offset
    joins its bias; other batch norms stay. A module that cannot be traced stays as it is.

    Args:
        module: any module; it is left untouched.

    Returns:
        A copy in eval mode, with the same outputs and input gradients up to rounding. It is of
        no use for training.
    """
    folded = copy.deepcopy(module).eval()
    replacements: dict[nn.Module, nn.Module] = {}
    for convolution, norm in _pairs(folded):
        replacements[convolution] = fuse_conv_bn_eval(convolution, norm)
        replacements[norm] = nn.Identity()
    # Tracing only says what follows what. The module keeps its own forward code, so that it can
    # be copied, moved and collected like any other, and runs without a tracer's overhead.
    for parent in list(folded.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return folded


class Folding:
    """What `fold_batch_norms` does to the weights of a module, as a differentiable function.

    Args:
        module: in eval mode; its batch norms' statistics are looked up when it is called.
        prefix: of the names of weights, for a module inside another one.
    """

    def __init__(self, module: nn.Module, prefix: str = "") -> None:
        names = {child: f"{prefix}{name}." for name, child in module.named_modules()}
        self._pairs = [(names[one], names[two], two) for one, two in _pairs(module)]

    def __call__(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the folded module, by name, from those of the module as it was trained."""
        folded = dict(weights)
        for convolution, name, norm in self._pairs:
            mean, variance = norm.running_mean, norm.running_var
            assert mean is not None
            assert variance is not None
            factor = (variance + norm.eps).rsqrt() * folded.pop(f"{name}weight", 1.0)
            bias = folded.get(f"{convolution}bias", 0.0) - mean
            folded[f"{convolution}weight"] = (
                weights[f"{convolution}weight"] * factor[:, None, None, None]
            )
            folded[f"{convolution}bias"] = bias * factor + folded.pop(f"{name}bias", 0.0)
        return folded


def _pairs(module: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution that is read by one batch norm alone, with that batch norm."""
    try:
        graph = fx.Tracer().trace(module)
    except Exception:  # noqa: BLE001 - a module may raise anything when handed stand-ins
        return []
    children = dict(module.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if not (isinstance(source, fx.Node) and source.op == node.op == "call_module"):
            continue
        convolution, norm = children[str(source.target)], children[str(node.target)]
        # Exact types, since a subclass may compute something else; one call, since a module
        # that is used twice may be followed by a batch norm in one place only.
        if (
            type(convolution) is nn.Conv2d
            and type(norm) is nn.BatchNorm2d
            and norm.running_mean is not None
            and len(source.users) == 1
            and calls[source.target] == calls[node.target] == 1
        ):
            pairs.append((convolution, norm))
    return pairs
