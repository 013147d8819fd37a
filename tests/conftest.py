"""Every test runs with the shapes and types of the library's annotations checked, on one thread."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from workbench import Pair

PARTS = ("losses", "ops", "methods", "nets", "data", "engine")

# Before anything imports them: the hook rewrites a module while it is loaded.
install_import_hook([f"segshift.{part}" for part in PARTS], "checking.typecheck")

torch.set_num_threads(1)

# Processes that read images talk through sockets there, whose paths have 107 bytes at most.
LONGEST = 60
if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# The same examples each time, and no limit of time: a slow machine and another hour fail nothing. New examples, and the
# seed of one's own: --hypothesis-profile default [--hypothesis-seed N].
settings.register_profile(
    "segshift", deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("segshift")

# A shell that starts the tests in the background has all that it starts ignore Ctrl-C; programs under test shall not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A tiny pair with a finished run, source_only to advent, that tests read and copy but do not change."""
    from workbench import make_pair, segshift

    pair = make_pair(tmp_path_factory.mktemp("trained"))
    done = segshift(*pair.adapt("keep_checkpoints=true", val=True))
    assert done.code == 0, done
    return pair


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first: at the end, one process would work through them while the others have nothing to do."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/test_dry_run.py"))
