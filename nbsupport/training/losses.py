"""What the denoisers are trained for: eqs. 4 and 5, and the fusion's cross-entropy (section 4.2)."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..classifiers.models import Classifier

Images = Float[Tensor, "b c h w"]


def image_loss(denoised: Images, clean: Images) -> Float[Tensor, ""]:
    """L_img = ‖I − Ĩ‖₁ (eq. 4), as a mean over all values."""
    return F.l1_loss(denoised, clean)


def semantic_loss(
    classifier: Classifier, denoised: Images, clean: Images, layer: str = "logits"
) -> Float[Tensor, ""]:
    """L_sem = ‖φ_l(I) − φ_l(Ĩ)‖₁ (eq. 5), as a mean over all values.

    Parameters
    ----------
    classifier
        φ, frozen.
    denoised, clean
        Images in [0, 1].
    layer
        l: ``"logits"``, or ``"features"`` for the last features before them.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    if layer not in ("logits", "features"):
        raise ValueError(f"semantic_loss: expected the layer 'logits' or 'features', got {layer!r}")
    output = classifier.features if layer == "features" else classifier
    return F.l1_loss(output(denoised), output(clean).detach())


def fusion_loss(
    classifier: Classifier, fused: Images, clean: Images, weights: Float[Tensor, "b"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of the classifier on the fused images against its probabilities on the clean ones.

    The mean over the images; with `weights`, of one per image, that of the products.
    """
    each = F.cross_entropy(
        classifier(fused), classifier(clean).detach().softmax(dim=1), reduction="none"
    )
    return each.mean() if weights is None else (each * weights).mean()
