"""Export a checkpoint as ONNX: raw observation history and noise in, raw actions out, the whole solve inside.

    python -m stages.export --checkpoint data/checkpoints/lab/pusht/ft_fm-nfe1.safetensors --nfe 1 --out policy.onnx

The program is not part of the DAG, and needs the packages of `make env-export`.
"""

import argparse
from pathlib import Path

from pipeline.deployment.onnx_export import export_onnx
from pipeline.orchestration.stage import program
from pipeline.settings.paths import SAMPLERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--nfe", type=int, help="by default what the model was fine-tuned for")
    parser.add_argument("--sampler", choices=SAMPLERS, help="of a diffusion checkpoint alone; by default ddpm")
    parser.add_argument("--out", type=Path, default=Path("policy.onnx"))
    arguments = parser.parse_args()
    about = export_onnx(arguments.checkpoint, arguments.out, arguments.nfe, sampler=arguments.sampler)
    print(f"{arguments.checkpoint}, NFE {about['nfe']}: {about['inputs']} → {about['outputs']} → {arguments.out}")


if __name__ == "__main__":
    program(main)
