"""The table of a run of diffusers' tests: how many pass, and why the others do not."""

import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

SCHEDULERS = (
    "ddim", "ddpm", "deis", "dpm_multi", "dpm_sde", "dpm_single", "edm_dpmsolver_multistep", "edm_euler", "euler",
    "euler_ancestral", "heun", "kdpm2_ancestral", "kdpm2_discrete", "lcm", "lms", "pndm", "tcd", "unipc",
)  # fmt: skip
FILES = [
    *(f"tests/pipelines/stable_diffusion/test_stable_diffusion{kind}.py" for kind in ("", "_img2img", "_inpaint")),
    *(
        f"tests/pipelines/stable_diffusion_2/test_stable_diffusion{kind}.py"
        for kind in ("", "_depth", "_inpaint", "_latent_upscale", "_upscale", "_v_pred")
    ),
    *(
        f"tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl{kind}.py"
        for kind in ("", "_img2img", "_inpaint")
    ),
    "tests/pipelines/test_pipelines_auto.py",
    *(f"tests/schedulers/test_scheduler_{kind}.py" for kind in SCHEDULERS),
]
BESIDE_THE_POINT = (  # IP-Adapter with the signatures it needs, ControlNet, PAG, the hub and peft's inside
    "ip_adapter", "IPAdapter", "test_pipeline_signature", "controlnet", "_pag", "hub", "local_files_only", "peft",
    "from_hub", "flax", "onnx",
)  # fmt: skip
BESIDE_SAID = ("tiny-controlnet", "enable_pag")  # the whole test stops at one


def main() -> None:
    """Print a row per file; `files` prints the files that are run."""
    if sys.argv[1:] == ["files"]:
        sys.stdout.write("\n".join(FILES) + "\n")
        return
    lines = (Path(os.environ["PEER_RECORD"]) / "results-ours.jsonl").read_text().splitlines()
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    theirs = Path(os.environ["PEER_RECORD"]) / "results-theirs.jsonl"
    known = [json.loads(line) for line in theirs.read_text().splitlines()] if theirs.exists() else []
    fails_there = {one["test"] for one in known if one["outcome"] == "failed"}  # numbers of the hub's own weights
    for line in lines:
        found = json.loads(line)
        name = found["test"].split("::", 1)[1]
        beside = any(word in name for word in BESIDE_THE_POINT) or found["test"] in fails_there
        beside = beside or any(word in found["said"] for word in BESIDE_SAID)
        outcome = "beside the point" if beside and found["outcome"] == "failed" else found["outcome"]
        counts[found["test"].split("::")[0].rsplit("/", 1)[1]][outcome] += 1
    for file, count in sorted(counts.items()):
        sys.stdout.write(
            f"| {file} | {count['passed']} | {count['failed']} | {count['beside the point']} | {count['skipped']} |\n"
        )
    whole = sum(counts.values(), Counter())
    share = whole["passed"] / max(whole["passed"] + whole["failed"], 1)
    sys.stdout.write(f"{whole['passed']} pass, {whole['failed']} fail: {share:.1%}\n")


if __name__ == "__main__":
    main()
