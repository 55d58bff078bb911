"""Run stages of runs that were started on other machines (``make worker POOL=name``).

This starts Prefect's process worker on the queues that this machine can serve. All stages run in this clone.
"""

import argparse
import asyncio
import os
import platform
import sys
from contextlib import suppress

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

from pipeline.orchestration.pool import HEARTBEAT_SECONDS, QUEUES, require_remote
from pipeline.utils.code_deps import ROOT
from pipeline.utils.environment import project_root
from pipeline.utils.errors import UserError
from pipeline.utils.hardware import cores, gpus

ASK_SECONDS = 2
"""Interval between two polls for work; many stages take no longer than Prefect's default of 10 s."""


def make_pool(name: str) -> None:
    """Create the pool and its queues if absent; raise a ``UserError`` if no Prefect server answers."""

    async def make() -> None:
        async with get_client() as client:
            with suppress(ObjectAlreadyExists):
                await client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            for priority, queue in enumerate(QUEUES, start=1):
                with suppress(ObjectAlreadyExists):
                    await client.create_work_queue(name=queue, work_pool_name=name, priority=priority)

    try:
        asyncio.run(make())
    except httpx.HTTPError as error:
        url = os.environ.get("PREFECT_API_URL", "not set")
        raise UserError(
            f"PREFECT_API_URL: given {url}, where no Prefect server answers ({error}); start one with `make ui` on the "
            "machine that starts runs, and forward its port with `ssh -L`"
        ) from None


def main() -> None:
    """Replace this process by Prefect's worker; exit with code 2 and one line on a ``UserError``."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.orchestration.worker", description=__doc__)
    parser.add_argument("--pool", required=True, help="name of the work pool; created if absent")
    parser.add_argument("--slots", type=int, default=1 if gpus() else cores(), help="stages at a time")
    arguments = parser.parse_args()
    root = project_root()
    try:
        if arguments.slots < 1:
            raise UserError(f"--slots: given {arguments.slots}, allowed: 1 or more")
        require_remote(root)
        make_pool(arguments.pool)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    own = {
        "FLOWTUNE_ROOT": str(root),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        "PREFECT_WORKER_QUERY_SECONDS": str(ASK_SECONDS),
    }
    queues = [part for queue in QUEUES if queue != "gpu" or gpus() for part in ("--work-queue", queue)]
    start = ["worker", "start", "--pool", arguments.pool, "--type", "process", "--name", platform.node(), *queues]
    command = [sys.executable, "-m", "prefect", *start, "--limit", str(arguments.slots)]
    os.execve(sys.executable, command, os.environ | own)


if __name__ == "__main__":
    main()
