"""The worker with a pipeline that does what the prompt says, so that tests need neither model nor minutes."""

from __future__ import annotations

import os
import sys
import time
import types

from nerf_bridge.batch import worker
from nerf_bridge.batch.jobs import Job
from nerf_bridge.config import GenerateConfig
from nerf_bridge.errors import Interrupted, RunError, UserError


def generate(config: GenerateConfig, out) -> None:
    """Stands for `pipeline.generate`."""
    from batch.test_queue import finish

    os.write(1, b"printed by a run\n")
    if "broken" in config.prompt:
        raise {"broken": RunError, "broken words": UserError, "broken disk": OSError}[config.prompt]("it broke")
    if "dies" in config.prompt:
        os._exit(3)
    if "slow" in config.prompt:
        out.mkdir(parents=True)
        (out / "begun").touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            (out / "checkpoint").touch()
            raise Interrupted("stopped at step 3") from None
    finish(Job(config.prompt, {}, out, 1))
    (out / "made-by").write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")


if __name__ == "__main__":
    pipeline = types.ModuleType("nerf_bridge.pipeline")
    pipeline.generate = generate  # type: ignore[attr-defined]
    sys.modules["nerf_bridge.pipeline"] = pipeline
    sys.exit(worker.main())
