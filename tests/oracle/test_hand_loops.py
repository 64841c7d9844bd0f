"""Loops as diffusers' documentation writes them give the pipeline's picture: a part of `scripts/hand-loops`."""

import pytest

from tests.support import tiny
from tests.support.hand_loops import compare, pipelines

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' deprecations
one_thread = pytest.fixture(scope="module", autouse=True)(tiny.one_thread)
PARTS = {
    "StableDiffusionPipeline": ("PNDMScheduler", "DPMSolverSDEScheduler", "EDMEulerScheduler", "TCDScheduler"),
    "StableDiffusionXLPipeline": ("HeunDiscreteScheduler", "UniPCMultistepScheduler"),
    "StableDiffusionInpaintPipeline": ("KDPM2AncestralDiscreteScheduler", "LCMScheduler"),
    "StableDiffusionLatentUpscalePipeline": ("LMSDiscreteScheduler", "DPMSolverSinglestepScheduler"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_loop_by_hand_is_the_pipeline(kind: str) -> None:
    found = dict(compare(kind, pipelines(kind), 4, PARTS[kind]))
    assert len(found) == len(PARTS[kind])
    for name, row in found.items():
        assert not isinstance(row, str) and row[0] <= 1e-5 and row[1] <= 1e-4, (name, row)
