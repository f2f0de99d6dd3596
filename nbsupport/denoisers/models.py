"""The paper's denoisers: they map attacked images in [0, 1] to images in [0, 1] of the same size.

All but `HGD` use the kernel-prediction U-Net φ (section 3.2):

`HGD`        Ĩ = Î + another U-Net(Î)                       Liao et al. 2018
`Additive`   Ĩ = Î + φ(Î)                                   eq. 6
`Filtering`  Ĩ = Î ⊗ φ(Î)                                   eq. 7
`MultiHead`  four output layers, one per band of strengths    section 3.4
`YNet`       one encoder, two decoders: Ĩ_sl and Ĩ_m         section 4.1
`PAFilter`   Ĩ = W ⊙ Ĩ_sl + (1 − W) ⊙ Ĩ_m                   eqs. 9–11

`width` is the number of channels of φ's first block (64 in the paper); `kernel_size` is K, odd.
The paper's denoisers start as the identity, and their decoders leak (`unet.LEAK`). With
`as_published=True` they start from PyTorch's default initialisation instead, which shrinks the
signal to almost nothing over φ's 24 layers of ReLU.
"""

import contextlib
import json
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load_model
from torch import Tensor, nn

from ..data.images import Images, Kernels, Map, check_images
from ..study import short
from .filtering import distance_from_identity, filter_pixels, uncertainty_map
from .unet import Decoder, Encoder, OutputLayer, convolutions, initialise, resize

HEADS = 4
WEIGHTS, CONFIG = "model.safetensors", "config.json"
ATTACKERS = {"pgd": "gray-box", "adaptive": "adaptive"}


def checksum(folder: Path, config: dict[str, Any]) -> str:
    """Compute the checksum of saved weights and their config."""
    content = json.dumps(config, sort_keys=True).encode() + (folder / WEIGHTS).read_bytes()
    return sha256(content).hexdigest()


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of a saved network; raise `ValueError` if it or the weights were altered."""
    text = (folder / CONFIG).read_text(errors="replace")
    with contextlib.suppress(ValueError, KeyError):
        config: dict[str, Any] = json.loads(text)
        if config.pop("sha256") == checksum(folder, config):
            return config
    raise ValueError(f"{folder}: expected an intact network, got a damaged or altered one")


class Denoiser(nn.Module, PyTorchModelHubMixin, library_name="nbsupport"):
    """Base class of all denoisers: checks images, clips to [0, 1], saves and loads.

    `save_pretrained(folder)` saves weights, the constructor's arguments and `about`, anything that
    JSON can hold. Its model card shows three entries of `about`: ``data`` and ``classifier``, which
    are texts, and ``evaluation``, rows of `nbsupport.evaluate`. `from_pretrained(folder or hub id)`
    loads a denoiser in evaluation mode, frozen, on the CPU; it raises `ValueError` if the files are
    damaged, altered or of another class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.about: dict[str, Any] = {}

    def forward(self, images: Images) -> Images:
        """Denoise RGB images in [0, 1]; raise `TypeError` or `ValueError` for anything else."""
        check_images(images, caller=type(self).__name__)
        return self.denoise(images).clamp(0, 1)

    def denoise(self, images: Images) -> Images:
        """Denoise without checking and clipping."""
        raise NotImplementedError

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        arguments: Any = self._hub_mixin_config
        config = {"class": type(self).__name__, **arguments, "about": self.about}
        config["sha256"] = checksum(save_directory, config)
        (save_directory / CONFIG).write_text(json.dumps(config, indent=2))

    def generate_model_card(self, *arguments: Any, **options: Any) -> ModelCard:
        """The card that `save_pretrained` writes as README.md."""
        columns = ["attack", "metric", "eps", "value", "n"]
        rows = pd.DataFrame(self.about.get("evaluation", []), columns=columns)
        rows = rows[(rows["metric"] == "accuracy") & rows["attack"].isin(ATTACKERS)]
        heads = rows["attack"].map(ATTACKERS) + " (" + rows["n"].astype(str) + " images)"
        table = rows.assign(head=heads).pivot(index="eps", columns="head", values="value")
        table = table[heads.unique()].rename(short).rename_axis(index="ε")
        table = table.map("{:.3f}".format, na_action="ignore").fillna("")
        accuracy = table.to_markdown(disable_numparse=True) if len(table) else "*Not measured.*"
        text = files(__package__).joinpath("model_card.md").read_text(encoding="utf-8")
        data = self.about.get("data", "*Not recorded.*")
        behind = self.about.get("classifier", "a classifier")
        fields = {"name": type(self).__name__, "data": data, "classifier": behind}
        return ModelCard(text.format(**fields, accuracy=accuracy))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Denoiser":
        names = "revision", "cache_dir", "force_download", "local_files_only", "token"
        hub = {name: options.pop(name) for name in names}
        folder = Path(model_id if Path(model_id).is_dir() else snapshot_download(model_id, **hub))
        config = read_config(folder)
        if config["class"] != cls.__name__:
            raise ValueError(f"{folder}: expected a {cls.__name__}, got a {config['class']}")
        denoiser = cls(**options)
        load_model(denoiser, folder / WEIGHTS)
        denoiser.about = config["about"]
        return denoiser.eval().requires_grad_(False)


class HGD(Denoiser):
    """The denoising U-Net of HGD: Ĩ = Î + φ(Î) at full resolution (Liao et al. 2018, section 3.2).

    Its blocks are convolutions with batch norm of `width` · (1, 2, 4, 4, 4) channels; the paper's
    width is 64. Learned with the semantic loss on logits it is their LGD.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = [width * factor for factor in (1, 2, 4, 4, 4)]
        self.encoder = nn.ModuleList([_normalised(3, width, width)])
        for before, after in pairwise(sizes):
            self.encoder.append(_normalised(before, after, after, after, stride=2))
        self.decoder = nn.ModuleList()
        for below, skip in pairwise(reversed(sizes)):
            layers = 2 if skip == width else 3
            self.decoder.append(_normalised(below + skip, *[skip] * layers))
        self.output = nn.Conv2d(width, 3, 1)

    def denoise(self, images: Images) -> Images:
        skips = [self.encoder[0](images)]
        for block in self.encoder[1:]:
            skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.decoder:
            x = block(torch.cat([resize(x, skips[-1]), skips.pop()], dim=1))
        return images + self.output(x)


def _normalised(*channels: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolutions with batch norm; the first has the stride."""
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        step = 1 if layers else stride
        layers.append(nn.Conv2d(before, after, 3, step, padding=1, bias=False))
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class KernelDenoiser(Denoiser):
    """A denoiser that predicts `kernels` and filters with them (eq. 7)."""

    def kernels(self, images: Images) -> Kernels:
        """Predict φ(Î), with taps row by row as in `filter_pixels`."""
        raise NotImplementedError

    def denoise(self, images: Images) -> Images:
        return filter_pixels(images, self.kernels(images))


class Additive(Denoiser):
    """Ĩ = Î + φ(Î) (eq. 6), with a last block as wide as that of `Filtering`.

    As published the last block has three rectified channels, so φ is often dead.
    """

    def __init__(self, width: int = 64, kernel_size: int = 5, as_published: bool = False) -> None:
        super().__init__()
        channels = 3 if as_published else 3 * kernel_size**2
        self.encoder = Encoder(width, as_published)
        self.decoder = Decoder(width, channels, as_published)
        self.output = OutputLayer(channels, torch.zeros(3), as_published)

    def denoise(self, images: Images) -> Images:
        return images + resize(self.output(self.decoder(self.encoder(images))), images)


class Filtering(KernelDenoiser):
    """Ĩ = Î ⊗ φ(Î) (eq. 7): one K×K kernel for each pixel and colour channel."""

    OUTPUTS: ClassVar[dict[Any, str]] = {"kernels": "kernels"}
    """φ's output layers, and the decoder before each. A call uses the first."""

    def __init__(self, width: int = 64, kernel_size: int = 5, as_published: bool = False) -> None:
        super().__init__()
        identity = torch.eye(kernel_size**2)[kernel_size**2 // 2].repeat(3)
        self.encoder = Encoder(width, as_published)
        self.decoders, self.outputs = nn.ModuleDict(), nn.ModuleDict()
        for name in dict.fromkeys(self.OUTPUTS.values()):
            self.decoders[name] = Decoder(width, len(identity), as_published)
        for output in self.OUTPUTS:
            self.outputs[str(output)] = OutputLayer(len(identity), identity, as_published)

    def kernels(self, images: Images, output: int | str | None = None) -> Kernels:
        """Predict an output's kernels; raise `ValueError` unless it is one of `OUTPUTS`."""
        first = next(iter(self.OUTPUTS))
        return self.decode(self.encoder(images), first if output is None else output)

    def decode(self, encoded: list[Tensor], output: int | str) -> Kernels:
        """Predict an output's kernels from all outputs of the encoder."""
        if output not in self.OUTPUTS:
            expected = f"one of the outputs {', '.join(map(str, self.OUTPUTS))}"
            raise ValueError(f"{type(self).__name__}: expected {expected}, got {output!r}")
        decoded = self.decoders[self.OUTPUTS[output]](encoded)
        return resize(self.outputs[str(output)](decoded), encoded[0])


class MultiHead(Filtering):
    """One φ with four output layers; head i learns from the strengths {1, 3, 5}·10^(i−5).

    A call uses the last head, ``View(heads, 3)`` the third (section 3.4).
    """

    OUTPUTS = dict.fromkeys(range(HEADS, 0, -1), "heads")

    @staticmethod
    def band(eps: float) -> int:
        """Return the head for strength `eps`: 1 for 1e-4 … 5e-4, up to 4 for 1e-1 … 5e-1.

        Raises `ValueError` for strengths below 1e-4 or from 1.
        """
        head = int(f"{eps:e}".split("e")[1]) + HEADS + 1
        if not (eps and 1 <= head <= HEADS):
            raise ValueError(f"MultiHead: expected a strength from 1e-4 to below 1, got {eps}")
        return head


class YNet(Filtering):
    """One encoder, two decoders: φ_sl for small and large ε, φ_m for middle ε (section 4.1).

    A call uses φ_sl, ``View(ynet, "m")`` uses φ_m.
    """

    OUTPUTS = {"sl": "sl", "m": "m"}  # noqa: RUF012


class View(KernelDenoiser):
    """One of a denoiser's `OUTPUTS` as a denoiser: 1 to 4, or ``"sl"`` or ``"m"``."""

    def __init__(self, whole: Filtering, output: int | str) -> None:
        super().__init__()
        self.whole, self.output = whole, output

    def kernels(self, images: Images) -> Kernels:
        return self.whole.kernels(images, self.output)

    def _save_pretrained(self, save_directory: Path) -> None:
        raise TypeError("save_pretrained: expected a whole denoiser, got a View; save its `whole`")


class Parts(NamedTuple):
    """The intermediate results of `PAFilter`; both images are clipped to [0, 1]."""

    sl: Images
    m: Images
    kernels_sl: Kernels
    kernels_m: Kernels
    uncertainty_sl: Map
    uncertainty_m: Map
    weight: Map


class PAFilter(Denoiser):
    """Predictive perturbation-aware filtering: Ĩ = W ⊙ Ĩ_sl + (1 − W) ⊙ Ĩ_m (eqs. 9–11).

    Six 3×3 convolutions C and a sigmoid map both uncertainty maps to W in [0, 1]. The maps enter as
    differences from 1, the identity's value; with all `fusion_inputs` both kernels' distances from
    the identity and the mean |Ĩ_sl − Ĩ_m| of a pixel follow. W starts at ½, or by default from
    PyTorch's initialisation. As published the maps enter unchanged.
    """

    def __init__(
        self, width: int = 64, kernel_size: int = 5, as_published: bool = False,
        fusion_inputs: str = "maps", fusion_start: str = "half",
    ) -> None:  # fmt: skip
        super().__init__()
        self.ynet, self.inputs = YNet(width, kernel_size, as_published), fusion_inputs
        self.offset = 0 if as_published else 1
        border: Any = "zeros" if as_published else "replicate"  # zeros draw a frame around W
        channels = 2 if fusion_inputs == "maps" else 5
        layers = convolutions(channels, 32, 32, 32, 32, 32, border=border)
        last = nn.Conv2d(32, 1, 3, padding=1, padding_mode=border)
        self.fusion = nn.Sequential(*layers, last, nn.Sigmoid())
        if fusion_start == "half" and not as_published:
            initialise(self.fusion)
            nn.init.zeros_(last.weight)

    def parts(self, images: Images) -> Parts:
        """Compute Ĩ_sl, Ĩ_m, both kernels, both uncertainty maps (eq. 9) and W (eq. 10)."""
        check_images(images, caller=type(self).__name__)
        encoded = self.ynet.encoder(images)
        kernels = [self.ynet.decode(encoded, output) for output in self.ynet.OUTPUTS]
        filtered = [filter_pixels(images, each).clamp(0, 1) for each in kernels]
        maps = [uncertainty_map(each) for each in kernels]
        inputs = [each - self.offset for each in maps]
        if self.inputs != "maps":
            inputs += [distance_from_identity(each) for each in kernels]
            inputs.append((filtered[0] - filtered[1]).abs().mean(dim=1, keepdim=True))
        weight = self.fusion(torch.cat(inputs, dim=1))
        return Parts._make([*filtered, *kernels, *maps, weight])

    @staticmethod
    def fuse(parts: Parts) -> Images:
        """Mix both images (eq. 11)."""
        return parts.weight * parts.sl + (1 - parts.weight) * parts.m

    def denoise(self, images: Images) -> Images:
        return self.fuse(self.parts(images))
