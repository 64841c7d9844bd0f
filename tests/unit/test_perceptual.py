"""LPIPS and DISTS, with random weights in the place of the learned ones."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from enlarger.errors import CheckpointError
from enlarger.nn.perceptual import SCALE, SHIFT, Judges, first_stages, read_judges

ALEX = ((64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3))
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
STAGES = (64, 128, 256, 512, 512)


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    made: dict[str, Tensor] = {}
    for i, (out, into, size) in enumerate(ALEX):
        made |= {
            f"alex.{i}.weight": torch.randn(out, into, size, size) / (into**0.5 * size),
            f"alex.{i}.bias": torch.zeros(out),
        }
        made[f"alex.heads.{i}"] = torch.rand(out)
    for i, (out, into) in enumerate(zip(VGG, (3, *VGG), strict=False)):
        made |= {f"vgg.{i}.weight": torch.randn(out, into, 3, 3) / (into**0.5 * 2), f"vgg.{i}.bias": torch.zeros(out)}
    for i, width in enumerate(STAGES):
        made[f"vgg.heads.{i}"] = torch.rand(width)
    for name in ("alpha", "beta"):
        made |= {f"dists.{name}.{i}": torch.rand(width) for i, width in enumerate((3, *STAGES))}
    return made


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    path = tmp_path_factory.mktemp("judges") / "judges.safetensors"
    safetensors.torch.save_file(weights(), path)
    return read_judges(path)


def pictures() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    truth = torch.rand(2, 3, 64, 64) * 2 - 1
    return truth, (truth + 0.3 * torch.randn_like(truth)).clamp(-1, 1)


@pytest.mark.parametrize("name", ["alex", "vgg", "dists"])
def test_equal_pictures_are_at_no_distance_and_worse_ones_further(judges: Judges, name: str) -> None:
    truth, worse = pictures()
    network = getattr(judges, name)
    same, near, far = (network(x, truth) for x in (truth, torch.lerp(truth, worse, 0.3), worse))
    assert same.shape == (2,) and float(same.abs().max()) < 1e-4
    assert bool((near > 1e-4).all()) and bool((far > near).all())
    assert torch.allclose(network(worse[:1], truth[:1]), far[:1], atol=1e-4)


def test_lpips_is_the_published_formula(judges: Judges) -> None:
    truth, worse = pictures()
    kept, unit = (
        weights(),
        [(x - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1) for x in (worse, truth)],
    )
    features = [
        F.conv2d(F.conv2d(x, kept["vgg.0.weight"], padding=1).relu(), kept["vgg.1.weight"], padding=1).relu()
        for x in unit
    ]
    a, b = (F.normalize(f, dim=1) for f in features)
    expected = ((a - b).square() * kept["vgg.heads.0"].view(1, -1, 1, 1)).sum(1).mean((1, 2))
    assert torch.allclose(first_stages(judges.vgg, 1)(worse, truth), expected, atol=1e-5)


def test_the_truth_takes_no_gradient(judges: Judges) -> None:
    truth, worse = pictures()
    worse.requires_grad_(True)
    judges.alex(worse, truth.requires_grad_(True)).sum().backward()
    assert worse.grad is not None and truth.grad is None


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (None, b"nothing"):
        path = tmp_path / "judges.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"judges.safetensors: holds no weights of LPIPS and DISTS"):
            read_judges(path)
    safetensors.torch.save_file({"alex.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"make the file with scripts/judges"):
        read_judges(path)
