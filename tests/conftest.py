"""Every test runs with the shapes and types of the library's annotations checked, on one thread."""

from __future__ import annotations

import torch
from jaxtyping import install_import_hook

PARTS = ("losses", "ops", "methods", "nets", "data", "engine")

# Before anything imports them: the hook rewrites a module while it is loaded.
install_import_hook([f"segshift.{part}" for part in PARTS], "checking.typecheck")

torch.set_num_threads(1)
