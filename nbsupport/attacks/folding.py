"""Batch norm folded into the convolution before it: the same function of an image, in one pass less."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Module, example: Tensor) -> None:
    """Fold, in place, each batch norm that only ever sees the output of one convolution.

    Which one follows which is observed while `example` passes, so any Python is allowed in the
    network. A convolution whose output goes elsewhere too would now say something else there: compare
    the network's outputs before and after.
    One that takes another way for another input is folded as `example` went.

    Parameters
    ----------
    network
        In evaluation mode.
    example
        An input of it.
    """
    made_by: dict[
        int, tuple[Tensor, str]
    ] = {}  # holds the tensors, so that no address serves twice
    sources: dict[str, set[str]] = {}

    def remember(name: str, output: Tensor) -> None:
        made_by[id(output)] = (output, name)

    def look_up(name: str, image: Tensor) -> None:
        sources.setdefault(name, set()).add(made_by.get(id(image), (image, ""))[1])

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(
                module.register_forward_hook(lambda _, inputs, output, n=name: remember(n, output))
            )
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(
                module.register_forward_pre_hook(lambda _, inputs, n=name: look_up(n, inputs[0]))
            )
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()

    users = [name for found in sources.values() for name in found]
    for norm_name, (conv_name, *others) in (
        (norm, sorted(found)) for norm, found in sources.items()
    ):
        conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_name)
        if (
            conv_name
            and not others
            and users.count(conv_name) == 1
            and norm.running_var is not None
        ):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            network.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
            network.set_submodule(norm_name, nn.Identity())
