import time, sys
from pathlib import Path
def test_x(sources, tmp_path_factory):
    p = sources.copy(Path("/tmp/ftproj"))
    t=time.time()
    r = p.run("pipeline.repro")
    print(time.time()-t, r.returncode); print(r.stdout[-6000:]); print(r.stderr[-6000:])
