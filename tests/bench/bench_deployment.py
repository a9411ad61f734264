"""What a round of a deployment costs beyond local training, against a trivial Flower app on the same machine, one after the other.

Three partners each, with processes of their own on the loopback; the same number of rounds, and arrays of the same shapes. Our nodes are as
`isthmus-client up` keeps them, and go through the proxy where nginx is installed. The other's are Flower's own programs (`trivial.py`), and
go straight to the SuperLink. A round is the time from one question of the coordinator to the next; its overhead is what is left without the
longest local training in it, and the parts are those of the node whose reply came last (`timeline.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from server.processes import find_nginx  # noqa: E402
from shared.config import RunConfig  # noqa: E402
from shared.transfer_layer import shared_shapes  # noqa: E402
from tests.bench import timeline, trivial  # noqa: E402
from tests.bench.timeline import PARTS, Round  # noqa: E402
from tests.journeys.coordinated import Coordinated, coordinator, new_home, tiny_run  # noqa: E402

PARTNERS = ("books", "films", "music")
QUERIES = 4
"""Questions before round 1: hello, moments, centroids, descriptor. After the last round comes the final layer."""
RATIO = "overhead of a round, against the trivial app's"
AIMS = {RATIO: ("<=", 1.5)}
_QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


@contextlib.contextmanager
def _traced(folder: Path) -> Iterator[Path]:
    """Processes that start inside write their requests down."""
    folder.mkdir()
    kept = dict(os.environ)
    paths = [str(Path(__file__).parent / "trace"), *filter(None, [kept.get("PYTHONPATH")])]
    os.environ.update(_QUIET, ISTHMUS_TRACE=str(folder), PYTHONPATH=os.pathsep.join(paths))
    try:
        yield folder
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _ours(folder: Path, config: RunConfig) -> list[Round]:
    with _traced(folder / "trace") as trace:
        ours = coordinator(folder, ROOT, domains=PARTNERS)
        toml = folder / "run.toml"
        toml.write_text(config.to_toml())
        try:
            ours.command("up", ours.home.root, "--detach")
            for domain in PARTNERS:
                os.environ["ISTHMUS_TRACE_NODE"] = domain
                ours.environment["ISTHMUS_TRACE_NODE"] = domain
                (ours.up if find_nginx() else ours.start_node)(domain)
            del ours.environment["ISTHMUS_TRACE_NODE"], os.environ["ISTHMUS_TRACE_NODE"]
            ours.wait(lambda: {one["node"] for one in ours.status()["partners"]} == {"online"}, "not every node connected")
            ours.command("run", ours.home.root, toml, "--wait-for", "all", timeout=1200)
        finally:
            ours.end()
        return timeline.rounds(timeline.read(trace), QUERIES, config.privacy.rounds)


def _theirs(folder: Path, config: RunConfig) -> list[Round]:
    folder.mkdir(exist_ok=True)
    with _traced(folder / "trace") as trace:
        home = new_home(folder / "coordinator")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
        theirs = Coordinated(home=home, partners={}, bundle=None, environment=environment)  # type: ignore[arg-type]
        shapes = json.dumps([list(shape) for shape in shared_shapes(config.model).values()])
        rounds = config.privacy.rounds
        try:
            trivial.run(theirs, folder, nodes=len(PARTNERS), rounds=rounds + 1, shapes=shapes)
        finally:
            theirs.end()
        return timeline.rounds(timeline.read(trace), 0, rounds)


def _parts(whose: str, rounds: list[Round]) -> dict[str, float]:
    means = [fmean(values) for values in zip(*(one.parts for one in rounds), strict=True)]
    processor = {f"{whose}, processor seconds of a message's process": fmean(one.processor for one in rounds)}
    return processor | {f"{whose}, seconds: {part}": mean for part, mean in zip(PARTS, means, strict=True)}


def run(quick: bool = True) -> dict[str, float]:
    config = tiny_run(rounds=3 if quick else 10)
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as name:
        theirs = _theirs(Path(name) / "trivial", config)
        (Path(name) / "ours").mkdir()
        ours = _ours(Path(name) / "ours", config)
    of_ours, of_theirs = fmean(one.overhead for one in ours), fmean(one.overhead for one in theirs)
    return {
        RATIO: of_ours / of_theirs,
        "the same, medians": median(one.overhead for one in ours) / median(one.overhead for one in theirs),
        "ours, seconds of overhead in a round": of_ours,
        "trivial, seconds of overhead in a round": of_theirs,
        **_parts("ours", ours),
        **_parts("trivial", theirs),
    }
