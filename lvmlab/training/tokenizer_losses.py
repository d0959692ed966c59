"""Terms of a tokenizer's loss: contrast weights, MS-SSIM, a patch discriminator (PatchGAN, arXiv 1611.07004),
LPIPS.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def edge_weight(target: Tensor, strength: Tensor) -> Tensor:
    """Weights of pixels, larger where the target's colour changes within one pixel.

    Args:
        target: (B, 3, H, W) in [0, 1].
        strength: (B,), of each picture; 0 weighs all its pixels 1.

    Returns:
        (B, 1, H, W), from 1 to 1 + strength.
    """
    high = F.max_pool2d(target, 3, 1, 1)
    contrast = (high + F.max_pool2d(-target, 3, 1, 1)).amax(1, keepdim=True)  # (B, 1, H, W)
    weight = 1 + strength.view(-1, 1, 1, 1) * (contrast / contrast.amax((2, 3), keepdim=True).clamp(min=0.1))
    return weight


def ms_ssim(picture: Tensor, target: Tensor) -> Tensor:
    """MS-SSIM of pictures (B, 3, H, W) in [0, 1], with a small kernel for small pictures; a scalar."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    return measure(
        picture.clamp(0, 1),
        target,
        data_range=1.0,
        kernel_size=5,
        sigma=1.0,
        betas=(0.2, 0.3, 0.5),
        normalize="relu",
    )


def patch_discriminator() -> nn.Sequential:
    """PatchGAN (Isola et al. 2017): one verdict for each patch."""
    layers: list[nn.Module] = []
    for inner, outer in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inner, outer, 4, stride=2, padding=1), nn.GroupNorm(8, outer), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 1, 3, padding=1))


def adversarial(discriminator: nn.Module, picture: Tensor, target: Tensor) -> Tensor:
    """Hinge losses of both players in one sum; each gives gradients to its own player alone."""
    real, fake = discriminator(target), discriminator(picture.detach())
    judge = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    fool = -torch.func.functional_call(discriminator, frozen, (picture,)).mean()
    return judge + fool


def lpips() -> nn.Module:
    """LPIPS on AlexNet. Raises FileNotFoundError where torchvision's weights are missing."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"
    if not weights.is_file():
        raise FileNotFoundError(
            f"TokenizerRecipe.lpips needs AlexNet's weights at {weights}: put torchvision's file there or "
            f"set lpips=0"
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity("alex", normalize=True).requires_grad_(False)
