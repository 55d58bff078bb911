"""Stage ``certify``: prove stability properties of a residual model, and search for counterexamples."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from pipeline.evaluation.certify import certify_residual, drawn_inputs, measure_decay, share_within
from pipeline.evaluation.residual_policy import ResidualPolicy
from pipeline.nets.persidskii import PersidskiiResidual
from pipeline.orchestration.stage import program, stage
from pipeline.settings.inputs import read_inputs
from pipeline.settings.paths import ScaleReports, TaskFiles, fingerprint, split_row
from pipeline.stability.certificate import CERTIFIED
from pipeline.training.data import PreparedData
from pipeline.training.image_conditioning import as_seen
from pipeline.training.residual_checkpoint import load_model, read_recipe
from pipeline.utils.atomic import write_text
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import use_threads

_CONDITIONS = 256  # held-out observations that decay and inputs are measured on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--row", required=True, help="method and NFE in one word, such as resft_fm-nfe16")
    arguments = parser.parse_args()
    inputs = read_inputs("certify", arguments.scale, arguments.task, arguments.row)
    settings = inputs.settings.task(arguments.task)
    method, nfe = split_row(arguments.row)
    use_threads(settings.threads)
    files = TaskFiles(arguments.scale, arguments.task)
    model, out = files.model(method, nfe), ScaleReports(arguments.scale).certificate(arguments.task, arguments.row)
    with stage(
        inputs,
        f"certify-{arguments.scale}-{arguments.task}-{arguments.row}",
        deps=[model, files.prepared, files.frames],
        outs=[out],
    ) as here:
        policy, metadata = load_model(model)
        recipe = read_recipe(model)
        if not isinstance(policy, ResidualPolicy) or recipe is None:
            raise UserError(f"{model}: has no residual, and nothing to certify")
        written: dict[str, Any] = {
            "scale": arguments.scale,
            "task": arguments.task,
            "row": arguments.row,
            "model": fingerprint(model),
            "train_steps": metadata.train_steps,
            "train_seed": metadata.train_seed,
            "grid": policy.grid,
            "decay": None,
            "region_share": None,
            "certificates": {},
        }
        if isinstance(policy.residual, PersidskiiResidual):
            seen = as_seen(policy, PreparedData.load(files.prepared), files.frames, held_out_only=True)
            condition = seen.held_out_condition[:_CONDITIONS]
            anchor, drawn, _ = drawn_inputs(policy, condition, nfe, settings.seed)
            rest = anchor.double().numpy().reshape(-1, policy.residual.source.n)[0]
            found = certify_residual(policy.residual, recipe, rest)
            decay = measure_decay(policy, condition, nfe, found["step"], seed=settings.seed)
            written["decay"] = {name: round(value, 9) for name, value in asdict(decay).items()}
            if "region" in found and found["region"].status == CERTIFIED:
                written["region_share"] = share_within(found["region"], drawn)
            written["certificates"] = {name: certificate.to_dict() for name, certificate in found.items()}
            for name, certificate in found.items():
                here.run.tag(f"certificate_{name}", certificate.status)
                here.run.log({f"{name}_{key}": value for key, value in certificate.claim.items()})
            here.run.log({f"decay_{name}": value for name, value in written["decay"].items()})
        write_text(out, json.dumps(written) + "\n")
        here.run.artifact(out)


if __name__ == "__main__":
    program(main)
