"""The sizes of every named study at its three scales: what a `nbsupport.study.Study` is made from."""

from typing import Any

TOKEN: dict[str, Any] = dict(
    adversarial_steps=2, adversarial_epochs=1, knowing_epochs=1, sweep_steps=(6, 8),
    adaptive_images=4, adaptive_eps=(0.1, 0.5), adaptive_trace_eps=0.1, adaptive_steps=4, adaptive_restarts=1,
    adaptive_iterations=2, adaptive_queries=4,
)  # fmt: skip
"""The second half of the study at ``smoke``: enough to see that it runs."""

SMOKE: dict[str, Any] = dict(
    train_images=48, test_images=24, width=4, kernel_size=3, epochs=1, batch_size=48, classifier_epochs=2,
    fusion_epochs=1, steps=4, **TOKEN,
)  # fmt: skip

PAPER: dict[str, Any] = dict(
    train_images=10_000, test_images=1000, width=64, kernel_size=5, epochs=40, classifier_epochs=40, fusion_epochs=10,
    adversarial_epochs=60, knowing_epochs=60, adaptive_images=500,
)  # fmt: skip
"""The paper's sizes."""

PHOTOGRAPHS: dict[str, Any] = dict(
    augmentation="crop", precision="bfloat16", fusion="balanced", fusion_learning_rate=1e-4
)
SMALLEST: dict[str, Any] = dict(
    classifier_images=200, adversarial_images=200, **PHOTOGRAPHS, **SMOKE
)

CIFAR: dict[str, dict[str, Any]] = {
    "smoke": dict(classifier="resnet20", image_size=32, **SMALLEST),
    "quick": dict(
        classifier="resnet20", image_size=32, train_images=2000, test_images=500, width=12, kernel_size=5, epochs=6,
        batch_size=24, learning_rate=5e-4, classifier_epochs=24, fusion_epochs=2, adversarial_eps=4 / 255,
        adversarial_images=8000, adversarial_epochs=15, adversarial_steps=3, adversarial_rel_step=0.5, own_images=100,
        knowing_epochs=6, adaptive_images=32, adaptive_eps=(3e-3, 1e-2, 3e-2, 0.5), adaptive_trace_eps=3e-3,
        adaptive_steps=100, adaptive_restarts=2, adaptive_iterations=40, adaptive_queries=1000, **PHOTOGRAPHS,
    ),
    "paper": dict(classifier="resnet50", image_size=32, batch_size=240, **PHOTOGRAPHS, **PAPER),
}  # fmt: skip
"""Of ``cifar10`` and ``svhn``."""

STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "smoke": dict(classifier="small_resnet", image_size=16, adversarial_eps=0.1, **SMOKE),
        "quick": dict(
            classifier="small_resnet", train_images=1000, test_images=500, image_size=16, width=8, kernel_size=5,
            epochs=5, batch_size=120, classifier_epochs=15, fusion_epochs=3,
            adversarial_eps=0.1, adversarial_epochs=30, knowing_epochs=30, adaptive_images=32,
            adaptive_eps=(5e-2, 0.1, 0.3, 0.5), adaptive_trace_eps=5e-2,
        ),
        "paper": dict(
            classifier="small_resnet", train_images=1200, test_images=500, image_size=16, width=64, kernel_size=5,
            epochs=40, batch_size=240, classifier_epochs=40, fusion_epochs=10,
            adversarial_eps=0.1, adversarial_epochs=60, knowing_epochs=60, adaptive_images=500,
            adaptive_eps=(1e-2, 3e-2, 5e-2, 0.1, 0.3, 0.5), adaptive_trace_eps=5e-2,
        ),
    },
    "cifar10": CIFAR,
    "svhn": CIFAR,
    "neurips2017dev": {
        "smoke": dict(classifier="resnet18", image_size=224, **SMALLEST | {"train_images": 12, "test_images": 6}),
        "quick": dict(
            classifier="resnet50", image_size=224, train_images=100, test_images=40, width=8, kernel_size=3,
            epochs=4, batch_size=12, learning_rate=5e-4, classifier_epochs=15, fusion_epochs=2, adversarial_epochs=4,
            knowing_epochs=4, adaptive_images=16, **PHOTOGRAPHS,
        ),
        "paper": dict(classifier="resnet50", image_size=224, batch_size=64, **PHOTOGRAPHS, **PAPER),
    },
    "folder": {
        "smoke": dict(classifier="small_resnet", image_size=32, **SMOKE),
        "quick": dict(
            classifier="small_resnet", train_images=1000, test_images=500, image_size=32, width=8, kernel_size=5,
            epochs=5, batch_size=120, classifier_epochs=15, fusion_epochs=3,
            adversarial_epochs=30, knowing_epochs=30, adaptive_images=32,
        ),
        "paper": dict(classifier="resnet50", image_size=224, batch_size=64, **PAPER, precision="bfloat16"),
    },
}  # fmt: skip
